"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import os

from storescp import machine

# malloc.h of glibc; mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Frames and data sets on their way are smaller, and to touch new memory for each would cost a tenth of the throughput.
_KEPT_BYTES = 4 << 20
_LEAST_ARENAS = 2


def keep_less() -> None:
    """Has glibc share its arenas: one for each processor, not eight; and 4 MiB at the end of each, not up to 64.

    An arena keeps what the threads in it once needed at the same time, so a service grows until each has seen the worst
    of moments. Elsewhere, and where the environment has `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES`, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.keys() & {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}:
        return
    mallopt(_M_ARENA_MAX, max(_LEAST_ARENAS, machine.processors()))
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Has glibc give memory that was freed back to the system, in about a millisecond; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
