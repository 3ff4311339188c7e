"""The quarantine: files that a start put aside, and damaged data sets that were kept instead of being refused.

An entry of `.quarantine/` in a storage root is two files: `NAME.dcm` is the file, `NAME.json` is the note of why it is
there. NAME is the trace id of the record that was not published; that of a damaged data set begins with `damaged-`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from storescp.durable import sync_folder
from storescp.errors import StorescpError

QUARANTINE = ".quarantine"
DAMAGED = "damaged-"
FILE, NOTE = ".dcm", ".json"


@dataclass(frozen=True)
class Note:
    """Why a file is in quarantine."""

    path: str  # where it was found, relative to the storage root
    reason: str
    quarantined_at: str  # RFC 3339, UTC
    recorded_size: int  # bytes
    recorded_digest: str  # XXH3-128, hexadecimal
    found_size: int
    found_digest: str
    record: object  # the record that was not published

    def encode(self) -> bytes:
        """One JSON object (UTF-8)."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Entry:
    """A file in quarantine and its note, of which one may be missing."""

    name: str
    root: Path
    has_file: bool
    note: Mapping[str, object] | None  # None: missing or unreadable

    @property
    def file(self) -> Path:
        """The file, also where it is missing."""
        return self.root / QUARANTINE / f"{self.name}{FILE}"

    @property
    def is_damaged(self) -> bool:
        """Whether it is a damaged data set, and no file that a start put aside."""
        return self.name.startswith(DAMAGED)

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID of a damaged data set, as its sender announced it."""
        return self._text("affected_sop_instance_uid")

    @property
    def path(self) -> str:
        """Where the file was found, relative to the storage root; empty where no note says so."""
        return self._text("path")

    @property
    def quarantined_at(self) -> str:
        """RFC 3339, UTC; empty where no note says so."""
        return self._text("received_at" if self.is_damaged else "quarantined_at")

    @property
    def reason(self) -> str:
        """Why the file is in quarantine."""
        reason = "no note" if self.note is None else self._text("reason")
        return reason if self.has_file else f"{reason}; the file is missing"

    def _text(self, key: str) -> str:
        return "" if self.note is None else str(self.note.get(key) or "")


def entries(roots: Iterable[Path]) -> Iterator[Entry]:
    """All entries of the storage roots, by root and name.

    Raises:
        StorescpError: a quarantine cannot be read.
    """
    for root in sorted(set(roots)):
        folder = root / QUARANTINE
        try:
            found = {file.name for file in folder.iterdir()}
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorescpError(f"{folder}: {error.strerror}") from None
        names = {name.removesuffix(suffix) for name in found for suffix in (FILE, NOTE) if name.endswith(suffix)}
        for name in sorted(names):
            has_file = f"{name}{FILE}" in found
            # The note of a damaged data set gets its name first: alone it is not there yet, or never was acknowledged.
            if has_file or not name.startswith(DAMAGED):
                yield Entry(name, root, has_file, _read_note(folder / f"{name}{NOTE}"))


def forget(entry: Entry) -> None:
    """Removes the file and its note for good.

    Raises:
        StorescpError: one of them cannot be removed.
    """
    try:
        for suffix in (FILE, NOTE):
            entry.file.with_name(f"{entry.name}{suffix}").unlink(missing_ok=True)
        sync_folder(entry.file.parent)
    except OSError as error:
        raise StorescpError(f"{error.filename or entry.file}: {error.strerror}") from None


def _read_note(file: Path) -> Mapping[str, object] | None:
    try:
        note = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None
