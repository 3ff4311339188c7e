"""A disk with a volatile cache: what is written stays in it until it is flushed, and a power cut leaves any part of it.

`python -m support.volatile_disk IMAGE FOLDER BLOCK SEED` serves the image in FOLDER, under its own name, until FOLDER is
unmounted, with FUSE; all that is written must be whole blocks of so many bytes.
The first SIGUSR1 is the power cut: of each block that was written since the last flush one of its contents stays, the one
on the disk or a later one, by chance; from then on all writes and flushes fail.
"""

# ruff: noqa: ARG002 - FUSE has more arguments than one file needs.
from __future__ import annotations

import errno
import os
import random
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import mfusepy


class VolatileDisk(mfusepy.Operations):
    """One file, in blocks; those that were not flushed are in memory, with all their contents since the last flush."""

    use_ns = True

    def __init__(self, image: Path, block: int, seed: int) -> None:
        self._path = f"/{image.name}"
        self._block = block
        self._file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size
        self._cached: dict[int, list[bytes]] = {}
        self._random = random.Random(seed)
        self._has_power = True
        self._lock = threading.Lock()

    def cut_power(self) -> None:
        """Once."""
        with self._lock:
            if self._has_power:
                self._has_power = False
                for number, contents in self._cached.items():
                    stays = self._random.randint(0, len(contents))
                    if stays:
                        self._put(number, contents[stays - 1])
                self._cached.clear()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == self._path:
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", self._path[1:]]

    def open(self, path: str, flags: int) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            content = bytearray(os.pread(self._file, size, offset))
            for begin in range(0, len(content), self._block):
                if contents := self._cached.get((offset + begin) // self._block):
                    content[begin : begin + self._block] = contents[-1]
            return bytes(content)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            self._need_power()
            for begin in range(0, len(data), self._block):
                self._cached.setdefault((offset + begin) // self._block, []).append(data[begin : begin + self._block])
            return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self._need_power()
            for number, contents in self._cached.items():
                self._put(number, contents[-1])
            self._cached.clear()
            return 0

    def _put(self, number: int, content: bytes) -> None:
        assert os.pwrite(self._file, content, number * self._block) == len(content) == self._block

    def _need_power(self) -> None:
        if not self._has_power:
            raise mfusepy.FuseOSError(errno.EIO)


def main(image: str, folder: str, block: str, seed: str) -> None:
    """Until it is unmounted."""
    disk = VolatileDisk(Path(image), int(block), int(seed))
    # A thread waits for it: Python's handlers run in the main one, which is in libfuse.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def wait_for_the_cut() -> None:
        signal.sigwait({signal.SIGUSR1})
        disk.cut_power()
        print("cut", flush=True)

    threading.Thread(target=wait_for_the_cut, daemon=True).start()
    mfusepy.FUSE(disk, folder, foreground=True, nothreads=True, fsname="volatile")


if __name__ == "__main__":
    main(*sys.argv[1:])
