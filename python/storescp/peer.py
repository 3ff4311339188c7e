"""Being the sender: C-ECHO and C-STORE to a peer, to test a link."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.filereader import read_partial
from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from storescp import _core
from storescp.errors import CoreError, StorescpError
from storescp.network.contexts import VERIFICATION

_SOP_INSTANCE_UID = 0x00080018
_MAX_CONTEXTS = 128
_TIMEOUT_SECONDS = 60


class PeerError(StorescpError):
    """The peer could not be reached, refused or went away."""


@dataclass(frozen=True)
class OutgoingFile:
    """A file and what negotiation must know of it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    bytes: int


@dataclass
class SendReport:
    """What became of the files."""

    statuses: Counter[int] = field(default_factory=Counter)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0


def echo(host: str, port: int, calling: str, called: str) -> float:
    """One C-ECHO; seconds from request to response.

    Raises:
        PeerError: no association, or another status than success.
    """
    association = _associate(host, port, calling, called, [(VERIFICATION, "1.2.840.10008.1.2")])
    try:
        started = time.perf_counter()
        status = association.send_c_echo()
        seconds = time.perf_counter() - started
    finally:
        association.release()
    if not status or status.Status != 0:
        answered = f"status {status.Status:04X}" if status else "no response"
        raise PeerError(f"C-ECHO: {answered}")
    return seconds


def read_header(path: Path) -> OutgoingFile:
    """What negotiation must know of a PS3.10 file.

    Raises:
        PeerError: it is none, or does not name what it is.
    """
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop_when=lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID)
        sop_class, sop_instance = str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", ""))
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a damaged file leads to
        raise PeerError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from None
    if not sop_class or not sop_instance or not syntax:
        raise PeerError(f"{path}: names no SOP class, SOP instance or transfer syntax")
    return OutgoingFile(path, sop_class, sop_instance, syntax, path.stat().st_size)


def send(
    host: str, port: int, calling: str, called: str, files: Sequence[OutgoingFile], progress: Callable[[int], object]
) -> SendReport:
    """Sends files as they are, over as many associations as their contexts need; `progress` is told of bytes.

    Raises:
        PeerError: the peer could not be reached, refused or went away.
    """
    report = SendReport()
    started = time.perf_counter()
    contexts = list(dict.fromkeys((file.sop_class_uid, file.transfer_syntax) for file in files))
    for at in range(0, len(contexts), _MAX_CONTEXTS):
        some = contexts[at : at + _MAX_CONTEXTS]
        chosen = set(some)
        batch = [file for file in files if (file.sop_class_uid, file.transfer_syntax) in chosen]
        try:
            association = _core.Sender(host, port, calling, called, some, _TIMEOUT_SECONDS)
            for file in batch:
                _send_one(association, file, report)
                progress(file.bytes)
            association.release()
        except CoreError as error:
            raise PeerError(f"{host}:{port}: {error}") from None
    report.seconds = time.perf_counter() - started
    return report


def _send_one(association: _core.Sender, file: OutgoingFile, report: SendReport) -> None:
    if not association.accepts(file.sop_class_uid, file.transfer_syntax):
        report.refused.append((file.path, "the peer does not accept its class in its transfer syntax"))
        return
    identity = (file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax)
    status, comment, _ = association.store_file(file.path, *identity)
    report.statuses[status] += 1
    if status == 0:
        report.bytes += file.bytes
    else:
        report.refused.append((file.path, f"{status:04X} {comment}".rstrip()))


def _associate(host: str, port: int, calling: str, called: str, contexts: Sequence[tuple[str, str]]) -> Association:
    ae = ApplicationEntity(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT_SECONDS
    proposed = [build_context(UID(abstract), UID(transfer)) for abstract, transfer in contexts]
    association = ae.associate(host, port, contexts=proposed, ae_title=called)
    if association.is_established:
        return association
    if association.is_rejected:
        primitive = association.acceptor.primitive
        code = f"{primitive.result}/{primitive.result_source}/{primitive.diagnostic}" if primitive else "?"
        raise PeerError(f"{host}:{port} rejected the association ({code})")
    raise PeerError(f"no association with {host}:{port}")
