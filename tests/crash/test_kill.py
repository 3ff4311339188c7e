"""kill -9 at a random moment under load: what was acknowledged is there, whole, and recorded."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from support.instances import CT, ct_slice, dataset_of
from support.scu import EXPLICIT, Aborted, Closed, RawAssociation, Rejected
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
ROUNDS = int(os.environ.get("STORESCP_CRASH_ROUNDS", "8"))
SENDERS = 8
CONTEXTS = [(1, CT, [EXPLICIT])]


@dataclass
class Ledger:
    """What the senders saw acknowledged: SOP Instance UID to data set."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, uid: str, dataset: bytes) -> None:
        with self.lock:
            self.acknowledged[uid] = dataset


def send_until_it_breaks(port: int, series: str, ledger: Ledger, enough: threading.Semaphore) -> None:
    try:
        with RawAssociation(port, CONTEXTS) as association:
            for number in range(10_000):
                one = ct_slice(number, series=series, rows=random.choice((8, 64, 256)))
                if association.store(1, CT, one.sop_instance, one.dataset).status == 0:
                    ledger.note(one.sop_instance, one.dataset)
                    enough.release()
    except (Closed, Aborted, Rejected, OSError):
        return


def reconcile(service: ServiceProcess, ledger: Ledger) -> None:
    files = {file.stem: file for file in service.files()}
    missing = set(ledger.acknowledged) - set(files)
    assert not missing, f"{len(missing)} acknowledged instances lost"
    for uid, dataset in ledger.acknowledged.items():
        assert dataset_of(files[uid]) == dataset
    for topic in ("storage_queue", "log_queue"):
        records = service.records(topic)
        recorded = {record["sop_uid"] for record in records}
        assert set(ledger.acknowledged) <= recorded, f"{topic}: acknowledged records missing"
        traces: dict[str, set[str]] = {}
        for record in records:
            traces.setdefault(record["sop_uid"], set()).add(record["trace_id"])
        assert all(len(ids) == 1 for ids in traces.values()), "a duplicate carries another trace_id"
        for record in records:
            assert os.stat(record["file_path"]).st_size == record["file_size"]  # noqa: PTH116


@pytest.mark.timeout(0)
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_kill_under_load_loses_nothing_that_was_acknowledged(start_service: StartService, engine: str) -> None:
    rounds = ROUNDS if engine == "rust" else max(2, ROUNDS // 8)
    ledger = Ledger()
    slowest = 0.0
    root = None
    for number in range(rounds):
        service = start_service(root=root, engine=engine)
        root = service.root
        slowest = max(slowest, service.ready_seconds)
        assert service.temporary_files() == []
        enough = threading.Semaphore(0)
        senders = [
            threading.Thread(
                target=send_until_it_breaks, args=(service.port, f"1.2.826.0.1.{number}.{sender}", ledger, enough)
            )
            for sender in range(SENDERS)
        ]
        for sender in senders:
            sender.start()
        for _ in range(random.randint(10, 60)):
            assert enough.acquire(timeout=30)
        service.kill()
        for sender in senders:
            sender.join(30)
    service = start_service(root=root, engine=engine)
    assert service.stop() == 0
    reconcile(service, ledger)
    print(
        f"\n{engine}: {rounds} rounds, {len(ledger.acknowledged)} acknowledged, 0 lost, slowest start {slowest:.2f} s"
    )
