"""What the log says of those who are turned away."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from support.instances import CT
from support.scu import EXPLICIT, RawAssociation, Rejected
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
TITLES = {"STORESCP_DICOM_STORE_SCP__ALLOWED_CALLED_AE_TITLES": '["ARCHIVE"]'}


def knock_with_wrong_title(service: ServiceProcess) -> None:
    with pytest.raises(Rejected):
        RawAssociation(service.port, [(1, CT, [EXPLICIT])], called=b"SOMEBODY")


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_verbose_explains_a_rejected_association(start_service: StartService, engine: str) -> None:
    service = start_service("-v", engine=engine, env=TITLES)
    knock_with_wrong_title(service)
    wait_until(lambda: service.events("association.rejected"))
    [line] = service.events("association.rejected")
    assert line["text"].startswith("The sender calls us 'SOMEBODY', and we are: ARCHIVE, STORE-SCP.")
    assert "allowed_called_ae_titles" in line["text"]
    assert (line["cause"], line["called_ae"]) == ("called_ae_title", "SOMEBODY")


def test_without_it_the_line_is_short(start_service: StartService) -> None:
    service = start_service(env=TITLES)
    knock_with_wrong_title(service)
    wait_until(lambda: service.events("association.rejected"))
    [line] = service.events("association.rejected")
    assert "text" not in line


def test_verbose_explains_contexts_and_strangers(start_service: StartService) -> None:
    service = start_service("-v")
    with RawAssociation(service.port, [(1, FIND, [EXPLICIT]), (3, CT, ["1.2.3.4"])]) as association:
        association.release()
    with socket.create_connection(("127.0.0.1", service.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.recv(100)
    wait_until(lambda: service.events("connection.refused"))
    explained = [line["text"] for line in service.events("context.rejected")]
    assert "is not a class of images" in explained[0]
    assert "CT Image Storage" in explained[1]
    [stranger_line] = service.events("connection.refused")
    assert "not an A-ASSOCIATE-RQ" in stranger_line["text"]


def test_a_flood_of_rejections_is_no_flood_of_lines(start_service: StartService) -> None:
    service = start_service(env=TITLES)
    for _ in range(100):
        knock_with_wrong_title(service)
    service.stop()
    told = len(service.events("association.rejected"))
    untold = sum(line["count"] for line in service.events("association.rejected_more"))
    assert told + untold == 100
    assert told < 100
