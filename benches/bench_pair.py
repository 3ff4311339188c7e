"""This build against another one: `make bench-pair OLD=REVISION`.

Both builds and both sinks take every round of a set one after the other, in another order each time. The table has
ratios of medians, this build over the other one: above 1 this build is faster, or takes more CPU time.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench_peers import LOADS, Load, Measured, answers_to, settled_cpu_seconds
from quiet import empty_large_files, quiet
from receivers import DurableSink, Ours, OursTranscoding, OursUnsynced, Receiver, Sink
from support.compressed import JPEG_2000

ROUNDS = int(os.environ.get("STORESCP_PAIR_ROUNDS", "15"))
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


PAIRS: dict[type[Receiver], tuple[type[Receiver], type[Receiver]]] = {
    Ours: (Other, DurableSink),
    OursUnsynced: (OtherUnsynced, Sink),
}
TRANSCODING: dict[type[Receiver], tuple[type[Receiver], type[Receiver]]] = {OursTranscoding: (OtherTranscoding, Sink)}


@pytest.fixture
def started(bench_folder: Path) -> Iterator[Callable[[type[Receiver]], Receiver]]:
    receivers: dict[type[Receiver], Receiver] = {}

    def start(kind: type[Receiver]) -> Receiver:
        if kind not in receivers:
            receivers[kind] = kind(bench_folder / kind.__name__)
            receivers[kind].start()
        return receivers[kind]

    yield start
    for receiver in receivers.values():
        receiver.kill()
    empty_large_files(bench_folder)


def measure(receiver: Receiver, load: Load, instances: list[tuple[str, bytes]], found: Measured | None) -> None:
    """One round, whose every answer is success; `found` is None for the one that warms up."""
    before = instances[: load.before]
    answers = answers_to(receiver.port, load, before) if before else []
    cpu, began = receiver.cpu_seconds(), time.perf_counter()
    measured = answers_to(receiver.port, load, instances[load.before :])
    seconds = time.perf_counter() - began
    assert {status for status, _ in answers + measured} == {0}, receiver.label
    cpu = settled_cpu_seconds(receiver) - cpu
    if found is not None:
        found.add(load, seconds, [latency for _, latency in measured], cpu)


def ratios(new: Measured, old: Measured) -> str:
    """Rates and CPU time, this build over the other: of the medians, and the range of the rounds."""
    cells = []
    for ours, theirs in ((new.rates, old.rates), (new.cpu_ms, old.cpu_ms)):
        by_round = [one / other for one, other in zip(ours, theirs, strict=True)]
        whole = statistics.median(ours) / statistics.median(theirs)
        cells.append(f"{whole:.2f} ({min(by_round):.2f} to {max(by_round):.2f})")
    return " | ".join(cells)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.label)
def test_this_build_against_the_other(
    bench_folder: Path, started: Callable[[type[Receiver]], Receiver], load: Load
) -> None:
    pairs = PAIRS | (TRANSCODING if load.transfer_syntax == JPEG_2000 else {})
    kinds = list(dict.fromkeys(one for kind, others in pairs.items() for one in (kind, *others)))
    measured = {kind: Measured() for kind in kinds}
    for number in range(ROUNDS + 1):
        instances = load.make(number)
        size = len(instances[0][1]) * len(instances)
        for kind in random.Random(number).sample(kinds, len(kinds)):
            quiet(bench_folder, size)
            measure(started(kind), load, instances, measured[kind] if number else None)
    for kind in kinds:
        stored = sum(1 for _ in started(kind).visible())
        assert stored == (ROUNDS + 1) * (load.before + load.count), f"{kind.label} stored {stored}"
    print(f"\n{load.label}, {ROUNDS} rounds\n")
    print(
        "| durability | instances/s | of the other (range) | CPU of the other (range) | of the sink | CPU of the sink |"
    )
    print("|---|---|---|---|---|---|")
    for kind, (other, sink) in pairs.items():
        rate = statistics.median(measured[kind].rates)
        line = [kind.label, f"{rate:,.0f}", ratios(measured[kind], measured[other])]
        print(f"| {' | '.join([*line, ratios(measured[kind], measured[sink])])} |")
