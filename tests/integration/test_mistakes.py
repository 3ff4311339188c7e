"""Commands that are given what they cannot use: one clear line and an exit code, never a traceback and never 70."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from storescp import _core
from support.command import run_in_process, storescp
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
NATIVE = "1.2.840.10008.1.2.1"
NOT_TEXT = os.fsdecode(b"name-\xff")
REAL = str(get_testdata_file("CT_small.dcm"))


@pytest.fixture(scope="session")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is not what it should be."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty-folder").mkdir()
    (folder / "text").write_text("text\n" * 1000)
    (folder / NOT_TEXT).write_text("text\n")
    (folder / "circle").symlink_to("circle")
    whole = Path(REAL).read_bytes()
    (folder / "only-the-prefix.dcm").write_bytes(whole[:132])
    (folder / "cut-in-the-header.dcm").write_bytes(whole[:300])
    (folder / "unknown-vr.dcm").write_bytes(
        whole[:132] + whole[132:].replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00XX")
    )
    (folder / "a-folder-of-files").mkdir()
    shutil.copy(REAL, folder / "a-folder-of-files" / "ct.dcm")
    for name, content in {"text": b"text\n" * 1000, "empty": b""}.items():
        outbox = folder / f"root-with-{name}" / ".outbox"
        outbox.mkdir(parents=True)
        (outbox / "outbox.sqlite").write_bytes(content)
    (folder / "root-with-folder" / ".outbox" / "outbox.sqlite").mkdir(parents=True)
    other = folder / "root-with-other-tables" / ".outbox"
    other.mkdir(parents=True)
    with sqlite3.connect(other / "outbox.sqlite") as database:
        database.execute(f"PRAGMA user_version = {len(_core.outbox_migrations())}")
    return folder


ROOTS = ("absent", "text", "text/below", "circle", "empty-folder", "root-with-text", "root-with-empty",
         "root-with-folder", "root-with-other-tables")  # fmt: skip
ON_A_ROOT = (("outbox", "status"), ("outbox", "list"), ("outbox", "retry", "--all"), ("outbox", "retry", "x"),
             ("verify",), ("verify", "--republish", "all"))  # fmt: skip
FILES = ("absent", "text", "text/below", "circle", "empty-folder", NOT_TEXT, "only-the-prefix.dcm",
         "cut-in-the-header.dcm")  # fmt: skip
NO_PEER = ("127.0.0.1", "1")
COMMANDS = [
    *[(f"{' '.join(command)} of {root}", ("-o", root, *command), {1}) for root in ROOTS for command in ON_A_ROOT],
    ("send a damaged header", ("send", *NO_PEER, "unknown-vr.dcm"), {1}),
    *[(f"inspect {name!a}", ("inspect", name), {1}) for name in FILES],
    *[(f"transcode {name!a}", ("transcode", name, "out.dcm", "--to", NATIVE), {1, 2}) for name in FILES],
    *[(f"send {name!a}", ("send", *NO_PEER, name), {0, 1, 2}) for name in FILES],
    ("transcode below a file", ("transcode", REAL, "text/out.dcm", "--to", NATIVE), {1}),
    ("transcode into a circle", ("transcode", "a-folder-of-files", "circle", "--to", NATIVE), {1}),
    ("send to nobody", ("send", *NO_PEER, REAL), {1}),
    ("send to no host", ("send", "no-such-host.invalid", "104", REAL), {1}),
    ("send to no name", ("send", "a..b", "104", REAL), {2}),
    ("send with a long title", ("send", *NO_PEER, "--calling", "A" * 17, REAL), {2}),
    ("echo to nobody", ("echo", *NO_PEER), {1}),
    ("echo to no host", ("echo", "no-such-host.invalid", "104"), {1}),
    ("echo to no name", ("echo", "a..b", "104"), {2}),
    ("echo to a name that is no text", ("echo", NOT_TEXT, "104"), {2}),
    ("echo with a long title", ("echo", *NO_PEER, "--calling", "A" * 17), {2}),
    ("echo with a backslash", ("echo", *NO_PEER, "--called", "A\\B"), {2}),
    ("echo with a title that is no text", ("echo", *NO_PEER, "--called", NOT_TEXT), {2}),
    ("passcode of a name that is no text", ("passcode", NOT_TEXT, "--passcode", "x"), {2}),
    ("passcode that is no text", ("passcode", "ct1", "--passcode", NOT_TEXT), {2}),
    ("passcode without a terminal", ("passcode", "ct1"), {130}),
    *[(f"conformance of {name!a}", ("conformance", "-c", name), {78}) for name in ("absent", "text", "empty-folder", NOT_TEXT, "unknown-vr.dcm")],
    *[(f"check-config of {name!a}", ("check-config", "-c", name), {78}) for name in ("absent", "text", "empty-folder", NOT_TEXT, "unknown-vr.dcm")],
    *[(f"license show {name!a}", ("license", "show", name), {77}) for name in ("absent", "text", "empty-folder", NOT_TEXT)],
    ("license show without one", ("license", "show"), {77}),
    ("license verify without one", ("license", "verify"), {77}),
    ("license issue below a file", ("license", "issue", "--client-id", "x", "text/below"), {1}),
    ("license issue at a file", ("license", "issue", "--client-id", "x", "text"), {1}),
    ("license issue of a name that is no text", ("license", "issue", "--client-id", NOT_TEXT, "licence"), {77}),
    ("index without a broker", ("index",), {78}),
    ("serve on a root that is no text", ("-p", "0", "-o", NOT_TEXT), {78}),
    ("serve on a host that is no text", ("-p", "0", "--host", NOT_TEXT), {78}),
    ("serve on no host", ("-p", "0", "-o", "data", "--host", "no-such-host.invalid"), {69}),
]  # fmt: skip


# These serve, or ask at a terminal.
OWN_PROCESS = ("-p", "passcode")


@pytest.mark.parametrize(("arguments", "codes"), [one[1:] for one in COMMANDS], ids=[one[0] for one in COMMANDS])
def test_what_cannot_be_used_is_told_in_a_line(
    wrong: Path, arguments: tuple[str, ...], codes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments[0] in OWN_PROCESS:
        done = storescp(*arguments, cwd=wrong)
    else:
        monkeypatch.chdir(wrong)
        done = run_in_process(*arguments)
    assert done.returncode in codes
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.stderr or done.returncode == 0


@pytest.mark.parametrize(
    "url",
    ["nonsense", "postgresql://u:CANARY@h:port/d", "postgresql://u:CANARY@[::1/d", "mysql://u:CANARY@h/d",
     "sqlite:///absent/index.sqlite", "sqlite:///text", "sqlite:///empty-folder", f"sqlite:///{NOT_TEXT}"],
)  # fmt: skip
def test_a_database_that_cannot_be_one_ends_the_index(wrong: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(wrong)
    env = {"STORESCP_KAFKA__BROKERS": "127.0.0.1:1"}
    done = run_in_process("index", "--once", "--database", url, env=env)
    assert done.returncode == 78
    [line] = done.stderr.splitlines()
    assert "index.database" in line
    assert "index.database = ********" not in line or url in {"nonsense", f"sqlite:///{NOT_TEXT}"}
    assert "CANARY" not in line


@pytest.mark.parametrize("stdout", ["a pipe that nobody reads", "a full disk", "closed"])
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("check-config",), ("conformance",), ("completion", "bash"), ("inspect", REAL),
     ("passcode", "ct1", "--passcode", "x"), ("license", "issue", "--client-id", "x", "licence")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_output_that_cannot_be_written_is_no_bug(tmp_path: Path, arguments: tuple[str, ...], stdout: str) -> None:
    command = [sys.executable, "-m", "storescp", *arguments]
    if stdout == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    reader, pipe = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full:
        target = {"a pipe that nobody reads": pipe, "a full disk": full, "closed": subprocess.DEVNULL}[stdout]
        done = subprocess.run(
            command, stdout=target, stderr=subprocess.PIPE, text=True, check=False, timeout=60, cwd=tmp_path
        )
    os.close(pipe)
    assert done.returncode == (0 if stdout == "closed" else 1)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert ("No space left on device" in done.stderr) == (stdout == "a full disk")


def store(scp: ServiceProcess, number: int, called: bytes = b"ANY-SCP") -> None:
    instance = ct_slice(number, rows=4)
    with RawAssociation(scp.port, [(1, CT, [EXPLICIT])], called=called) as association:
        assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
        association.release()


def test_verify_names_an_absent_root_once_and_its_files_as_missing(start_service: StartService, tmp_path: Path) -> None:
    own = tmp_path / "own"
    env = {
        "STORESCP_TENANTS__RULES": '[{"tenant_id": "b", "called_ae": "B"}]',
        "STORESCP_TENANTS__SETTINGS": f'[{{"tenant_id": "b", "storage_root": "{own}"}}]',
    }
    scp = start_service(env=env)
    store(scp, 1)
    store(scp, 2, called=b"B")
    store(scp, 3, called=b"B")
    scp.records(count=3)
    assert scp.stop() == 0
    shutil.rmtree(own)
    done = run_in_process("-o", scp.root, "verify", env=env)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"unreadable  {own}  (No such file or directory)" in lines
    assert sorted(line.split()[0] for line in lines) == ["missing", "missing", "unreadable"]
    assert re.fullmatch(r"1 files, \d+ bytes compared, 3 findings\n", done.stderr)
    # What cannot be found is not published either.
    again = run_in_process("-o", scp.root, "verify", "--republish", "all", env=env)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("1 records wished for")


@pytest.mark.parametrize("republish", [(), ("--republish", "unrecorded"), ("--republish", "all")])
def test_verify_shows_names_that_are_no_text_and_wishes_no_record_for_them(
    scp: ServiceProcess, republish: tuple[str, ...]
) -> None:
    store(scp, 1)
    scp.records(count=1)
    [stored] = scp.files()
    (stored.parent / NOT_TEXT).write_text("x")
    (stored.parent / "two\nlines\x1b[31m").write_text("x")
    assert scp.stop() == 0
    done = run_in_process("-o", scp.root, "verify", *republish)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["foreign", "foreign"]
    assert any(r"name-\udcff" in line and "not UTF-8" in line for line in lines)
    assert any(r"two\nlines\x1b[31m" in line for line in lines)


def test_verify_tells_of_a_folder_that_cannot_be_read(scp: ServiceProcess) -> None:
    store(scp, 1)
    scp.records(count=1)
    [stored] = scp.files()
    assert scp.stop() == 0
    closed = stored.parent.parent / "closed"
    closed.mkdir(mode=0)
    wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "storescp", "-o", scp.root, "verify"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == f"unreadable  {closed}  (Permission denied)\n"


@pytest.mark.parametrize("command", [*ON_A_ROOT, ("quarantine", "list")], ids=" ".join)
def test_the_root_is_named_where_neither_an_option_nor_the_file_does(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = f"storage root {tmp_path / 'storescp-data'}"
    assert run_in_process(*command).stderr.splitlines()[0] == named
    assert named not in run_in_process("-o", "storescp-data", *command).stderr
    (tmp_path / "c.toml").write_text("[storage]\ndurability = 'full'\n")
    assert run_in_process("-c", "c.toml", *command).stderr.splitlines()[0] == named
    (tmp_path / "c.toml").write_text("[storage]\nroot = 'data'\n")
    assert "storage root " not in run_in_process("-c", "c.toml", *command).stderr
    elsewhere = run_in_process(*command, env={"STORESCP_STORAGE__ROOT": "/elsewhere"})
    assert elsewhere.stderr.splitlines()[0] == "storage root /elsewhere"


def test_a_database_that_is_damaged_inside_is_told_in_a_line(scp: ServiceProcess) -> None:
    for number in range(20):
        store(scp, number)
    scp.records(count=20)
    assert scp.stop() == 0
    database = scp.root / ".outbox" / "outbox.sqlite"
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (database.stat().st_size - 4096))
    for command in ON_A_ROOT:
        done = run_in_process("-o", scp.root, *command)
        assert done.returncode == 1, command
        [line] = done.stderr.splitlines()
        assert str(database) in line
