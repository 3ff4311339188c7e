"""HAProxy as the load balancer in front of the service, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


def program() -> str:
    """Where it is; Debian's users do not have /usr/sbin in their path."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("haproxy is not installed")
    return found


@dataclass(frozen=True)
class Balancer:
    """One that runs: where it listens for each target, and its log."""

    ports: list[int]
    log: Path


@contextlib.contextmanager
def passing_on(folder: Path, targets: list[int], source: str, options: str, *lines: str) -> Iterator[Balancer]:
    """One that connects from an address to ports of 127.0.0.1, with options of a server and more lines of its section."""
    with contextlib.ExitStack() as opened:
        # It takes them over, so that nobody else gets the ports.
        listeners = [opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128)) for _ in targets]
        sections = "".join(
            f"listen port-{target}\n  bind fd@{listener.fileno()}\n  source {source}\n"
            f"  server scp 127.0.0.1:{target} {options}\n" + "".join(f"  {line}\n" for line in lines)
            for target, listener in zip(targets, listeners, strict=True)
        )
        config, log = folder / "haproxy.cfg", folder / "haproxy.log"
        config.write_text(
            "global\n  log stdout format raw daemon\ndefaults\n  mode tcp\n  log global\n  option log-health-checks\n"
            f"  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n{sections}"
        )
        output = opened.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [program(), "-db", "-f", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno() for listener in listeners],
        )
        try:
            yield Balancer([int(listener.getsockname()[1]) for listener in listeners], log)
        finally:
            process.terminate()
            process.wait(10)
