"""What becomes of the pixels of a data set: stored as received, or transcoded in this process.

There are no worker processes here. `transcoding.workers` bounds how many data sets are transcoded at once, and the
others wait in the order in which they came, at most `transcoding.max_wait`. A decoder cannot be interrupted in this
process, so `transcoding.timeout` and `transcoding.instance_timeout` have no effect.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from storescp.pure.transcode import EXPLICIT, TranscodeError, can_transcode, to_explicit
from storescp.settings import Settings

log = structlog.get_logger("storescp.pure")
BUSY = "transcoding_busy"


@dataclass(frozen=True)
class Pixels:
    """A data set as it will be stored, and what became of its pixels."""

    dataset: bytes
    received_as: str
    stored_as: str
    status: str
    failure: str = ""  # why it could not be transcoded
    was_busy: bool = False  # because nothing was free


class Turns:
    """At most so many at once; the others wait in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def turn(self, max_wait: float) -> Iterator[bool]:
        """Whether there was a turn within so many seconds; it is over with the block."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            has_turn = self._changed.wait_for(lambda: self._free > 0 and self._waiting[0] is ticket, max_wait)
            self._waiting.remove(ticket)
            self._free -= has_turn
            self._changed.notify_all()
        try:
            yield has_turn
        finally:
            with self._changed:
                self._free += has_turn
                self._changed.notify_all()


class Transcoding:
    """The plan of the Rust core, and pydicom's decoders."""

    def __init__(self, settings: Settings) -> None:
        self._transcoding = settings.transcoding
        self._max_decoded_bytes = settings.limits.max_decoded_bytes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._turns = Turns(self._transcoding.workers or cores)

    def is_readable(self, transfer_syntax: str) -> bool:
        """Whether viewers read it as it is."""
        return transfer_syntax in (*self._transcoding.viewer_transfer_syntaxes, self._transcoding.target)

    def of(self, dataset: bytes, transfer_syntax: str, *, has_pixel_data: bool, is_odd: bool) -> Pixels:
        """What viewers cannot read becomes what they can; where that fails, the original stays."""
        if self.is_readable(transfer_syntax) or is_video_or_jpip(transfer_syntax) or not has_pixel_data:
            return Pixels(dataset, transfer_syntax, transfer_syntax, "NoNeedTransfer")
        failure, was_busy = f"no codec from {transfer_syntax} to {self._transcoding.target}", False
        if is_odd:
            failure = "the structure of Pixel Data is odd"
        elif can_transcode(transfer_syntax) and self._transcoding.target == EXPLICIT:
            try:
                with self._turns.turn(self._transcoding.max_wait) as has_turn:
                    if has_turn:
                        explicit = to_explicit(dataset, transfer_syntax, self._max_decoded_bytes)
                        return Pixels(explicit, transfer_syntax, EXPLICIT, "Success")
                failure, was_busy = f"no turn came within {self._transcoding.max_wait:g} s", True
            except TranscodeError as error:
                log.info("transcode.failed", source=transfer_syntax, reason=type(error.__cause__ or error).__name__)
                # Only our own words: those of a library may quote the data set.
                failure = "the pixels cannot be decoded" if error.__cause__ else str(error)
        return Pixels(dataset, transfer_syntax, transfer_syntax, "Failed", failure, was_busy)


def is_video_or_jpip(transfer_syntax: str) -> bool:
    """Nothing to decode to (PS3.6 Annex A)."""
    number = transfer_syntax.removeprefix("1.2.840.10008.1.2.4.").split(".")[0]
    if number == transfer_syntax.split(".", maxsplit=1)[0] or not number.isdigit():
        return False
    return int(number) in (94, 95, 204, 205, *range(100, 109))
