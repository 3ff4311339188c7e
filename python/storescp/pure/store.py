"""Durable files beneath one storage root, in plain Python."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import xxhash

from storescp import _core
from storescp.durable import sync_folder
from storescp.quarantine import DAMAGED, FILE, NOTE, QUARANTINE
from storescp.root_identity import make_identity, read_identity

log = structlog.get_logger("storescp.pure")
INCOMING, OUTBOX = ".incoming", ".outbox"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A folder on a file system without fsync, or one that cannot be read, was there before us.
_CANNOT_SYNC = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EROFS}


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
    implementation_class_uid: str
    source_ae_title: str
    offset: int


def locate_dataset(head: bytes) -> Located | None:
    """Reads the start of a PS3.10 file; None where it is none, or the header does not end in it."""
    if head[128:132] != b"DICM":
        return None
    at = 132
    found = {0x0010: "", 0x0002: "", 0x0003: "", 0x0012: "", 0x0016: ""}
    while at + 8 <= len(head):
        group, number, vr, length = struct.unpack_from("<HH2sH", head, at)
        if group != 0x0002:
            return _located(found, at)
        at += 8
        if vr in (b"OB", b"UN", b"UT"):
            length = int.from_bytes(head[at : at + 4], "little")
            at += 4
        if number in found:
            found[number] = head[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += length
    # Deflated data sets may be shorter than an element's header.
    return _located(found, at) if at < len(head) else None


def _located(found: dict[int, str], offset: int) -> Located:
    return Located(
        transfer_syntax=found[0x0010],
        sop_class_uid=found[0x0002],
        sop_instance_uid=found[0x0003],
        implementation_class_uid=found[0x0012],
        source_ae_title=found[0x0016],
        offset=offset,
    )


def split_file(content: bytes) -> tuple[str, bytes] | None:
    """Transfer syntax and data set of a PS3.10 file, None where it is none."""
    found = locate_dataset(content)
    if found is None or not found.transfer_syntax:
        return None
    return found.transfer_syntax, content[found.offset :]


def digest(content: bytes) -> bytes:
    """XXH3-128, big endian, as in the outbox."""
    return xxhash.xxh3_128_digest(content)


class SeriesFolder:
    """The folder of a series, open, and the folders above it."""

    def __init__(self, levels: list[int], root: int) -> None:
        self._levels = levels
        self._root = root

    @property
    def descriptor(self) -> int:
        """The folder itself."""
        return self._levels[-1]

    def sync(self) -> None:
        """Makes the names in the folder durable, and its own."""
        for level in (*reversed(self._levels), self._root):
            os.fsync(level)


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
        elif read_identity(root) is None:
            raise FileNotFoundError(errno.ENOENT, "it has no identity file, and storage.create is false", str(root))
        for name in (INCOMING, OUTBOX):
            (root / name).mkdir(mode=0o700, exist_ok=True)
        self._lock_file = os.open(root / OUTBOX / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._root = os.open(root, DIRECTORY)
        self._incoming = os.open(root / INCOMING, DIRECTORY)
        self.one_writer = threading.Lock()
        self._sync_ancestors(root)
        if read_identity(root) is None:
            make_identity(root)

    @property
    def root(self) -> int:
        """The storage root, open."""
        return self._root

    @property
    def incoming(self) -> int:
        """The folder of temporary files, open."""
        return self._incoming

    def _sync_ancestors(self, root: Path) -> None:
        """The root may be new: its name must be durable before anything beneath it is acknowledged."""
        os.fsync(self._root)
        for folder in root.parents:
            try:
                sync_folder(folder)
            except OSError as error:
                if error.errno not in _CANNOT_SYNC:
                    raise

    def sync_outbox_folder(self) -> None:
        """Makes the names in `.outbox` durable, once the database is there."""
        sync_folder(self._root_path / OUTBOX)

    def clear_incoming(self) -> tuple[int, list[tuple[str, str]]]:
        """Removes what an interrupted process left: how many files, and which could not be removed and why."""
        removed, failed = 0, []
        try:
            names = [name for name in os.listdir(self._incoming) if name.endswith(".part")]
        except OSError as error:
            return 0, [(INCOMING, reason_of(error))]
        for name in names:
            try:
                os.unlink(name, dir_fd=self._incoming)
                removed += 1
            except OSError as error:
                failed.append((f"{INCOMING}/{name}", reason_of(error)))
        return removed, failed

    def free_bytes(self) -> int:
        """Free bytes for us in the file system of the root."""
        facts = os.fstatvfs(self._root)
        return facts.f_bavail * facts.f_frsize

    def disk_bytes(self) -> int:
        """Size of the file system of the root."""
        facts = os.fstatvfs(self._root)
        return facts.f_blocks * facts.f_frsize

    def absolute(self, relative: str) -> str:
        """The absolute path of an instance."""
        return f"{self._root_path}/{relative}"

    def read(self, relative: str) -> bytes | None:
        """A stored file, None where there is none. Links are not followed.

        Raises:
            OSError: it cannot be read, or is no regular file.
        """
        *folders, name = relative.split("/")
        try:
            levels = self._open_levels(folders)
        except FileNotFoundError:
            return None
        try:
            descriptor = os.open(name, _FILE, dir_fd=levels[-1])
        except FileNotFoundError:
            return None
        finally:
            _close(levels)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)

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

    @contextlib.contextmanager
    def series_folder(self, relative: str) -> Iterator[SeriesFolder]:
        """The folder of an instance; where the block fails, the folders that were made for it are removed."""
        levels: list[int] = []
        made: list[tuple[int, str]] = []
        try:
            for folder in relative.split("/")[:-1]:
                parent = levels[-1] if levels else self._root
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o755, dir_fd=parent)
                    made.append((parent, folder))
                levels.append(os.open(folder, DIRECTORY, dir_fd=parent))
            yield SeriesFolder(levels, self._root)
        except BaseException:
            for parent, folder in reversed(made):
                try:
                    os.rmdir(folder, dir_fd=parent)
                except OSError as error:
                    # What is not empty any more belongs to another instance.
                    if error.errno != errno.ENOTEMPTY:
                        log.warning("storage.folder_left", reason=reason_of(error))
                    break
            raise
        finally:
            _close(levels)

    def make_durable(self, relative: str, *, data: bool, directories: bool) -> None:
        """Syncs a stored file and its name."""
        *folders, name = relative.split("/")
        levels = self._open_levels(folders)
        try:
            if data:
                file = os.open(name, _FILE, dir_fd=levels[-1])
                try:
                    os.fdatasync(file)
                finally:
                    os.close(file)
            if directories:
                SeriesFolder(levels, self._root).sync()
        finally:
            _close(levels)

    def quarantine(self, relative: str, name: str, note: bytes) -> None:
        """Moves a stored file to the quarantine as `name`, once its note is durable.

        Raises:
            OSError: it could not be moved, or the move may not be durable.
        """
        *folders, file = relative.split("/")
        levels = self._open_levels(folders)
        try:
            levels.append(self.open_own_folder(QUARANTINE, sync=True))
            series, quarantine = levels[-2:]
            if _exists(f"{name}{FILE}", quarantine):
                raise FileExistsError(errno.EEXIST, "a file of this name is in quarantine")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(f"{name}{NOTE}", flags, 0o600, dir_fd=quarantine), "wb") as written:
                    written.write(note)
                    written.flush()
                    os.fsync(written.fileno())
                os.fsync(quarantine)
                os.rename(file, f"{name}{FILE}", src_dir_fd=series, dst_dir_fd=quarantine)
            except OSError:
                # The note would say what is not so. Where it cannot be removed, the next attempt writes it anew.
                with contextlib.suppress(OSError):
                    os.unlink(f"{name}{NOTE}", dir_fd=quarantine)
                raise
            os.fsync(quarantine)
            os.fsync(series)
        finally:
            _close(levels)

    def is_quarantined(self, name: str) -> bool:
        """Whether a file of this name is in quarantine."""
        try:
            quarantine = os.open(QUARANTINE, DIRECTORY, dir_fd=self._root)
        except FileNotFoundError:
            return False
        try:
            return _exists(f"{name}{FILE}", quarantine)
        finally:
            os.close(quarantine)

    def count_quarantined(self) -> int:
        """Files that were put aside; none where they cannot be counted."""
        try:
            names = os.listdir(self._root_path / QUARANTINE)
            return sum(name.endswith(FILE) and not name.startswith(DAMAGED) for name in names)
        except FileNotFoundError:
            return 0
        except OSError as error:
            log.warning("quarantine.unreadable", reason=reason_of(error))
            return 0

    def open_own_folder(self, name: str, *, sync: bool) -> int:
        """Opens a folder of ours in the storage root, which is made where there is none."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._root)
        if sync:
            os.fsync(self._root)
        return os.open(name, DIRECTORY, dir_fd=self._root)

    def close(self) -> None:
        """Gives the root back."""
        _close([self._incoming, self._root, self._lock_file])

    def _open_levels(self, folders: list[str]) -> list[int]:
        levels: list[int] = []
        try:
            for folder in folders:
                levels.append(os.open(folder, DIRECTORY, dir_fd=levels[-1] if levels else self._root))
        except OSError:
            _close(levels)
            raise
        return levels


def reason_of(error: OSError) -> str:
    """What the operating system says, without a path."""
    return (error.strerror or "error").lower()


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
