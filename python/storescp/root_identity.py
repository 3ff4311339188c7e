"""The identity of a storage root: the file that says that this disk is the right one."""

from __future__ import annotations

import uuid
from pathlib import Path

from storescp.durable import sync_folder, write_new
from storescp.roots import IDENTITY


def read_identity(root: Path) -> str | None:
    """The identity of a storage root, or None where it has none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return (root / IDENTITY).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None


def make_identity(root: Path) -> str:
    """Gives a storage root without identity one, makes the root where it is not there, and makes both durable.

    Raises:
        OSError: it cannot be written.
    """
    file = root / IDENTITY
    _make_folders(file.parent)
    unnamed = file.with_name(f"{file.name}.new")
    unnamed.unlink(missing_ok=True)
    made = str(uuid.uuid4())
    write_new(unnamed, f"{made}\n".encode(), 0o644)
    unnamed.rename(file)
    sync_folder(file.parent)
    return made


def _make_folders(outbox: Path) -> None:
    missing = [folder for folder in (outbox, *outbox.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700 if folder == outbox else 0o777)
        sync_folder(folder.parent)
