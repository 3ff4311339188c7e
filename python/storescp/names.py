"""Names for UIDs (PS3.6)."""

from __future__ import annotations

from functools import cache

from storescp import _core


@cache
def _transfer_syntaxes() -> dict[str, str]:
    return {uid: name for uid, name, *_ in _core.transfer_syntaxes()}


def name_of(uid: str) -> str:
    """The name of a transfer syntax or SOP class; empty where it is not known."""
    from pydicom._uid_dict import UID_dictionary  # noqa: PLC0415 - the dictionary is large and rarely needed

    return _transfer_syntaxes().get(uid) or (UID_dictionary[uid][0] if uid in UID_dictionary else "")
