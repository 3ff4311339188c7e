"""Testing a link: what `echo` and `send` say of a peer, and what becomes of the files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, StoragePresentationContexts, evt

from storescp.file_faults import CUT_SHORT
from storescp.peer import OutgoingFile, Peer, PeerError, read_header, send
from support.command import Done, run_in_process
from support.peers import answering
from support.service import ServiceProcess

CT_FILE = Path(str(get_testdata_file("CT_small.dcm")))
ANSWERS_HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
END_OF_HEADER = 336  # of CT_FILE
COMMANDS = ["echo", "send"]


def rejection(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason])


def ask(command: str, host: str, port: int) -> Done:
    return run_in_process(command, host, str(port), *([str(CT_FILE)] if command == "send" else []))


def only_line(done: Done) -> str:
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line.removeprefix("storescp: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_port_where_nothing_listens_is_named(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert only_line(ask(command, "127.0.0.1", port)) == f"nothing listens on 127.0.0.1:{port}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_host_that_is_not_found_is_named(command: str) -> None:
    assert only_line(ask(command, "no-such-host.invalid", 104)).startswith(
        "the host name no-such-host.invalid is not found ("
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_host_that_cannot_be_reached_is_named(command: str) -> None:
    # A network of documentation (RFC 5737), in a namespace that has no route to it.
    arguments = [command, "192.0.2.1", "104", *([str(CT_FILE)] if command == "send" else [])]
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", sys.executable, "-m", "storescp", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "storescp: 192.0.2.1:104 cannot be reached: Network is unreachable\n")


@pytest.mark.parametrize("answer", [ANSWERS_HTTP, b"SSH-2.0-x\r\n", b""], ids=["http", "ssh", "nothing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_peer_that_is_no_dicom_service_is_named(command: str, answer: bytes) -> None:
    with answering(answer) as port:
        said = only_line(ask(command, "127.0.0.1", port))
    assert said.startswith(f"127.0.0.1:{port} takes connections, but does not answer as a DICOM service (")


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ((2, 3, 1), "it is busy, full or stopping for the time being; trying again later may help"),
        ((2, 3, 2), "it has as many associations as it allows; trying again later may help"),
        ((1, 1, 7), "it does not know the called AE title ANY-SCP (--called)"),
        ((1, 1, 3), "it does not accept the calling AE title STORESCU (--calling)"),
        ((1, 2, 9), "for a reason that PS3.8 does not know"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_rejection_is_explained(command: str, code: tuple[int, int, int], meaning: str) -> None:
    with answering(rejection(*code)) as port:
        said = only_line(ask(command, "127.0.0.1", port))
    assert said == f"127.0.0.1:{port} rejected the association ({'/'.join(map(str, code))}): {meaning}"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (b"\x02\x00\x00\x00\x00\x44" + bytes(68), "accepts the association, but not the SOP class of C-ECHO"),
        (b"\x02\x00\xff\xff\xff\xff", "takes connections, but does not answer as a DICOM service (the peer breaks the"),
        (
            b"\x02\x00\x00\x00\x00\x44" + bytes(20),
            "does not answer as a DICOM service (the peer closed the connection)",
        ),
    ],
    ids=["no context", "endless", "cut short"],
)
def test_an_echo_reads_no_more_than_an_answer_has(answers: bytes, said: str) -> None:
    with answering(answers) as port:
        assert said in only_line(ask("echo", "127.0.0.1", port))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_abort_instead_of_an_answer_is_named(command: str) -> None:
    with answering(bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 1])) as port:
        said = only_line(ask(command, "127.0.0.1", port))
    assert said.startswith(f"127.0.0.1:{port} aborted the association instead of accepting it (")


def copies(folder: Path, count: int) -> list[OutgoingFile]:
    folder.mkdir()
    for number in range(count):
        shutil.copy(CT_FILE, folder / f"{number}.dcm")
    return [read_header(file) for file in sorted(folder.iterdir())]


@contextmanager
def aborting_at(number: int) -> Iterator[int]:
    """The port of a peer that ends each association instead of answering its C-STORE of this number."""
    seen: dict[object, int] = {}

    def store(event: evt.Event) -> int:
        seen[event.assoc] = seen.get(event.assoc, 0) + 1
        if seen[event.assoc] == number:
            event.assoc.abort()
        return 0

    ae = AE()
    ae.supported_contexts = StoragePresentationContexts
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    yield server.socket.getsockname()[1]
    server.shutdown()


def test_a_connection_that_breaks_says_how_many_were_acknowledged(tmp_path: Path) -> None:
    copies(tmp_path / "files", 5)
    with aborting_at(3) as port:
        done = run_in_process("send", "127.0.0.1", str(port), str(tmp_path / "files"))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: the association broke after 2 acknowledged instances: " in done.stderr
    assert done.stdout.startswith("2 of 5 stored, 3 not acknowledged, ")


def test_the_other_associations_go_on_where_one_breaks(tmp_path: Path) -> None:
    files = copies(tmp_path / "files", 8)
    with aborting_at(3) as port:
        report = send(Peer("127.0.0.1", port, "A", "B"), files, lambda _bytes: None, associations=2)
    assert (report.statuses[0], report.unsent, len(report.broken)) == (4, 4, 2)


def test_no_association_at_all_is_an_error(tmp_path: Path) -> None:
    files = copies(tmp_path / "files", 3)
    with answering(rejection(2, 3, 2)) as port, pytest.raises(PeerError, match="as many associations as it allows"):
        send(Peer("127.0.0.1", port, "A", "B"), files, lambda _bytes: None, associations=2)


def test_what_is_no_dicom_file_is_skipped_and_the_rest_is_sent(scp: ServiceProcess, tmp_path: Path) -> None:
    shutil.copy(CT_FILE, tmp_path / "ct.dcm")
    (tmp_path / "junk.txt").write_bytes(b"junk")
    whole = CT_FILE.read_bytes()
    (tmp_path / "damaged.dcm").write_bytes(whole.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00XX"))
    names = [str(tmp_path / name) for name in ("ct.dcm", "junk.txt", "damaged.dcm")]
    done = run_in_process("send", "127.0.0.1", str(scp.port), *names)
    assert (done.returncode, done.stdout.split(",")[0]) == (1, "1 of 1 stored")
    assert done.stderr.splitlines() == [
        f"skipped   {tmp_path / 'junk.txt'}: not a DICOM file (PS3.10)",
        f"skipped   {tmp_path / 'damaged.dcm'}: a DICOM file whose header is damaged",
    ]
    assert len(scp.files()) == 1


@pytest.mark.parametrize(
    ("length", "fault"),
    [(131, "not a DICOM file (PS3.10)"), (132, CUT_SHORT), (200, CUT_SHORT), (300, CUT_SHORT), (340, CUT_SHORT)],
)
def test_a_file_that_is_cut_short_is_told_in_the_same_words_by_send_and_inspect(
    tmp_path: Path, length: int, fault: str
) -> None:
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(CT_FILE.read_bytes()[:length])
    sent = run_in_process("send", "127.0.0.1", "104", str(cut))
    assert (sent.returncode, sent.stderr.splitlines()[0]) == (1, f"skipped   {cut}: {fault}")
    inspected = run_in_process("inspect", str(cut))
    assert inspected.returncode == 1
    if length < END_OF_HEADER:
        assert inspected.stderr == f"storescp: {cut}: {fault}\n"
    else:
        assert "would be refused" in inspected.stdout


def test_a_dicom_file_is_told_by_what_it_lacks(tmp_path: Path) -> None:
    whole = CT_FILE.read_bytes()
    for element, fault in (
        (b"\x02\x00\x10\x00UI", "a DICOM file that names no transfer syntax"),
        (b"\x08\x00\x18\x00UI", "a DICOM file that names no SOP instance"),
    ):
        # Another element in its place: a private one.
        other = element[:2] + b"\x19\x00UI"
        lacking = tmp_path / "lacking.dcm"
        lacking.write_bytes(whole.replace(element, other))
        with pytest.raises(PeerError) as error:
            read_header(lacking)
        assert str(error.value) == f"{lacking}: {fault}"


def test_several_associations_send_each_file_once(scp: ServiceProcess, tmp_path: Path) -> None:
    copies(tmp_path / "files", 12)
    done = run_in_process("send", "127.0.0.1", str(scp.port), "--associations", "3", str(tmp_path / "files"))
    assert (done.returncode, done.stderr, done.stdout.split(",")[0]) == (0, "", "12 of 12 stored")
    assert scp.stop() == 0
    lines = scp.events("association.released")
    assert len(lines) == 3
    assert sum(line["instances"] for line in lines) == 12


def test_the_bar_counts_instances_and_bytes(scp: ServiceProcess, tmp_path: Path) -> None:
    copies(tmp_path / "files", 3)
    done = subprocess.run(
        [sys.executable, "-m", "storescp", "send", "127.0.0.1", str(scp.port), str(tmp_path / "files")],
        capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm"},
    )  # fmt: skip
    assert "3/3 instances" in done.stderr
    size = f"{3 * CT_FILE.stat().st_size / 1000:.1f}"
    assert f"{size}/{size}" in done.stderr


def test_a_folder_without_dicom_files_is_nothing_to_send(tmp_path: Path) -> None:
    (tmp_path / "junk.txt").write_bytes(b"junk")
    os.mkfifo(tmp_path / "pipe")
    for given in (tmp_path, tmp_path / "pipe"):
        done = run_in_process("send", "127.0.0.1", "104", str(given))
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            done.stderr.splitlines()[-1]
            == "storescp: there is nothing to send: no DICOM file was found that can be read"
        )


def test_associations_that_fail_alike_are_told_in_one_line(tmp_path: Path) -> None:
    copies(tmp_path / "files", 8)
    with aborting_at(1) as port:
        done = run_in_process("send", "127.0.0.1", str(port), "--associations", "4", str(tmp_path / "files"))
    [line] = done.stderr.splitlines()
    assert line.startswith(f"storescp: 127.0.0.1:{port}: the association broke after 0 acknowledged instances: ")
    assert line.endswith(" (4 associations)")
    assert done.stdout.startswith("0 of 8 stored, 8 not acknowledged, ")


@pytest.mark.parametrize("number", ["0", "65", "many"])
def test_a_number_of_associations_out_of_range_is_a_usage_error(number: str) -> None:
    assert run_in_process("send", "127.0.0.1", "104", "--associations", number, str(CT_FILE)).returncode == 2


StartService = Callable[..., ServiceProcess]


def test_a_service_that_takes_no_more_is_told_as_such(start_service: StartService) -> None:
    full = start_service(env={"STORESCP_STORAGE__MIN_FREE_BYTES": "1000000 TiB"})
    for command in COMMANDS:
        said = only_line(ask(command, "127.0.0.1", full.port))
        assert "(2/3/1): it is busy, full or stopping" in said
