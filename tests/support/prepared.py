"""Services as forks of one process that has imported everything: a start takes a tenth of its processor time.

Nearly all of a start is imports, and the suites start a thousand services. Each process of a test run has one prepared
interpreter. It takes a request for each service (arguments, environment, folder; descriptors for its output and for
its exit code), forks, and the child goes on as `python -m storescp` would. With `STORESCP_TEST_REAL_STARTS=1`, and for tests
that run alone, each service is an interpreter of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

_REQUEST_BYTES = 1 << 20
_DESCRIPTORS = 3
_DEAD = 8  # bytes of an exit status, as text
# The environment of an interpreter has to be there when it begins.
_NEEDS_ITS_OWN = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "FAKETIME")
_UNBUFFERED = "PYTHONUNBUFFERED"
_IS_OFF = os.environ.get("STORESCP_TEST_REAL_STARTS") == "1"


class Forked(subprocess.Popen[str]):
    """A service that the prepared process forked, for those who know `Popen`: output, exit code, signals."""

    def __init__(self, prepared: Prepared, arguments: Sequence[str], stderr: IO[bytes], env: Mapping[str, str]) -> None:
        output, output_end = os.pipe()
        self._exit, exit_end = os.pipe()
        self._lock = threading.Lock()
        self.args = [sys.executable, "-m", "storescp", *arguments]
        self.returncode = None  # type: ignore[assignment]  # as Popen has it
        self.stdin, self.stderr = None, None
        self.stdout = os.fdopen(output)
        request = {"arguments": arguments, "environment": dict(env), "folder": str(Path.cwd())}
        self.pid = prepared.fork(request, [output_end, stderr.fileno(), exit_end])
        os.close(output_end)
        os.close(exit_end)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            TimeoutExpired: it has not ended in so many seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._exit, selectors.EVENT_READ)
                    if selector.select(timeout):
                        self.returncode = int(os.read(self._exit, _DEAD))
                        os.close(self._exit)
            return self.returncode

    def send_signal(self, sig: int) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def __del__(self, *_: object) -> None:
        """Popen's would look for a child of this process."""


class Prepared:
    """The prepared process, from the side of the tests."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # -P: modules beside this file have names of the standard library.
        command = [sys.executable, "-P", __file__]
        self._process = subprocess.Popen(command, stdin=theirs, env=_without_ours(os.environ))
        theirs.close()
        self._lock = threading.Lock()
        atexit.register(self.end)

    def fork(self, request: object, descriptors: list[int]) -> int:
        """The pid of a new service."""
        with self._lock:
            socket.send_fds(self._ours, [json.dumps(request).encode()], descriptors)
            return int(self._ours.recv(64))

    def end(self) -> None:
        """Ends it; what it forked goes on."""
        self._ours.close()
        self._process.wait(10)


class _Switch:
    """Whether services are forked, and the process that forks them."""

    def __init__(self) -> None:
        self.is_on = False
        self._prepared: Prepared | None = None

    def prepared(self) -> Prepared:
        if self._prepared is None:
            self._prepared = Prepared()
        return self._prepared


SWITCH = _Switch()


def start(arguments: Sequence[str], stderr: IO[bytes], env: Mapping[str, str]) -> Forked | None:
    """A service with these arguments; None where it has to be an interpreter of its own."""
    own = {key: value for key, value in env.items() if key.startswith(_NEEDS_ITS_OWN) and key != _UNBUFFERED}
    if _IS_OFF or not SWITCH.is_on or any(os.environ.get(key) != value for key, value in own.items()):
        return None
    return Forked(SWITCH.prepared(), arguments, stderr, env)


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if not key.startswith("STORESCP_")}


def _import_everything() -> None:
    """What a service has imported once it listens."""
    import storescp.cli
    import storescp.http.app
    import storescp.http.server
    import storescp.network.listener
    import storescp.pure.engine
    import storescp.service  # noqa: F401


def _serve(requests: socket.socket) -> dict[str, object]:
    """In the prepared process: forks until nobody asks any more. Comes back in a child, with its request."""
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    exits: dict[int, int] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is wake:
                wake.recv(4096)
                _tell_of_the_dead(exits)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, _DESCRIPTORS)
            if not message:
                os._exit(0)
            output, errors, exit_end = descriptors
            pid = os.fork()
            if pid:
                exits[pid] = exit_end
                os.close(output)
                os.close(errors)
                requests.send(str(pid).encode())
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, target in ((output, 1), (errors, 2), (os.open(os.devnull, os.O_RDONLY), 0)):
                os.dup2(number, target)
                os.close(number)
            for number in (exit_end, wake.detach(), woken.detach(), *exits.values()):
                os.close(number)
            selector.close()
            requests.close()
            request: dict[str, object] = json.loads(message)
            return request


def _tell_of_the_dead(exits: dict[int, int]) -> None:
    while exits:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError):  # nobody wants to know
            os.write(exits[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(exits.pop(pid))


def _become(request: dict[str, object]) -> NoReturn:
    arguments, environment = request["arguments"], request["environment"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(request["folder"]))
    # Those of the prepared process may be files; these are pipes.
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=_UNBUFFERED in environment)
    sys.argv = ["storescp", *arguments]
    sys.path.insert(0, "")  # as `python -m` does
    runpy.run_module("storescp", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    job = _serve(socket.socket(fileno=os.dup(0)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become(job)
