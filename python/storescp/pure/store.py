"""Durable files beneath one storage root, in plain Python."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

import xxhash

from storescp import _core
from storescp.durable import sync_folder, write_new
from storescp.roots import IDENTITY

INCOMING, OUTBOX = ".incoming", ".outbox"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 18


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str, source_ae: str) -> bytes:
    """Preamble, `DICM` and File Meta Information (PS3.10 7.1), byte for byte as the Rust core writes them."""
    group = b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\x00\x01"
    for number, vr, value, padding in (
        (0x0002, b"UI", sop_class, b"\0"),
        (0x0003, b"UI", sop_instance, b"\0"),
        (0x0010, b"UI", transfer_syntax, b"\0"),
        (0x0012, b"UI", _core.IMPLEMENTATION_CLASS_UID, b"\0"),
        (0x0013, b"SH", _core.IMPLEMENTATION_VERSION_NAME, b" "),
        (0x0016, b"AE", source_ae, b" "),
    ):
        if value:
            encoded = value.encode("ascii")
            encoded += padding * (len(encoded) % 2)
            group += struct.pack("<HH2sH", 0x0002, number, vr, len(encoded)) + encoded
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0, b"UL", 4, len(group)) + group


@dataclass(frozen=True)
class Located:
    """What File Meta Information says, and where the data set begins."""

    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    offset: int


def locate_dataset(head: bytes) -> Located | None:
    """Reads the start of a PS3.10 file; None where it is none, or the header does not end in it."""
    if head[128:132] != b"DICM":
        return None
    at = 132
    found = {0x0010: "", 0x0002: "", 0x0003: ""}
    while at + 8 <= len(head):
        group, number, vr, length = struct.unpack_from("<HH2sH", head, at)
        if group != 0x0002:
            return Located(found[0x0010], found[0x0002], found[0x0003], at)
        at += 8
        if vr in (b"OB", b"UN", b"UT"):
            length = int.from_bytes(head[at : at + 4], "little")
            at += 4
        if number in found:
            found[number] = head[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += length
    # Deflated data sets may be shorter than an element's header.
    return Located(found[0x0010], found[0x0002], found[0x0003], at) if at < len(head) else None


def split_file(content: bytes) -> tuple[str, bytes] | None:
    """Transfer syntax and data set of a PS3.10 file, None where it is none."""
    found = locate_dataset(content)
    if found is None or not found.transfer_syntax:
        return None
    return found.transfer_syntax, content[found.offset :]


def digest(content: bytes) -> bytes:
    """XXH3-128, big endian, as in the outbox."""
    return xxhash.xxh3_128_digest(content)


class Store:
    """The storage root; one process at a time."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """Opens the root; without `create` it must be there with its identity file.

        Raises:
            BlockingIOError: another process serves it.
            OSError: it cannot be used.
        """
        self._root_path = root
        if create:
            root.mkdir(parents=True, exist_ok=True)
        else:
            (root / IDENTITY).stat()
        for name in (INCOMING, OUTBOX):
            (root / name).mkdir(mode=0o700, exist_ok=True)
        self._lock_file = os.open(root / OUTBOX / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._root = os.open(root, _DIRECTORY)
        self._incoming = os.open(root / INCOMING, _DIRECTORY)
        self.one_writer = threading.Lock()
        self._sync_ancestors(root)
        self._make_identity(root / IDENTITY)

    def _sync_ancestors(self, root: Path) -> None:
        """The root may be new: its name must be durable before anything beneath it is acknowledged."""
        os.fsync(self._root)
        for folder in root.parents:
            try:
                sync_folder(folder)
            except PermissionError:
                # What we may not read existed before.
                return

    @staticmethod
    def _make_identity(identity: Path) -> None:
        """By this file the next start knows the root from the empty folder that a file system is mounted over."""
        if identity.exists():
            return
        unnamed = identity.with_suffix(".new")
        unnamed.unlink(missing_ok=True)
        write_new(unnamed, f"{uuid.uuid4()}\n".encode(), 0o600)
        unnamed.rename(identity)
        sync_folder(identity.parent)

    def sync_outbox_folder(self) -> None:
        """Makes the names in `.outbox` durable, once the database is there."""
        sync_folder(self._root_path / OUTBOX)

    def clear_incoming(self) -> int:
        """Removes what an interrupted process left; how many files."""
        names = [name for name in os.listdir(self._incoming) if name.endswith(".part")]
        for name in names:
            os.unlink(name, dir_fd=self._incoming)
        return len(names)

    def free_bytes(self) -> int:
        """Free bytes for us in the file system of the root."""
        facts = os.fstatvfs(self._root)
        return facts.f_bavail * facts.f_frsize

    def absolute(self, relative: str) -> str:
        """The absolute path of an instance."""
        return f"{self._root_path}/{relative}"

    def read(self, relative: str) -> bytes | None:
        """A stored file, None where there is none. Links are not followed."""
        *folders, name = relative.split("/")
        try:
            levels = self._open_levels(folders, create=False)
        except FileNotFoundError:
            return None
        try:
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=levels[-1]), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        finally:
            _close(levels)

    def write_temporary(self, name: str, content: bytes, *, sync: bool) -> None:
        """Writes a whole file into `.incoming`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o644, dir_fd=self._incoming), "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            if sync:
                os.fdatasync(file.fileno())

    def remove_temporary(self, name: str) -> None:
        """Removes a file from `.incoming`; one that is gone is fine."""
        try:
            os.unlink(name, dir_fd=self._incoming)
        except FileNotFoundError:
            return

    def publish(self, temporary: str, relative: str, *, sync: bool) -> None:
        """Gives a file its name, and makes the name durable."""
        *folders, name = relative.split("/")
        levels = self._open_levels(folders, create=True)
        try:
            os.rename(temporary, name, src_dir_fd=self._incoming, dst_dir_fd=levels[-1])
            if sync:
                for level in (*reversed(levels), self._root):
                    os.fsync(level)
        finally:
            _close(levels)

    def discard(self, relative: str, size: int) -> bool:
        """Removes what was never acknowledged: a part of a file of `size` bytes. Returns whether there was one."""
        *folders, name = relative.split("/")
        try:
            levels = self._open_levels(folders, create=False)
        except FileNotFoundError:
            return False
        try:
            # Of more bytes, it is not ours.
            if os.stat(name, dir_fd=levels[-1], follow_symlinks=False).st_size > size:
                return False
            os.unlink(name, dir_fd=levels[-1])
            os.fsync(levels[-1])
        except FileNotFoundError:
            return False
        finally:
            _close(levels)
        return True

    def make_durable(self, relative: str, *, data: bool, directories: bool) -> None:
        """Syncs a stored file and its name."""
        *folders, name = relative.split("/")
        levels = self._open_levels(folders, create=False)
        try:
            if data:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=levels[-1])
                try:
                    os.fdatasync(file)
                finally:
                    os.close(file)
            if directories:
                for level in (*reversed(levels), self._root):
                    os.fsync(level)
        finally:
            _close(levels)

    def close(self) -> None:
        """Gives the root back."""
        _close([self._incoming, self._root, self._lock_file])

    def _open_levels(self, folders: list[str], *, create: bool) -> list[int]:
        levels: list[int] = []
        try:
            for folder in folders:
                parent = levels[-1] if levels else self._root
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, 0o755, dir_fd=parent)
                levels.append(os.open(folder, _DIRECTORY, dir_fd=parent))
        except OSError:
            _close(levels)
            raise
        return levels


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
