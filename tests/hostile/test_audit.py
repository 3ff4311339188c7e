"""The audit trail: what it says, where it goes, and that it never holds up the service."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import ssl
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from conftest import StartService
from storescp.audit.messages import INSTANCES_TRANSFERRED, Event, Study, message, ourselves, sender
from storescp.audit.transport import FileDestination
from support.certificates import Authority
from support.instances import ct_slice, explicit, text
from support.scu import EXPLICIT, RawAssociation, Rejected
from support.service import ServiceProcess

SYSLOG = re.compile(
    r"<85>1 (\S+) \S+ storescp (\d+) DICOM\+RFC3881 - \ufeff(<AuditMessage>.*</AuditMessage>)", re.DOTALL
)


def parse(line: str) -> ET.Element:
    match = SYSLOG.fullmatch(line)
    assert match, line
    assert datetime.fromisoformat(match[1]).tzinfo is not None
    return ET.fromstring(match[3])


def kinds(messages: list[ET.Element]) -> list[tuple[str, str, str]]:
    """Event, type and outcome of each message."""
    found = []
    for one in messages:
        identification = one.find("EventIdentification")
        assert identification is not None
        kind = identification.find("EventTypeCode")
        event = identification.find("EventID")
        assert event is not None
        found.append(
            (
                event.attrib["csd-code"],
                "" if kind is None else kind.attrib["csd-code"],
                identification.attrib["EventOutcomeIndicator"],
            )
        )
    return found


def use(service: ServiceProcess) -> None:
    """An association that stores two instances of a study and one of another, then one that is not let in."""
    instances = [ct_slice(1, rows=16), ct_slice(2, rows=16)]
    instances.append(
        ct_slice(3, rows=16, study="1.2.3", changes={0x00100020: explicit(0x00100020, b"LO", text("P<&>2"))})
    )
    with RawAssociation(service.port, [(1, instances[0].sop_class, [EXPLICIT])], calling=b"CT1") as association:
        for one in instances:
            assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()
    with pytest.raises(Rejected):
        RawAssociation(service.port, [(1, instances[0].sop_class, [EXPLICIT])], calling=b"CT2")
    service.wait_for_event("association.released")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_event("reload.done")


EXPECTED = [
    ("110100", "110120", "0"),  # start
    ("110114", "110122", "0"),  # CT1 came in
    ("110104", "", "0"),  # and stored
    ("110113", "110126", "4"),  # CT2 did not
    ("110113", "110129", "0"),  # reloaded
    ("110100", "110121", "0"),  # stop
]
ONLY_CT1 = {"STORESCP_DICOM_STORE_SCP__ALLOWED_CALLING_AE_TITLES": json.dumps(["CT1"])}


def check(messages: list[ET.Element]) -> None:
    assert sorted(kinds(messages)) == sorted(EXPECTED)
    assert kinds(messages)[0] == EXPECTED[0]
    assert kinds(messages)[-1] == EXPECTED[-1]
    (stored,) = (one for one in messages if kinds([one])[0][0] == "110104")
    source = stored.findall("ActiveParticipant")[0]
    assert (source.attrib["UserID"], source.attrib["UserIsRequestor"]) == ("CT1", "true")
    objects = stored.findall("ParticipantObjectIdentification")
    assert [one.attrib["ParticipantObjectID"] for one in objects] == [
        "1.2.3", "P<&>2", "1.2.826.0.1.3680043.10.9999.1", "P-0001",
    ]  # fmt: skip
    counts = [one.attrib["NumberOfInstances"] for one in stored.iter("SOPClass")]
    assert counts == ["1", "2"]


def test_a_line_that_was_interrupted_costs_no_other_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audit.log"
    file.write_bytes(b"<85>1 whole\n<85>1 tor")
    destination = FileDestination(file)
    destination.send(b"<85>1 first\nof two lines")
    write = os.write
    room = [10]

    def on_a_full_disk(descriptor: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, content[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", on_a_full_disk)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                destination.send(b"<85>1 second")
    destination.send(b"<85>1 second")
    destination.send(b"<85>1 third")
    destination.close()
    FileDestination(file).close()
    lines = [b"whole", b"tor", b"first of two lines", b"seco", b"second", b"third"]
    assert file.read_bytes() == b"".join(b"<85>1 %b\n" % line for line in lines)


def test_a_file_that_was_renamed_or_removed_gets_no_more_messages(tmp_path: Path) -> None:
    file, moved = tmp_path / "audit.log", tmp_path / "moved"
    destination = FileDestination(file)
    destination.send(b"first")
    file.rename(moved)
    destination.send(b"second")
    assert (moved.read_bytes(), file.read_bytes()) == (b"first\n", b"second\n")
    file.unlink()
    destination.send(b"third")
    assert file.read_bytes() == b"third\n"
    moved.unlink()
    file.rename(moved)
    file.mkdir()
    # It is tried again, like a full disk.
    with pytest.raises(IsADirectoryError):
        destination.send(b"fourth")
    file.rmdir()
    destination.send(b"fourth")
    assert file.read_bytes() == b"fourth\n"
    destination.close()


def test_messages_go_to_a_file(start_service: StartService, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    service = start_service(env=ONLY_CT1 | {"STORESCP_AUDIT__DESTINATION": f"file:{file}"})
    use(service)
    service.stop()
    check([parse(line) for line in file.read_text(encoding="utf-8").splitlines()])
    assert file.stat().st_mode & 0o777 == 0o600


class Collector:
    """A syslog server that takes one connection at a time."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.context = context
        self.received = b""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError), self.listening:
            connection, _ = self.listening.accept()
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                while piece := connection.recv(65536):
                    self.received += piece

    def messages(self) -> list[ET.Element]:
        self.thread.join(10)
        found, rest = [], self.received
        while rest:
            length, _, rest = rest.partition(b" ")
            found.append(parse(rest[: int(length)].decode()))
            rest = rest[int(length) :]
        return found


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    return Authority.make(tmp_path / "pki", "CA")


def test_messages_go_to_syslog_over_tcp_and_tls(
    start_service: StartService, authority: Authority, tmp_path: Path
) -> None:
    device = authority.issue("storescp", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(authority.issue("syslog"))
    context.verify_mode = ssl.CERT_REQUIRED
    for scheme, server in (("tcp", Collector(None)), ("tls", Collector(context))):
        service = start_service(
            root=tmp_path / scheme,
            env=ONLY_CT1
            | {
                "STORESCP_AUDIT__DESTINATION": f"{scheme}://127.0.0.1:{server.port}",
                "STORESCP_AUDIT__CA_CERTIFICATE": str(authority.file),
                "STORESCP_AUDIT__CLIENT_CERTIFICATE": str(device),
            },
        )
        use(service)
        service.stop()
        check(server.messages())


def test_an_unreachable_destination_holds_up_nobody_and_gets_its_messages_later(start_service: StartService) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    service = start_service(env=ONLY_CT1 | {"STORESCP_AUDIT__DESTINATION": f"tcp://127.0.0.1:{port}"})
    use(service)
    service.wait_for_event("audit.unreachable")
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    received = b""
    while received.count(b"</AuditMessage>") < len(EXPECTED) - 1:
        received += connection.recv(65536)
    service.stop()
    connection.close()
    listening.close()


def test_a_full_queue_loses_messages_and_says_so(start_service: StartService) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    env = {"STORESCP_AUDIT__DESTINATION": f"tcp://127.0.0.1:{port}", "STORESCP_AUDIT__MAX_QUEUED": "2"}
    service = start_service(env=ONLY_CT1 | env)
    use(service)
    service.wait_for_event("audit.lost")
    assert service.events("audit.lost")[0]["count"] == 1
    assert service.stop() == 0


@given(st.text(), st.text(min_size=1), st.text())
def test_any_text_gives_valid_xml(patient: str, subject: str, accession: str) -> None:
    study = Study("a", "1.2", patient, accession, [("1.2.840", 3)])
    us = ourselves("STORE-SCP", 1, is_requestor=False, receives=True)
    line = message(
        datetime.now(UTC), Event(INSTANCES_TRANSFERRED, None, "C"), [sender("::1", None, subject), us], "x", [study]
    )
    root = ET.fromstring(line)
    assert len(root.findall("ActiveParticipant")) == 2
    assert root.tag == "AuditMessage"
