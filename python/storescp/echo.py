"""One C-ECHO over a socket (PS3.7 9.1.5), which tells exactly what a peer does instead of answering."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

_VERIFICATION, _IMPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2"
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_CONTEXT = 1
_LONGEST_PDU = 1 << 20
_MOST_FRAGMENTS = 100
_LAST_OF_COMMAND = 0b11  # PS3.8 E.2
# PS3.8 9.3.1: types of PDUs.
_ACCEPT, _REJECT, _DATA, _ABORT = 0x02, 0x03, 0x04, 0x07
_RELEASE = bytes([5, 0, 0, 0, 0, 4, 0, 0, 0, 0])
# PS3.7 E.1, C-ECHO-RQ: Affected SOP Class UID, Command Field, Message ID, Command Data Set Type (there is none).
_COMMAND = (
    (0x0002, _VERIFICATION.encode() + b"\0"),
    (0x0100, struct.pack("<H", 0x0030)),
    (0x0110, struct.pack("<H", 1)),
    (0x0800, struct.pack("<H", 0x0101)),
)
_STATUS = 0x0900


class NotAnsweredError(Exception):
    """What the peer does instead of answering, as `_core.Sender` would say it."""


@dataclass(frozen=True)
class Answer:
    """The status, None where the class is not accepted, and the seconds from request to response."""

    status: int | None
    seconds: float


def exchange(connection: socket.socket, calling: str, called: str) -> Answer:
    """Opens an association, sends one C-ECHO and releases.

    Raises:
        NotAnsweredError: the peer does something else.
        OSError: the connection broke, or the peer is silent for longer than the timeout of the socket.
    """
    connection.sendall(_associate_rq(calling, called))
    kind, body = _read_pdu(connection)
    if kind != _ACCEPT:
        raise NotAnsweredError("no answer to A-ASSOCIATE-RQ")
    if not _is_accepted(body):
        connection.sendall(_RELEASE)
        return Answer(None, 0.0)
    began = time.perf_counter()
    connection.sendall(_echo_rq())
    status = _read_status(connection)
    seconds = time.perf_counter() - began
    connection.sendall(_RELEASE)
    _read_pdu(connection)
    return Answer(status, seconds)


def _associate_rq(calling: str, called: str) -> bytes:
    context = build_context(UID(_VERIFICATION), UID(_IMPLICIT))
    context.context_id = _CONTEXT
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = UID(PYNETDICOM_IMPLEMENTATION_UID)
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(_APPLICATION_CONTEXT)
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    primitive.presentation_context_definition_list = [context]
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _echo_rq() -> bytes:
    elements = b"".join(_element(number, value) for number, value in _COMMAND)
    command = _element(0, struct.pack("<I", len(elements))) + elements
    value = struct.pack(">IBB", len(command) + 2, _CONTEXT, _LAST_OF_COMMAND) + command
    return struct.pack(">BBI", _DATA, 0, len(value)) + value


def _read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxI", _read(connection, 6))
    if kind not in {_ACCEPT, _REJECT, _DATA, 0x06, _ABORT}:
        raise NotAnsweredError("no PDU")
    if length > _LONGEST_PDU:
        raise NotAnsweredError("an answer that is too long")
    body = _read(connection, length)
    if kind in {_REJECT, _ABORT} and len(body) >= 4:  # noqa: PLR2004 - PS3.8 9.3.4 and 9.3.8
        result, source, reason = body[1:4]
        if kind == _REJECT:
            raise NotAnsweredError(f"rejected ({result}/{source}/{reason})")
        raise NotAnsweredError(f"aborted by the peer ({source}/{reason})")
    return kind, body


def _read(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise NotAnsweredError("the peer closed the connection")
        data += part
    return bytes(data)


def _is_accepted(body: bytes) -> bool:
    """Whether an A-ASSOCIATE-AC has our presentation context with the result acceptance (PS3.8 9.3.3)."""
    rest = body[68:]
    while len(rest) >= 4:  # noqa: PLR2004 - type and length of an item
        kind, length = struct.unpack(">BxH", rest[:4])
        item, rest = rest[4 : 4 + length], rest[4 + length :]
        if kind == 0x21 and item[:1] == bytes([_CONTEXT]):  # noqa: PLR2004 - PS3.8 9.3.3.2
            return item[2:3] == b"\0"
    return False


def _read_status(connection: socket.socket) -> int:
    command = b""
    for _ in range(_MOST_FRAGMENTS):
        kind, body = _read_pdu(connection)
        if kind != _DATA:
            break
        while len(body) > 6:  # noqa: PLR2004 - length, context and control header
            length, _, control = struct.unpack(">IBB", body[:6])
            command, body = command + body[6 : 4 + length], body[4 + max(length, 2) :]
            if control & _LAST_OF_COMMAND == _LAST_OF_COMMAND:
                return _status_of(command)
    raise NotAnsweredError("no answer to C-ECHO-RQ")


def _status_of(command: bytes) -> int:
    while len(command) >= 8:  # noqa: PLR2004 - tag and length
        _, number, length = struct.unpack("<HHI", command[:8])
        value, command = command[8 : 8 + length], command[8 + length :]
        if number == _STATUS and len(value) == 2:  # noqa: PLR2004 - VR US
            return int.from_bytes(value, "little")
    raise NotAnsweredError("an answer without a status")
