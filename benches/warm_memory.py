"""Holds memory warm while a bench runs: `python warm_memory.py GIB`, until its standard input ends.

On a virtual machine the first touch of a page can cost more than the write that is measured, and free memory is handed
back to the host within seconds. This process touches memory once and gives all of it back but one page in each 2 MiB:
what is left never forms a block large enough to be handed back, and the kernel uses small blocks first.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

_MADV_NOHUGEPAGE = 15
_BLOCK, _PAGE = 2 << 20, 4096


def main() -> None:
    size = int(float(sys.argv[1]) * (1 << 30))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(_MADV_NOHUGEPAGE)
    view = (ctypes.c_char * size).from_buffer(memory)
    ctypes.memset(view, 1, size)
    for block in range(0, size, _BLOCK):
        memory.madvise(mmap.MADV_DONTNEED, block + _PAGE, _BLOCK - _PAGE)
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
