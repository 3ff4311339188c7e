"""An engine without its service: in this process, or in one of its own that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.pure.engine import PureEngine
from storescp.settings import Settings
from support.instances import Instance, ct_slice

ENGINES = ("rust", "python")
TENANT = "t"
_TESTS = Path(__file__).parents[1]


def settings_of(root: Path, **storage: Any) -> Settings:
    return Settings.model_validate({"storage": {"root": root, "min_free_bytes": 0} | storage})


@contextlib.contextmanager
def opened(name: str, root: Path, **storage: Any) -> Iterator[Engine]:
    """An engine on a storage root; closed at the end."""
    settings = settings_of(root, **storage)
    engine: Engine = PureEngine(settings) if name == "python" else _core.Engine(engine_config(settings))
    try:
        yield engine
    finally:
        engine.close()


def take(engine: Engine, instance: Instance) -> tuple[int, str]:
    """Status and error comment."""
    return engine.ingest(
        instance.dataset,
        instance.sop_class,
        instance.sop_instance,
        instance.transfer_syntax,
        "MODALITY",
        "STORE-SCP",
        "192.0.2.1",
        TENANT,
    )


def store(name: str, root: Path, *instances: Instance, **storage: Any) -> None:
    """Stores instances, each with success, and ends in order."""
    with opened(name, root, **storage) as engine:
        for instance in instances:
            assert take(engine, instance) == (0, "")


def records(engine: Engine) -> list[dict[str, Any]]:
    """The records that a topic would get now."""
    engine.outbox_flush()
    return [json.loads(row.payload) for row in engine.outbox_claim(0, 0, 1000)]


def publish(engine: Engine) -> list[bytes]:
    """The records that are pending, as JSON; they are delivered then."""
    payloads: list[bytes] = []
    while engine.outbox_backlog()[0]:
        engine.outbox_flush()
        rows = engine.outbox_claim(0, 0, 1000)
        payloads += [row.payload for row in rows]
        for topic in (0, 1):
            engine.outbox_done(topic, [row.id for row in rows])
        engine.outbox_flush()
    return payloads


def path_of(instance: Instance) -> str:
    """Where an instance of `ct_slice` lies, relative to the storage root."""
    series = instance.sop_instance.rpartition(".")[0]
    return f"{TENANT}/20260102/{series.rpartition('.')[0]}/{series}/{instance.sop_instance}.dcm"


@contextlib.contextmanager
def outbox(root: Path) -> Iterator[sqlite3.Connection]:
    """The database of a storage root that no engine has open."""
    with contextlib.closing(sqlite3.connect(root / ".outbox" / "outbox.sqlite", isolation_level=None)) as connection:
        yield connection


def leave_undecided(root: Path, path: str) -> None:
    """Takes the mark from the rows of a path, as an end between insertion and publication leaves them."""
    with outbox(root) as database:
        assert database.execute("UPDATE instance SET ready = NULL WHERE path = ?", (path,)).rowcount


def rows_of(root: Path, path: str) -> list[tuple[str, bool]]:
    """Trace id, and whether it is marked committed, of the rows of a path."""
    with outbox(root) as database:
        found = database.execute("SELECT trace_id, ready FROM instance WHERE path = ? ORDER BY id", (path,))
        return [(trace_id, ready is not None) for trace_id, ready in found]


def run_engine(
    name: str, root: Path, *numbers: int, rows: int = 4, kill: bool = False, inject: str = "", **storage: Any
) -> list[tuple[int, str]] | None:
    """Opens an engine in a process of its own, and stores instances: their statuses and comments.

    `kill`: it ends by SIGKILL after that. `inject`: what strace(1) does to a call of it. None where it was killed.
    """
    if inject and shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    wrapper = []
    if inject:
        call = inject.partition(":")[0]
        wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={inject}"]
    job = json.dumps([name, str(root), numbers, rows, kill, storage])
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "support.engines", job],
        cwd=_TESTS,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # strace ends with the signal of what it ran.
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return [(status, comment) for status, comment in json.loads(done.stdout)]


def _main(job: str) -> None:
    name, root, numbers, rows, kill, storage = json.loads(job)
    with opened(name, Path(root), **storage) as engine:
        print(json.dumps([take(engine, ct_slice(number, rows=rows)) for number in numbers]))
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _main(sys.argv[1])
