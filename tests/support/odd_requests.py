"""A-ASSOCIATE-RQs as devices send them: extra, odd and missing items, each kind with several inputs.

Sources: PS3.8 9.3.1 ("items not recognised shall be ignored") and public reports to dicom-rs (725, 732) and pynetdicom (240, 243, 342, 414, 646).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from support.instances import CT
from support.scu import APPLICATION_CONTEXT, EXPLICIT, IMPLICIT, VERIFICATION, item

SC = b"1.2.840.10008.5.1.4.1.1.7"
STORAGE_SERVICE = b"1.2.840.10008.4.2"
UNREADABLE = [b"", b"\0", b"NOT.A.UID", b"1.2.\xe9", b"1." + b"3" * 70, b"1..2", b" "]
PADDING = [b"\0", b" ", bytes(9), bytes(60), b"\0junk", b"\r\n"]


@dataclass(frozen=True)
class OddRequest:
    """A request, the results that its contexts get, and the codes of what is odd in it."""

    name: str
    pdu: bytes
    codes: tuple[str, ...] = ()
    results: dict[int, int] = field(default_factory=lambda: {1: 0})

    def __str__(self) -> str:
        return self.name


def uid_of(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def abstract(uid: str | bytes = CT) -> bytes:
    return item(0x30, uid_of(uid))


def transfer(uid: str | bytes = EXPLICIT) -> bytes:
    return item(0x40, uid_of(uid))


def context(number: int, *items: bytes, reserved: bytes = bytes(3)) -> bytes:
    return item(0x20, bytes([number]) + reserved + b"".join(items or (abstract(), transfer())))


def field_of(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def role(uid: bytes, scu: int, scp: int) -> bytes:
    return item(0x54, field_of(uid) + bytes([scu, scp]))


def extended(uid: bytes, information: bytes) -> bytes:
    return item(0x56, field_of(uid) + information)


def common(uid: bytes, service: bytes, related: bytes = b"") -> bytes:
    return item(0x57, field_of(uid) + field_of(service) + field_of(related))


def identity(kind: int, response: int, primary: bytes, secondary: bytes = b"") -> bytes:
    return item(0x58, bytes([kind, response]) + field_of(primary) + field_of(secondary))


MAXIMUM = item(0x51, struct.pack(">L", 16384))
CLASS = item(0x52, b"1.2.3.4")
NAME = item(0x10, APPLICATION_CONTEXT)
ONE = context(1)


def pdu_of(
    *items: bytes,
    version: int = 1,
    called: bytes = b"STORE-SCP",
    calling: bytes = b"RAW",
    reserved: bytes = bytes(32),
) -> bytes:
    body = struct.pack(">HH", version, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + reserved
    body += b"".join(items)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def user(*items: bytes) -> bytes:
    return item(0x50, MAXIMUM + CLASS + b"".join(items))


def with_user(*items: bytes) -> bytes:
    return pdu_of(NAME, ONE, user(*items))


def with_contexts(*contexts: bytes) -> bytes:
    return pdu_of(NAME, *contexts, user())


def usual() -> Iterator[OddRequest]:
    """Nothing is odd about them, however rare they are."""
    yield OddRequest("plain", pdu_of(NAME, ONE, user()))
    yield OddRequest("reserved fields", pdu_of(NAME, context(1, reserved=b"\7\7\7"), user(), reserved=b"\xff" * 32))
    for version in (3, 0x0101, 0xFFFF):
        yield OddRequest(f"version {version:04X}", pdu_of(NAME, ONE, user(), version=version))
    yield OddRequest("user information first", pdu_of(user(), NAME, ONE))
    yield OddRequest("application context last", pdu_of(ONE, user(), NAME))
    yield OddRequest("transfer syntax first", with_contexts(context(1, transfer(), abstract())))
    same_class = with_contexts(ONE, context(3, abstract(), transfer(IMPLICIT)))
    yield OddRequest("one class twice", same_class, results={1: 0, 3: 0})
    all_ids = range(1, 256, 2)
    everything = with_contexts(*(context(number) for number in all_ids))
    yield OddRequest("128 contexts", everything, results=dict.fromkeys(all_ids, 0))
    syntaxes = (transfer(f"1.2.3.{number}") for number in range(60))
    yield OddRequest("60 transfer syntaxes", with_contexts(context(1, abstract(), *syntaxes, transfer())))
    yield OddRequest("a transfer syntax thrice", with_contexts(context(1, abstract(), *[transfer()] * 3)))
    leading_zero = context(3, abstract("1.2.840.010008.5"), transfer())
    yield OddRequest("leading zero", with_contexts(ONE, leading_zero), results={1: 0, 3: 3})
    for name, sub_items in {
        "window 5/5": [item(0x53, b"\0\5\0\5")],
        "window 0/0": [item(0x53, bytes(4))],
        "role SCU and SCP": [role(CT.encode(), 1, 1)],
        "role 0/0": [role(CT.encode(), 0, 0)],
        "role of another class": [role(SC, 1, 1)],
        "roles by the hundred": [role(CT.encode(), 1, 0)] * 500,
        "role of storage and verification": [role(CT.encode(), 1, 1), role(VERIFICATION.encode(), 1, 1)],
        "extended negotiation": [extended(CT.encode(), b"\2\0\1\0\0\0")],
        "extended negotiation without information": [extended(CT.encode(), b"")],
        "common extended negotiation": [common(CT.encode(), STORAGE_SERVICE)],
        "common with related": [common(b"1.2.3", STORAGE_SERVICE, field_of(CT.encode()))],
        "common with reserved bytes": [item(0x57, field_of(b"1.2") + field_of(b"1.3") + field_of(b"") + b"\0\0")],
        "version name": [item(0x55, b"vendor 1.0~")],
        "version name of spaces": [item(0x55, b"    ")],
        "everything in odd order": [item(0x53, b"\0\1\0\1"), item(0x55, b"V"), role(SC, 1, 0), identity(1, 0, b"a")],
    }.items():
        yield OddRequest(name, with_user(*sub_items))
    for kind in range(1, 6):
        for response in (0, 1):
            for primary in (b"bob", b"", b"b\xe9b"):
                odd_name = f"user identity {kind}/{response}/{primary!r}"
                yield OddRequest(odd_name, with_user(identity(kind, response, primary, b"pw" if kind == 2 else b"")))
    for title in (b"RAW" + bytes(13), b"  RAW", b"\0RAW", b"A" * 16, b"../../x\"'<a>"):
        yield OddRequest(f"calling {title!r}", pdu_of(NAME, ONE, user(), calling=title))


def unknown_items() -> Iterator[OddRequest]:
    """PS3.8 9.3.1: they are ignored, wherever they stand."""
    for kind in (0x00, 0x11, 0x21, 0x30, 0x51, 0x5A, 0x60, 0x99, 0xFF):
        for value in (b"", b"\1\2\3\4", item(kind, item(kind, b""))):
            odd = item(kind, value)
            where = {
                "first": pdu_of(odd, NAME, ONE, user()),
                "between": pdu_of(NAME, odd, ONE, user()),
                "last": pdu_of(NAME, ONE, user(), odd),
            }
            if kind != 0x30:
                where["in a context, first"] = with_contexts(context(1, odd, abstract(), transfer()))
                where["in a context, between"] = with_contexts(context(1, abstract(), odd, transfer()))
                where["in a context, last"] = with_contexts(context(1, abstract(), transfer(), odd))
            if kind != 0x51:
                where["in the user information"] = with_user(odd)
                where["first in the user information"] = pdu_of(NAME, ONE, item(0x50, odd + MAXIMUM + CLASS))
            for place, pdu in where.items():
                yield OddRequest(f"{kind:02X}, {len(value)} bytes, {place}", pdu, ("unknown_item",))
    yield OddRequest("a large one", with_user(item(0x60, bytes(60_000))), ("unknown_item",))
    yield OddRequest("500 items", pdu_of(NAME, ONE, user(), *[item(0x60, b"")] * 500), ("unknown_item",))
    yield OddRequest("500 sub-items", with_user(*[item(0x60, b"")] * 500), ("unknown_item",))
    nested = context(1, abstract(), transfer(), context(3))
    yield OddRequest("a context in a context", with_contexts(nested), ("unknown_item",))
    yield OddRequest("user identity of an acceptor", with_user(item(0x59, b"\0\0")), ("unknown_item",))
    for count in (1, 2, 3):
        zeros = bytes(count)
        codes = ("trailing_bytes",)
        yield OddRequest(f"{count} zero bytes at the end", pdu_of(NAME, ONE, user(), zeros), codes)
        yield OddRequest(f"{count} zero bytes in the user information", with_user(zeros), codes)
        padded = context(1, abstract(), transfer(), zeros)
        yield OddRequest(f"{count} zero bytes in a context", with_contexts(padded), codes)


def odd_contexts() -> Iterator[OddRequest]:
    """A bad one costs itself and nothing else."""
    for number in (0, 2, 254):
        pdu = with_contexts(ONE, context(number, abstract(SC), transfer()))
        yield OddRequest(f"even id {number}", pdu, ("context_id",))
    yield OddRequest("only an even id", with_contexts(context(2)), ("context_id",), {})
    every_id = with_contexts(*(context(number) for number in range(256)))
    yield OddRequest("every id", every_id, ("context_id",) * 16 + ("more",), dict.fromkeys(range(1, 256, 2), 0))
    codes: tuple[str, ...] = ("repeated_context_id",)
    twice = with_contexts(context(3, abstract(SC), transfer()), ONE, context(3))
    yield OddRequest("repeated id", twice, codes, {3: 3, 1: 0})
    yield OddRequest(
        "repeated id, nothing else", with_contexts(ONE, context(1, abstract(SC), transfer())), codes, {1: 3}
    )
    yield OddRequest("repeated id, the same context", with_contexts(ONE, ONE), codes, {1: 3})
    more = with_contexts(*(context(number) for number in (*range(1, 256, 2), 1, 3)))
    results = {number: 3 if number in (1, 3) else 0 for number in range(1, 256, 2)}
    yield OddRequest("130 contexts", more, codes * 2, results)
    for length in range(4):
        pdu = with_contexts(ONE, item(0x20, b"\3\0\0\0"[:length]))
        yield OddRequest(f"context of {length} bytes", pdu, ("presentation_context",))
    for uid in UNREADABLE:
        pdu = with_contexts(ONE, context(3, abstract(uid), transfer()))
        yield OddRequest(f"abstract syntax {uid[:9]!r}", pdu, ("abstract_syntax",), {1: 0, 3: 3})
        pdu = with_contexts(ONE, context(3, abstract(SC), transfer(uid)))
        yield OddRequest(f"only transfer syntax {uid[:9]!r}", pdu, ("transfer_syntax",) * 2, {1: 0, 3: 4})
        for syntaxes in ((uid, EXPLICIT), (EXPLICIT, uid)):
            pdu = with_contexts(context(1, abstract(), *map(transfer, syntaxes)))
            yield OddRequest(f"transfer syntaxes {syntaxes[0][:9]!r} {syntaxes[1][:9]!r}", pdu, ("transfer_syntax",))
    without = context(3, transfer())
    yield OddRequest("no abstract syntax", with_contexts(ONE, without), ("abstract_syntax",), {1: 0, 3: 3})
    without = context(3, abstract(SC))
    yield OddRequest("no transfer syntax", with_contexts(ONE, without), ("transfer_syntax",), {1: 0, 3: 4})
    pdu = with_contexts(ONE, item(0x20, b"\3\0\0\0"))
    yield OddRequest("no syntax", pdu, ("abstract_syntax", "transfer_syntax"), {1: 0, 3: 3})
    both = context(1, abstract(SC), abstract(), transfer())
    yield OddRequest("two abstract syntaxes", with_contexts(both), ("repeated_item",))


def odd_uids() -> Iterator[OddRequest]:
    """Padding of any kind is no part of a UID."""
    for padding in PADDING:
        name = f"padded with {padding[:9]!r}"
        for place, pdu in {
            "abstract": with_contexts(context(1, abstract(CT.encode() + padding), transfer())),
            "transfer": with_contexts(context(1, abstract(), transfer(EXPLICIT.encode() + padding))),
            "application context": pdu_of(item(0x10, APPLICATION_CONTEXT + padding), ONE, user()),
            "class": pdu_of(NAME, ONE, item(0x50, MAXIMUM + item(0x52, b"1.2.3.4" + padding))),
        }.items():
            yield OddRequest(f"{place} {name}", pdu, ("padded_uid",))
    leading = context(1, abstract(b" " + CT.encode()), transfer(b" " + EXPLICIT.encode()))
    yield OddRequest("leading spaces", with_contexts(leading), ("padded_uid", "padded_uid"))
    other = item(0x10, b"1.2.3")
    yield OddRequest("application context twice", pdu_of(NAME, NAME, ONE, user()), ("repeated_item",))
    yield OddRequest("another application context first", pdu_of(other, NAME, ONE, user()), ("repeated_item",))
    yield OddRequest("another application context last", pdu_of(NAME, other, ONE, user()), ("repeated_item",))
    unreadable = pdu_of(NAME, item(0x10, b"DICOM"), ONE, user())
    yield OddRequest("an unreadable application context", unreadable, ("application_context",))


def odd_user_information() -> Iterator[OddRequest]:
    """An odd sub-item costs itself and nothing else."""
    names = [
        b"",
        b"VENDOR_10\0",
        bytes(16),
        b"A" * 17,
        b"A" * 1000,
        b"SOCI\xc9T\xc9",
        b"V1\\2",
        b"A\n\x1b[2J",
        b"AB\0CD",
    ]
    names += ["影像".encode(), "影像".encode("gb18030")]
    for name in names:
        pdu = with_user(item(0x55, name))
        yield OddRequest(f"version name {name[:12]!r}", pdu, ("implementation_version_name",))
    for uid in UNREADABLE:
        pdu = pdu_of(NAME, ONE, item(0x50, MAXIMUM + item(0x52, uid)))
        yield OddRequest(f"class UID {uid[:9]!r}", pdu, ("implementation_class_uid",))
        if uid != b" ":
            yield OddRequest(f"role of {uid[:9]!r}", with_user(role(uid, 1, 1)), ("role_selection",))
            pdu = with_user(extended(uid, b"\1"))
            yield OddRequest(f"extended negotiation of {uid[:9]!r}", pdu, ("extended_negotiation",))
            for sub_item in (common(uid, STORAGE_SERVICE), common(b"1.2", uid), common(b"1.2", b"1.3", field_of(uid))):
                name = f"common extended negotiation {sub_item[6:18]!r}"
                yield OddRequest(name, with_user(sub_item), ("common_extended_negotiation",))
    ct = CT.encode()
    for kind, code, values in (
        (0x53, "asynchronous_operations", [b"", b"\0\1", bytes(8)]),
        (0x54, "role_selection", [b"", b"\0", field_of(ct), b"\0\xff" + ct + b"\1\1", b"\0\5" + ct + b"\1\1"]),
        (
            0x54,
            "role_selection",
            [field_of(ct) + roles for roles in (b"\2\0", b"\0\2", b"\xff\xff", b"\1", b"\1\1\0\0")],
        ),
        (0x56, "extended_negotiation", [b"", b"\0", b"\0\xff" + ct]),
        (0x57, "common_extended_negotiation", [b"", b"\0", field_of(ct), field_of(ct) + b"\0\xff" + STORAGE_SERVICE]),
        (0x57, "common_extended_negotiation", [field_of(ct) + field_of(STORAGE_SERVICE) + b"\0\x20"]),
        (0x58, "user_identity", [b"", b"\1", b"\1\0", b"\1\0\0\xffbob\0\0", b"\2\0\0\3bob\0\xffpw", b"\1\0\0\3bob\0"]),
        (0x58, "user_identity", [b"\1\0\0\3bob", b"\1\0\0\3bob\0\0zz", b"\1\2\0\3bob\0\0", b"\1\xff\0\3bob\0\0"]),
        (0x58, "user_identity", [identity(number, 1, b"x")[4:] for number in (0, 6, 7, 255)]),
        (0x51, "maximum_length", [b"", b"\x40\0", struct.pack(">LL", 16384, 0)]),
    ):
        for value in values:
            pdu = pdu_of(NAME, ONE, item(0x50, (b"" if kind == 0x51 else MAXIMUM) + CLASS + item(kind, value)))
            yield OddRequest(f"{code} {value[:12]!r}", pdu, (code,))
    for name, sub_item in {
        "maximum length": item(0x51, struct.pack(">L", 4096)),
        "class UID": CLASS,
    }.items():
        yield OddRequest(f"{name} twice", with_user(sub_item), ("repeated_item",))
    yield OddRequest("version name twice", with_user(item(0x55, b"A"), item(0x55, b"B")), ("repeated_item",))
    yield OddRequest("user identity twice", with_user(*[identity(1, 0, b"a")] * 2), ("repeated_item",))
    yield OddRequest("user information twice", pdu_of(NAME, ONE, user(), item(0x50, b"")), ("repeated_item",))
    missing = ("missing_item",)
    yield OddRequest("no user information", pdu_of(NAME, ONE), missing)
    yield OddRequest("empty user information", pdu_of(NAME, ONE, item(0x50, b"")), missing)
    yield OddRequest("no maximum length", pdu_of(NAME, ONE, item(0x50, CLASS)), missing)


def odd_titles() -> Iterator[OddRequest]:
    """What is around a title, and bytes beyond ASCII."""
    for title in (b"RAW\0xyz\0", b"RAW\0\x01\x7f", b"\xc9CHO", b"RAW\r\n", "影像".encode(), "影像".encode("gb18030")):
        yield OddRequest(f"calling {title!r}", pdu_of(NAME, ONE, user(), calling=title), ("ae_title",))
        yield OddRequest(f"called {title!r}", pdu_of(NAME, ONE, user(), called=title), ("ae_title",))


def taken() -> list[OddRequest]:
    """All that are answered with A-ASSOCIATE-AC."""
    groups = (usual, unknown_items, odd_contexts, odd_uids, odd_user_information, odd_titles)
    return [one for group in groups for one in group()]


ABORTED = (2, 6)
REFUSED: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "item beyond the request": (pdu_of(NAME, ONE, user(), b"\x60\0\0\x09x"), ABORTED),
    "context beyond the request": (pdu_of(NAME, ONE, b"\x20\0\xff\xff\3\0\0\0"), ABORTED),
    "sub-item beyond its context": (with_contexts(ONE, item(0x20, b"\3\0\0\0\x30\0\0\x991.2")), ABORTED),
    "sub-item beyond a context that is left out": (with_contexts(ONE, item(0x20, b"\2\0\0\0\x30\0\0\x991.2")), ABORTED),
    "sub-item beyond the user information": (with_user(b"\x60\0\0\x09x"), ABORTED),
    "half a header at the end": (pdu_of(NAME, ONE, user(), b"\x60\0"), ABORTED),
    "half a header in a context": (with_contexts(context(1, abstract(), transfer(), b"\x40\0")), ABORTED),
    "half a header in the user information": (with_user(b"\0\0\1"), ABORTED),
    "no context": (pdu_of(NAME, user()), ABORTED),
    "version 0": (pdu_of(NAME, ONE, user(), version=0), (1, 2, 2)),
    "version 2": (pdu_of(NAME, ONE, user(), version=2), (1, 2, 2)),
    "no application context": (pdu_of(ONE, user()), (1, 1, 2)),
    "another application context": (pdu_of(item(0x10, b"1.2.3"), ONE, user()), (1, 1, 2)),
    "an unreadable application context": (pdu_of(item(0x10, b"DICOM"), ONE, user()), (1, 1, 2)),
    "maximum length 7": (pdu_of(NAME, ONE, item(0x50, item(0x51, b"\0\0\0\7"))), (1, 1, 1)),
    **{
        f"calling {title!r}": (pdu_of(NAME, ONE, user(), calling=title.ljust(16)), (1, 1, 3))
        for title in (b"", bytes(16), b"A\\B", b"A\nB", b"\x1b[2J", b"RAW\x7f")
    },
    **{
        f"called {title!r}": (pdu_of(NAME, ONE, user(), called=title.ljust(16)), (1, 1, 7))
        for title in (b"", bytes(16), b"A\\B", b"A\nB", b"\x1b[2J", b"RAW\x7f")
    },
}
