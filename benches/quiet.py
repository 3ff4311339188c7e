"""What is done before each measured round, so that rounds do not pay for each other."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK = os.urandom(1 << 20)
_SCRATCH_MIB = 256


def quiet(folder: Path) -> None:
    """Waits for the disk, and touches the memory that the round will use.

    What earlier rounds wrote is written back first. Then a scratch file is written and deleted: on a virtual machine
    the first touch of a page can cost more than the write that is measured, and pages that a deleted file leaves are
    used again before others.
    """
    os.sync()
    scratch = folder / "scratch"
    with scratch.open("wb", buffering=0) as file:
        for _ in range(_SCRATCH_MIB):
            file.write(_BLOCK)
    scratch.unlink()
