"""kill -9 while a stored instance is transcoded in place: it is whole before and after, and each record that counts is told."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storescp import _core
from support.command import storescp
from support.compressed import ONLY_EXPLICIT, RLE, compressed_ct
from support.instances import CT, Instance, dataset_of
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
POINTS = (
    "transcoded",
    "row_asked_for",
    "data_written",
    "data_synced",
    "row_durable",
    "folder_made",
    "put_aside",
    "named",
    "folder_synced",
    "row_publishable",
)
# By turns; "data_written" is reached at "full" alone.
LEVELS = ("full", "none")
COUNT = 3


def wish(root: Path, path: str) -> None:
    """What `storescpd transcode --stored` asks of a service, without waiting for the answer."""
    from storescp.outbox import open_outbox

    with contextlib.closing(open_outbox(root, write=True)) as database, database:
        statement = "INSERT INTO quarantine_retry (root, name, by_rule, is_stored) VALUES (?, ?, 0, 1)"
        database.execute(statement, (str(root), path))


def is_granted(root: Path) -> bool:
    """Whether the service has answered each wish."""
    from storescp.outbox import open_outbox

    with contextlib.closing(open_outbox(root)) as database:
        return not database.execute("SELECT 1 FROM quarantine_retry WHERE outcome IS NULL").fetchall()


def store_as_received(start_service: StartService, *instances: Instance) -> ServiceProcess:
    """By a service whose viewers read it; stopped."""
    service = start_service()
    with RawAssociation(service.port, [(1, CT, [RLE])]) as association:
        for one in instances:
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    assert service.stop() == 0
    return service


@pytest.mark.parametrize(("point", "durability"), [(point, LEVELS[at % 2]) for at, point in enumerate(POINTS)])
def test_a_kill_at_each_step_loses_no_instance_and_the_next_start_goes_on(
    start_service: StartService, fail_points: dict[str, str], point: str, durability: str
) -> None:
    instances = [compressed_ct(number, RLE) for number in range(COUNT)]
    service = store_as_received(start_service, *instances)
    root, files = service.root, {file.stem: file for file in service.files()}
    level = {"STORESCP_STORAGE__DURABILITY": durability}
    armed = fail_points | ONLY_EXPLICIT | level | {"STORESCP_FAIL_POINT": f"{point}:1"}
    service = start_service(root=root, env=armed)
    for one in instances:
        wish(root, str(files[one.sop_instance].relative_to(root)))
    assert service.process.wait(30) == -signal.SIGKILL, f"{point} was not reached"
    # Whatever became of it: each name leads to a whole version of its instance.
    native = {one.sop_instance: _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30) for one in instances}
    for one in instances:
        assert dataset_of(files[one.sop_instance]) in (one.dataset, native[one.sop_instance])
    service = start_service(root=root, env=ONLY_EXPLICIT | level)
    wait_until(lambda: is_granted(root))
    assert service.stop() == 0
    assert sorted(service.files()) == sorted(files.values())
    assert service.temporary_files() == []
    assert not list(root.glob(".quarantine/*"))
    aside = [dataset_of(file) for file in root.glob(".replaced/*/*.dcm")]
    told = service.records()
    for one in instances:
        assert dataset_of(files[one.sop_instance]) == native[one.sop_instance]
        assert one.dataset in aside
        statuses = {record["transfer_status"] for record in told if record["sop_uid"] == one.sop_instance}
        assert statuses == {"NoNeedTransfer", "Success"}
        successes = {
            record["trace_id"]
            for record in told
            if record["sop_uid"] == one.sop_instance and record["transfer_status"] == "Success"
        }
        assert len(successes) == 1, "one record of the file that is there"


def test_the_command_goes_on_by_itself_where_the_service_is_killed(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    instances = [compressed_ct(number, RLE) for number in range(COUNT)]
    service = store_as_received(start_service, *instances)
    root = service.root
    armed = fail_points | ONLY_EXPLICIT | {"STORESCP_FAIL_POINT": "named:1"}
    service = start_service(root=root, env=armed)
    done = storescp("-o", root, "transcode", "--stored", "--all", env=ONLY_EXPLICIT)
    assert service.process.wait(30) == -signal.SIGKILL
    assert (done.returncode, done.stdout[:34]) == (0, "3 transcoded, 0 stay as they are, "), done.stderr
    for one, file in zip(instances, service.files(), strict=True):
        assert dataset_of(file) == _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30)
    assert len({file.name for file in root.glob(".replaced/*/*.dcm")}) >= COUNT
