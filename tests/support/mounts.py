"""File systems of their own, to be filled, cut off and taken away. Needs root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import wait_until

# EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN (_IOR('X', 125, __u32)): what is not on the disk by now never gets there.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_TESTS = Path(__file__).parents[1]
# What a disk writes whole or not at all.
_BLOCK = "4096"


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


MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "ext4 without journal": ["mkfs.ext4", "-q", "-F", "-O", "^has_journal"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


class Disk:
    """A file system in a file, whose power can be cut."""

    def __init__(self, folder: Path, *, megabytes: int, kind: str = "ext4") -> None:
        require_mounts()
        self._make_file_system = MKFS[kind]
        if shutil.which(self._make_file_system[0]) is None:
            pytest.skip(f"{self._make_file_system[0]} is not installed")
        self._must_be_checked = kind == "ext4 without journal"
        self.folder = folder / "disk"
        self.folder.mkdir()
        self._image = folder / "disk.img"
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)
        self._make()

    def _make(self) -> None:
        run(*self._make_file_system, self._image)
        try:
            self.mount()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine does not mount files: {error.stderr.decode().strip()}")

    def mount(self) -> None:
        if self._must_be_checked:
            # 1: it found something and corrected it.
            done = subprocess.run(["e2fsck", "-fy", self._image], check=False, capture_output=True, timeout=60)
            assert done.returncode in {0, 1}, done.stdout.decode()
        run("mount", "-o", "loop", self._image, self.folder)

    def unmount(self) -> None:
        """Once the processes end that a killed service leaves behind."""
        wait_until(lambda: subprocess.run(["umount", self.folder], check=False, capture_output=True).returncode == 0)

    def cut_power(self) -> None:
        """Nothing that only its file system's memory has reaches the disk any more; every call that would fails."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("umount", "-l", self.folder)


class CachingDisk(Disk):
    """One with a volatile cache, of which a power cut leaves any part (`support.volatile_disk`)."""

    def _make(self) -> None:
        if shutil.which("fusermount3") is None or not Path("/dev/fuse").exists():
            pytest.skip("this machine has no FUSE")
        self._fuse = self._image.with_name("fuse")
        self._fuse.mkdir()
        self._process: subprocess.Popen[str] | None = None
        self._loop = ""
        try:
            self._attach()
            run(*self._make_file_system, self._loop)
            run("mount", self._loop, self.folder)
        except subprocess.CalledProcessError as error:
            self.remove()
            pytest.skip(f"this machine does not mount files: {error.stderr}")

    def mount(self) -> None:
        self._attach()
        run("mount", self._loop, self.folder)

    def unmount(self) -> None:
        super().unmount()
        self._detach()

    def cut_power(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGUSR1)
        assert self._process.stdout.readline() == "cut\n"

    def remove(self) -> None:
        super().remove()
        for command in (["losetup", "--detach", self._loop], ["umount", "-l", self._fuse]):
            with contextlib.suppress(subprocess.CalledProcessError):
                run(*command)
        assert self._process is not None
        self._process.kill()
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(20)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _attach(self) -> None:
        served = self._fuse / self._image.name
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "support.volatile_disk",
                self._image,
                self._fuse,
                _BLOCK,
                str(random.getrandbits(32)),
            ],
            cwd=_TESTS,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until(served.exists)
        made = subprocess.run(
            ["losetup", "--sector-size", _BLOCK, "--find", "--show", served],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self._loop = made.stdout.strip()

    def _detach(self) -> None:
        run("losetup", "--detach", self._loop)
        # The kernel lets go of the loop device when it likes; then the process ends.
        run("umount", "-l", self._fuse)
        self._end()


@contextlib.contextmanager
def disk(folder: Path, *, megabytes: int, kind: str = "ext4", caches: bool = False) -> Iterator[Disk]:
    one = (CachingDisk if caches else Disk)(folder, megabytes=megabytes, kind=kind)
    try:
        yield one
    finally:
        one.remove()
