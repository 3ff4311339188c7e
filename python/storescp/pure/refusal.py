"""Why an instance is refused, and the DIMSE status that says so (PS3.4 B.2.3, PS3.7 Annex C)."""

from __future__ import annotations

import errno

_SHOWN_CHARACTERS = 64
_FULL = {errno.ENOSPC: "no storage space", errno.EDQUOT: "quota exceeded"}


class Refusal(Exception):
    """A C-STORE that did not succeed; the text becomes the Error Comment.

    `tenant_value` is for the log: the tenant that the instance asks for and nobody knows.
    """

    def __init__(self, status: int, comment: str, tenant_value: str | None = None) -> None:
        super().__init__(comment)
        self.status = status
        self.tenant_value = tenant_value
        # Values of the data set that were found before it turned out to be damaged.
        self.values: dict[int, bytes] = {}

    @property
    def comment(self) -> str:
        """LO: at most 64 characters of the default repertoire (PS3.5 6.2)."""
        text = str(self)
        return "".join(c if c != "\\" and " " <= c <= "~" else "?" for c in text)[:64]


def tenant_refusal(value: bytes | None) -> Refusal:
    """0124: no tenant; `value` is what the private element says where it names an unknown one."""
    return Refusal(0x0124, "tenant not authorised", None if value is None else _shown(value))


def _shown(value: bytes) -> str:
    """A value of a peer's, to be read by people: at most 64 characters, escapes for what is not printable ASCII."""
    text = value.decode("utf-8", "replace")
    shown = "".join(c if c != "\\" and " " <= c <= "~" else f"\\u{{{ord(c):x}}}" for c in text[:_SHOWN_CHARACTERS])
    return shown + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def storage_refusal(error: OSError) -> Refusal:
    """A700 for whatever the file system says. A full disk has the words of the Rust engine, which advice looks for."""
    if error.errno in _FULL:
        return Refusal(0xA700, f"storage: {_FULL[error.errno]}")
    return Refusal(0xA700, f"storage: {(error.strerror or 'error').lower()}")


def replaced_bound_refusal() -> Refusal:
    """A700: a replaced file could not be kept without removing one of the last day."""
    return Refusal(0xA700, "storage: replaced files have reached their bound")


def busy_refusal() -> Refusal:
    """A700: nothing was free to transcode it, and another form of it is stored, perhaps the transcoded one."""
    return Refusal(0xA700, "transcoding is busy, and an instance with this UID is stored")


def undecided_refusal() -> Refusal:
    """A700: whether what lies at the path was acknowledged cannot be told."""
    return Refusal(0xA700, "storage: the file in its place cannot be looked at")


def unrecorded_refusal() -> Refusal:
    """A700: success would be answered for a stored file that has no record."""
    return Refusal(0xA700, "storage: the stored file has no record and can get none")
