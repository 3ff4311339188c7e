"""Damaged data sets that are kept instead of being refused, and stored when they can be."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from storescp.pure.refusal import Refusal
from storescp.pure.source import Source
from storescp.pure.store import DIRECTORY, Store, digest, locate_dataset, reason_of
from storescp.quarantine import DAMAGED, FILE, NOTE, QUARANTINE

QUARANTINED = 0xB007
CANNOT_UNDERSTAND = 0xC000
# A file counts in whole blocks: the smallest ones must not use up the disk within the bound.
_BLOCK_BYTES = 4096
_COUNT_SECONDS = 1.0
_UUID_7 = 7


@dataclass(frozen=True)
class Note:
    """What is known of a damaged data set: enough to take it as if it came now."""

    received_at: str  # RFC 3339, UTC
    reason: str
    status: str  # that it would have been refused with
    calling_ae_title: str
    called_ae_title: str
    address: str
    tenant: str | None
    tenant_from: str | None  # "rule", "command set", "data set" or "default"
    private_tenant: str | None  # value of the private element, where it names no known tenant
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    transfer_syntax_uid: str
    message_id: int | None
    size: int  # bytes of the file
    digest: str  # XXH3-128 of the file, hexadecimal

    def encode(self) -> bytes:
        """One JSON object (UTF-8)."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Usage:
    """What is kept, as far as is known."""

    data_sets: int = 0
    bytes: int = 0  # of files and notes, in whole blocks
    since: float | None = None  # when the oldest came; seconds since 1970


class StaysError(Exception):
    """Why an entry of the quarantine stays there."""


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class DamagedDataSets:
    """The damaged data sets of a storage root, within a bound."""

    def __init__(self, store: Store, root: Path, durability: str, max_bytes: int) -> None:
        self._store = store
        self._folder = root / QUARANTINE
        self._data, self._directories = durability != "none", durability == "full"
        self.max_bytes = max_bytes
        self.usage = Usage()
        self._names = threading.Lock()
        self._counted = float("-inf")

    def keep(self, name: str, content: bytes, note: bytes) -> bool:
        """Keeps a file and its note, as durable as configured; False at the bound.

        Raises:
            OSError: it cannot be kept, and nothing is left of it.
        """
        size = _weight(len(content)) + _weight(len(note))
        with self._names:
            if not self._has_room(size):
                return False
            temporary = [f"{name}{FILE}.part", f"{name}{NOTE}.part"]
            try:
                for part, written in zip(temporary, (content, note), strict=True):
                    self._store.write_temporary(part, written, sync=self._data)
                with self._opened(make=True) as folder:
                    self._name(folder, name, temporary)
            except BaseException:
                for part in temporary:
                    with contextlib.suppress(OSError):
                        self._store.remove_temporary(part)
                raise
            usage, came = self.usage, _moment(name)
            since = [moment for moment in (usage.since, came) if moment is not None]
            self.usage = Usage(usage.data_sets + 1, usage.bytes + size, min(since, default=None))
        return True

    def _name(self, folder: int, name: str, temporary: list[str]) -> None:
        """The note first: one without its file was never acknowledged."""
        try:
            for part, ending in zip(reversed(temporary), (NOTE, FILE), strict=True):
                os.rename(part, f"{name}{ending}", src_dir_fd=self._store.incoming, dst_dir_fd=folder)
                if self._directories:
                    os.fsync(folder)
        except BaseException:
            for ending in (FILE, NOTE):
                with contextlib.suppress(OSError):
                    os.unlink(f"{name}{ending}", dir_fd=folder)
            raise

    def _has_room(self, size: int) -> bool:
        """Operators make room: where there is none, the names are counted again."""
        if self.usage.bytes + size > self.max_bytes and time.monotonic() - self._counted >= _COUNT_SECONDS:
            self._count()
        return self.usage.bytes + size <= self.max_bytes

    def count(self) -> None:
        """Counts the names anew.

        Raises:
            OSError: they cannot be read.
        """
        with self._names:
            self._count()

    def _count(self) -> None:
        data_sets, size, since = 0, 0, None
        for name, ending in self._entries():
            try:
                size += _weight((self._folder / f"{name}{ending}").lstat().st_size)
            except FileNotFoundError:  # an operator removed it in this moment
                continue
            if ending == FILE:
                data_sets += 1
                came = _moment(name)
                since = came if since is None or (came is not None and came < since) else since
        self.usage = Usage(data_sets, size, since)
        self._counted = time.monotonic()

    def clear_unfinished(self) -> tuple[int, list[tuple[str, str]]]:
        """Removes notes whose files are not there: how many, and which could not be removed and why."""
        removed, failed = 0, []
        try:
            entries = list(self._entries())
        except OSError as error:
            return 0, [(QUARANTINE, reason_of(error))]
        for name, ending in entries:
            if ending == NOTE and (name, FILE) not in entries:
                try:
                    (self._folder / f"{name}{NOTE}").unlink()
                    removed += 1
                except OSError as error:
                    failed.append((f"{QUARANTINE}/{name}{NOTE}", reason_of(error)))
        return removed, failed

    def read(self, name: str) -> tuple[Note, bytes, int]:
        """Note, data set and what the entry counts.

        Raises:
            StaysError: it is not there, or not what its note says.
        """
        if _id_of(name) is None:
            raise StaysError("it is not in quarantine")
        try:
            text = (self._folder / f"{name}{NOTE}").read_bytes()
            content = (self._folder / f"{name}{FILE}").read_bytes()
        except FileNotFoundError:
            raise StaysError("it is not in quarantine") from None
        except OSError as error:
            raise StaysError(f"it cannot be read: {reason_of(error)}") from None
        try:
            note = Note(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise StaysError("its note cannot be read") from None
        located = locate_dataset(content)
        if located is None or (len(content), digest(content).hex()) != (note.size, note.digest):
            raise StaysError("the file is not what its note says")
        return note, content[located.offset :], _weight(len(content)) + _weight(len(text))

    def remove(self, name: str, size: int) -> None:
        """Removes an entry that is stored by now. The file goes first: a note alone is removed at the next start.

        Raises:
            OSError: it cannot be removed.
        """
        with self._names, self._opened() as folder:
            for ending in (FILE, NOTE):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{name}{ending}", dir_fd=folder)
            if self._directories:
                os.fsync(folder)
            usage = self.usage
            self.usage = Usage(max(0, usage.data_sets - 1), max(0, usage.bytes - size), usage.since)

    @contextlib.contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        if make:
            folder = self._store.open_own_folder(QUARANTINE, sync=self._directories)
        else:
            folder = os.open(self._folder, DIRECTORY)
        try:
            yield folder
        finally:
            os.close(folder)

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Name and ending of each file."""
        try:
            names = [file.name for file in self._folder.iterdir()]
        except FileNotFoundError:
            return
        for name in names:
            for ending in (FILE, NOTE):
                if name.endswith(ending) and _id_of(name.removesuffix(ending)) is not None:
                    yield name.removesuffix(ending), ending


def note_of(
    damage: Refusal,
    announced: tuple[str, str, str],
    source: Source,
    whose: tuple[str | None, str | None, bytes | None],
    content: bytes,
) -> Note:
    """What is known of a damaged data set.

    `announced`: SOP class, SOP instance, transfer syntax. `whose`: tenant, what says so, value of the private element.
    `content`: the file.
    """
    sop_class, sop_instance, transfer_syntax = announced
    tenant, tenant_from, private = whose
    return Note(
        received_at=now(),
        reason=damage.comment,
        status=f"{damage.status:04X}",
        calling_ae_title=source.calling_ae_title,
        called_ae_title=source.called_ae_title,
        address=source.address,
        tenant=tenant,
        tenant_from=tenant_from,
        private_tenant=None if tenant or private is None else private.rstrip(b"\0 ").decode("utf-8", "replace"),
        affected_sop_class_uid=sop_class,
        affected_sop_instance_uid=sop_instance,
        transfer_syntax_uid=transfer_syntax,
        message_id=source.message_id,
        size=len(content),
        digest=digest(content).hex(),
    )


def source_of(note: Note, tenant: str | None, *, by_rule: bool) -> Source:
    """Who sent a data set that is in quarantine; `tenant` counts where the note names none."""
    titles = (note.calling_ae_title, note.called_ae_title, note.address)
    match note.tenant_from:
        case None:
            return Source(*titles, tenant, by_rule)
        case "rule" | "default":
            return Source(*titles, note.tenant, note.tenant_from == "rule")
        case "command set":
            return Source(*titles, None, command_tenant=(note.tenant or "").encode())
        case _:
            return Source(*titles, None)


def refusal_of_full_quarantine(damage: Refusal) -> Refusal:
    """C000: the bound is reached."""
    return Refusal(CANNOT_UNDERSTAND, f"quarantine is full: {damage}")


def refusal_of_kept(damage: Refusal) -> Refusal:
    """B007: the sender takes it for stored."""
    return Refusal(QUARANTINED, f"in quarantine: {damage}")


def _weight(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _id_of(name: str) -> UUID | None:
    if not name.startswith(DAMAGED):
        return None
    try:
        return UUID(name.removeprefix(DAMAGED))
    except ValueError:
        return None


def _moment(name: str) -> float | None:
    """When the data set of a name came; seconds since 1970."""
    found = _id_of(name)
    return None if found is None or found.version != _UUID_7 else (found.int >> 80) / 1000
