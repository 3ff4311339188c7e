"""This build against another one: `make bench-pair OLD=REVISION`.

Both builds and a sink take turns with every round of a set, in another order each time, and are started anew after some
rounds. The table has ratios of medians, this build over the other one: above 1 this build is faster, or takes more CPU
time.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from bench_peers import LOADS, Load, Measured, settled_cpu_seconds
from quiet import empty_large_files, quiet
from receivers import DurableSink, Ours, OursTranscoding, OursUnsynced, Receiver, Sink
from storescp import _core
from support.compressed import JPEG_2000
from support.instances import CT
from support.scu import EXPLICIT

ROUNDS = int(os.environ.get("STORESCP_PAIR_ROUNDS", "15"))
# Processes of each receiver, one after the other; turns of each in a round.
STARTS, TURNS = 5, 8
EACH = -(-ROUNDS // STARTS)
OTHER_PYTHON = os.environ.get("STORESCP_PAIR_PYTHON", "")
pytestmark = pytest.mark.skipif(not OTHER_PYTHON, reason="needs another build (make bench-pair OLD=REVISION)")


class _Other:
    """Of the other build."""

    def command(self) -> list[str]:
        return [OTHER_PYTHON, *super().command()[1:]]  # type: ignore[misc]


class Other(_Other, Ours):
    label = "the other build"


class OtherUnsynced(_Other, OursUnsynced):
    label = "the other build, durability none"


class OtherTranscoding(_Other, OursTranscoding):
    label = "the other build, durability none, transcoding"


class TranscodingSink(Sink):
    """Of a group of its own."""


PAIRS: dict[type[Receiver], tuple[type[Receiver], type[Receiver]]] = {
    Ours: (Other, DurableSink),
    OursUnsynced: (OtherUnsynced, Sink),
}
TRANSCODING: dict[type[Receiver], tuple[type[Receiver], type[Receiver]]] = {
    OursTranscoding: (OtherTranscoding, TranscodingSink)
}


class Running:
    """Receivers, started anew now and then: of two processes of a build one may be faster by a tenth, all its life."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._receivers: dict[type[Receiver], list[Receiver]] = {}

    def start_again(self, kinds: Iterable[type[Receiver]]) -> None:
        """Each in a folder of its own."""
        self.kill()
        for kind in kinds:
            begun = self._receivers.setdefault(kind, [])
            begun.append(kind(self._folder / f"{kind.__name__}-{len(begun)}"))
            begun[-1].start()

    def of(self, kind: type[Receiver]) -> Receiver:
        return self._receivers[kind][-1]

    def stored(self, kind: type[Receiver]) -> int:
        """Instances, by all processes of a kind."""
        return sum(1 for receiver in self._receivers[kind] for _ in receiver.visible())

    def kill(self) -> None:
        for begun in self._receivers.values():
            begun[-1].kill()


@pytest.fixture
def running(bench_folder: Path) -> Iterator[Running]:
    receivers = Running(bench_folder)
    yield receivers
    receivers.kill()
    empty_large_files(bench_folder)


class Sending:
    """A sender whose associations stay open between the turns."""

    def __init__(self, port: int, load: Load) -> None:
        self._context = (CT, load.transfer_syntax)
        self._port = port
        self._pool = ThreadPoolExecutor(max(1, load.associations))
        self._associations = [self._associate() for _ in range(load.associations)]

    def _associate(self) -> _core.Sender:
        return _core.Sender("127.0.0.1", self._port, "BENCH", "ANY-SCP", [self._context], 120)

    def send(self, instances: list[tuple[str, bytes]]) -> None:
        """Each is taken; an association of its own counts with it where none is open."""
        if self._associations:
            parts = [instances[first :: len(self._associations)] for first in range(len(self._associations))]
            answers = [one for part in self._pool.map(self._send_part, self._associations, parts) for one in part]
        else:
            answers = []
            for instance in instances:
                association = self._associate()
                answers += association.store_many(*self._context, [instance])
                association.release()
        assert {status for status, _ in answers} <= {0}

    def _send_part(self, association: _core.Sender, instances: list[tuple[str, bytes]]) -> list[tuple[int, float]]:
        return association.store_many(*self._context, instances)

    def close(self) -> None:
        for association in self._associations:
            association.release()
        self._pool.shutdown()


def measure(
    receivers: list[Receiver], load: Load, instances: list[tuple[str, bytes]], number: int
) -> list[tuple[float, float]]:
    """Seconds of one round, and processor seconds, of each receiver.

    They take turns: each gets a part of the instances, then each the next one, in another order. So what the host does
    meanwhile is the same for all of them.
    """
    before, rest = instances[: load.before], instances[load.before :]
    senders = [Sending(receiver.port, load) for receiver in receivers]
    for sender in senders:
        sender.send(before)
    cpu = [settled_cpu_seconds(receiver) for receiver in receivers]
    seconds = [0.0] * len(receivers)
    turns = min(TURNS, len(rest))
    for turn in range(turns):
        for one in random.Random(f"{number} {turn}").sample(range(len(receivers)), len(receivers)):
            began = time.perf_counter()
            senders[one].send(rest[turn::turns])
            seconds[one] += time.perf_counter() - began
    used = [settled_cpu_seconds(receiver) - begun for receiver, begun in zip(receivers, cpu, strict=True)]
    for sender in senders:
        sender.close()
    return list(zip(seconds, used, strict=True))


def ratios(new: Measured, old: Measured) -> str:
    """Rates and CPU time, this build over the other: of the medians, and the range of the rounds."""
    cells = []
    for ours, theirs in ((new.rates, old.rates), (new.cpu_ms, old.cpu_ms)):
        by_round = [one / other for one, other in zip(ours, theirs, strict=True)]
        whole = statistics.median(ours) / statistics.median(theirs)
        cells.append(f"{whole:.2f} ({min(by_round):.2f} to {max(by_round):.2f})")
    return " | ".join(cells)


def _long_enough(load: Load, kind: type[Receiver]) -> Load:
    """A hundred compressed instances are stored as received within 50 ms: too short to compare."""
    return replace(load, count=4 * load.count) if load.transfer_syntax != EXPLICIT and kind in PAIRS else load


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.label)
def test_this_build_against_the_other(bench_folder: Path, running: Running, load: Load) -> None:
    pairs = PAIRS | (TRANSCODING if load.transfer_syntax == JPEG_2000 else {})
    groups = [(this, *others) for this, others in pairs.items()]
    measured = {kind: Measured() for group in groups for kind in group}
    offered = Counter[type[Receiver]]()
    # The first round of a process warms it up.
    for number, counts in enumerate(([False] + [True] * EACH) * STARTS):
        if not counts:
            running.start_again(measured)
        for group in groups:
            used = _long_enough(load, group[0])
            instances = used.make(number)
            # Together they write this much; what is large is written in seconds, and needs no such care.
            size = len(instances[0][1]) * len(instances)
            quiet(bench_folder, size * len(group) if len(instances) > 1 else 0)
            found = measure([running.of(kind) for kind in group], used, instances, number)
            for kind, (seconds, cpu) in zip(group, found, strict=True):
                offered[kind] += len(instances)
                if counts:
                    measured[kind].add(used, seconds, [0.0], cpu)
    for kind, count in offered.items():
        assert running.stored(kind) == count, f"{kind.label} stored {running.stored(kind)} of {count}"
    print(f"\n{load.label}, {EACH * STARTS} rounds\n")
    print(
        "| durability | instances/s | of the other (range) | CPU of the other (range) | of the sink | CPU of the sink |"
    )
    print("|---|---|---|---|---|---|")
    for kind, (other, sink) in pairs.items():
        rate = statistics.median(measured[kind].rates)
        line = [kind.label, f"{rate:,.0f}", ratios(measured[kind], measured[other])]
        print(f"| {' | '.join([*line, ratios(measured[kind], measured[sink])])} |")
