"""`storescpd index` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from support.broker import KafkaBroker, Topics
from support.service import lines_so_far


@pytest.fixture(autouse=True)
def no_index_outlives_its_test() -> Iterator[None]:
    yield
    while IndexProcess.started:
        IndexProcess.started.pop().kill()


class IndexProcess:
    """`storescpd index` as a process of its own."""

    started: ClassVar[list[IndexProcess]] = []

    def __init__(
        self,
        broker: KafkaBroker,
        topics: Topics,
        url: str,
        log: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log_path = log
        env = {"STORESCP_KAFKA__BROKERS": broker.address(), **topics.env, **(env or {})}
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "storescp", "index", "--database", url, "--group", topics.main, *options],
            stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | env,
        )  # fmt: skip
        self.started.append(self)

    def wait(self, timeout: float = 90.0) -> str:
        output, _ = self.process.communicate(timeout=timeout)
        self._log.close()
        assert self.process.returncode == 0, self.log_path.read_text()
        return output

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._log.close()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in lines_so_far(self.log_path, self.process) if line.startswith("{"))
        return [line for line in lines if line["event"] == name]


def wait_for(condition: Callable[[], bool], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):
            pass  # the tables are not there yet, or the server is starting
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
