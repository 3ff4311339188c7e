"""Where an A-ASSOCIATE-RQ reaches pynetdicom in the pure engine: it is made clean first, as for the Rust engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC
from pynetdicom.transport import AssociationSocket

from storescp import _core
from storescp.advice import Knock
from storescp.network.negotiation import (
    MalformedRequest,
    Rejection,
    check_fixed_fields,
    clean,
    title_fields,
    titles_of,
    with_titles,
)
from storescp.network.report import Oddity, Report

_ASSOCIATE_RQ = 0x01
_VERSION = slice(6, 8)


class Intake:
    """Stands between the socket of an association and pynetdicom's decoder and encoder.

    `proxy_address` is that of the load balancer where the connection began with a PROXY header, else empty.
    """

    def __init__(self, assoc: Association, report: Report, proxy_address: str) -> None:
        self.rejection: Rejection | None = None
        self.knock = Knock("")
        self.oddities: Sequence[Oddity] = ()
        self._assoc = assoc
        self._report = report
        self._proxy_address = proxy_address
        self._titles = b""
        self._is_malformed = False
        dul = assoc.dul
        self._decode: Callable[[bytearray], Any] = dul._decode_pdu  # noqa: SLF001 - tested in test_seams
        self._send: Callable[[Any], None] = dul._send  # noqa: SLF001
        dul._decode_pdu = self._decode_clean  # type: ignore[method-assign, assignment] # noqa: SLF001
        dul._send = self._send_as_agreed  # type: ignore[method-assign] # noqa: SLF001
        self._socket = cast(AssociationSocket, dul.socket)
        self._receive = self._socket.recv
        self._socket.recv = self._receive_opening  # type: ignore[method-assign]

    @property
    def port(self) -> int:
        """The peer's port."""
        return int(self._assoc.requestor.port or 0)

    def _receive_opening(self, nr_bytes: int) -> bytearray:
        """The first bytes of a connection, which may be a PROXY header that nobody expects."""
        self._socket.recv = self._receive  # type: ignore[method-assign]
        received = self._receive(nr_bytes)
        if _core.begins_proxy_header(bytes(received)):
            detail = _core.PROXY_HEADER_SECOND if self._proxy_address else _core.PROXY_HEADER_UNEXPECTED
            peer = (str(self._assoc.requestor.address), self.port)
            self._report.connection_refused(peer, "malformed_request", detail)
        return received

    def _decode_clean(self, received: bytearray) -> Any:
        request = bytes(received)
        if request[0] != _ASSOCIATE_RQ:
            return self._decode(received)
        address = str(self._assoc.requestor.address)
        self.knock = Knock(address, *titles_of(request), proxy=self._proxy_address)
        try:
            self.rejection = check_fixed_fields(request)
            cleaned = clean(request)
        except MalformedRequest as error:
            self._is_malformed = True
            self._report.request_malformed(Knock(address, *titles_of(request), str(error)), self.port)
            raise
        self._titles = title_fields(request)
        self.oddities = (*cleaned.oddities, *_core.title_oddities(request))
        pdu = cleaned.pdu
        if self.rejection is not None:
            # pynetdicom would stumble over what is to be rejected.
            pdu = with_titles(pdu[: _VERSION.start] + b"\0\1" + pdu[_VERSION.stop :], None)
        return self._decode(bytearray(pdu))

    def _send_as_agreed(self, pdu: Any) -> None:
        """What pynetdicom sends, with the titles that came (PS3.8 9.3.3) and the abort of the Rust engine."""
        encoded = bytes(pdu.encode())
        if isinstance(pdu, A_ASSOCIATE_AC) and self._titles:
            encoded = with_titles(encoded, self._titles)
        elif isinstance(pdu, A_ABORT_RQ) and self._is_malformed:
            encoded = MalformedRequest.pdu
        pdu.encode = lambda: encoded
        self._send(pdu)
