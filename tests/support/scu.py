"""A raw DICOM sender: what it sends is exactly what the test says, and nothing is decoded for it."""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
from dataclasses import dataclass, field

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


class Rejected(Exception):
    """A-ASSOCIATE-RJ."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"{result}/{source}/{reason}")
        self.code = (result, source, reason)


class Aborted(Exception):
    """A-ABORT."""

    def __init__(self, source: int, reason: int) -> None:
        super().__init__(f"{source}/{reason}")
        self.code = (source, reason)


class Closed(Exception):
    """The peer closed the connection."""


@dataclass(frozen=True)
class Response:
    """A DIMSE response."""

    field: int
    message_id: int
    status: int
    comment: str
    elements: dict[int, bytes] = field(default_factory=dict)


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(
    contexts: list[tuple[int, str, list[str]]],
    *,
    calling: bytes = b"RAW",
    called: bytes = b"STORE-SCP",
    max_pdu: int | None = 16384,
    version: int = 1,
    application_context: bytes = APPLICATION_CONTEXT,
    extra_items: bytes = b"",
) -> bytes:
    """PS3.8 9.3.2."""
    body = struct.pack(">HH", version, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    body += item(0x10, application_context)
    for context_id, abstract, syntaxes in contexts:
        inner = struct.pack(">BBBB", context_id, 0, 0, 0) + item(0x30, abstract.encode())
        inner += b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
        body += item(0x20, inner)
    user = item(0x51, struct.pack(">L", max_pdu)) if max_pdu is not None else b""
    user += item(0x52, b"1.2.3.4") + extra_items
    body += item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def element(tag: int, value: bytes) -> bytes:
    """An element of a command set: Implicit VR Little Endian."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def even(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return raw + b"\0" * (len(raw) % 2)


def us(value: int) -> bytes:
    return struct.pack("<H", value)


def command(elements: dict[int, bytes]) -> bytes:
    body = b"".join(element(tag, value) for tag, value in sorted(elements.items()))
    return element(0x00000000, struct.pack("<L", len(body))) + body


def store_rq(sop_class: str | bytes, sop_instance: str | bytes, message_id: int, **extra: bytes) -> bytes:
    elements = {
        0x00000002: even(sop_class),
        0x00000100: us(0x0001),
        0x00000110: us(message_id),
        0x00000700: us(0),
        0x00000800: us(1),
        0x00001000: even(sop_instance),
    }
    return command(elements | {int(tag, 16): value for tag, value in extra.items()})


def echo_rq(message_id: int) -> bytes:
    return command(
        {0x00000002: even(VERIFICATION), 0x00000100: us(0x0030), 0x00000110: us(message_id), 0x00000800: us(0x0101)}
    )


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


def pdata(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def fragments(context_id: int, is_command: bool, data: bytes, max_pdu: int) -> bytes:
    """A message part as PDUs of one PDV each."""
    step = max_pdu - 6
    pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    out = []
    for number, piece in enumerate(pieces):
        last = 2 if number == len(pieces) - 1 else 0
        out.append(pdata(pdv(context_id, int(is_command) | last, piece)))
    return b"".join(out)


class RawAssociation:
    """An association by hand."""

    def __init__(
        self,
        port: int,
        contexts: list[tuple[int, str, list[str]]],
        *,
        host: str = "127.0.0.1",
        source: str | None = None,
        timeout: float = 20.0,
        request: bytes | None = None,
        tls: ssl.SSLContext | None = None,
        opening: bytes = b"",
        **options: object,
    ) -> None:
        """`opening` is sent before everything else, TLS too."""
        self.socket = socket.create_connection((host, port), timeout, (source, 0) if source else None)
        self.message_ids = itertools.count(1)
        self.max_pdu = 16384
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(opening)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket)
            self.socket.sendall(request or associate_rq(contexts, **options))  # type: ignore[arg-type]
            kind, body = self.read_pdu()
            assert kind == 2, f"unexpected PDU {kind}"
        except BaseException:
            self.socket.close()
            raise
        self.accepted, self.user_information = parse_ac(body)
        self.max_pdu = struct.unpack(">L", self.user_information[0x51])[0]

    def __enter__(self) -> RawAssociation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise Closed
            data += piece
        return data

    def read_pdu(self) -> tuple[int, bytes]:
        """Raises `Rejected`, `Aborted` or `Closed` where that is what comes."""
        try:
            kind, _, length = struct.unpack(">BBL", self.read_exactly(6))
            body = self.read_exactly(length)
        except ConnectionResetError:
            raise Closed from None
        if kind == 3:
            raise Rejected(body[1], body[2], body[3])
        if kind == 7:
            raise Aborted(body[2], body[3])
        return kind, body

    def read_response(self) -> Response:
        data = b""
        while True:
            kind, body = self.read_pdu()
            assert kind == 4
            while body:
                length, _, control = struct.unpack(">LBB", body[:6])
                data, body = data + body[6 : length + 4], body[length + 4 :]
                assert control & 1
            if control & 2:
                return parse_response(data)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def store(
        self, context_id: int, sop_class: str | bytes, sop_instance: str | bytes, dataset: bytes, **extra: bytes
    ) -> Response:
        self.send_store(context_id, sop_class, sop_instance, dataset, **extra)
        return self.read_response()

    def send_store(
        self, context_id: int, sop_class: str | bytes, sop_instance: str | bytes, dataset: bytes, **extra: bytes
    ) -> None:
        self.send(self.store_pdus(context_id, sop_class, sop_instance, dataset, **extra))

    def store_pdus(
        self, context_id: int, sop_class: str | bytes, sop_instance: str | bytes, dataset: bytes, **extra: bytes
    ) -> bytes:
        """A C-STORE-RQ and its data set."""
        request = store_rq(sop_class, sop_instance, next(self.message_ids), **extra)
        return fragments(context_id, True, request, self.max_pdu) + fragments(context_id, False, dataset, self.max_pdu)

    def echo(self, context_id: int, message_id: int = 7) -> Response:
        self.send(fragments(context_id, True, echo_rq(message_id), self.max_pdu))
        return self.read_response()

    def release(self) -> None:
        self.send(struct.pack(">BBLL", 5, 0, 4, 0))
        kind, _ = self.read_pdu()
        assert kind == 6
        self.socket.close()

    def abort(self) -> None:
        self.send(struct.pack(">BBLL", 7, 0, 4, 0))
        self.socket.close()


def parse_ac(body: bytes) -> tuple[dict[int, tuple[int, str]], dict[int, bytes]]:
    """Results by context id, and user information items by type."""
    results: dict[int, tuple[int, str]] = {}
    user: dict[int, bytes] = {}
    at = 68
    while at < len(body):
        kind, _, length = struct.unpack(">BBH", body[at : at + 4])
        inner = body[at + 4 : at + 4 + length]
        if kind == 0x21:
            syntax = inner[8 : 8 + struct.unpack(">H", inner[6:8])[0]]
            results[inner[0]] = (inner[2], syntax.decode().rstrip("\0"))
        elif kind == 0x50:
            while inner:
                sub, _, size = struct.unpack(">BBH", inner[:4])
                user[sub], inner = inner[4 : 4 + size], inner[4 + size :]
        at += 4 + length
    return results, user


def parse_response(data: bytes) -> Response:
    elements: dict[int, bytes] = {}
    while data:
        group, number, length = struct.unpack("<HHL", data[:8])
        elements[group << 16 | number], data = data[8 : 8 + length], data[8 + length :]

    def number_of(tag: int) -> int:
        return int(struct.unpack("<H", elements[tag])[0])

    comment = elements.get(0x00000902, b"").decode("ascii").rstrip()
    return Response(number_of(0x00000100), number_of(0x00000120), number_of(0x00000900), comment, elements)
