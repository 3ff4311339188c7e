"""The memory of the machine."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

# So much of it is free on a machine that has stored for a while; more than the latter is not filled.
_USUALLY_FREE = 1 / 8
_MOST_FILLED_BYTES = 64 << 30
_FILL_BYTES = 64 << 20


def fill_page_cache(file: Path) -> None:
    """Has the kernel keep all memory in use, as that of a machine is that has stored for a day, with a file of holes.

    A virtual machine gives memory that was free for some seconds back to its host. To touch it again costs more than
    all that is measured, and who has to depends on who came before.
    """
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    with file.open("a+b", buffering=0) as holes:
        holes.truncate(min(page * pages, _MOST_FILLED_BYTES))
        holes.seek(0)
        block = bytearray(_FILL_BYTES)
        while os.sysconf("SC_AVPHYS_PAGES") > pages * _USUALLY_FREE and holes.readinto(block):
            pass


def arenas(pid: int) -> int:
    """The arenas of glibc's malloc in a process, without the first: each reserves 64 MiB and uses a part."""
    maps = re.findall(r"^(\w+)-(\w+) (\S+) \S+ \S+ 0 *$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    places = [(int(begin, 16), int(end, 16), flags) for begin, end, flags in maps]
    return sum(
        used[0] % (64 << 20) == 0
        and (used[2], rest[2]) == ("rw-p", "---p")
        and (used[1], rest[1] - used[0]) == (rest[0], 64 << 20)
        for used, rest in pairwise(places)
    )
