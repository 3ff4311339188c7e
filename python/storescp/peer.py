"""Being the sender: C-ECHO and C-STORE to a peer, to test a link."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.filereader import read_partial

from storescp import _core
from storescp.echo import NotAnsweredError, exchange
from storescp.errors import CoreError, StorescpError

_SOP_INSTANCE_UID = 0x00080018
_PREAMBLE_BYTES = 128  # PS3.10 7.1
_MAX_CONTEXTS = 128
_TIMEOUT_SECONDS = 60
_CONNECT_SECONDS = 10
# PS3.8 Table 9-21: source and reason of a rejection.
_REJECTIONS = {
    (1, 1): "it gives no reason",
    (1, 2): "it does not know the application context",
    (1, 3): "it does not accept the calling AE title (--calling)",
    (1, 7): "it does not know the called AE title (--called)",
    (2, 1): "it gives no reason",
    (2, 2): "it does not know the protocol version",
    (3, 1): "it is busy, full or stopping for the time being",
    (3, 2): "it has as many associations as it allows",
}
_TRANSIENT = 2


class PeerError(StorescpError):
    """The peer could not be reached, refused or went away; or a file cannot be sent."""


@dataclass(frozen=True)
class OutgoingFile:
    """A file and what negotiation must know of it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    bytes: int


@dataclass(frozen=True)
class Peer:
    """Where to send, and the AE titles of both sides."""

    host: str
    port: int
    calling: str
    called: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass
class SendReport:
    """What became of the files."""

    statuses: Counter[int] = field(default_factory=Counter)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    # Why associations could not be opened or broke, and how many files no association was left for.
    broken: list[str] = field(default_factory=list)
    unsent: int = 0
    bytes: int = 0
    seconds: float = 0.0


def echo(peer: Peer) -> float:
    """One C-ECHO; seconds from request to response.

    Raises:
        PeerError: no association, or another status than success.
    """
    try:
        connection = socket.create_connection((peer.host, peer.port), _CONNECT_SECONDS)
    except OSError as error:
        raise PeerError(_unreachable(peer, error)) from None
    with connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            answer = exchange(connection, peer.calling, peer.called)
        except NotAnsweredError as error:
            raise _no_association(peer, str(error)) from None
        except TimeoutError:
            raise _no_association(peer, f"no answer in {_TIMEOUT_SECONDS} s") from None
        except OSError as error:
            raise _no_association(peer, error.strerror or str(error)) from None
    if answer.status is None:
        raise PeerError(f"{peer} accepts the association, but not the SOP class of C-ECHO")
    if answer.status:
        raise PeerError(f"{peer} answers the C-ECHO with status {answer.status:04X}")
    return answer.seconds


def read_header(path: Path) -> OutgoingFile:
    """What negotiation must know of a PS3.10 file.

    Raises:
        PeerError: it is none, or does not name what it is.
    """
    try:
        with path.open("rb") as file:
            has_prefix = file.read(_PREAMBLE_BYTES + 4)[_PREAMBLE_BYTES:] == b"DICM"
    except OSError as error:
        raise PeerError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not has_prefix:
        raise PeerError(f"{path}: not a DICOM file (PS3.10)")
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop_when=lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID)
        sop_class, sop_instance = str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", ""))
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except Exception:  # noqa: BLE001 - pydicom raises whatever a damaged file leads to
        raise PeerError(f"{path}: a DICOM file whose header is damaged") from None
    if not sop_class or not sop_instance or not syntax:
        raise PeerError(f"{path}: names no SOP class, SOP instance or transfer syntax")
    return OutgoingFile(path, sop_class, sop_instance, syntax, path.stat().st_size)


def send(
    peer: Peer, files: Sequence[OutgoingFile], progress: Callable[[int], object], *, associations: int = 1
) -> SendReport:
    """Sends files as they are, over several associations at once; `progress` is told the bytes of each file.

    Files of more than 128 kinds are sent in turns, because an association has no more presentation contexts. An
    association that breaks is not opened again: the others take its files.

    Raises:
        PeerError: no association could be opened.
    """
    report = SendReport()
    started = time.perf_counter()
    contexts = list(dict.fromkeys((file.sop_class_uid, file.transfer_syntax) for file in files))
    answered = 0
    for at in range(0, len(contexts), _MAX_CONTEXTS):
        some = contexts[at : at + _MAX_CONTEXTS]
        chosen = set(some)
        batch = [file for file in files if (file.sop_class_uid, file.transfer_syntax) in chosen]
        run = _Batch(peer, some, batch, report, progress)
        run.send(min(associations, len(batch)))
        if not run.opened and not answered:
            raise PeerError(report.broken[0])
        answered += run.answered
    report.unsent = len(files) - answered
    report.seconds = time.perf_counter() - started
    return report


class _Batch:
    """Files that fit in one association, sent over one or several."""

    def __init__(
        self,
        peer: Peer,
        contexts: list[tuple[str, str]],
        files: Sequence[OutgoingFile],
        report: SendReport,
        progress: Callable[[int], object],
    ) -> None:
        self.opened = 0
        self.answered = 0
        self._peer = peer
        self._contexts = contexts
        self._files: Iterator[OutgoingFile] = iter(files)
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def send(self, associations: int) -> None:
        with ThreadPoolExecutor(associations, "storescp-send") as threads:
            try:
                # A list, so that an error of one is raised here.
                list(threads.map(self._run, range(associations)))
            finally:
                self._stopped.set()

    def _run(self, _number: int) -> None:
        acknowledged = 0
        try:
            association = _connect(self._peer, self._contexts)
            with self._lock:
                self.opened += 1
            for file in self._untaken():
                status, reason = _send_one(association, file)
                acknowledged += status == 0
                self._note(file, status, reason)
            association.release()
        except PeerError as error:
            self._report.broken.append(str(error))
        except CoreError as error:
            count = f"{acknowledged} acknowledged instance{'' if acknowledged == 1 else 's'}"
            self._report.broken.append(f"{self._peer}: the association broke after {count}: {_text_of(error)}")

    def _untaken(self) -> Iterator[OutgoingFile]:
        """Files that no other association has taken."""
        while not self._stopped.is_set():
            with self._lock:
                file = next(self._files, None)
            if file is None:
                return
            yield file

    def _note(self, file: OutgoingFile, status: int | None, reason: str) -> None:
        with self._lock:
            self.answered += 1
            if status is not None:
                self._report.statuses[status] += 1
            if status == 0:
                self._report.bytes += file.bytes
            else:
                self._report.refused.append((file.path, reason))
            self._progress(file.bytes)


def _connect(peer: Peer, contexts: list[tuple[str, str]]) -> _core.Sender:
    try:
        return _core.Sender(peer.host, peer.port, peer.calling, peer.called, contexts, _TIMEOUT_SECONDS)
    except CoreError as error:
        reason = _text_of(error)
    if not reason.startswith(("rejected", "aborted")):
        # The core does not say whether a connection was opened: this tells.
        try:
            socket.create_connection((peer.host, peer.port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise PeerError(_unreachable(peer, error)) from None
    raise _no_association(peer, reason)


def _send_one(association: _core.Sender, file: OutgoingFile) -> tuple[int | None, str]:
    """The status, None where there is none, and the reason of a refusal.

    Raises:
        CoreError: the association is of no more use.
    """
    if not association.accepts(file.sop_class_uid, file.transfer_syntax):
        return None, "the peer does not accept its class in its transfer syntax"
    try:
        file.path.open("rb").close()
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    identity = (file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax)
    status, comment, _ = association.store_file(file.path, *identity)
    return status, f"{status:04X} {comment}".rstrip()


def _no_association(peer: Peer, reason: str) -> PeerError:
    """Why there is none although the peer takes connections."""
    rejected = re.fullmatch(r"rejected \(([0-9]+)/([0-9]+)/([0-9]+)\)", reason)
    if rejected:
        result, source, diagnostic = map(int, rejected.groups())
        why = _REJECTIONS.get((source, diagnostic), "for a reason that PS3.8 does not know")
        again = "; trying again later may help" if result == _TRANSIENT else ""
        return PeerError(f"{peer} rejected the association ({result}/{source}/{diagnostic}): {why}{again}")
    if reason.startswith("aborted by the peer"):
        return PeerError(f"{peer} aborted the association instead of accepting it ({reason})")
    return PeerError(f"{peer} takes connections, but does not answer as a DICOM service ({reason})")


def _unreachable(peer: Peer, error: OSError) -> str:
    """Why no connection can be opened."""
    if isinstance(error, socket.gaierror):
        return f"the host name {peer.host} is not found ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on {peer}"
    if isinstance(error, TimeoutError):
        return f"{peer} cannot be reached: no answer in {_CONNECT_SECONDS} s"
    return f"{peer} cannot be reached: {error.strerror or error}"


def _text_of(error: CoreError) -> str:
    """What the core says of a connection, in the words of a person."""
    return _SAID_OF_CONNECTIONS.get(str(error), re.sub(r" \(os error [0-9]+\)$", "", str(error)))


_SAID_OF_CONNECTIONS = {
    "failed to fill whole buffer": "the peer closed the connection",
    "Resource temporarily unavailable (os error 11)": f"no answer in {_TIMEOUT_SECONDS} s",
}
