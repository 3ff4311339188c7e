"""How many worker processes transcode, and how much memory each may take, on the machine that is there."""

from __future__ import annotations

from dataclasses import dataclass

from storescp import machine
from storescp.quantities import text_of_size
from storescp.settings import LEAST_WORKER_BYTES, Transcoding

# What the service has of a memory limit. In as much, tests/crash/test_memory.py stores ten large instances at once.
SERVICE_BYTES = 512 << 20


@dataclass(frozen=True)
class WorkerPlan:
    """Worker processes at most, threads of each, and bytes of memory that each may take."""

    processes: int
    threads: int
    memory_bytes: int
    # Why there are fewer, or smaller ones, than the configuration alone asks for.
    remark: str | None = None

    @property
    def text(self) -> str:
        """The plan and its remark, for people."""
        count = "1 worker process" if self.processes == 1 else f"{self.processes} worker processes"
        plan = f"transcoding: {count} of {_text(self.memory_bytes)} at most"
        return plan if self.remark is None else f"{plan}; {self.remark}"


def plan_workers(transcoding: Transcoding) -> WorkerPlan:
    """What the configuration asks for, as far as processors and memory limit of this process have room for it."""
    return fit(transcoding, machine.processors(), machine.memory_limit_bytes())


def fit(transcoding: Transcoding, processors: int, limit_bytes: int | None) -> WorkerPlan:
    """As `plan_workers`, for a number of processors and a memory limit. There is always one worker process."""
    wanted, each = transcoding.workers or processors, transcoding.worker_memory_bytes
    if limit_bytes is None:
        return WorkerPlan(wanted, processors, each)
    room = limit_bytes - min(SERVICE_BYTES, limit_bytes // 2)
    given = max(LEAST_WORKER_BYTES, min(each, room >> 20 << 20))
    processes = max(1, min(wanted, room // given))
    return WorkerPlan(processes, processors, given, _remark(wanted, processes, each, given, room, limit_bytes))


def _remark(wanted: int, processes: int, each: int, given: int, room: int, limit: int) -> str | None:
    """What does not fit, and what to do about it."""
    within = f"within the memory limit of {_text(limit)}"
    if given > room:
        return (
            f"{within} the service and one worker process of {_text(given)} do not fit: the kernel may end "
            "them; raise the limit"
        )
    if given < each:
        return (
            f"{within} there is room for one worker process of {_text(given)} beside the service, less than "
            f"transcoding.worker_memory_bytes ({_text(each)}): what needs more is stored as received; raise the "
            "limit"
        )
    if processes < wanted:
        return (
            f"{within} there is room for {processes} of {wanted} worker processes of {_text(each)} beside the "
            "service: raise the limit or lower transcoding.worker_memory_bytes"
        )
    return None


def _text(size: int) -> str:
    """A size in whole MiB, or in a larger unit where it is whole."""
    return text_of_size(size >> 20 << 20)
