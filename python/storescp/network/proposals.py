"""Presentation contexts that ask the same are negotiated once.

A large workstation proposes 128 contexts, which differ in their abstract syntax alone. pynetdicom reads each UID of
them several times, tens of milliseconds in all, and what it answers depends on two things: whether the class is taken,
and the first transfer syntax that can be taken. So of those that have both in common it sees one, with that syntax.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storescp.network.contexts import Offer

# PS3.8 9.3.2 and 9.3.3: fixed fields, then items of type, reserved byte, length and value.
FIXED_BYTES = 74
_ITEM = struct.Struct(">BxH")
_PDU = struct.Struct(">BBL")
_APPLICATION_CONTEXT = 0x10
_PROPOSED = 0x20
_NEGOTIATED = 0x21
_ABSTRACT_SYNTAX = 0x30
_TRANSFER_SYNTAX = 0x40
_USER_INFORMATION = 0x50
# A presentation context's identifier and three reserved bytes.
_CONTEXT_BYTES = 4
# With leading zeros in components, too: PS3.5 9.1 forbids them, devices send them, and what they name is not offered.
_UID = re.compile(rb"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*\Z")


@dataclass(frozen=True)
class Proposal:
    """A presentation context, and the identifier of the first one that asks the same, which may be itself."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    like: int


class _NotPlain(Exception):
    """Something about a request that pynetdicom shall see."""


def condense(request: bytes, offer: Offer) -> tuple[bytes, list[Proposal]] | None:
    """An A-ASSOCIATE-RQ with one context for all that ask the same, and all that were proposed.

    None for a request that has anything odd: what becomes of it is pynetdicom's decision, who has to see the whole.
    """
    try:
        return _condense(request, offer)
    except _NotPlain:
        return None


def _condense(request: bytes, offer: Offer) -> tuple[bytes, list[Proposal]]:
    items = list(_items(request[FIXED_BYTES:]))
    kinds = [kind for kind, _ in items]
    if kinds != [_APPLICATION_CONTEXT, *[_PROPOSED] * (len(items) - 2), _USER_INFORMATION]:
        raise _NotPlain
    # Lists of transfer syntaxes by their bytes: most contexts have the same one.
    lists: dict[bytes, tuple[str, ...]] = {}
    first_like: dict[tuple[bool, str], int] = {}
    proposals: dict[int, Proposal] = {}
    kept = [items[0]]
    for _, value in items[1:-1]:
        abstract_syntax, syntaxes_at = _abstract_syntax(value)
        encoded = value[syntaxes_at:]
        if encoded not in lists:
            lists[encoded] = _transfer_syntaxes(encoded)
        syntaxes = lists[encoded]
        context_id = value[0]
        if context_id % 2 == 0 or context_id in proposals:
            raise _NotPlain
        taken = offer.accepts(abstract_syntax)
        decides = next((uid for uid in syntaxes if taken and uid in offer.transfer_syntaxes), syntaxes[0])
        like = first_like.setdefault((taken, decides), context_id)
        if like == context_id:
            kept.append((_PROPOSED, value[:syntaxes_at] + _item(_TRANSFER_SYNTAX, decides.encode())))
        proposals[context_id] = Proposal(context_id, abstract_syntax, syntaxes, like)
    return _pdu(request, [*kept, items[-1]]), list(proposals.values())


def expand(accept: bytes, proposals: Sequence[Proposal]) -> bytes:
    """The A-ASSOCIATE-AC for all proposals, from that for those of them that pynetdicom saw."""
    items = list(_items(accept[FIXED_BYTES:]))
    results = {value[0]: value[1:] for kind, value in items if kind == _NEGOTIATED}
    negotiated = [(_NEGOTIATED, bytes([one.context_id]) + results[one.like]) for one in proposals]
    head = [item for item in items if item[0] == _APPLICATION_CONTEXT]
    tail = [item for item in items if item[0] == _USER_INFORMATION]
    return _pdu(accept, [*head, *negotiated, *tail])


def _pdu(like: bytes, items: Sequence[tuple[int, bytes]]) -> bytes:
    """The fixed fields of another one, and these items."""
    body = like[_PDU.size : FIXED_BYTES] + b"".join(_item(kind, value) for kind, value in items)
    return _PDU.pack(like[0], like[1], len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _abstract_syntax(context: bytes) -> tuple[str, int]:
    """The abstract syntax of a presentation context item, and where its transfer syntaxes are."""
    at = _CONTEXT_BYTES + _ITEM.size
    if len(context) < at:
        raise _NotPlain
    kind, length = _ITEM.unpack_from(context, _CONTEXT_BYTES)
    uid = context[at : at + length]
    if kind != _ABSTRACT_SYNTAX or len(uid) != length or not _UID.match(uid):
        raise _NotPlain
    return uid.decode("ascii"), at + length


def _transfer_syntaxes(encoded: bytes) -> tuple[str, ...]:
    found = list(_items(encoded))
    if not found or not all(kind == _TRANSFER_SYNTAX and _UID.match(uid) for kind, uid in found):
        raise _NotPlain
    # One that is repeated counts once.
    return tuple(dict.fromkeys(uid.decode("ascii") for _, uid in found))


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        value_at = at + _ITEM.size
        if value_at > len(data):
            raise _NotPlain
        kind, length = _ITEM.unpack_from(data, at)
        at = value_at + length
        if at > len(data):
            raise _NotPlain
        yield kind, data[value_at:at]
