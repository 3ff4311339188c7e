"""Files and their names on the disk: durable, whole, and where they are looked for."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leads_to(path: Path, file: int) -> bool:
    """Whether a name is that of an open file. It is not once the file was renamed or removed.

    Raises:
        OSError: the name cannot be looked at.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def write_new(file: Path, content: bytes, mode: int) -> None:
    """A file that was not there before, with its content on the disk; its name takes a `sync_folder`.

    `mode` are its permissions, whatever the umask says.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as written:
        # Only what the umask took away: a file system without permissions of its own refuses every change.
        if mode & ~os.fstat(written.fileno()).st_mode:
            os.fchmod(written.fileno(), mode)
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
