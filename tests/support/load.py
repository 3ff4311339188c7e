"""Senders that keep a ledger of what was acknowledged, and its comparison with disk and topics."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from support.broker import Message
from support.compressed import JPEG_LS
from support.instances import CT, Instance, ct_slice, curated_instances, dataset_of
from support.scu import EXPLICIT, Aborted, Closed, RawAssociation, Rejected
from support.service import ServiceProcess


@contextlib.contextmanager
def again_and_again(work: Callable[[], object]) -> Iterator[None]:
    """Does something in another thread, again and again, until it is left."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def send_slices(port: int, numbers: Iterator[int], count: int = 20) -> None:
    """Small CT slices over one association."""
    with RawAssociation(port, [(1, CT, [EXPLICIT])]) as association:
        for number in itertools.islice(numbers, count):
            one = ct_slice(number, rows=64)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()


def send_curated(port: int, folder: Path) -> None:
    """Every curated file, whether it is taken or not."""
    for _, one in curated_instances(folder):
        sop_class = one.sop_class or "1.2.840.10008.5.1.4.1.1.7"
        with RawAssociation(port, [(1, sop_class, [one.transfer_syntax])]) as association:
            association.store(1, sop_class, one.sop_instance, one.dataset)
            association.release()


CONTEXTS = [(1, CT, [EXPLICIT]), (3, CT, [JPEG_LS])]


@dataclass
class Ledger:
    """What the senders saw: SOP Instance UIDs in the order of acknowledgement by series, and other statuses."""

    acknowledged: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    rejections: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    digests: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    lock: threading.Lock = field(default_factory=threading.Lock)
    frozen: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    enough: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def will_send(self, one: Instance) -> None:
        """Notes the bytes of a data set, for those that are compared with what is stored."""
        with self.lock:
            self.digests[one.sop_instance].add(digest(one.dataset))

    def note(self, series: str, uid: str, status: int) -> None:
        with self.lock:
            self.statuses[status] += 1
            if status == 0 and not self.frozen:
                self.acknowledged[series].append(uid)
        self.enough.release()

    def freeze(self, frozen: bool = True) -> None:
        """What is acknowledged from now on is not noted."""
        with self.lock:
            self.frozen = frozen

    def wait_for(self, answers: int) -> None:
        """Waits until so many more came in."""
        while self.enough.acquire(blocking=False):
            pass
        for _ in range(answers):
            assert self.enough.acquire(timeout=30)

    @property
    def uids(self) -> set[str]:
        with self.lock:
            return {uid for series in self.acknowledged.values() for uid in series}


def digest(dataset: bytes) -> bytes:
    return xxhash.xxh3_128_digest(dataset)


Make = Callable[[str, int], Instance]


def small_slice(series: str, number: int) -> Instance:
    return ct_slice(number, study=study_of(series), series=series, rows=4)


def study_of(series: str) -> str:
    return series.rsplit(".", 1)[0]


def send(
    port: int,
    series: str,
    ledger: Ledger,
    *,
    count: int,
    begin: int = 0,
    timeout: float = 20.0,
    make: Make = small_slice,
) -> None:
    """Sends `count` instances of one series over one association, until it breaks."""
    try:
        with RawAssociation(port, CONTEXTS, timeout=timeout) as association:
            for number in range(begin, begin + count):
                if ledger.stop.is_set():
                    break
                one = make(series, number)
                ledger.will_send(one)
                context = 1 if one.transfer_syntax == EXPLICIT else 3
                answer = association.store(context, CT, one.sop_instance, one.dataset)
                ledger.note(series, one.sop_instance, answer.status)
            association.release()
    except Rejected as rejected:
        with ledger.lock:
            ledger.rejections[rejected.code] += 1
    except (Closed, Aborted, OSError):
        return


def start_senders(
    port: int,
    ledger: Ledger,
    *,
    senders: int,
    count: int,
    prefix: str = "1.2.826.0.1",
    make: Make = small_slice,
) -> list[threading.Thread]:
    """`senders` associations at once, each with a study of its own."""
    options = {"count": count, "make": make}
    threads = [
        threading.Thread(target=send, args=(port, f"{prefix}.{sender}.1", ledger), kwargs=options)
        for sender in range(senders)
    ]
    for thread in threads:
        thread.start()
    return threads


def records(messages: Iterable[Message]) -> list[dict[str, object]]:
    return [json.loads(message.value) for message in messages]


@dataclass(frozen=True)
class Delivery:
    """What a topic holds of a ledger."""

    records: int
    duplicates: int


def check_delivery(
    service: ServiceProcess, ledger: Ledger, messages: list[Message], *, retried: Collection[str] = ()
) -> Delivery:
    """0 missing, a duplicate carries the same trace id, order kept for each key, keys and headers right.

    Records that an operator had tried again come later than their turn.
    """
    trace_of: dict[str, str] = {}
    series_of = {uid: series for series, uids in ledger.acknowledged.items() for uid in uids}
    order: dict[str, list[str]] = defaultdict(list)
    partition_of: dict[bytes, int] = {}
    duplicates = 0
    for message in messages:
        record = json.loads(message.value)
        uid, trace_id = record["sop_uid"], record["trace_id"]
        assert message.key.decode() == f"{record['tenant_id']}/{record['study_uid']}"
        assert dict(message.headers) == {"schema_version": b"2", "trace_id": trace_id.encode()}
        assert partition_of.setdefault(message.key, message.partition) == message.partition
        if uid in trace_of:
            duplicates += 1
        elif uid in series_of:
            order[series_of[uid]].append(uid)
        assert trace_of.setdefault(uid, trace_id) == trace_id, "a duplicate carries another trace_id"
    missing = ledger.uids - set(trace_of)
    assert not missing, f"{len(missing)} of {len(ledger.uids)} acknowledged records are missing"
    for series, uids in ledger.acknowledged.items():
        due = [uid for uid in uids if uid not in retried]
        assert [uid for uid in order[series] if uid not in retried] == due, "not in the order of acknowledgement"
    return Delivery(len(messages), duplicates)


def check_files(service: ServiceProcess, ledger: Ledger) -> None:
    files = {file.stem: file for file in service.files()}
    assert not ledger.uids - set(files)
    for uid in ledger.uids:
        assert dataset_of(files[uid])
