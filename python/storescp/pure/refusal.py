"""Why an instance is refused, and the DIMSE status that says so (PS3.4 B.2.3, PS3.7 Annex C)."""

from __future__ import annotations


class Refusal(Exception):
    """A C-STORE that did not succeed; the text becomes the Error Comment."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status

    @property
    def comment(self) -> str:
        """LO: at most 64 characters of the default repertoire (PS3.5 6.2)."""
        text = str(self)
        return "".join(c if c != "\\" and " " <= c <= "~" else "?" for c in text)[:64]


def storage_refusal(error: OSError) -> Refusal:
    """A700 for whatever the file system says."""
    return Refusal(0xA700, f"storage: {(error.strerror or 'error').lower()}")


def replaced_bound_refusal() -> Refusal:
    """A700: a replaced file could not be kept without removing one of the last day."""
    return Refusal(0xA700, "storage: replaced files have reached their bound")


def undecided_refusal() -> Refusal:
    """A700: whether what lies at the path was acknowledged cannot be told."""
    return Refusal(0xA700, "storage: the file in its place cannot be looked at")


def unrecorded_refusal() -> Refusal:
    """A700: success would be answered for a stored file that has no record."""
    return Refusal(0xA700, "storage: the stored file has no record and can get none")
