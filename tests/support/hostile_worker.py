"""A decoder that is taken over: it takes a job as a worker process does, and then tries to do harm.

`python -P hostile_worker.py free|locked ATTEMPT [ARGUMENT]` as the command of a pool. It answers the job with a failure whose text is
what the attempt came to. `lie` is for a process that a real service takes for its worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from storescp import _core

_MESSAGE_BYTES = 4096
_PTRACE_SEIZE = 0x4206
_IO_URING_SETUP = 425
_COMPRESSED_PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
_C = ctypes.CDLL(None, use_errno=True)
# RESULT_BYTES of rust/core/src/transcode/pool.rs.
MOST_IN_MEMORY = 1 << 20


class Supervisor:
    """The socket that is standard input."""

    def __init__(self) -> None:
        self.socket = socket.socket(fileno=0)

    def receive(self, most: int) -> tuple[dict[str, Any] | None, list[int]]:
        """A message and at most so many descriptors; no message at the end."""
        message, descriptors, _, _ = socket.recv_fds(self.socket, _MESSAGE_BYTES, most)
        return (json.loads(message) if message else None), descriptors

    def tell(self, reply: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.socket.send(json.dumps(reply).encode())

    def wait(self) -> None:
        """Until the data set is where the request says, or the end."""
        self.socket.recv(2)


class Job(NamedTuple):
    """What a worker gets, and the argument of the attempt."""

    supervisor: Supervisor
    original: int
    result: int
    argument: str


def _checked(result: int) -> str:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def _start_a_thread(_job: Job) -> str:
    done: list[str] = []
    thread = threading.Thread(target=done.append, args=("done",))
    thread.start()
    thread.join()
    return done[0]


def _write_a_file(job: Job) -> str:
    with open(job.argument, "w") as file:  # noqa: PTH123 - what an attacker does
        file.write("harm")
    return "done"


def _read_a_file(job: Job) -> str:
    with open(job.argument, "rb") as file:  # noqa: PTH123 - what an attacker does
        return "done" if file.read() else "it is empty"


def _look_for_a_file(job: Job) -> str:
    os.stat(job.argument)  # noqa: PTH116 - what an attacker does
    return "done"


def _connect(job: Job) -> str:
    with socket.create_connection(("127.0.0.1", int(job.argument)), 5):
        return "done"


def _fork(_job: Job) -> str:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "done"


def _execute(_job: Job) -> str:
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])


def _write_to_the_original(job: Job) -> str:
    os.pwrite(job.original, b"harm", 0)
    return "done"


def _map_the_original(job: Job) -> str:
    with mmap.mmap(job.original, 4, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[:4] = b"harm"
    return "done"


def _open_the_original_again(job: Job) -> str:
    again = os.open(f"/proc/self/fd/{job.original}", os.O_RDWR)
    os.pwrite(again, b"harm", 0)
    return "done"


def _signal_the_parent(_job: Job) -> str:
    os.kill(os.getppid(), signal.SIGCONT)
    return "done"


def _have_the_parent_signalled(job: Job) -> str:
    fcntl.fcntl(job.supervisor.socket, fcntl.F_SETOWN, os.getppid())
    return "done"


def _limit_the_parent(_job: Job) -> str:
    resource.prlimit(os.getppid(), resource.RLIMIT_CORE, resource.prlimit(os.getppid(), resource.RLIMIT_CORE))
    return "done"


def _trace_the_parent(_job: Job) -> str:
    return _checked(_C.ptrace(_PTRACE_SEIZE, os.getppid(), None, None))


def _write_to_the_parents_memory(_job: Job) -> str:
    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    text = ctypes.create_string_buffer(b"harm")
    ours, theirs = Part(ctypes.addressof(text), 4), Part(1, 4)
    _C.process_vm_writev(os.getppid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    # No harm was done: nothing is at that address.
    if ctypes.get_errno() == errno.EFAULT:
        return "done"
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _read_the_parents_environment(_job: Job) -> str:
    with open(f"/proc/{os.getppid()}/environ", "rb") as file:  # noqa: PTH123 - what an attacker does
        return "done" if b"PATH=" in file.read() else "it is empty"


def _make_code(_job: Job) -> str:
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        return "done"


def _take_memory_that_no_limit_counts(_job: Job) -> str:
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS):
        return "done"


def _take_memory_as_a_stack(_job: Job) -> str:
    grows_down = 0x100
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | grows_down):
        return "done"


def _lengthen_the_result(job: Job) -> str:
    os.pwrite(job.result, b"x", 64 << 20)
    return "done"


def _set_up_io_uring(_job: Job) -> str:
    parameters = ctypes.create_string_buffer(256)
    return _checked(_C.syscall(_IO_URING_SETUP, 4, parameters))


def _crash(_job: Job) -> str:
    os.abort()


def _tell_the_environment(_job: Job) -> str:
    return " ".join(sorted(os.environ))


ATTEMPTS: dict[str, Callable[[Job], str]] = {
    attempt.__name__.strip("_"): attempt
    for attempt in (
        _start_a_thread, _write_a_file, _read_a_file, _look_for_a_file, _connect, _fork, _execute, _write_to_the_original,
        _map_the_original, _open_the_original_again, _signal_the_parent, _have_the_parent_signalled, _limit_the_parent,
        _trace_the_parent, _write_to_the_parents_memory, _read_the_parents_environment, _make_code, _set_up_io_uring,
        _take_memory_that_no_limit_counts, _take_memory_as_a_stack, _lengthen_the_result, _crash, _tell_the_environment,
    )
}  # fmt: skip


def main() -> None:
    mode, name, argument = sys.argv[1:4]
    supervisor = Supervisor()
    if mode == "locked":
        supervisor.tell({"Started": {"missing": _core.lock_down()}})
    _, (original, result) = supervisor.receive(2)
    supervisor.wait()
    try:
        outcome = ATTEMPTS[name](Job(supervisor, original, result, argument))
    except OSError as error:
        outcome = f"refused: {errno.errorcode[error.errno or 0]}"
    supervisor.tell({"Failed": {"code": "codec", "text": outcome}})
    # At once: a parent that is traced goes on when its tracer is gone.
    os._exit(0)


class Changing:
    """A thread that changes a result until another result is changed."""

    def __init__(self, change: Callable[[bytes], object], size: int) -> None:
        self._is_over = threading.Event()
        self._change = change
        self._contents = [bytes([number]) * size for number in (1, 2)]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            for content in self._contents:
                self._change(content)

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()


def _head(request: dict[str, Any], original: int, result_bytes: int) -> bytes:
    """What comes before the pixels: all else of the data set, and the header of native Pixel Data (PS3.5 7.1.2)."""
    where = request["input"]
    bytes_to_read = where["Memory"]["bytes"] if "Memory" in where else os.fstat(original).st_size
    dataset = os.pread(original, bytes_to_read, 0)
    elements = dataset[: dataset.index(_COMPRESSED_PIXELS)]
    return elements + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, result_bytes - len(elements) - 12)


def lie(result_bytes: int, is_mapped: bool) -> None:
    """Serves each job with an image of so many bytes, which it changes all the time, also when it is told of."""
    supervisor = Supervisor()
    changing: Changing | None = None
    memory: mmap.mmap | None = None
    while True:
        request, descriptors = supervisor.receive(2)
        if request is None:
            os._exit(0)
        supervisor.wait()
        if changing is not None:
            changing.stop()
        head = _head(request, descriptors[0], result_bytes)
        if is_small := result_bytes <= MOST_IN_MEMORY:
            memory = memory or mmap.mmap(descriptors[1], result_bytes)
            changing = _change_memory(memory, 0, head)
        else:
            supervisor.tell("TooLarge")
            room, [file] = supervisor.receive(1)
            assert room is not None
            changing = _change_file(file, room["offset"], head, result_bytes, is_mapped)
        supervisor.tell({"Done": {"frames": 1, "bytes": result_bytes, "in_memory": is_small}})


def _change_memory(memory: mmap.mmap, offset: int, head: bytes) -> Changing:
    begin = offset + len(head)
    memory[offset:begin] = head
    return Changing(lambda content: memory.__setitem__(slice(begin, None), content), len(memory) - begin)


def _change_file(file: int, offset: int, head: bytes, size: int, is_mapped: bool) -> Changing:
    os.ftruncate(file, offset + size)
    if is_mapped:
        memory = mmap.mmap(file, offset + size)
        # What is mapped can be written without a descriptor.
        os.close(file)
        return _change_memory(memory, offset, head)
    os.pwrite(file, head, offset)
    return Changing(lambda content: os.pwrite(file, content, offset + len(head)), size - len(head))


if __name__ == "__main__":
    main()
