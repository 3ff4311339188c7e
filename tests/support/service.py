"""The real service as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import prepared

_PROGRAM = ("-m", "storescp")
LISTENING = re.compile(r"listening on (\S+):(\d+) as (\S+)( \(TLS\))?")


def is_nameless(link: str) -> bool:
    """Whether a descriptor is that of a file that never had a name (`O_TMPFILE`)."""
    return re.search(r"/\.incoming/#\d+ \(deleted\)$", link) is not None


def lines_so_far(file: Path, process: subprocess.Popen[str]) -> list[str]:
    """The lines that a process writes, all once it has ended. Before, what it writes at once can be seen up to the end of a page only."""
    is_running = process.poll() is None
    content = file.read_bytes()
    if is_running:
        content = content.rpartition(b"\n")[0]
    return content.decode().splitlines()


class DidNotStartError(AssertionError):
    """The service ended before it listened; `exit_code` is that of `Popen`."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class ServiceProcess:
    """Starts `python -m storescp`, waits for its line, and stops what it started.

    `wrapper` is a command that becomes it, such as `prlimit --nofile=64`. Without `names_root` the configuration alone
    says where the storage root is, and `root` is where the test looks.
    """

    def __init__(
        self,
        root: Path,
        *options: str,
        env: dict[str, str] | None = None,
        engine: str = "rust",
        listeners: int = 1,
        logs: Path | None = None,
        wrapper: Sequence[str] = (),
        program: Sequence[str] = _PROGRAM,
        names_root: bool = True,
    ) -> None:
        self.root = root
        self.tenant_roots: list[Path] = []
        self.log_path = (logs or root.parent) / f"{root.name}-{os.getpid()}-{time.monotonic_ns()}.log"
        self.started = time.monotonic()
        self._log = self.log_path.open("wb")
        arguments = ["-p", "0", *(("-o", str(root)) if names_root else ()), "--engine", engine, *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("STORESCP_")}
        environment |= {"PYTHONUNBUFFERED": "1"} | (env or {})
        is_plain = not wrapper and tuple(program) == _PROGRAM
        forked = prepared.start(arguments, self._log, environment) if is_plain else None
        self.process: subprocess.Popen[str] = forked or subprocess.Popen(
            [*wrapper, sys.executable, *program, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = ""
        self.port = self.tls_port = 0
        for _ in range(listeners):
            line = self.process.stdout.readline()
            match = LISTENING.match(line)
            if not match:
                exit_code = self.process.wait(20)
                self.close()
                raise DidNotStartError(f"did not start: {line!r}\n{self.log_path.read_text()}", exit_code)
            self.line = self.line or line.strip()
            if match[4]:
                self.tls_port = int(match[2])
            else:
                self.port = int(match[2])
        self.ready_seconds = time.monotonic() - self.started

    def stop(self, timeout: float = 40.0) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        self.close()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)
        self.close()

    def close(self) -> None:
        """Lets go of what its output goes to, once it has ended."""
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()

    def log(self) -> str:
        return self.log_path.read_text()

    def log_lines(self) -> list[str]:
        return lines_so_far(self.log_path, self.process)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log_lines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == name]

    def wait_for_event(self, name: str, timeout: float = 10.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.events(name)
            if found:
                return found[-1]
            self.wait_a_moment()
        raise AssertionError(f"no {name} in:\n{self.log()}")

    def files(self) -> list[Path]:
        """Every file beneath the tenants."""
        return sorted(
            path
            for root in (self.root, *self.tenant_roots)
            for tenant in root.iterdir()
            if not tenant.name.startswith(".")
            for path in tenant.rglob("*")
            if path.is_file()
        )

    def temporary_files(self) -> list[Path]:
        return list((self.root / ".incoming").iterdir())

    def records(self, topic: str = "storage_queue", *, count: int | None = None) -> list[dict[str, Any]]:
        """The records of a topic; waits until there are `count`."""
        file = self.root / ".outbox" / "events" / f"{topic}.jsonl"
        deadline = time.monotonic() + 20
        while True:
            lines = lines_so_far(file, self.process) if file.exists() else []
            if count is None or len(lines) >= count or time.monotonic() > deadline:
                return [json.loads(line) for line in lines]
            self.wait_a_moment()

    def wait_a_moment(self) -> None:
        """Between two looks at a file of the process; no pause once it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.01)

    def rss_kib(self, kind: str = "VmRSS") -> int:
        """Resident memory of the process now (VmRSS) or at its peak (VmHWM), in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{kind}:\s+(\d+)", status)[1])  # type: ignore[index]

    def cpu_seconds(self) -> float:
        """User and system time of the process so far: clock_getcpuclockid(3), which Python does not have."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def descriptors(self) -> int:
        """Open descriptors, but for files without a name: those of instances on their way, and a few that are ready."""
        return len([link for link in self._open() if not is_nameless(link)])

    def nameless_files(self) -> int:
        return len([link for link in self._open() if is_nameless(link)])

    def has_taken_all(self, client_port: int) -> bool:
        """What a connection brought is read, and all threads wait for something."""
        ends = {f"0100007F:{self.port:04X}", f"0100007F:{client_port:04X}"}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # Bytes on their way from one end, and those that the other one has not read (proc_net_tcp).
        queues = [row[4] for row in rows if {row[1], row[2]} == ends]
        states = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended in the meantime
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
        return len(queues) == 2 and set(queues) == {"00000000:00000000"} and states == {"S"}

    def nameless_bytes(self) -> int:
        """In the largest file without a name."""
        return max((file.stat().st_size for file, link in self._opened() if is_nameless(link)), default=0)

    def _open(self) -> list[str]:
        return [link for _, link in self._opened()]

    def _opened(self) -> list[tuple[Path, str]]:
        links = []
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                links.append((descriptor, str(descriptor.readlink())))
        return links
