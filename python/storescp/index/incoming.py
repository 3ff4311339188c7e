"""What the tables take of a record; the core reads it."""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

from storescp import _core
from storescp.index import tables

# Columns of `instance` besides its key and the digest of its description, in the order of `IncomingRecord.row`.
INSTANCE = (
    "sop_class_uid",
    "file_path",
    "file_size",
    "transfer_syntax_uid",
    "target_ts",
    "transfer_status",
    "number_of_frames",
    "source_ae",
    "source_ip",
    "trace_id",
    "created_time",
    "instance_number",
    "rows",
    "columns",
    "bits_allocated",
)
_PATH, _SIZE, _TRACE_ID, _MOMENT = (
    INSTANCE.index(name) for name in ("file_path", "file_size", "trace_id", "created_time")
)
# Letters that Unicode does not take apart into a letter and its accent.
_LETTERS = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ħ": "h"})


class IncomingRecord(NamedTuple):
    """A record as rows."""

    key: tuple[str, str, str, str, str]
    """Primary key of `instance`."""
    node_id: str
    file_url: str | None
    row: tuple[Any, ...]
    """Columns `INSTANCE`."""
    said: tuple[Any, ...]
    """Columns `tables.SAID`; None where nothing is said."""
    digest: str
    """Of these."""

    @property
    def study(self) -> tuple[str, str]:
        """Primary key of `study`."""
        return self.key[:2]

    @property
    def patient(self) -> tuple[str, str]:
        """Primary key of `patient`."""
        return self.key[0], self.said[0]

    @property
    def trace_id(self) -> str:
        """Of the record."""
        return str(self.row[_TRACE_ID])

    @property
    def moment(self) -> str:
        """When it was received: UTC where the record says so."""
        return str(self.row[_MOMENT])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.row[_SIZE])

    @property
    def path(self) -> str:
        """Of the file."""
        return str(self.row[_PATH])

    def with_columns(self, **values: Any) -> IncomingRecord:
        """With other values of `INSTANCE`."""
        return self._replace(row=tuple(values.get(name, value) for name, value in zip(INSTANCE, self.row, strict=True)))


def read(message: bytes) -> IncomingRecord | str:
    """The record of a message, or why it is none: names of fields and kinds of errors, no values."""
    found = _core.read_record(message)
    return found if isinstance(found, str) else IncomingRecord._make(found)


def folded(name: str | None) -> str | None:
    """A person's name as it is searched for: lower case, letters without accents, spaces between its components.

    What has no letters like those of ASCII, such as ideographs, stays.
    """
    if name is None:
        return None
    apart = unicodedata.normalize("NFKD", name.casefold()).translate(_LETTERS)
    text = "".join(character for character in apart if not unicodedata.combining(character))
    groups = (" ".join(group.replace("^", " ").split()) for group in unicodedata.normalize("NFC", text).split("="))
    return "=".join(groups)[: tables.SEARCH_CHARACTERS]
