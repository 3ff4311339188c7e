"""A sender that costs little: every byte of a round is made before the clock starts."""

from __future__ import annotations

import struct

from support import scu
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation

_SERIES = "1.2.826.0.1.3680043.10.9999.77"


class Round:
    """`count` CT slices (`rows` x `rows`, 16 bit) with UIDs of their own, as they go over the wire."""

    def __init__(self, number: int, count: int, max_pdu: int, *, rows: int = 512) -> None:
        series = f"{_SERIES}.{number}"
        template = ct_slice(10000, study=_SERIES, series=series, rows=rows)
        placeholder = template.sop_instance.encode()
        message = scu.fragments(1, True, scu.store_rq(CT, template.sop_instance, 1), max_pdu)
        message += scu.fragments(1, False, template.dataset, max_pdu)
        self.dataset_bytes = len(template.dataset)
        self.messages = [
            message.replace(placeholder, f"{series}.{10000 + index}".encode()) for index in range(1, count + 1)
        ]

    def send(self, port: int) -> None:
        """Sends all over one association; every status must be success."""
        with RawAssociation(port, [(1, CT, [EXPLICIT])]) as association:
            socket = association.socket
            for message in self.messages:
                socket.sendall(message)
                body = socket.recv(65536)
                length = struct.unpack_from(">L", body, 2)[0] + 6
                while len(body) < length:
                    body += socket.recv(65536)
                assert scu.parse_response(body[12:]).status == 0
            association.release()
