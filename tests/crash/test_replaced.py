"""Replaced files under kill -9: every version that was acknowledged is in its place, or among the replaced ones."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import Row, rounds
from support.instances import CT, Instance, ct_slice, dataset_of
from support.load import CONTEXTS, digest
from support.scu import Aborted, Closed, RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
POINTS = ("folder_made", "put_aside", "named", "data_synced", "folder_synced", "row_publishable", "answered")
LEVELS = ("full", "none")


def version(series: str, number: int) -> Instance:
    """The same instance with other bytes each time: the accession number differs."""
    accession = f"A{number}".encode().ljust(8)
    change = {0x00080050: b"\x08\x00\x50\x00SH\x08\x00" + accession}
    return ct_slice(1, study=series, series=f"{series}.1", rows=random.choice((8, 64)), changes=change)  # type: ignore[arg-type]


def send_versions(port: int, series: str, first: int, acknowledged: dict[str, list[bytes]]) -> None:
    try:
        with RawAssociation(port, CONTEXTS) as association:
            for number in range(first, first + 10_000):
                one = version(series, number)
                acknowledged.setdefault(one.sop_instance, [])
                if association.store(1, CT, one.sop_instance, one.dataset).status == 0:
                    acknowledged[one.sop_instance].append(digest(one.dataset))
    except (Closed, Aborted, OSError):
        return


def digests_of(files: list[Path]) -> set[bytes]:
    return {digest(dataset_of(file)) for file in files}


@pytest.mark.timeout(0)
def test_a_kill_at_each_step_of_a_replacement_destroys_no_version(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    repeats = rounds(20, 1)
    row = Row(f"R2 kill at each of {len(POINTS)} fail points of a replacement", repeats * len(POINTS))
    acknowledged: dict[str, list[bytes]] = {}
    root = None
    for number, name in enumerate(POINTS * repeats):
        level = LEVELS[name != "data_synced" and (number + number // len(POINTS)) % 2]
        env = {"STORESCP_FAIL_POINT": f"{name}:{random.randint(4, 16)}", "STORESCP_LOCAL_STORAGE__DURABILITY": level}
        service = start_service(root=root, env=fail_points | env)
        root = service.root
        row.started(service)
        senders = [
            threading.Thread(
                target=send_versions, args=(service.port, f"1.2.826.0.{one}", number * 10_000, acknowledged)
            )
            for one in range(3)
        ]
        for sender in senders:
            sender.start()
        assert service.process.wait(60) == -signal.SIGKILL, f"{name} was not reached"
        for sender in senders:
            sender.join(30)
        row.interrupted(root)
    service = start_service(root=root)
    row.started(service)
    assert service.stop() == 0
    aside = list(service.root.glob(".replaced/*/*.dcm"))
    kept = digests_of(service.files()) | digests_of(aside)
    row.acknowledged = sum(map(len, acknowledged.values()))
    row.lost = sum(one not in kept for versions in acknowledged.values() for one in versions)
    assert row.quarantined == 0
    sizes = {record["accession_number"] for record in service.records()}
    assert len(sizes) >= row.acknowledged / 3, "each version has a record"
    row.remark = f"{len(aside)} replaced files"
    row.check()
