"""kill -9 while a damaged data set is being kept: a whole entry or none, and what was answered B007 is there."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storescp.errors import StorescpError
from storescp.pure import damaged
from storescp.quarantine import entries as listed
from support.damage import KEEPS, QUARANTINED, entries, nested, opened_keeping, send, truncated
from support.engines import take
from support.instances import CT, Instance, ct_slice, dataset_of
from support.load import CONTEXTS
from support.scu import Closed, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
POINTS = ("damaged_written", "damaged_noted", "damaged_named")


def large(number: int) -> Instance:
    """Spilled to a file before its end."""
    one = ct_slice(number, rows=1024)
    return Instance(CT, one.sop_instance, one.transfer_syntax, one.dataset[:-9])


@pytest.mark.parametrize("durability", ["full", "none"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("make", [truncated, large])
def test_a_kill_at_each_step_leaves_whole_entries(
    start_service: StartService,
    fail_points: dict[str, str],
    point: str,
    durability: str,
    make: Callable[[int], Instance],
) -> None:
    environment = fail_points | KEEPS | {"STORESCP_STORAGE__DURABILITY": durability}
    service = start_service(env=environment | {"STORESCP_FAIL_POINT": f"{point}:2"})
    acknowledged = []
    with RawAssociation(service.port, CONTEXTS) as association, contextlib.suppress(Closed, ConnectionError):
        for number in range(5):
            one = make(number)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == QUARANTINED
            acknowledged.append(one)
    assert service.process.wait(30) == -signal.SIGKILL
    assert len(acknowledged) == 2
    whole = [entry.sop_instance_uid for entry in listed([service.root])]
    assert whole[:2] == [one.sop_instance for one in acknowledged]
    assert len(whole) == (3 if point == "damaged_named" else 2), "nothing else is visible, also before the next start"
    service = start_service(root=service.root, env=KEEPS)
    assert service.temporary_files() == []
    kept = entries(service.root)
    assert [note["affected_sop_instance_uid"] for _, note in kept] == whole
    for number, (file, _) in enumerate(kept):
        assert dataset_of(file) == make(number).dataset
    assert service.files() == []


def test_a_kill_between_storing_and_removing_stores_once(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    strict = {"STORESCP_LIMITS__NESTING": "4"}
    service = start_service(env=KEEPS | strict)
    assert send(service, nested(1, 8))[0].status == QUARANTINED
    assert service.stop() == 0
    root = service.root
    [(file, _)] = entries(root)
    # It ends when the row is publishable: stored and recorded, and still in quarantine.
    service = start_service(root=root, env=fail_points | KEEPS | {"STORESCP_FAIL_POINT": "row_publishable:0"})
    wish(root, file.stem)
    assert service.process.wait(30) == -signal.SIGKILL
    assert len(entries(root)) == 1
    service = start_service(root=root, env=KEEPS)
    wait_until(lambda: not entries(root))
    assert service.stop() == 0
    assert len(service.files()) == 1
    records = service.records()
    assert {record["trace_id"] for record in records} == {records[0]["trace_id"]}


def wish(root: Path, name: str) -> None:
    """What `storescpd quarantine retry` asks of a service, without waiting for the answer."""
    from storescp.outbox import open_outbox

    with contextlib.closing(open_outbox(root, write=True)) as database, database:
        statement = "INSERT INTO quarantine_retry (root, name, by_rule) VALUES (?, ?, 0)"
        database.execute(statement, (str(root), name))


class _Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_each_call_of_the_pure_engine_leaves_whole_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What is undone when a call fails is not undone when the process ends: nothing runs then."""
    left = [step]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            return call(*arguments, **options)

        return counting

    with opened_keeping("python", tmp_path) as engine:
        assert take(engine, truncated(1))[0] == QUARANTINED
        with monkeypatch.context() as patch:
            for name in ("rename", "fsync", "fdatasync", "open", "unlink"):
                patch.setattr(damaged.os, name, counted(getattr(damaged.os, name)))
            with contextlib.suppress(_Killed, StorescpError):
                assert take(engine, truncated(2))[0] == QUARANTINED
    found = [entry.sop_instance_uid for entry in listed([tmp_path])]
    with opened_keeping("python", tmp_path) as engine:
        assert engine.storage_state().damaged == len(found)
    assert [note["affected_sop_instance_uid"] for _, note in entries(tmp_path)] == found
    assert found in ([truncated(1).sop_instance], [truncated(1).sop_instance, truncated(2).sop_instance])
    assert list((tmp_path / ".incoming").iterdir()) == []
