"""Row S21: PROXY headers that are oversized, cut, absent, doubled, lying or damaged, over real sockets."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from conftest import StartService
from support.certificates import Pki
from support.instances import CT, ct_slice
from support.proxy_headers import (
    AUTHORITY,
    CRC32C,
    LOCAL,
    NOOP,
    PROXY,
    RIGHT,
    SIGNATURE,
    TCP4,
    TCP6,
    UDP4,
    UNIX,
    UNSPECIFIED,
    addresses,
    binary,
    block,
    line,
    mutated,
    read,
    tlv,
)
from support.scu import EXPLICIT, VERIFICATION, RawAssociation, associate_rq, item
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

BALANCER, OTHER, PEER = "127.0.0.9", "127.0.0.8", "192.0.2.7"
ECHO = [(1, VERIFICATION, [EXPLICIT])]
FROM = {"STORESCP_DICOM_STORE_SCP__PROXY_PROTOCOL_FROM": json.dumps([BALANCER]), "STORESCP_HTTP__PORT": "0"}
RULES = {"STORESCP_TENANTS__RULES": json.dumps([{"tenant_id": "far", "source": "192.0.2.0/24"}])}
CANARY = b"CANARY"
FUZZED = {"rust": 10_000, "python": 300}


class Wrong(NamedTuple):
    """What is sent, and a part of the detail that tells why it is refused; `then_leaves`: nothing follows."""

    sent: bytes
    detail: str
    then_leaves: bool = False


REQUEST = associate_rq(ECHO, calling=CANARY)
WRONG = {
    "absent": Wrong(b"", "does not begin with"),
    "http": Wrong(b"GET /CANARY HTTP/1.1\r\n\r\n", "does not begin with"),
    "lower-case": Wrong(line(PEER).lower(), "does not begin with"),
    "v1-cut": Wrong(line(PEER)[:-1], "ended within", then_leaves=True),
    "v2-cut": Wrong(binary(PEER)[:-1], "ended within", then_leaves=True),
    "v2-cut-in-the-signature": Wrong(SIGNATURE[:5], "ended within", then_leaves=True),
    "v1-oversized": Wrong(b"PROXY UNKNOWN " + CANARY * 20 + b"\r\n", "no line end within 107 bytes"),
    "v1-without-end": Wrong(b"PROXY UNKNOWN " + CANARY * 10_000, "no line end within 107 bytes"),
    "v1-line-feed-only": Wrong(line(PEER).replace(b"\r\n", b"\n"), "addresses and ports"),
    "v1-host-name": Wrong(b"PROXY TCP4 CANARY.example 10.0.0.1 1 2\r\n", "addresses and ports"),
    "v1-leading-zero": Wrong(line(PEER).replace(b"192.0", b"192.00"), "addresses and ports"),
    "v1-two-spaces": Wrong(line(PEER).replace(b" 10.", b"  10."), "addresses and ports"),
    "v1-large-port": Wrong(line(PEER, 65536), "addresses and ports"),
    "v1-other-family": Wrong(line(PEER).replace(b"TCP4", b"TCP6"), "addresses and ports"),
    "v1-udp": Wrong(line(PEER).replace(b"TCP4", b"UDP4"), "another protocol"),
    "v2-oversized": Wrong(binary(PEER, 1, tlv(NOOP, bytes(16384))), "longer than 16384 bytes"),
    "v2-largest": Wrong(block(LOCAL, UNSPECIFIED, bytes(65535)), "longer than 16384 bytes"),
    "v2-version-1": Wrong(block(0x11, TCP4, addresses(PEER)), "another version"),
    "v2-command": Wrong(block(0x22, TCP4, addresses(PEER)), "another command"),
    "v2-udp": Wrong(block(PROXY, UDP4, addresses(PEER)), "another protocol"),
    "v2-unix": Wrong(block(PROXY, UNIX, CANARY.ljust(216, b"\0")), "another protocol"),
    "v2-reserved": Wrong(block(PROXY, 0x41, addresses(PEER)), "another protocol"),
    "v2-short": Wrong(block(PROXY, TCP6, addresses(PEER)), "too short for its addresses"),
    "v2-tlv-beyond": Wrong(block(PROXY, TCP4, addresses(PEER) + tlv(AUTHORITY, CANARY)[:-1]), "a TLV"),
    "v2-tlv-part": Wrong(block(PROXY, TCP4, addresses(PEER) + b"\x04\0"), "a TLV"),
    "v2-checksum": Wrong(binary(PEER, 1, tlv(CRC32C, CANARY[:4])), "checksum"),
    "v2-checksum-short": Wrong(binary(PEER, 1, tlv(CRC32C, b"\0\0")), "checksum"),
    "v2-checksum-twice": Wrong(binary(PEER, 1, tlv(CRC32C, bytes(4)), checksum=True), "checksum"),
}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["rust", "python", "tls"])
def target(request: pytest.FixtureRequest, start_service: StartService, pki: Pki) -> tuple[ServiceProcess, Pki | None]:
    """A service behind a load balancer, of either engine, or with TLS on the only port that is used."""
    if request.param == "tls":
        return start_service(env=FROM | RULES | pki.environment()), pki
    return start_service(engine=request.param, env=FROM | RULES), None


def port_of(service: ServiceProcess) -> int:
    return service.port or service.tls_port


def answer_to(port: int, sent: bytes, *, leaves: bool) -> tuple[bytes, tuple[str, int]]:
    """What comes back until the service closes the connection, and from where it was sent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 10, (BALANCER, 0)) as client:
        own = client.getsockname()
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
            if leaves:
                with contextlib.suppress(OSError):  # the service may have closed it already
                    client.shutdown(socket.SHUT_WR)
            while piece := client.recv(1 << 16):
                answer += piece
    return answer, own


def store(service: ServiceProcess, number: int, opening: bytes, pki: Pki | None, source: str = BALANCER) -> None:
    one = ct_slice(number, rows=4)
    tls = None if pki is None else pki.context(pki.device)
    contexts = [(1, CT, [EXPLICIT])]
    with RawAssociation(port_of(service), contexts, source=source, opening=opening, tls=tls) as association:
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()


def refused_by_header(metrics: int) -> int:
    text = get(metrics, "/metrics")[1]
    found = re.search(r'storescp_refused_total\{reason="proxy_header"\} (\S+)', text)
    assert found, text
    return int(float(found[1]))


def test_s21_what_is_no_proxy_header_is_closed_without_an_answer(target: tuple[ServiceProcess, Pki | None]) -> None:
    service, pki = target
    metrics = http_port(service)
    # What the first question opens stays open.
    assert get(metrics, "/metrics")[0] == 200
    before = service.descriptors()
    details = []
    for name, wrong in WRONG.items():
        sent = wrong.sent if wrong.then_leaves else wrong.sent + REQUEST
        assert answer_to(port_of(service), sent, leaves=wrong.then_leaves)[0] == b"", name
        details.append(wrong.detail)
    wait_until(lambda: refused_by_header(metrics) == len(WRONG))
    told = [event["detail"] for event in service.events("connection.refused")]
    # Beyond twenty in a second they are only counted.
    assert len(told) >= 20
    for detail in told:
        while details[0] not in detail:
            details.pop(0)
        details.pop(0)
    assert {event["cause"] for event in service.events("connection.refused")} == {"proxy_header"}
    assert {event["peer"] for event in service.events("connection.refused")} == {BALANCER}
    wait_until(lambda: service.descriptors() <= before, what=f"more than the {before} descriptors of before")
    for number, (header, address) in enumerate([(line(PEER), PEER), (binary(PEER), PEER), (RIGHT[-1], BALANCER)]):
        store(service, number, header, pki)
        record = service.records(count=number + 1)[number]
        assert (record["source_ip"], record["tenant_id"] == "far") == (address, address == PEER)
    assert CANARY.decode() not in service.log()


def test_s21_a_header_that_is_not_asked_for_changes_no_address(target: tuple[ServiceProcess, Pki | None]) -> None:
    """From an address that is not trusted, and behind another header."""
    service, pki = target
    http_port(service)
    for header in RIGHT:
        for sent, source in ((header, OTHER), (line("198.51.100.7") + header, BALANCER)):
            with socket.create_connection(("127.0.0.1", port_of(service)), 10, (source, 0)) as client:
                client.sendall(sent + REQUEST)
                # An A-ABORT, or an alert of TLS.
                assert client.recv(1) == (b"\x07" if pki is None else b"\x15"), header
    store(service, 1, b"", pki, source=OTHER)
    [record] = service.records(count=1)
    assert (record["source_ip"], record["tenant_id"]) == (OTHER, "1234567890")
    lines = service.events("connection.refused")
    assert {event["cause"] for event in lines} == {"malformed_request" if pki is None else "tls_handshake"}
    assert {event["peer"] for event in lines} == {OTHER, "198.51.100.7"}
    assert all("PROXY header" in event["detail"] for event in lines)


def fuzzed(engine: str) -> Iterator[tuple[bytes, bytes]]:
    """Headers and the requests behind them; the calling AE title is the number."""
    draw = random.Random(random.getrandbits(64))
    # The pure engine writes a line for an association only where its request is odd.
    odd = item(0x5A, b"odd")
    for number in range(FUZZED[engine]):
        yield mutated(draw), associate_rq(ECHO, calling=f"F{number}".encode(), extra_items=odd)


def peers_of(service: ServiceProcess, engine: str) -> dict[str, tuple[str, int]]:
    """Address and port of each association by its calling AE title."""
    lines = service.events("association.connection_lost" if engine == "rust" else "association.odd_request")
    return {line["calling_ae"]: (line["peer"], line["port"]) for line in lines}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_s21_no_fuzzed_header_is_taken_for_another_address(start_service: StartService, engine: str) -> None:
    """An address counts only where a second reader finds the same header, and the request right behind it."""
    service = start_service(engine=engine, env=FROM)
    metrics = http_port(service)
    # What the first question opens stays open.
    assert get(metrics, "/metrics")[0] == 200
    before = service.descriptors()
    expected, wrong = {}, 0
    for number, (header, request) in enumerate(fuzzed(engine)):
        stream = header + request
        _, own = answer_to(service.port, stream, leaves=True)
        found = read(stream)
        wrong += found is None
        if found is not None and stream[found.length :] == request:
            expected[f"F{number}"] = found.peer or own
    wait_until(lambda: refused_by_header(metrics) == wrong)
    wait_until(lambda: len(peers_of(service, engine)) >= len(expected))
    assert peers_of(service, engine) == expected
    # All kinds came up.
    assert wrong > FUZZED[engine] // 4
    assert len(expected) > FUZZED[engine] // 8
    assert {address for address, _ in expected.values()} >= {PEER, "2001:db8::7", BALANCER}
    wait_until(lambda: service.descriptors() <= before, what=f"more than the {before} descriptors of before")
    store(service, 1, line(PEER), None)
    assert service.records(count=1)[0]["source_ip"] == PEER
