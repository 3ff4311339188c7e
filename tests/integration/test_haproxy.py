"""Real senders through a real load balancer: HAProxy with PROXY headers of both versions, in the clear and with TLS."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from conftest import StartService
from support.certificates import Pki
from support.haproxy import passing_on, program
from support.scu import EXPLICIT, VERIFICATION, Aborted, Closed, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
BALANCER, SENDER = "127.0.0.9", "127.0.0.5"
FROM = {
    "STORESCP_DICOM_STORE_SCP__PROXY_PROTOCOL_FROM": json.dumps([BALANCER]),
    # Only whoever the header names may come in.
    "STORESCP_DICOM_STORE_SCP__ALLOWED_PEERS": json.dumps(["127.0.0.1", SENDER]),
}
FILE = str(get_testdata_file("CT_small.dcm"))
OPTIONS = ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def send_by_pynetdicom(port: int, pki: Pki | None = None) -> None:
    """From an address of its own, which DCMTK's senders cannot choose."""
    ae = AE("PYNETDICOM")
    ae.add_requested_context(CTImageStorage, EXPLICIT)
    tls = None if pki is None else (pki.context(pki.device), None)
    association = ae.associate("127.0.0.1", port, bind_address=(SENDER, 0), tls_args=tls)
    assert association.is_established
    assert association.send_c_store(FILE).Status == 0
    association.release()


def released(service: ServiceProcess, count: int) -> list[tuple[str, str, str | None]]:
    """Calling AE title, peer and load balancer of each association, sorted."""
    wait_until(lambda: len(service.events("association.released")) == count)
    lines = service.events("association.released")
    return sorted((line["calling_ae"], line["peer"], line.get("proxy_address")) for line in lines)


@pytest.mark.parametrize("options", OPTIONS)
def test_senders_come_in_through_haproxy(start_service: StartService, pki: Pki, options: str, tmp_path: Path) -> None:
    service = start_service(env=FROM | pki.environment(port="0"), listeners=2)
    files = ["+tls", str(pki.device), str(pki.device), "+cf", str(pki.authority.file)]
    with passing_on(tmp_path, [service.port, service.tls_port], BALANCER, options) as balancer:
        clear, encrypted = map(str, balancer.ports)
        run("storescu", "-aet", "STORESCU", "127.0.0.1", clear, FILE)
        run("dcmsend", "-aet", "DCMSEND", "127.0.0.1", clear, FILE)
        send_by_pynetdicom(int(clear))
        run("storescu", "-aet", "STORESCU_TLS", *files, "127.0.0.1", encrypted, FILE)
        send_by_pynetdicom(int(encrypted), pki)
    assert released(service, 5) == [
        ("DCMSEND", "127.0.0.1", BALANCER),
        ("PYNETDICOM", SENDER, BALANCER),
        ("PYNETDICOM", SENDER, BALANCER),
        ("STORESCU", "127.0.0.1", BALANCER),
        ("STORESCU_TLS", "127.0.0.1", BALANCER),
    ]
    assert sum(line.get("tls_subject") == "CN=ct1.hospital-a" for line in service.events("association.released")) == 2
    assert service.records(count=1)[0]["source_ip"] == "127.0.0.1"
    assert not service.events("connection.refused")


@pytest.mark.parametrize("options", OPTIONS)
def test_the_python_engine_stands_behind_haproxy_too(start_service: StartService, options: str, tmp_path: Path) -> None:
    service = start_service(env=FROM, engine="python")
    with passing_on(tmp_path, [service.port], BALANCER, options) as balancer:
        send_by_pynetdicom(balancer.ports[0])
    [record] = service.records(count=1)
    assert (record["source_ip"], record["source_ae"]) == (SENDER, "PYNETDICOM")


def test_the_checks_of_haproxy_are_no_refused_connections(
    start_service: StartService, pki: Pki, tmp_path: Path
) -> None:
    """It connects and leaves, or says in a header that it speaks for itself."""
    service = start_service(env=FROM | pki.environment(port="0"), listeners=2)
    targets = [service.port, service.tls_port]
    for number, lines in enumerate([[], ["option tcp-check", "tcp-check connect send-proxy"]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = "send-proxy-v2 check inter 100ms"
        with passing_on(folder, targets, BALANCER, options, *lines) as balancer:
            wait_until(lambda log=balancer.log: log.read_bytes().count(b"succeeded") >= len(targets))
            for port in balancer.ports:
                send_by_pynetdicom(port, pki if port == balancer.ports[1] else None)
    released(service, 4)
    service.stop()
    assert not service.events("connection.refused")


def test_where_only_one_side_has_the_header_nobody_comes_in(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(env=FROM)
    contexts = [(1, VERIFICATION, [EXPLICIT])]
    for number, (source, options) in enumerate([(BALANCER, ""), ("127.0.0.8", "send-proxy-v2")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (
            passing_on(folder, [service.port], source, options) as balancer,
            pytest.raises((Aborted, Closed, ConnectionError)),
        ):
            RawAssociation(balancer.ports[0], contexts)
    wait_until(lambda: len(service.events("connection.refused")) == 2)
    lines = service.events("connection.refused")
    assert [(line["cause"], line["peer"]) for line in lines] == [
        ("proxy_header", BALANCER),
        ("malformed_request", "127.0.0.8"),
    ]


def test_haproxy_reads_the_configuration_of_the_page(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "load-balancer.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^```text\n(listen .*?)^```$", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "haproxy.cfg"
    file.write_text(section)
    run(program(), "-c", "-f", str(file))
