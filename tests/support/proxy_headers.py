"""PROXY headers (proxy-protocol.txt of HAProxy): made by hand, and read by a second reader than that of the service."""

from __future__ import annotations

import ipaddress
import random
import re
import socket
import struct
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
UNSPECIFIED, TCP4, UDP4, TCP6, UNIX = 0x00, 0x11, 0x12, 0x21, 0x31
CRC32C, NOOP, AUTHORITY = 0x03, 0x04, 0x02
# Not those of the service by accident.
_MOST_LINE, _MOST_BLOCK = 107, 16384
_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]*) (0|[1-9][0-9]*)")
_MAPPED = bytes(10) + b"\xff\xff"


def line(source: str, port: int = 4711) -> bytes:
    """Version 1."""
    kind, target = ("TCP6", "2001:db8::1") if ":" in source else ("TCP4", "10.0.0.1")
    return f"PROXY {kind} {source} {target} {port} 11111\r\n".encode()


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def block(command: int, family: int, content: bytes) -> bytes:
    """Version 2, whatever the content is."""
    return SIGNATURE + struct.pack(">BBH", command, family, len(content)) + content


def addresses(source: str, port: int = 4711) -> bytes:
    family, target = (socket.AF_INET6, "2001:db8::1") if ":" in source else (socket.AF_INET, "10.0.0.1")
    return socket.inet_pton(family, source) + socket.inet_pton(family, target) + struct.pack(">HH", port, 11111)


def binary(source: str, port: int = 4711, *tlvs: bytes, checksum: bool = False) -> bytes:
    """Version 2 of a connection that is passed on; the checksum comes before the TLVs."""
    family = TCP6 if ":" in source else TCP4
    content = addresses(source, port)
    if not checksum:
        return block(PROXY, family, content + b"".join(tlvs))
    header = block(PROXY, family, content + tlv(CRC32C, bytes(4)) + b"".join(tlvs))
    at = len(SIGNATURE) + 4 + len(content) + 3
    return header[:at] + struct.pack(">L", crc32c(header)) + header[at + 4 :]


def crc32c(data: bytes) -> int:
    """RFC 3720 Appendix B, bit by bit."""
    total = 0xFFFFFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0x82F63B78 if total & 1 else 0)
    return total ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Read:
    """A header as the second reader has it: its length, and whom it names (None: nobody)."""

    length: int
    peer: tuple[str, int] | None


def read(stream: bytes) -> Read | None:
    """What a stream begins with; None where it is no whole header."""
    return _read_binary(stream) if stream.startswith(SIGNATURE) else _read_line(stream)


def _read_line(stream: bytes) -> Read | None:
    content, end, _ = stream.partition(b"\r\n")
    length = len(content) + len(end)
    if not end or length > _MOST_LINE:
        return None
    if content == b"PROXY UNKNOWN" or content.startswith(b"PROXY UNKNOWN "):
        return Read(length, None)
    found = _LINE.fullmatch(content)
    if found is None:
        return None
    family = socket.AF_INET if found[1] == b"TCP4" else socket.AF_INET6
    try:
        source, _ = (socket.inet_pton(family, found[number].decode()) for number in (2, 3))
    except OSError:
        return None
    ports = int(found[4]), int(found[5])
    return None if max(ports) > 0xFFFF else Read(length, (_text(source), ports[0]))


def _read_binary(stream: bytes) -> Read | None:
    if len(stream) < len(SIGNATURE) + 4:
        return None
    command, family, size = struct.unpack_from(">BBH", stream, len(SIGNATURE))
    length = len(SIGNATURE) + 4 + size
    if size > _MOST_BLOCK or length > len(stream) or command not in (LOCAL, PROXY):
        return None
    if command == LOCAL or family == UNSPECIFIED:
        return Read(length, None)
    width = {TCP4: 4, TCP6: 16}.get(family)
    if width is None or size < 2 * width + 4:
        return None
    content = stream[len(SIGNATURE) + 4 : length]
    if not _are_tlvs(stream[:length], length - size + 2 * width + 4):
        return None
    return Read(length, (_text(content[:width]), struct.unpack_from(">H", content, 2 * width)[0]))


def _are_tlvs(header: bytes, at: int) -> bool:
    checksums = 0
    while at < len(header):
        if at + 3 > len(header):
            return False
        kind, size = struct.unpack_from(">BH", header, at)
        at += 3 + size
        if at > len(header):
            return False
        if kind == CRC32C:
            checksums += 1
            zeroed = header[: at - size] + bytes(size) + header[at:]
            if checksums > 1 or size != 4 or header[at - size : at] != struct.pack(">L", crc32c(zeroed)):
                return False
    return True


def _text(address: bytes) -> str:
    # RFC 5952, where inet_ntop(3) of glibc has dots in some IPv6 addresses.
    return str(ipaddress.ip_address(address.removeprefix(_MAPPED)))


# Headers that are right, of each kind.
RIGHT = [
    line("192.0.2.7"),
    line("2001:db8::7"),
    binary("192.0.2.7"),
    binary("2001:db8::7"),
    binary("::ffff:192.0.2.7"),
    binary("192.0.2.7", 4711, tlv(NOOP, bytes(20)), tlv(AUTHORITY, b"pacs.example"), checksum=True),
    binary("192.0.2.7", 4711, tlv(0xEA, bytes(200))),
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    block(LOCAL, UNSPECIFIED, b""),
    block(LOCAL, TCP4, addresses("192.0.2.7")),
    block(PROXY, UNSPECIFIED, b""),
]


def mutated(draw: random.Random) -> bytes:
    """A header with up to four changes: bytes replaced, left out, put in, said twice, or all from one place on cut."""
    header = bytearray(draw.choice(RIGHT))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        at = draw.randrange(len(header) + 1)
        change = draw.randrange(6)
        if change == 0:
            header[at : at + 1] = bytes([draw.randrange(256)])
        elif change == 1:
            del header[at : at + draw.randrange(1, 4)]
        elif change == 2:
            header[at:at] = draw.randbytes(draw.randrange(1, 4))
        elif change == 3:
            header[at:at] = header[at : at + draw.randrange(1, 20)]
        elif change == 4:
            # Of the characters that a line is made of.
            header[at : at + 1] = bytes([draw.choice(b"0123456789abcdefF.: \r\nPROXYTCUNKW")])
        else:
            del header[at:]
    return bytes(header)
