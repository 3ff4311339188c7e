"""Being the sender: C-ECHO and C-STORE to a peer, to test a link."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import UID
from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from storescp.errors import StorescpError
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
        PeerError: it is none, or names no SOP class.
    """
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop_when=lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID)
    except (OSError, InvalidDicomError, ValueError) as error:
        raise PeerError(f"{path}: {error}") from None
    sop_class = str(dataset.get("SOPClassUID", ""))
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not sop_class or not syntax:
        raise PeerError(f"{path}: names no SOP class or transfer syntax")
    return OutgoingFile(path, sop_class, syntax, path.stat().st_size)


def send(host: str, port: int, calling: str, called: str, files: Sequence[OutgoingFile]) -> SendReport:
    """Sends files as they are, over as many associations as their contexts need.

    Raises:
        PeerError: the peer could not be reached, refused or went away.
    """
    report = SendReport()
    started = time.perf_counter()
    contexts = list(dict.fromkeys((file.sop_class_uid, file.transfer_syntax) for file in files))
    # The data set goes out as it lies in the file, in pieces: nothing is decoded or held in memory.
    _config.STORE_SEND_CHUNKED_DATASET = True
    for at in range(0, len(contexts), _MAX_CONTEXTS):
        some = contexts[at : at + _MAX_CONTEXTS]
        chosen = set(some)
        batch = [file for file in files if (file.sop_class_uid, file.transfer_syntax) in chosen]
        _send_batch(_associate(host, port, calling, called, some), batch, report)
    report.seconds = time.perf_counter() - started
    return report


def _send_batch(association: Association, files: Sequence[OutgoingFile], report: SendReport) -> None:
    accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
    try:
        for file in files:
            if (file.sop_class_uid, file.transfer_syntax) not in accepted:
                report.refused.append((file.path, "the peer does not accept its class in its transfer syntax"))
                continue
            try:
                status = association.send_c_store(file.path)
            except (ValueError, AttributeError, RuntimeError) as error:
                report.refused.append((file.path, str(error)))
                continue
            if not status:
                raise PeerError(f"{file.path}: no response, the association is gone")
            report.statuses[status.Status] += 1
            if status.Status == 0:
                report.bytes += file.bytes
            else:
                comment = f" {status.ErrorComment}" if "ErrorComment" in status else ""
                report.refused.append((file.path, f"{status.Status:04X}{comment}"))
    finally:
        if association.is_established:
            association.release()


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
