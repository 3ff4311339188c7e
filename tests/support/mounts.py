"""File systems of their own, to be filled, cut off and taken away. Needs root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# EXT4_IOC_SHUTDOWN (_IOR('X', 125, __u32)): what is not on the disk by now never gets there.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60)


def require_mounts() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, timeout=10, check=False)
    if probe.returncode:
        pytest.skip("this machine does not let root mount")


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs with options of mount(8) such as `size=8m` or `nr_inodes=100`."""
    require_mounts()
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield folder
    finally:
        run("umount", "-l", folder)


class Disk:
    """An ext4 in a file, whose power can be cut."""

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        require_mounts()
        self.folder = folder / "disk"
        self.folder.mkdir()
        self._image = folder / "disk.img"
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-F", self._image)
        try:
            self.mount()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine does not mount files: {error.stderr.decode().strip()}")

    def mount(self) -> None:
        run("mount", "-o", "loop", self._image, self.folder)

    def unmount(self) -> None:
        run("umount", self.folder)

    def cut_power(self) -> None:
        """Nothing reaches the disk any more; every call that would fails."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)


@contextlib.contextmanager
def disk(folder: Path, *, megabytes: int) -> Iterator[Disk]:
    one = Disk(folder, megabytes=megabytes)
    try:
        yield one
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("umount", "-l", one.folder)
