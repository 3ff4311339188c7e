"""What the log says of refused instances, with both engines."""

from __future__ import annotations

import struct

import pytest

from conftest import StartService
from storescp import _core
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

ENGINES = pytest.mark.parametrize("engine", ["rust", "python"])
MOST = _core.MOST_NAMED_REFUSALS
TENANT = 0x12111217


def send(service: ServiceProcess, count: int, dataset: bytes = b"") -> list[str]:
    """Sends broken instances over one association; their UIDs."""
    uids = [f"1.2.826.0.1.{number}" for number in range(1, count + 1)]
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])], calling=b"CT7") as association:
        for uid in uids:
            assert association.store(1, CT, uid, dataset).status != 0
        association.release()
    return uids


@ENGINES
def test_a_refused_instance_is_named_at_info(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine)
    whole = ct_slice(1, rows=4)
    send(service, 1, whole.dataset)
    assert service.stop() == 0
    [line] = service.events("instance.refused")
    assert line["level"] == "info"
    assert (line["status"], line["comment"]) == ("A900", "SOPInstanceUID of the data set differs from the command")
    assert (line["sop_instance_uid"], line["calling_ae"], line["peer"]) == ("1.2.826.0.1.1", "CT7", "127.0.0.1")
    assert (line["association"], line["bytes"]) == (1, len(whole.dataset))
    assert "text" not in line
    assert not service.events("instance.refused_more")
    assert not service.events("instance.stored")


@ENGINES
@pytest.mark.parametrize("more", [0, 7])
def test_the_first_of_an_association_are_named_and_the_others_counted(
    start_service: StartService, engine: str, more: int
) -> None:
    service = start_service(engine=engine)
    sent = [send(service, MOST + more) for _ in range(2)]
    assert service.stop() == 0
    for number, uids in enumerate(sent, start=1):
        named = [
            line["sop_instance_uid"] for line in service.events("instance.refused") if line["association"] == number
        ]
        assert named == uids[:MOST]
    left_out = [(line["association"], line["count"]) for line in service.events("instance.refused_more")]
    assert left_out == ([(1, more), (2, more)] if more else [])


@ENGINES
def test_at_debug_level_all_are_named_and_explained(start_service: StartService, engine: str) -> None:
    service = start_service("-v", engine=engine)
    uids = send(service, MOST + 3)
    assert service.stop() == 0
    lines = service.events("instance.refused")
    assert [line["sop_instance_uid"] for line in lines] == uids
    assert [line["level"] for line in lines] == ["info"] * MOST + ["debug"] * 3
    assert all("always required" in line["text"] for line in lines)


@ENGINES
def test_at_warning_level_no_instance_is_named(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env={"STORESCP_LOG__LEVEL": "warning"})
    send(service, 1)
    assert service.stop() == 0
    assert not service.events("instance.refused")


def with_tenant(dataset: bytes, value: bytes) -> bytes:
    """A data set with the private element that names the tenant, LO (PS3.5 7.1.2)."""
    group = TENANT >> 16
    creator = struct.pack("<HH2sH", group, 0x0012, b"LO", 4) + b"ACME"
    element = struct.pack("<HH2sH", group, TENANT & 0xFFFF, b"LO", len(value)) + value
    at = dataset.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    return dataset[:at] + creator + element + dataset[at:]


@ENGINES
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"HOSP_X", "HOSP_X"),
        (b"two\nlines\x1b[1m", r"two\u{a}lines\u{1b}[1m"),
        ("Süd ".encode(), r"S\u{fc}d"),
        (b"\xff\\a ", r"\u{fffd}\u{5c}a"),
        (b"x" * 64, "x" * 64),
        (b"y" * 66, "y" * 64 + "..."),
        (b"", ""),
    ],
    ids=["plain", "control", "accents", "no text", "long", "too long", "empty"],
)
def test_an_unknown_tenant_is_named(start_service: StartService, engine: str, value: bytes, shown: str) -> None:
    tenants = {"from_private_element": "true", "known": '["HOSP_A"]', "default": ""}
    env = {f"STORESCP_TENANTS__{key.upper()}": text for key, text in tenants.items()}
    service = start_service("-v", engine=engine, env=env)
    instance = ct_slice(1, rows=4)
    known = with_tenant(instance.dataset, b"HOSP_A")
    datasets = [with_tenant(instance.dataset, value), instance.dataset, known]
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        answers = [association.store(1, CT, instance.sop_instance, dataset) for dataset in datasets]
        association.release()
    assert service.stop() == 0
    assert [answer.status for answer in answers] == [0x0124, 0x0124, 0]
    assert answers[0].comment == "tenant not authorised"
    named, without = service.events("instance.refused")
    assert named["tenant_value"] == shown
    assert f"'{shown}'" in named["text"]
    assert "tenants.known" in named["text"]
    assert "tenant_value" not in without
