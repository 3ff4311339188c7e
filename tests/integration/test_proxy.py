"""Connections from load balancers: whose they are by their PROXY header, on both ports and with both engines."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from conftest import StartService
from storescp.config import load
from support.certificates import Pki
from support.command import storescp
from support.instances import CT, ct_slice
from support.proxy_headers import (
    AUTHORITY,
    LOCAL,
    NOOP,
    PROXY,
    UNSPECIFIED,
    addresses,
    binary,
    block,
    line,
    tlv,
)
from support.scu import EXPLICIT, VERIFICATION, Aborted, Closed, RawAssociation, Rejected, associate_rq
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

ENGINES = pytest.mark.parametrize("engine", ["rust", "python"])
BALANCER, OTHER = "127.0.0.9", "127.0.0.8"
CONTEXTS = [(1, CT, [EXPLICIT]), (3, VERIFICATION, [EXPLICIT])]
FROM = {"STORESCP_DICOM_STORE_SCP__PROXY_PROTOCOL_FROM": json.dumps(["127.0.0.9/32"])}
RULES = {
    "STORESCP_TENANTS__RULES": json.dumps(
        [
            {"tenant_id": "far", "source": "192.0.2.0/24"},
            {"tenant_id": "far-v6", "source": "2001:db8::/32"},
            {"tenant_id": "near", "source": BALANCER},
        ]
    )
}
# Headers, whom they name, and whose instances those are.
NAMED = {
    "v1-tcp4": (line("192.0.2.7"), "192.0.2.7", "far"),
    "v1-tcp6": (line("2001:db8::7"), "2001:db8::7", "far-v6"),
    "v1-mapped": (line("::ffff:192.0.2.7"), "192.0.2.7", "far"),
    "v2-tcp4": (binary("192.0.2.7"), "192.0.2.7", "far"),
    "v2-tcp6": (binary("2001:db8::7"), "2001:db8::7", "far-v6"),
    "v2-mapped": (binary("::ffff:192.0.2.7"), "192.0.2.7", "far"),
    "v2-tlvs": (
        binary("192.0.2.7", 4711, tlv(NOOP, bytes(300)), tlv(AUTHORITY, b"pacs.example"), checksum=True),
        "192.0.2.7",
        "far",
    ),
}
OWN = {
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v1-unknown-long": b"PROXY UNKNOWN 192.0.2.7 10.0.0.1 1 2\r\n",
    "v2-local": block(LOCAL, UNSPECIFIED, b""),
    "v2-local-addresses": block(LOCAL, 0x11, addresses("192.0.2.7")),
    "v2-unspecified": block(PROXY, UNSPECIFIED, b""),
}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def both(start_service: StartService, pki: Pki) -> ServiceProcess:
    """A clear port and one with TLS, both behind a load balancer."""
    return start_service(env=FROM | RULES | pki.environment(port="0"), listeners=2)


def send(service: ServiceProcess, number: int, opening: bytes, pki: Pki | None = None, source: str = BALANCER) -> None:
    """Stores an instance, over TLS where there are certificates."""
    one = ct_slice(number, rows=4)
    port, tls = (service.port, None) if pki is None else (service.tls_port, pki.context(pki.device))
    with RawAssociation(port, CONTEXTS, source=source, opening=opening, tls=tls) as association:
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()


def lines_of(service: ServiceProcess, count: int) -> list[tuple[str, int, str | None]]:
    """Peer, port and load balancer of each association that was released, in the order of their begin."""
    wait_until(lambda: len(service.events("association.released")) == count)
    events = sorted(service.events("association.released"), key=lambda event: int(event["association"]))
    return [(event["peer"], event["port"], event.get("proxy_address")) for event in events]


@ENGINES
def test_the_address_of_the_header_is_that_of_the_sender(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=FROM | RULES)
    headers = [*NAMED.values(), *((header, BALANCER, "near") for header in OWN.values())]
    # Twice each: the second time the Rust engine knows the request and serves it at once.
    for number, (header, _, _) in enumerate(headers * 2):
        send(service, number, header)
    expected = [(address, tenant) for _, address, tenant in headers] * 2
    records = service.records(count=len(expected))
    by_number = sorted(records, key=lambda record: int(record["sop_uid"].rpartition(".")[2]))
    assert [(record["source_ip"], record["tenant_id"]) for record in by_number] == expected
    if engine == "rust":
        told = lines_of(service, len(expected))
        assert [(peer, proxy) for peer, _, proxy in told] == [(address, BALANCER) for address, _ in expected]
        assert all((port == 4711) == (peer != BALANCER) for peer, port, _ in told)


def test_the_header_comes_before_tls(both: ServiceProcess, pki: Pki) -> None:
    send(both, 1, line("192.0.2.7"), pki)
    send(both, 2, binary("2001:db8::7", 4711, tlv(NOOP, bytes(3000)), checksum=True), pki)
    send(both, 3, block(LOCAL, UNSPECIFIED, b""), pki)
    first, second, (peer, _, proxy) = lines_of(both, 3)
    assert (first, second) == (("192.0.2.7", 4711, BALANCER), ("2001:db8::7", 4711, BALANCER))
    assert (peer, proxy) == (BALANCER, BALANCER)
    assert all(event["tls"] == "TLSv1_3" for event in both.events("association.released"))
    assert [record["tenant_id"] for record in both.records(count=3)] == ["far", "far-v6", "near"]


@ENGINES
def test_nobody_else_is_asked_for_a_header(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=FROM | RULES | {"STORESCP_TENANTS__DEFAULT": "rest"})
    send(service, 1, b"", source=OTHER)
    [record] = service.records(count=1)
    assert (record["source_ip"], record["tenant_id"]) == (OTHER, "rest")
    if engine == "rust":
        assert [(peer, proxy) for peer, _, proxy in lines_of(service, 1)] == [(OTHER, None)]


@ENGINES
def test_the_address_of_the_header_is_the_one_that_must_be_allowed(start_service: StartService, engine: str) -> None:
    service = start_service(
        engine=engine, env=FROM | {"STORESCP_DICOM_STORE_SCP__ALLOWED_PEERS": json.dumps(["192.0.2.0/24", OTHER])}
    )
    send(service, 1, binary("192.0.2.7"))
    for header in (binary("198.51.100.7"), *OWN.values()):
        with pytest.raises(Rejected) as rejected:
            send(service, 2, header)
        assert rejected.value.code == (1, 1, 1)
    rejections = service.events("association.rejected")
    assert {(event["cause"], event["proxy_address"]) for event in rejections} == {("peer_address", BALANCER)}
    assert [event["peer"] for event in rejections] == ["198.51.100.7", *(BALANCER for _ in OWN)]


def test_connections_are_counted_for_the_address_of_the_header(start_service: StartService) -> None:
    service = start_service(env=FROM | {"STORESCP_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": "2"})
    with contextlib.ExitStack() as held:
        # Without a header they are nobody's yet.
        for _ in range(5):
            held.enter_context(socket.create_connection(("127.0.0.1", service.port), 5, (BALANCER, 0)))
        for _ in range(2):
            held.enter_context(
                RawAssociation(service.port, CONTEXTS, source=BALANCER, opening=binary("192.0.2.7"), timeout=5)
            )
        with pytest.raises((Closed, ConnectionError)):
            RawAssociation(service.port, CONTEXTS, source=BALANCER, opening=binary("192.0.2.7"), timeout=5)
        refused = service.wait_for_event("connection.refused")
        assert (refused["cause"], refused["peer"]) == ("connections_per_address", "192.0.2.7")
        send(service, 1, binary("192.0.2.8"))
        send(service, 2, OWN["v2-local"])
    wait_until(lambda: len(service.events("association.connection_lost")) == 2)
    send(service, 3, binary("192.0.2.7"))


@ENGINES
def test_associations_are_counted_for_the_address_of_the_header(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=FROM | {"STORESCP_LIMITS__MAX_ASSOCIATIONS_PER_ADDRESS": "1"})
    with RawAssociation(service.port, CONTEXTS, source=BALANCER, opening=line("192.0.2.7")) as held:
        with pytest.raises(Rejected) as rejected:
            send(service, 1, binary("192.0.2.7"))
        assert rejected.value.code == (2, 3, 2)
        send(service, 2, binary("192.0.2.8"))
        assert held.echo(3).status == 0


@ENGINES
def test_a_header_that_nobody_expects_is_named(start_service: StartService, engine: str) -> None:
    """It is refused as every other thing that is no request, and the line says what to do."""
    service = start_service("-v", engine=engine, env=FROM)
    for header in (line("192.0.2.7"), binary("192.0.2.7"), OWN["v2-local"]):
        with pytest.raises(Aborted):
            send(service, 1, header, source=OTHER)
        with pytest.raises(Aborted):
            send(service, 1, binary("192.0.2.9") + header)
    wait_until(lambda: len(service.events("connection.refused")) == 6)
    refused = service.events("connection.refused")
    assert {event["cause"] for event in refused} == {"malformed_request"}
    unexpected, second = refused[::2], refused[1::2]
    for event in unexpected:
        assert event["peer"] == OTHER
        assert event["detail"].endswith("that is not in dicom_store_scp.proxy_protocol_from")
        assert "add its address to the list" in event["text"]
    for event in second:
        assert (event["peer"], event["detail"]) == ("192.0.2.9", "a second PROXY header")
        assert "accept-proxy" in event["text"]
    assert service.files() == []


def test_a_header_that_nobody_expects_is_named_on_the_tls_port(both: ServiceProcess, pki: Pki) -> None:
    for header, source in (
        (line("192.0.2.7"), OTHER),
        (binary("192.0.2.7"), OTHER),
        (line("192.0.2.9") * 2, BALANCER),
        (binary("192.0.2.9") * 2, BALANCER),
    ):
        with pytest.raises((OSError, Closed)):
            send(both, 1, header, pki, source=source)
    wait_until(lambda: len(both.events("connection.refused")) == 4)
    refused = [(event["cause"], event["peer"], event["detail"]) for event in both.events("connection.refused")]
    unexpected = "a PROXY header from an address that is not in dicom_store_scp.proxy_protocol_from"
    assert refused == [
        *[("tls_handshake", OTHER, unexpected)] * 2,
        *[("tls_handshake", "192.0.2.9", "a second PROXY header")] * 2,
    ]


@ENGINES
def test_what_is_refused_for_its_header_is_in_log_metric_and_audit_trail(
    start_service: StartService, engine: str, tmp_path: Path
) -> None:
    trail = tmp_path / "audit.log"
    audit = {"STORESCP_AUDIT__DESTINATION": f"file:{trail}"} if engine == "rust" else {}
    service = start_service("-v", engine=engine, env=FROM | audit | {"STORESCP_HTTP__PORT": "0"})
    metrics = http_port(service)
    with pytest.raises((Closed, ConnectionError)):
        send(service, 1, b"")
    refused = service.wait_for_event("connection.refused")
    assert (refused["cause"], refused["peer"]) == ("proxy_header", BALANCER)
    assert refused["detail"] == "the connection does not begin with a PROXY header"
    assert "send-proxy-v2" in refused["text"]
    assert "send-proxy-v2" in get(metrics, "/status")[1]
    assert 'storescp_refused_total{reason="proxy_header"} 1.0' in get(metrics, "/metrics")[1]
    # The checks of balancers that only connect are told nowhere.
    socket.create_connection(("127.0.0.1", service.port), 5, (BALANCER, 0)).close()
    send(service, 2, OWN["v2-local"])
    assert len(service.events("connection.refused")) == 1
    if engine == "rust":
        service.stop()
        assert "proxy_header the connection does not begin with a PROXY header" in trail.read_text()


def seconds_until_closed(connection: socket.socket, began: float) -> float:
    with contextlib.suppress(ConnectionError):
        assert connection.recv(1) == b""
    return time.monotonic() - began


@ENGINES
def test_header_and_request_share_one_deadline(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=FROM | {"STORESCP_LIMITS__REQUEST_TIMEOUT": "2"})
    header = line("192.0.2.7")
    cases = [(b"", b""), (header[:20], b""), (header[:20], header[20:])]
    if engine == "rust":  # within a PDU, pynetdicom does not look at its timer
        cases.append((header[:20], header[20:] + associate_rq(CONTEXTS)[:100]))
    for first, rest in cases:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.port), 8, (BALANCER, 0)) as client:
            client.sendall(first)
            client.settimeout(1.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(8)
            client.sendall(rest)
            assert 1.7 < seconds_until_closed(client, began) < 3.2
    wait_until(lambda: len(service.events("connection.refused")) == (4 if engine == "rust" else 2))
    causes = [(event["cause"], event.get("detail"), event["peer"]) for event in service.events("connection.refused")]
    absent, late = "no PROXY header came in time", "the PROXY header was not complete in time"
    assert causes[:2] == [("proxy_header", absent, BALANCER), ("proxy_header", late, BALANCER)]
    if engine == "rust":  # pynetdicom tells nobody of its timer
        assert causes[2:] == [("request_timeout", None, "192.0.2.7")] * 2


def test_the_deadline_of_the_handshake_begins_behind_the_header(start_service: StartService, pki: Pki) -> None:
    limits = {"STORESCP_LIMITS__REQUEST_TIMEOUT": "2", "STORESCP_LIMITS__HANDSHAKE_TIMEOUT": "1.5"}
    service = start_service(env=FROM | limits | pki.environment(port="0"), listeners=2)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.tls_port), 8, (BALANCER, 0)) as silent:
        assert 1.7 < seconds_until_closed(silent, began) < 3.4
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.tls_port), 8, (BALANCER, 0)) as client:
        client.settimeout(1.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(8)
        client.sendall(binary("192.0.2.7"))
        assert 2.6 < seconds_until_closed(client, began) < 4.4
    wait_until(lambda: len(service.events("connection.refused")) == 2)
    causes = [(event["cause"], event["detail"], event["peer"]) for event in service.events("connection.refused")]
    assert causes == [
        ("proxy_header", "no PROXY header came in time", BALANCER),
        ("tls_handshake", "not over in time", "192.0.2.7"),
    ]


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "10.1.2.3/0"])
def test_a_list_that_is_everybody_is_warned_about(start_service: StartService, network: str, tmp_path: Path) -> None:
    service = start_service(env={"STORESCP_DICOM_STORE_SCP__PROXY_PROTOCOL_FROM": json.dumps(["10.0.0.0/8", network])})
    told = [event["text"] for event in service.events("configuration.warning")]
    assert len(told) == 1
    assert told[0].startswith(f"dicom_store_scp.proxy_protocol_from has {network}, which is every address")
    file = tmp_path / "storescp.toml"
    file.write_text(f"[dicom_store_scp]\nproxy_protocol_from = ['{network}']\n")
    checked = storescp("check-config", "-c", str(file))
    assert f"warning: {told[0]}" in checked.stderr


def test_the_list_is_empty_by_default_and_holds_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}, None).settings.dicom_store_scp.proxy_protocol_from == ()
    monkeypatch.setenv("STORESCP_DICOM_STORE_SCP__PROXY_PROTOCOL_FROM", '["10.1.2.3", "fd00::/8"]')
    found = load({}, None)
    assert found.settings.dicom_store_scp.proxy_protocol_from == ("10.1.2.3", "fd00::/8")
    assert not found.warnings
