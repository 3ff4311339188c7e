"""Where an A-ASSOCIATE-RQ reaches pynetdicom in the pure engine: it is made clean first, as for the Rust engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC

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
    """Stands between the socket of an association and pynetdicom's decoder and encoder."""

    def __init__(self, assoc: Association, report: Report) -> None:
        self.rejection: Rejection | None = None
        self.knock = Knock("")
        self.oddities: Sequence[Oddity] = ()
        self._assoc = assoc
        self._report = report
        self._titles = b""
        self._is_malformed = False
        dul = assoc.dul
        self._decode: Callable[[bytearray], Any] = dul._decode_pdu  # noqa: SLF001 - tested in test_seams
        self._send: Callable[[Any], None] = dul._send  # noqa: SLF001
        dul._decode_pdu = self._decode_clean  # type: ignore[method-assign, assignment] # noqa: SLF001
        dul._send = self._send_as_agreed  # type: ignore[method-assign] # noqa: SLF001

    @property
    def port(self) -> int:
        """The peer's port."""
        return int(self._assoc.requestor.port or 0)

    def _decode_clean(self, received: bytearray) -> Any:
        request = bytes(received)
        if request[0] != _ASSOCIATE_RQ:
            return self._decode(received)
        address = str(self._assoc.requestor.address)
        self.knock = Knock(address, *titles_of(request))
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
