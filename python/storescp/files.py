"""The files and folders that a command line or the configuration names."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from storescp.errors import start_failure


def find_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and all files of folders."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        else:
            yield path


def check_readable(key: str, path: Path) -> None:
    """Whether the file of a key of the configuration can be read.

    Raises:
        ConfigError: it cannot.
        TemporaryFailure: it cannot be read now.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise start_failure(key, path, "a file that can be read", error) from None


def check_writable(path: Path) -> None:
    """Whether a file can be written, or made in its folder. Makes nothing.

    Raises:
        OSError: it cannot, and why.
    """
    if not os.path.lexists(path):
        check_folder(path.parent, os.W_OK | os.X_OK)
    elif stat.S_ISDIR(path.stat().st_mode):
        raise _error(errno.EISDIR, path)
    else:
        _check_access(path, os.W_OK)


def check_folder(folder: Path, access: int) -> None:
    """Whether a folder can be used; `access` as for `os.access`.

    Raises:
        OSError: it cannot, and why.
    """
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise _error(errno.ENOTDIR, folder)
    _check_access(folder, access)


def _check_access(path: Path, access: int) -> None:
    if not os.access(path, access):
        is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        raise _error(errno.EROFS if is_read_only else errno.EACCES, path)


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
