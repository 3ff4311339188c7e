"""What is done before each measured round, so that rounds do not pay for each other."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK = os.urandom(1 << 20)
_SCRATCH_BYTES = 256 << 20
_LARGE_BYTES = 64 * 1024


def quiet(folder: Path, most_bytes: int = 0) -> None:
    """Waits for the disk, and touches the memory that the round will use: what it writes is `most_bytes` or little.

    What earlier rounds wrote is written back first. Then a scratch file is written and made empty: on a virtual machine
    the first touch of a page can cost more than the write that is measured, and pages that a file leaves are used again
    before others. It is not deleted, because ext4 looks at all inodes that were lately when it makes a file.
    """
    os.sync()
    scratch = folder / "scratch"
    with scratch.open("wb", buffering=0) as file:
        for _ in range(max(_SCRATCH_BYTES, most_bytes) // len(_BLOCK) + 1):
            file.write(_BLOCK)
    os.truncate(scratch, 0)


def empty_large_files(folder: Path) -> None:
    """Gives the disk back what is stored beneath a folder, but not the inodes.

    Deleting files disturbs ext4 for minutes: it looks through those that were deleted lately when it makes new ones.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.stat().st_size >= _LARGE_BYTES:
                os.truncate(path, 0)
