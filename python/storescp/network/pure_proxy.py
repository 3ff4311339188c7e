"""PROXY headers in the pure engine: read in the thread of the connection, by the parser of the core."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence

from storescp import _core
from storescp.errors import CoreError

_LEAST_WAIT_SECONDS = 0.001


class NoHeaderError(Exception):
    """A connection that does not begin with a PROXY header; without detail, one that ended before its first byte."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def plain_address(address: str) -> str:
    """An address without its zone; an IPv4-mapped IPv6 address as IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


class Balancers:
    """Where load balancers are, whose connections begin with a PROXY header."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]

    def __contains__(self, address: str) -> bool:
        """Whether a plain address is one of theirs."""
        return any(ipaddress.ip_address(address) in network for network in self._networks)


def read_header(connection: socket.socket, deadline: float) -> tuple[str, int] | None:
    """The address and port that a header names, or None where those of the connection count.

    No byte behind the header is read. `deadline` is a moment of `time.monotonic()`.

    Raises:
        NoHeaderError: there is no header that can be followed.
    """
    received = b""
    timeout = connection.gettimeout()
    while True:
        try:
            wanted, named = _core.parse_proxy_header(received)
        except CoreError as error:
            raise NoHeaderError(str(error)) from None
        if wanted == 0:
            connection.settimeout(timeout)
            return named
        received += _receive(connection, wanted, deadline, is_first=not received)


def _receive(connection: socket.socket, wanted: int, deadline: float, *, is_first: bool) -> bytes:
    try:
        # Zero would mean not to wait at all.
        connection.settimeout(max(deadline - time.monotonic(), _LEAST_WAIT_SECONDS))
        piece = connection.recv(wanted)
    except TimeoutError:
        raise NoHeaderError(_core.PROXY_HEADER_ABSENT if is_first else _core.PROXY_HEADER_LATE) from None
    except OSError:
        piece = b""
    if not piece:
        raise NoHeaderError("" if is_first else _core.PROXY_HEADER_CUT)
    return piece
