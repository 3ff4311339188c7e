"""Names for UIDs (PS3.6)."""

from __future__ import annotations

import difflib
import re
from functools import cache

from storescp import _core

_SIMILAR = 0.6


@cache
def _transfer_syntaxes() -> dict[str, str]:
    return {uid: name for uid, name, *_ in _core.transfer_syntaxes()}


def name_of(uid: str) -> str:
    """The name of a transfer syntax or SOP class; empty where it is not known."""
    from pydicom._uid_dict import UID_dictionary  # noqa: PLC0415 - the dictionary is large and rarely needed

    return _transfer_syntaxes().get(uid) or (UID_dictionary[uid][0] if uid in UID_dictionary else "")


def transfer_syntax_like(text: str) -> tuple[str, str] | None:
    """UID and name of the transfer syntax that a text seems to name, None where it names none.

    The beginning of a name is enough; of several the first UID, so that `ExplicitVR` is little endian.
    """
    wanted = _plain(text)
    known = {_plain(name): (uid, name) for uid, name, _, _ in sorted(_core.transfer_syntaxes(), reverse=True) if name}
    if not wanted:
        return None
    beginning = [found for plain, found in known.items() if plain.startswith(wanted)]
    if beginning:
        return min(beginning)
    close = difflib.get_close_matches(wanted, list(known), 1, _SIMILAR)
    return known[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
