"""Processes that decode images, when an image has taken one over: what it can reach, and what it can change afterwards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from storescp import _core
from storescp.engine import pool_config
from storescp.errors import CoreError
from storescp.settings import Settings
from support import hostile_worker
from support.command import storescp
from support.compressed import ONLY_EXPLICIT, RLE, compressed_ct
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
PROGRAM = Path(hostile_worker.__file__)
KILLED = "worker: the decoder made a system call that is forbidden to it (signal 31)"
REFUSED = "codec: refused: EPERM"
READ_ONLY = "codec: refused: EBADF", "codec: refused: EACCES"
# What becomes of each attempt without the protections, and with them.
FORBIDDEN = {
    "write_a_file": REFUSED,
    "read_a_file": REFUSED,
    "look_for_a_file": REFUSED,
    "connect": KILLED,
    "fork": KILLED,
    "execute": KILLED,
    "open_the_original_again": REFUSED,
    "signal_the_parent": KILLED,
    "have_the_parent_signalled": KILLED,
    "limit_the_parent": KILLED,
    "trace_the_parent": KILLED,
    "write_to_the_parents_memory": KILLED,
    "read_the_parents_environment": REFUSED,
    "make_code": KILLED,
    "set_up_io_uring": KILLED,
    "take_memory_that_no_limit_counts": KILLED,
    "take_memory_as_a_stack": KILLED,
}
# A machine may forbid these to all.
OFTEN_FORBIDDEN = {"trace_the_parent", "write_to_the_parents_memory", "set_up_io_uring"}


def attempt(folder: Path, mode: str, name: str, argument: object = "") -> str:
    """What an attempt came to, in a process that a pool took for its worker and gave a job."""
    command = [sys.executable, "-P", str(PROGRAM), mode, name, str(argument)]
    pool = _core.Transcoder(json.dumps(pool_config(Settings()) | {"command": command, "workers": 1, "timeout": 20}))
    source, target = folder / "original", folder / "target"
    with pytest.raises(CoreError) as raised:
        pool.transcode_file(source, 0, target, b"", RLE, EXPLICIT, 1 << 20)
    return str(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an original and something else."""
    (tmp_path / "original").write_bytes(b"original" * 1000)
    (tmp_path / "another").write_bytes(b"secret")
    return tmp_path


def require_protections() -> None:
    code = "from storescp import _core; missing = _core.lock_down(); print(*missing)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip():
        pytest.skip(f"this machine has no {done.stdout.strip()}")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_decoder_that_is_taken_over_reaches_nothing(folder: Path, name: str) -> None:
    require_protections()
    with socket.create_server(("127.0.0.1", 0)) as server:
        argument: object = {
            "write_a_file": folder / "new",
            "read_a_file": folder / "another",
            "look_for_a_file": folder / "another",
            "connect": server.getsockname()[1],
        }.get(name, "")
        assert attempt(folder, "locked", name, argument) == FORBIDDEN[name]
        assert sorted(path.name for path in folder.iterdir()) == ["another", "original"]
        assert (folder / "original").read_bytes() == b"original" * 1000
        # Without the protections it succeeds, so it is they that forbid it.
        unprotected = attempt(folder, "free", name, argument)
    if name == "execute":
        assert unprotected == "worker: the decoder crashed (exit code 7)"
    else:
        assert unprotected == "codec: done" or (name in OFTEN_FORBIDDEN and "refused" in unprotected)


@pytest.mark.parametrize("mode", ["free", "locked"])
@pytest.mark.parametrize("name", ["write_to_the_original", "map_the_original"])
def test_the_original_is_handed_over_for_reading(folder: Path, mode: str, name: str) -> None:
    assert attempt(folder, mode, name) in READ_ONLY
    assert (folder / "original").read_bytes() == b"original" * 1000


@pytest.mark.parametrize("mode", ["free", "locked"])
def test_the_memory_for_results_cannot_be_made_longer(folder: Path, mode: str) -> None:
    assert attempt(folder, mode, "lengthen_the_result") == REFUSED


def test_what_decoding_needs_is_left(folder: Path) -> None:
    assert attempt(folder, "locked", "start_a_thread") == "codec: done"
    # An abort, as of a decoder that panics, is told as such.
    assert attempt(folder, "locked", "crash") == "worker: the decoder crashed (signal 6)"


def test_the_environment_holds_no_secrets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORESCP_LICENSE_KEY", "secret")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    code, _, text = attempt(folder, "free", "tell_the_environment").partition(": ")
    # Python's own is there where there is no locale.
    found = set(text.split()) - {"LC_CTYPE"}
    assert code == "codec"
    of_malloc = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    assert of_malloc <= found <= of_malloc | set(_core.WORKER_ENVIRONMENT)
    # Another process of this one has all of it.
    code = "import os; print(os.environ['STORESCP_LICENSE_KEY'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"secret\n"


def children() -> set[int]:
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_a_worker_keeps_no_descriptor_that_the_service_inherited(folder: Path) -> None:
    one = compressed_ct(1, RLE)
    (folder / "original").write_bytes(one.dataset)
    pool = _core.Transcoder(json.dumps(pool_config(Settings()) | {"workers": 1}))
    with (folder / "another").open("rb") as another:
        os.set_inheritable(another.fileno(), True)
        before = children()
        pool.transcode_file(folder / "original", 0, folder / "target", b"", RLE, EXPLICIT, 1 << 30)
        [worker] = children() - before
        with subprocess.Popen(["sleep", "60"], close_fds=False) as other:
            inherited = open_files(other.pid)
            other.kill()
    assert str(folder / "another") in inherited
    # Behind its answer it keeps the memory for results.
    held = sorted(path.partition(":")[0] for path in open_files(worker) if path != "/dev/null")
    assert held == ["/memfd", "socket"]


LIAR = """
    import sys
    if "storescp.transcode_worker" in sys.orig_argv:
        sys.path.insert(0, {tests!r})
        from support.hostile_worker import lie
        lie({result_bytes}, {is_mapped})
"""


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize(
    ("result_bytes", "is_mapped"),
    [(500_000, True), (hostile_worker.MOST_IN_MEMORY, True), (3 << 20, False), (3 << 20, True)],
    ids=["small", "as large as the memory", "written", "mapped"],
)
def test_a_result_that_is_changed_after_it_was_told_of_never_reaches_the_file(
    start_service: StartService, tmp_path: Path, result_bytes: int, is_mapped: bool, durability: str
) -> None:
    """The worker of a real service changes results all the time; each file is what its record says, and stays so."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(LIAR).format(tests=str(PROGRAM.parents[1]), result_bytes=result_bytes, is_mapped=is_mapped)
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    service = start_service(
        env=ONLY_EXPLICIT
        | {
            "PYTHONPATH": path,
            "STORESCP_LOCAL_STORAGE__DURABILITY": durability,
            "STORESCP_TRANSCODING__WORKERS": "1",
        }
    )
    many = [compressed_ct(number, RLE) for number in range(10, 15)]
    with RawAssociation(service.port, [(1, many[0].sop_class, [RLE])], timeout=60) as association:
        for one in many:
            assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()
    records = service.records(count=len(many))
    assert {record["transfer_status"] for record in records} == {"Success"}
    assert {record["file_size"] > result_bytes for record in records} == {True}
    # The worker still changes what it has.
    verified = storescp("-o", service.root, "verify")
    assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr
    assert service.stop() == 0
    assert verified.stderr.splitlines()[-1].startswith(f"{len(many)} files, ")


# The renderer, when an image has taken it over.
RENDERER = """
    from storescp import _core

    def thumbnail(edge, max_frame_bytes):
        try:
            return open({another!r}, "rb").read()
        except PermissionError:
            return b"refused"

    _core.thumbnail = thumbnail
    if {is_free}:
        _core.lock_down = list
"""


@pytest.mark.parametrize(("is_free", "picture"), [(False, b"refused"), (True, b"secret")], ids=["locked", "free"])
def test_what_renders_thumbnails_is_locked_down_too(folder: Path, is_free: bool, picture: bytes) -> None:
    require_protections()
    code = textwrap.dedent(RENDERER).format(another=str(folder / "another"), is_free=is_free)
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "storescp.thumbnail_worker", "320", str(1 << 30), "1000000"]
    with (folder / "original").open("rb") as file:
        done = subprocess.run(
            command, stdin=file, capture_output=True, check=True, timeout=30, env=os.environ | {"PYTHONPATH": path}
        )
    assert done.stdout == picture


# seccomp(2) and landlock_create_ruleset(2) of this machine.
CALLS = {"Landlock": 444, "seccomp": {"x86_64": 317, "aarch64": 277}[os.uname().machine]}
# Becomes a program for which a system call does not exist: a filter of four instructions that answers it with ENOSYS.
WITHOUT = """
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("HL", 4, ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, program): sys.exit(125)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("missing", [[], ["Landlock"], ["seccomp"]], ids=str)
def test_the_log_says_which_protection_this_machine_does_not_have(
    start_service: StartService, missing: list[str]
) -> None:
    require_protections()
    wrapper = [part for name in missing for part in (sys.executable, "-c", WITHOUT, str(CALLS[name]))]
    service = start_service(env=ONLY_EXPLICIT, wrapper=wrapper)
    for number in (1, 2):
        one = compressed_ct(number, RLE)
        with RawAssociation(service.port, [(1, one.sop_class, [RLE])]) as association:
            assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
            association.release()
    if missing:
        service.wait_for_event("transcoding.workers_unprotected")
    assert {record["transfer_status"] for record in service.records(count=2)} == {"Success"}
    assert service.stop() == 0
    told = [event["missing"] for event in service.events("transcoding.workers_unprotected")]
    assert told == ([missing] if missing else [])
