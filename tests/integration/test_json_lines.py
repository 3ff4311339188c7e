"""The files of JSON lines of the real service are moved, removed and rotated under it."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.instances import CT, ct_slice
from support.load import send_slices
from support.scu import EXPLICIT, Aborted, Closed, RawAssociation, Rejected
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
CONTEXTS = [(1, CT, [EXPLICIT])]


def store(service: ServiceProcess, number: int) -> str:
    """One instance; its SOP Instance UID."""
    with RawAssociation(service.port, CONTEXTS) as association:
        one = ct_slice(number, rows=16)
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    return one.sop_instance


def folder_of(service: ServiceProcess) -> Path:
    return service.root / ".outbox" / "events"


def records(file: Path) -> list[str]:
    """The instances that a file names; none where it is just being renamed. Every line is a whole record."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    # What is written at once can be seen up to the end of a page, while the service runs.
    return [json.loads(line)["sop_uid"] for line in content.rpartition(b"\n")[0].splitlines()]


def last_record(file: Path) -> str | None:
    """The instance that the last line of a file names. One that came just before a rename is before it once more."""
    return next(reversed(records(file)), None)


def all_records(service: ServiceProcess, topic: str = "storage_queue") -> list[str]:
    """Those of all files of a topic."""
    return [uid for file in sorted(folder_of(service).glob(f"{topic}.jsonl*")) for uid in records(file)]


def is_open(service: ServiceProcess, file: Path) -> bool:
    return any(link.startswith(str(file)) for link in service._open())


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_after_a_rename_records_go_to_a_file_with_a_name(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine)
    file, moved = folder_of(service) / "storage_queue.jsonl", folder_of(service) / "moved"
    first = store(service, 1)
    wait_until(lambda: records(file) == [first])
    file.rename(moved)
    second = store(service, 2)
    wait_until(lambda: last_record(file) == second)
    assert records(moved) == [first]
    file.unlink()
    third = store(service, 3)
    wait_until(lambda: last_record(file) == third)
    assert service.stop() == 0
    assert records(folder_of(service) / "log_queue.jsonl") == [first, second, third]


def test_sighup_lets_go_of_a_renamed_file_before_the_next_record(start_service: StartService) -> None:
    service = start_service()
    file, moved = folder_of(service) / "storage_queue.jsonl", folder_of(service) / "moved"
    first = store(service, 1)
    wait_until(lambda: records(file) == [first])
    file.rename(moved)
    assert is_open(service, moved)
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_event("reload.done")
    wait_until(lambda: file.exists() and not is_open(service, moved))
    second = store(service, 2)
    wait_until(lambda: last_record(file) == second)
    assert records(moved) == [first]


def test_rotation_by_size_under_load_keeps_each_record_once(start_service: StartService) -> None:
    service = start_service(env={"STORESCP_JSON_LINES__MAX_BYTES": "4096"})
    numbers = itertools.count()
    for _ in range(10):
        send_slices(service.port, numbers)
        before = len(all_records(service))
        wait_until(lambda: len(all_records(service)) > before)  # noqa: B023 - it is waited for here
    assert service.stop() == 0
    for topic in ("storage_queue", "log_queue"):
        found = all_records(service, topic)
        assert len(found) == len(set(found)) == 200
        assert len(list(folder_of(service).glob(f"{topic}.jsonl.*"))) > 2


def test_a_kill_while_files_are_rotated_loses_no_record(start_service: StartService) -> None:
    env: dict[str, Any] = {"STORESCP_JSON_LINES__MAX_BYTES": "1"}
    acknowledged: list[str] = []
    root = None
    for number in range(4):
        service = start_service(root=root, env=env)
        root = service.root
        had = len(list(folder_of(service).glob("*.jsonl.*")))
        for count in range(100_000 * number, 100_000 * (number + 1)):
            try:
                acknowledged.append(store(service, count))
            except (Rejected, Aborted, Closed, OSError):
                break
            if len(list(folder_of(service).glob("*.jsonl.*"))) >= had + 5:
                service.process.kill()
        else:
            raise AssertionError("it was not killed")
        service.kill()
    service = start_service(root=root, env=env)
    assert service.stop() == 0
    for topic in ("storage_queue", "log_queue"):
        assert set(all_records(service, topic)) >= set(acknowledged)
