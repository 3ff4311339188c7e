"""A bar for what takes time, on standard error, and only where somebody looks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextlib.contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """What is called with each advance. `total`: None where it is not known."""
    with _bars(MofNCompleteColumn()) as bars:
        task = bars.add_task(label, total=total)
        yield lambda advance: bars.advance(task, advance)


@contextlib.contextmanager
def transfer(label: str, instances: int, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """What is called with the bytes of each instance: the bar counts both, and shows the rate in bytes."""
    counted = TextColumn("{task.fields[done]}/{task.fields[instances]} instances")
    with _bars(counted, DownloadColumn(), TransferSpeedColumn()) as bars:
        task = bars.add_task(label, total=total_bytes, done=0, instances=instances)
        done = itertools.count(1)
        yield lambda count: bars.update(task, advance=count, done=next(done))


def _bars(*amount: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
