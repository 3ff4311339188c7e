"""Odd A-ASSOCIATE-RQs over real sockets: what is odd costs the item that it is in and nothing else."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from conftest import StartService
from support.instances import CT, ct_slice, dataset_of
from support.odd_requests import ABORTED, NAME, ONE, REFUSED, pdu_of, taken, user, with_user
from support.scu import Aborted, RawAssociation, Rejected, item
from support.waiting import wait_until

ENGINES = ["rust", "python"]


def exchange(port: int, request: bytes, number: int) -> tuple[dict[int, int], int | None]:
    """Results by context id, and the status of an instance on the first accepted context."""
    with RawAssociation(port, [], request=request) as association:
        results = {context: result for context, (result, _) in association.accepted.items()}
        accepted = [context for context, result in results.items() if result == 0]
        status = None
        if accepted:
            one = ct_slice(number, rows=2)
            status = association.store(accepted[0], CT, one.sop_instance, one.dataset).status
        association.release()
    return results, status


def oddities(line: dict[str, object]) -> list[str]:
    told = line.get("oddities", [])
    assert isinstance(told, list)
    return [one["code"] for one in told]


@pytest.mark.parametrize("engine", ENGINES)
def test_odd_requests_are_answered_and_told(start_service: StartService, engine: str) -> None:
    scp = start_service(engine=engine, env={"STORESCP_STORAGE__DURABILITY": "none"})
    requests = taken()
    for number, one in enumerate(requests):
        results, status = exchange(scp.port, one.pdu, number)
        assert results == one.results, one.name
        assert status == (0 if 0 in one.results.values() else None), one.name
    scp.stop()
    lines = scp.events("association.released" if engine == "rust" else "association.odd_request")
    # Of associations that follow each other the lines may change places.
    expected = Counter(one.codes for one in requests if one.codes or engine == "rust")
    assert Counter(tuple(oddities(line)) for line in lines) == expected
    assert all(line["called_ae"] and line["calling_ae"] for line in lines)
    assert all(len(detail["detail"]) < 200 for line in lines for detail in line.get("oddities", ()))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_followed_or_answered_is_refused(start_service: StartService, engine: str) -> None:
    scp = start_service(engine=engine)
    for name, (request, code) in REFUSED.items():
        with pytest.raises((Aborted, Rejected)) as refused:
            RawAssociation(scp.port, [], request=request)
        assert refused.value.code == code, name
    assert exchange(scp.port, pdu_of(NAME, ONE, user()), 1) == ({1: 0}, 0)
    aborted = sum(code == ABORTED for _, code in REFUSED.values())
    wait_until(lambda: len(scp.events("association.malformed_request")) == aborted)
    lines = scp.events("association.malformed_request")
    # pynetdicom would wait for its timers.
    scp.kill()
    assert all((line["calling_ae"], line["called_ae"]) == ("RAW", "STORE-SCP") for line in lines)
    assert lines[0]["reason"] == "item 60 of 9 bytes reaches beyond the end of the request, 1 bytes on"


@pytest.mark.parametrize("engine", ENGINES)
def test_titles_are_echoed_as_they_came_and_recorded_in_ascii(start_service: StartService, engine: str) -> None:
    scp = start_service(engine=engine)
    request = pdu_of(NAME, ONE, user(), calling=b"\xc9CHO\0junk", called=b" \0STORE-SCP\0")
    one = ct_slice(1, rows=2)
    with socket.create_connection(("127.0.0.1", scp.port), 10) as peer:
        peer.sendall(request)
        accept = peer.recv(1 << 16)
    assert accept[0] == 2
    assert accept[10:42] == request[10:42]
    with RawAssociation(scp.port, [], request=request) as association:
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    [record] = scp.records(count=1)
    assert (record["source_ae"], record["called_ae"]) == ("?CHO", "STORE-SCP")
    [file] = scp.files()
    assert b"AE\x04\x00?CHO" in file.read_bytes()[:600]
    assert dataset_of(file) == one.dataset


@pytest.mark.parametrize("engine", ENGINES)
def test_verbose_says_in_words_what_is_odd(start_service: StartService, engine: str) -> None:
    scp = start_service("-v", engine=engine)
    exchange(scp.port, with_user(item(0x60, b"x"), item(0x55, b"V1\\2")), 1)
    wait_until(lambda: len(scp.events("request.odd")) == 2)
    unknown, name = scp.events("request.odd")
    assert (unknown["code"], unknown["detail"]) == ("unknown_item", "60 in the user information")
    assert unknown["text"].startswith("The request has an item of a type that is not known there")
    assert r"V1\\2" in name["text"]
    assert (name["calling_ae"], name["called_ae"]) == ("RAW", "STORE-SCP")


def test_a_remembered_request_tells_its_oddities_each_time(start_service: StartService) -> None:
    scp = start_service()
    for number in range(5):
        exchange(scp.port, with_user(item(0x60, b"x")), number)
    scp.stop()
    assert [oddities(line) for line in scp.events("association.released")] == [["unknown_item"]] * 5
