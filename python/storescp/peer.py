"""Being the sender: C-ECHO and C-STORE to a peer, to test a link."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.filereader import read_partial

from storescp import _core
from storescp.errors import LinkError, StorescpError
from storescp.file_faults import CUT_SHORT, HEAD_BYTES, header_fault, lacks_prefix
from storescp.link_failures import no_association, said_of_connection

_SOP_INSTANCE_UID = 0x00080018
_MAX_CONTEXTS = 128
_TIMEOUT_SECONDS = 60
_CONNECT_SECONDS = 10


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
    """Where to send, the AE titles of both sides, and what proves who we are.

    `user` is a username and its passcode, None where only the name is sent.
    """

    host: str
    port: int
    calling: str
    called: str
    tls: _core.ClientTls | None = None
    user: tuple[str, str | None] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Echo:
    """The answer to a C-ECHO: seconds from request to response, and whether the peer confirms the user."""

    seconds: float
    confirms_user: bool


@dataclass
class SendReport:
    """What became of the files."""

    statuses: Counter[int] = field(default_factory=Counter)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    # Why associations could not be opened or broke, and how many files no association was left for.
    broken: list[str] = field(default_factory=list)
    unsent: int = 0
    # Whether every peer says that it looked at the user.
    confirms_user: bool = True
    bytes: int = 0
    seconds: float = 0.0


def echo(peer: Peer) -> Echo:
    """One C-ECHO.

    Raises:
        PeerError: no association, or another status than success.
    """
    context = _core.Sender.echo_context()
    association = _connect(peer, [context])
    confirms_user = association.confirms_user
    if not association.accepts(*context):
        # What there is to say is known, whatever becomes of the release.
        with contextlib.suppress(LinkError):
            association.release()
        raise PeerError(f"{peer} accepts the association, but not the SOP class of C-ECHO")
    try:
        status, seconds = association.echo()
        association.release()
    except LinkError as error:
        raise PeerError(f"{peer}: the association broke: {said_of_connection(error, _TIMEOUT_SECONDS)}") from None
    if status:
        raise PeerError(f"{peer} answers the C-ECHO with status {status:04X}")
    return Echo(seconds, confirms_user)


def read_header(path: Path) -> OutgoingFile:
    """What negotiation must know of a PS3.10 file.

    Raises:
        PeerError: it is none, or does not name what it is.
    """
    if not path.is_file():
        raise PeerError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            fault = lacks_prefix(file.read(HEAD_BYTES))
    except OSError as error:
        raise PeerError(f"{path}: cannot be read: {error.strerror or error}") from None
    if fault:
        raise PeerError(f"{path}: {fault}")
    passed: list[int] = []

    def is_behind(tag: int, _vr: str | None, _length: int) -> bool:
        if tag > _SOP_INSTANCE_UID:
            passed.append(tag)
        return bool(passed)

    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop_when=is_behind)
        sop_class, sop_instance = str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", ""))
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except Exception:  # noqa: BLE001 - pydicom raises whatever a damaged file leads to
        raise PeerError(f"{path}: {header_fault(path)}") from None
    if not syntax:
        raise PeerError(f"{path}: {header_fault(path)}")
    if not sop_class or not sop_instance:
        # Where no element follows, the file ends before its UIDs.
        missing = "SOP class" if not sop_class else "SOP instance"
        raise PeerError(f"{path}: {f'a DICOM file that names no {missing}' if passed else CUT_SHORT}")
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
                self._report.confirms_user &= association.confirms_user
            for file in self._untaken():
                status, reason = _send_one(association, file)
                acknowledged += status == 0
                self._note(file, status, reason)
            association.release()
        except PeerError as error:
            self._report.broken.append(str(error))
        except LinkError as error:
            count = f"{acknowledged} acknowledged instance{'' if acknowledged == 1 else 's'}"
            reason = said_of_connection(error, _TIMEOUT_SECONDS)
            self._report.broken.append(f"{self._peer}: the association broke after {count}: {reason}")

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
        return _core.Sender(
            peer.host.encode("idna").decode(),
            peer.port,
            peer.calling,
            peer.called,
            contexts,
            _TIMEOUT_SECONDS,
            connect_timeout=_CONNECT_SECONDS,
            tls=peer.tls,
            user=peer.user,
        )
    except LinkError as error:
        raise PeerError(no_association(peer, error, _CONNECT_SECONDS, _TIMEOUT_SECONDS)) from None


def _send_one(association: _core.Sender, file: OutgoingFile) -> tuple[int | None, str]:
    """The status, None where there is none, and the reason of a refusal.

    Raises:
        LinkError: the association is of no more use.
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
