"""The files that a command line names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path


def find_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and all files of folders."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        else:
            yield path
