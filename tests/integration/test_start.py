"""What refuses a start, with which exit code, and that `check-config` says the same and leaves no trace."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from storescp.licence import issue_licence
from support.command import run_in_process, storescp
from support.mounts import run, tmpfs
from support.service import LISTENING, ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
ENGINES = pytest.mark.parametrize("engine", ["rust", "python"])
# Durability is no matter here, and to sync takes long.
QUICK = {"STORESCP_LOCAL_STORAGE__DURABILITY": "none"}
KEEP = {"STORESCP_LOCAL_STORAGE__CREATE": "false"}


# What root may do beyond the permissions of a file.
WITHOUT_PRIVILEGE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def both(*options: str, env: dict[str, str] | None = None, wrapper: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and standard error of a start and of `check-config`, which are the same."""
    start = storescp("-p", "0", *options, env=env, wrapper=wrapper)
    arguments = ("-p", "0", *options, "check-config")
    check = storescp(*arguments, env=env, wrapper=wrapper) if wrapper else run_in_process(*arguments, env=env)
    about = "no configuration file and no licence section: evaluation mode\n"
    assert (start.returncode, start.stderr) == (check.returncode, check.stderr.replace(about, ""))
    assert start.stdout == ""
    assert "storage.root" in check.stdout
    assert "a start would succeed" not in check.stdout
    return start.returncode, start.stderr


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@ENGINES
@pytest.mark.parametrize("holder", ["rust", "python"])
def test_a_root_that_another_process_serves_is_exit_75(start_service: StartService, engine: str, holder: str) -> None:
    scp = start_service(engine=holder)
    result = storescp("-p", "0", "-o", str(scp.root), "--engine", engine)
    assert result.returncode == 75
    [line] = result.stderr.splitlines()
    assert line.startswith("storescp: temporary failure: ")
    assert str(scp.root) in line
    assert line.endswith(
        "another process serves this storage root: stop it, or give this one another storage.root (-o)"
    )


def test_check_config_beside_a_running_service_finds_nothing_and_takes_no_lock(start_service: StartService) -> None:
    scp = start_service()
    before = tree(scp.root)
    done = run_in_process("-o", scp.root, "check-config")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "a start would succeed")
    assert tree(scp.root) == before


@ENGINES
def test_a_root_that_must_be_there_is_not_made(tmp_path: Path, engine: str) -> None:
    root = tmp_path / "data"
    code, said = both("-o", str(root), "--engine", engine, env=KEEP)
    assert code == 75
    assert f"{root} is not there" in said
    assert "storage.create" in said
    assert not root.exists()


@ENGINES
def test_a_root_without_its_identity_is_not_used_where_it_must_be_there(tmp_path: Path, engine: str) -> None:
    """As the empty folder is over which the file system is not mounted."""
    root = tmp_path / "data"
    root.mkdir()
    code, said = both("-o", str(root), "--engine", engine, env=KEEP)
    assert code == 75
    assert str(root / ".outbox" / "identity") in said
    assert list(root.iterdir()) == []


@ENGINES
def test_a_start_makes_the_identity_by_which_the_next_one_knows_the_root(
    start_service: StartService, engine: str
) -> None:
    first = start_service(engine=engine, env=QUICK)
    identity = first.root / ".outbox" / "identity"
    content = identity.read_text()
    assert str(uuid.UUID(content.strip())) + "\n" == content
    assert first.stop() == 0
    second = start_service(engine=engine, env=QUICK | KEEP)
    assert second.stop() == 0
    assert identity.read_text() == content


@ENGINES
def test_a_root_from_before_gets_an_identity(start_service: StartService, engine: str) -> None:
    first = start_service(engine=engine, env=QUICK)
    identity = first.root / ".outbox" / "identity"
    assert first.stop() == 0
    identity.unlink()
    assert start_service(engine=engine, env=QUICK).stop() == 0
    uuid.UUID(identity.read_text().strip())


def test_the_root_of_a_tenant_must_be_there_too(tmp_path: Path) -> None:
    root, own = tmp_path / "data", tmp_path / "own"
    (root / ".outbox").mkdir(parents=True)
    (root / ".outbox" / "identity").write_text(f"{uuid.uuid4()}\n")
    env = KEEP | {"STORESCP_TENANTS__SETTINGS": f'[{{"tenant_id": "a", "storage_root": "{own}"}}]'}
    code, said = both("-o", str(root), env=env)
    assert code == 75
    assert f"tenants.settings.storage_root = {own}" in said
    assert not own.exists()


@pytest.mark.parametrize("place", ["a file", "below a file", "links in a circle", "a name that is too long"])
def test_a_root_that_cannot_be_one_is_exit_78(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    roots = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "root",
        "links in a circle": tmp_path / "circle",
        "a name that is too long": tmp_path / ("x" * 300),
    }
    code, said = both("-o", str(roots[place]))
    assert code == 78
    assert "storage.root" in said
    # Values are shown up to a length.
    assert str(roots[place])[:150] in said


@ENGINES
def test_a_root_where_no_folder_can_be_made_is_exit_78(engine: str) -> None:
    done = storescp("-p", "0", "-o", "/proc/data", "--engine", engine)
    assert done.returncode == 78
    [line] = done.stderr.splitlines()
    assert "storage.root = /proc/data: expected a folder that can be " in line
    assert line.endswith(" (from option)")


@pytest.mark.parametrize("locked", [".", "data", "data/.outbox"])
def test_a_folder_that_may_not_be_written_is_exit_78(tmp_path: Path, locked: str) -> None:
    root = tmp_path / "disk" / "data"
    folder = root.parent / locked
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    code, said = both("-o", str(root), wrapper=WITHOUT_PRIVILEGE)
    assert code == 78
    assert f"storage.root = {root}" in said
    assert "Permission denied" in said


def test_a_link_to_what_is_not_mounted_is_exit_75(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "mnt" / "data")
    code, said = both("-o", str(tmp_path / "data"))
    assert code == 75
    assert "No such file or directory" in said
    assert not (tmp_path / "mnt").exists()


@ENGINES
def test_a_disk_that_is_read_only_is_exit_75(tmp_path: Path, engine: str) -> None:
    with tmpfs(tmp_path / "disk", "size=8m") as disk:
        (disk / "data").mkdir()
        run("mount", "-o", "remount,ro", disk)
        code, said = both("-o", str(disk / "data"), "--engine", engine)
    assert code == 75
    assert "Read-only file system" in said


@ENGINES
@pytest.mark.parametrize("room", ["size=64k", "nr_inodes=4"])
def test_a_disk_without_room_is_exit_75(tmp_path: Path, engine: str, room: str) -> None:
    with tmpfs(tmp_path / "disk", room) as disk:
        result = storescp("-p", "0", "-o", str(disk / "data"), "--engine", engine)
    assert result.returncode == 75
    assert re.search("No space left on device|database or disk is full", result.stderr)
    assert "Traceback" not in result.stderr


@pytest.fixture
def licence(tmp_path: Path) -> str:
    """A licence section."""
    issued = issue_licence("hospital", 30, tmp_path / "etc")
    return f"[dicom_license_server]\nclient_id = 'hospital'\nlicense_key = '{issued.license_key}'\n"


WRONG = {
    "type": ("[dicom_store_scp]\nae_title = 5\n", "dicom_store_scp.ae_title = 5"),
    "range": ("[limits]\nnesting = 257\n", "limits.nesting"),
    "unknown": ("[http]\ntokn = 'CANARY'\n", "did you mean http.token?"),
    "secret": ("[http]\ntoken = 987654321\n", "http.token = ********"),
    "certificate": ("[tls]\ncertificate = 'absent.pem'\nprivate_key = 'absent.pem'\n", "tls.certificate"),
    "kafka": ("[kafka]\nbrokers = 'b'\nsecurity_protocol = 'SSL'\nssl_cafile = 'absent.pem'\n", "kafka.ssl_cafile"),
    "audit port": ("[audit]\ndestination = 'tcp://h:99999'\n", "audit.destination"),
    "audit folder": ("[audit]\ndestination = 'file:absent/audit.log'\n", "audit.destination"),
    "audit authority": ("[audit]\ndestination = 'tls://h:1'\nca_certificate = 'absent.pem'\n", "audit.ca_certificate"),
    "topics": ("[message_queue]\ntopic_main = 'a'\ntopic_log = 'a'\n", "another topic"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_start_refuses_is_refused_by_check_config(tmp_path: Path, licence: str, wrong: str) -> None:
    text, expected = WRONG[wrong]
    file = tmp_path / "etc" / "storescp.toml"
    file.write_text(licence + text)
    before = tree(tmp_path)
    code, said = both("-c", str(file), "-o", str(tmp_path / "data"))
    assert code == 78
    assert expected in said
    assert str(file) in said
    assert "CANARY" not in said
    assert "987654321" not in said
    assert tree(tmp_path) == before


def test_a_missing_licence_is_exit_77_for_both(tmp_path: Path) -> None:
    file = tmp_path / "storescp.toml"
    file.write_text("")
    code, said = both("-c", str(file), "-o", str(tmp_path / "data"))
    assert code == 77
    assert "license issue" in said


def test_everything_that_refuses_a_start_is_told_at_once_and_78_comes_before_75_before_77(tmp_path: Path) -> None:
    file = tmp_path / "storescp.toml"
    keep = "[local_storage]\ncreate = false\ndicm_store_path = 'data'\n"
    file.write_text(
        f"{keep}[dicom_store_scp]\nae_title = 5\n[tls]\ncertificate = 'a.pem'\nprivate_key = 'b.pem'\n"
        "[user_identity]\nusers = 'users'\n"
    )
    before = tree(tmp_path)
    code, said = both("-c", str(file))
    assert code == 78
    told = [
        "dicom_store_scp.ae_title",
        "tls.certificate",
        "user_identity.users",
        "storage.create",
        "license issue",
    ]
    assert [part for part in told if part not in said] == []
    file.write_text(keep)
    code, said = both("-c", str(file))
    assert code == 75
    assert "license issue" in said
    assert sorted(path for path, _ in tree(tmp_path)) == [path for path, _ in before]


def test_check_config_makes_nothing_and_binds_nothing(
    tmp_path: Path, licence: str, start_service: StartService
) -> None:
    scp = start_service()
    file = tmp_path / "etc" / "storescp.toml"
    audit = f"[audit]\ndestination = 'file:audit.log'\n[dicom_store_scp]\nhost = '127.0.0.1'\nport = {scp.port}\n"
    file.write_text(licence + audit)
    before = tree(tmp_path / "etc")
    result = run_in_process("-c", file, "-o", tmp_path / "elsewhere" / "data", "check-config")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path / "etc") == before
    assert not (tmp_path / "elsewhere").exists()


@contextlib.contextmanager
def reading_its_configuration(
    fifo: Path, *options: str | Path, errors: IO[bytes] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """A service that has begun and waits for the text of its configuration."""
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "storescp", "-p", "0", "-c", fifo, *options],
        stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def write_for_good(fifo: IO[str], text: str) -> None:
    """Also for whoever opens it later: a SIGHUP has the licence read again."""
    file = Path(fifo.name).with_suffix(".new")
    file.write_text(text)
    fifo.write(text)
    file.replace(fifo.name)


def test_a_hangup_before_the_service_listens_is_heard_when_it_does(tmp_path: Path, licence: str) -> None:
    fifo = tmp_path / "etc" / "fifo.toml"
    with reading_its_configuration(fifo, "-o", str(tmp_path / "data")) as process:
        with fifo.open("w") as configuration:
            process.send_signal(signal.SIGHUP)
            write_for_good(configuration, licence + "[dicom_store_scp]\nhost = '127.0.0.1'\n")
        assert process.stdout is not None
        assert LISTENING.match(process.stdout.readline())
        assert process.stderr is not None
        assert next(line for line in process.stderr if '"reload.done"' in line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_no_hangup_ends_the_service_from_its_start_to_its_end(tmp_path: Path, licence: str) -> None:
    fifo, log = tmp_path / "etc" / "fifo.toml", tmp_path / "log"
    with log.open("wb") as errors, reading_its_configuration(fifo, "-o", tmp_path / "data", errors=errors) as process:
        with fifo.open("w") as configuration:
            process.send_signal(signal.SIGHUP)
            write_for_good(configuration, licence + "[dicom_store_scp]\nhost = '127.0.0.1'\n")
        told_to_end = False
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            if not told_to_end and b"reload.done" in log.read_bytes():
                process.send_signal(signal.SIGTERM)
                told_to_end = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.001)
        assert process.returncode == 0


def test_the_signal_to_end_is_heard_before_the_service_listens(tmp_path: Path, licence: str) -> None:
    fifo = tmp_path / "etc" / "fifo.toml"
    with reading_its_configuration(fifo) as process, fifo.open("w"):
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


def test_a_service_whose_lines_nobody_reads_goes_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "storescp", "-p", "0", "-o", tmp_path / "data"], stdout=writer, stderr=errors
        )
        os.close(writer)
    try:
        wait_until(lambda: "stdout.not_written" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
