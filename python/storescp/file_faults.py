"""Why a file is no DICOM file that can be read, in the same words for every command."""

from __future__ import annotations

import struct
from pathlib import Path

HEAD_BYTES = 1 << 16
CUT_SHORT = "a DICOM file that is cut short"
DAMAGED = "a DICOM file whose header is damaged"
_NOT_DICOM = "not a DICOM file (PS3.10)"
_PREAMBLE_BYTES = 128  # PS3.10 7.1
_PREFIX = b"DICM"
_META_GROUP = 0x0002
_TRANSFER_SYNTAX_UID = 0x0010
_WITH_LONG_LENGTH = (b"OB", b"UN", b"UT")  # PS3.5 7.1.2, of those in a header


def lacks_prefix(head: bytes) -> str | None:
    """The fault of a file that does not begin as PS3.10 says; None where it does."""
    return None if head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + len(_PREFIX)] == _PREFIX else _NOT_DICOM


def header_fault(path: Path) -> str:
    """The fault of a file whose header could not be read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if fault := lacks_prefix(head):
        return fault
    names_syntax, at = False, _PREAMBLE_BYTES + len(_PREFIX)
    while at + 8 <= len(head):
        group, number, vr, length = struct.unpack_from("<HH2sH", head, at)
        if group != _META_GROUP:
            return DAMAGED if names_syntax else "a DICOM file that names no transfer syntax"
        at += 8
        if vr in _WITH_LONG_LENGTH:
            length = int.from_bytes(head[at : at + 4], "little")
            at += 4
        names_syntax |= number == _TRANSFER_SYNTAX_UID and length > 0
        at += length
    return DAMAGED if len(head) == HEAD_BYTES else CUT_SHORT
