"""Processors and memory that this process may use: its affinity, and the limits of its control groups.

A container limits a process by control groups, cgroups(7); the numbers of the host do not count there. Systems without
`/proc` have no limits to read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_SELF = Path("/proc/self")
# Version 1 has no word for "no limit": it writes the largest multiple of a page (mm/page_counter.c).
_NO_LIMIT_BYTES = 1 << 62


def processors(proc: Path = _SELF) -> int:
    """Processors that this process may keep busy, by its affinity and the quotas of its control groups, rounded up.

    `proc` is the folder of the process in `/proc`.
    """
    # macOS has no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *_quotas(proc)])


def memory_limit_bytes(proc: Path = _SELF) -> int | None:
    """The smallest memory limit of the control groups of this process; None without a limit.

    `proc` is the folder of the process in `/proc`.
    """
    return min(_memory_limits(proc), default=None)


def _quotas(proc: Path) -> Iterator[int]:
    """Processors by the quota of each control group, rounded up."""
    # Documentation/admin-guide/cgroup-v2.rst: "$MAX $PERIOD"; Documentation/scheduler/sched-bwc.rst: -1 is no limit.
    pairs = [_words(group / "cpu.max") for group in _groups(proc, "")]
    pairs += [
        _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us") for group in _groups(proc, "cpu")
    ]
    for pair in pairs:
        match [int(word) for word in pair if word.isdecimal()]:
            case [quota, period] if quota > 0 and period > 0:
                yield -(-quota // period)


def _memory_limits(proc: Path) -> Iterator[int]:
    files = [group / "memory.max" for group in _groups(proc, "")]
    files += [group / "memory.limit_in_bytes" for group in _groups(proc, "memory")]
    for file in files:
        match _words(file):
            case [limit] if limit.isdecimal() and int(limit) < _NO_LIMIT_BYTES:
                yield int(limit)


def _groups(proc: Path, controller: str) -> list[Path]:
    """The folders of the control group of a process and of those above it, as far as they are mounted here.

    `controller` is one of version 1; of version 2, which has one tree for all, it is empty.
    """
    joined = {
        name: PurePosixPath(path)
        for _, names, path in (line.split(":", 2) for line in _lines(proc / "cgroup"))
        for name in names.split(",")
    }
    mounted = _mounted(proc, controller)
    if controller not in joined or mounted is None:
        return []
    root, point = mounted
    path = joined[controller]
    # In a container the mount may begin at a group of the host, or show less than the group is called by.
    is_beneath = path.is_relative_to(root) and ".." not in path.parts
    beneath = path.relative_to(root) if is_beneath else PurePosixPath()
    return [point / beneath, *(point / above for above in beneath.parents)]


def _mounted(proc: Path, controller: str) -> tuple[PurePosixPath, Path] | None:
    """The group at which a mounted tree begins, and where it is mounted: proc_pid_mountinfo(5)."""
    for line in _lines(proc / "mountinfo"):
        mount, _, source = line.partition(" - ")
        match mount.split(), source.split():
            case [_, _, _, root, point, *_], ["cgroup2", *_] if not controller:
                return PurePosixPath(root), Path(point)
            case [_, _, _, root, point, *_], ["cgroup", _, options] if controller in options.split(","):
                return PurePosixPath(root), Path(point)
    return None


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    """Nothing where there is no such file: a group of the root, or of a controller that is off, has no limits."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
