"""The listening socket: pynetdicom's server accepts, the gate and the engine do the rest."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from socketserver import BaseServer
from typing import Any

import structlog
from pynetdicom.ae import ApplicationEntity
from pynetdicom.transport import AssociationServer

from storescp import _core
from storescp.audit.trail import Trail
from storescp.errors import BindError, CoreError
from storescp.network.admission import Admission, congestion
from storescp.network.identity import Peer
from storescp.network.negotiation import MalformedRequest, Negotiator, Rejection
from storescp.settings import Settings

log = structlog.get_logger("storescp.network")
BACKLOG = 512
_POLL_SECONDS = 0.5
_NO_DESCRIPTOR_SECONDS = 0.1
_REFUSED_LINES = 20


class GatedServer(AssociationServer):
    """pynetdicom's listening server; each accepted descriptor goes to the gate at once.

    No thread, no handshake and no read happens on the accepting thread, so nobody can hold it up.
    """

    request_queue_size = BACKLOG

    def __init__(self, address: tuple[str, int], ae_title: str, gate: _core.Gate, *, encrypted: bool) -> None:
        self._gate = gate
        self._encrypted = encrypted
        self._pause = threading.Event()
        ae = ApplicationEntity(ae_title)
        ae.network_timeout = None
        if ":" in address[0]:
            server_address: tuple[str, int] | tuple[str, int, int, int] = (*address, 0, 0)
        else:
            server_address = address
        super().__init__(ae, server_address, ae_title, [])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts; out of descriptors, a moment passes instead of a busy loop."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("connection.no_descriptor", reason=error.strerror)
                self._pause.wait(_NO_DESCRIPTOR_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hands the descriptor over."""
        del client_address
        try:
            self._gate.add(request.detach(), self._encrypted)
        except CoreError as error:
            # The peer is gone already, or no descriptor is left: the connection is closed.
            log.debug("connection.dropped", reason=str(error))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Never print a traceback to standard error on our own account."""
        del request
        log.exception("connection.failed", peer=str(client_address))

    def shutdown(self) -> None:
        """Stops accepting and closes the listening socket."""
        # pynetdicom's own shutdown expects the server in its entity's list, where only its own constructor puts it.
        self._pause.set()
        BaseServer.shutdown(self)
        self.server_close()

    def service_actions(self) -> None:
        """pynetdicom collects garbage here now and then; nothing of ours needs it."""


def bind(host: str, port: int, ae_title: str, gate: _core.Gate, *, encrypted: bool) -> GatedServer:
    """A listening server.

    Raises:
        BindError: the address is taken or not ours.
    """
    try:
        return GatedServer((host, port), ae_title, gate, encrypted=encrypted)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BindError(f"cannot listen on {host}:{port}: {reason}") from None


@dataclass(frozen=True)
class Address:
    """Where a listener listens."""

    host: str
    port: int
    tls: bool = False


class Listener:
    """Accepts, negotiates and hands over, for the Rust engine. One port, or one clear and one with TLS."""

    def __init__(
        self,
        settings: Settings,
        host: str,
        engine: _core.Engine,
        admission: Admission,
        negotiator: Negotiator,
        tls: _core.Tls | None,
        trail: Trail,
    ) -> None:
        limits, scp = settings.limits, settings.dicom_store_scp
        self._engine = engine
        self._admission = admission
        self._negotiator = negotiator
        self._trail = trail
        self._non_blocking = scp.non_blocking
        self._gate = _core.Gate(
            max_connections=limits.max_connections,
            max_connections_per_address=limits.max_connections_per_address,
            handshake_timeout=limits.handshake_timeout,
            request_timeout=limits.request_timeout,
            max_request_bytes=limits.max_pdu_tolerated,
            tls=tls,
        )
        ports = [(scp.port, False)]
        if settings.tls is not None:
            own_port = settings.tls.port
            ports = [(scp.port, True)] if own_port is None else [(scp.port, False), (own_port, True)]
        self._servers: list[tuple[GatedServer, bool]] = []
        try:
            for port, encrypted in ports:
                self._servers.append((bind(host, port, scp.ae_title, self._gate, encrypted=encrypted), encrypted))
        except BindError:
            for server, _ in self._servers:
                server.server_close()
            self._gate.stop()
            raise
        self._stopping = threading.Event()
        self._associations = ThreadPoolExecutor(scp.max_associations, thread_name_prefix="storescp-association")
        self._accepting = [
            threading.Thread(
                target=server.serve_forever,
                kwargs={"poll_interval": _POLL_SECONDS},
                name=f"storescp-accept{'-tls' if encrypted else ''}",
            )
            for server, encrypted in self._servers
        ]
        self._dispatching = threading.Thread(target=self._dispatch, name="storescp-dispatch")

    @property
    def addresses(self) -> list[Address]:
        """What is listened on, the clear port first."""
        found = []
        for server, encrypted in self._servers:
            host, port = server.socket.getsockname()[:2]  # type: ignore[union-attr]
            found.append(Address(str(host), int(port), encrypted))
        return found

    def set_tls(self, tls: _core.Tls) -> None:
        """New connections get other certificates; those that are open go on."""
        self._gate.set_tls(tls)

    def start(self) -> None:
        """Begins to accept."""
        for thread in self._accepting:
            thread.start()
        self._dispatching.start()

    def stop_accepting(self) -> None:
        """Closes the listening sockets and the connections that are no associations; associations go on."""
        self._stopping.set()
        for (server, _), thread in zip(self._servers, self._accepting, strict=True):
            # Wakes the accepting thread at once instead of at its next poll.
            server_socket = server.socket
            if server_socket is not None:
                try:
                    server_socket.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    log.debug("listener.shutdown", reason=str(error))
            server.shutdown()
            thread.join()
        self._gate.stop()

    def join(self, timeout: float) -> bool:
        """Waits for the associations; whether all are over."""
        deadline = time.monotonic() + timeout
        # In blocking mode the association is served by this thread.
        self._dispatching.join(timeout)
        if self._dispatching.is_alive():
            return False
        waiter = threading.Thread(target=self._associations.shutdown, name="storescp-drain", daemon=True)
        waiter.start()
        waiter.join(max(0.0, deadline - time.monotonic()))
        return not waiter.is_alive()

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            connection = self._gate.next(_POLL_SECONDS)
            self._report_refused()
            if connection is None:
                continue
            if self._non_blocking:
                self._admit(connection, lambda connection: self._associations.submit(self._serve_guarded, connection))
            else:
                self._admit(connection, self._serve_guarded)

    def _report_refused(self) -> None:
        refused = self._gate.take_refused()
        for address, _, reason, detail in refused:
            self._trail.connection_refused(address, reason, detail)
        for address, port, reason, detail in refused[:_REFUSED_LINES]:
            log.warning("connection.refused", peer=address, port=port, cause=reason, detail=detail or None)
        if len(refused) > _REFUSED_LINES:
            # A flood of connections must not become one of log lines.
            log.warning("connection.refused_more", count=len(refused) - _REFUSED_LINES)

    def _admit(self, connection: _core.Connection, serve: Callable[[_core.Connection], Any]) -> None:
        address, port = connection.peer
        if self._stopping.is_set():
            rejection: Rejection | None = congestion("draining")
        else:
            rejection = self._admission.enter(address)
        if rejection is None:
            serve(connection)
        else:
            self._refuse(connection, Peer(address, port), rejection)

    def _refuse(self, connection: _core.Connection, peer: Peer, rejection: Rejection) -> None:
        log_rejection(rejection, peer.address, peer.port)
        self._trail.association_rejected(peer, rejection.cause)
        connection.refuse(rejection.pdu())

    def _serve_guarded(self, connection: _core.Connection) -> None:
        address, _ = connection.peer
        try:
            self._serve(connection)
        except Exception:
            # Whatever it is costs this association only, and must not vanish in the pool.
            log.exception("association.failed")
        finally:
            self._admission.leave(address)

    def _serve(self, connection: _core.Connection) -> None:
        try:
            peer = Peer.of(connection.peer, connection.tls)
        except ValueError as error:
            address, port = connection.peer
            log.warning("association.unreadable_certificate", peer=address, port=port, reason=str(error))
            self._trail.connection_refused(address, "unreadable_certificate", "")
            connection.refuse(MalformedRequest.pdu)
            return
        try:
            answer = self._negotiator.negotiate(connection.request)
        except MalformedRequest as error:
            reason = str(error.__cause__ or "")
            log.warning("association.malformed_request", peer=peer.address, port=peer.port, reason=reason)
            connection.refuse(MalformedRequest.pdu)
            return
        if isinstance(answer, Rejection):
            self._refuse(connection, peer, answer)
            return
        calling, called = answer.calling_ae_title, answer.called_ae_title
        rejection = (
            self._admission.check_titles(called, calling)
            or self._admission.check_identity(peer, calling, answer.user)
            or self._admission.enter_calling(calling)
        )
        if rejection is not None:
            self._refuse(connection, peer, rejection)
            return
        self._trail.association_accepted(peer, calling)
        try:
            tenancy = self._admission.tenancy(called, calling, peer)
            summary = self._engine.receive(
                connection,
                answer.pdu,
                list(answer.contexts),
                answer.peer_max_pdu_length,
                calling,
                called,
                peer.address,
                tenancy.tenant,
                tenancy.by_rule,
            )
        finally:
            self._admission.leave_calling(calling)
        self._trail.association_over(summary, peer, calling, called)
        log_summary(summary, peer, calling, called, tenancy.tenant, answer.rejected_contexts)


def log_rejection(rejection: Rejection, address: str, port: int) -> None:
    """One line for an association that was not accepted."""
    log.warning(
        "association.rejected",
        peer=address,
        port=port,
        cause=rejection.cause,
        result=rejection.result,
        source=rejection.source,
        reason=rejection.reason,
    )


def log_summary(
    summary: _core.AssociationSummary,
    peer: Peer,
    calling: str,
    called: str,
    tenant: str | None,
    rejected_contexts: int,
) -> None:
    """One line for an association that is over."""
    statuses = {f"{status:04X}": count for status, count in summary.statuses}
    level = log.info if summary.outcome == "released" and not summary.failures else log.warning
    extra: dict[str, Any] = {}
    if summary.reason:
        extra["reason"] = summary.reason
    if summary.failures:
        extra["failures"] = [
            {"status": f"{status:04X}", "comment": comment, "count": count}
            for status, comment, count in summary.failures
        ]
    if summary.transcodes:
        extra["transcodes"] = [
            {"source": source, "target": target, "outcome": outcome, "count": count}
            for source, target, outcome, count in summary.transcodes
        ]
    if summary.transcode_failures:
        extra["transcode_failures"] = dict(summary.transcode_failures)
    if summary.oversized_pdus:
        extra["oversized_pdus"] = summary.oversized_pdus
    if summary.identical or summary.kept:
        extra |= {"identical": summary.identical, "kept": summary.kept}
    if peer.tls_version:
        extra |= {"tls": peer.tls_version, "tls_subject": peer.subject_text}
    if rejected_contexts:
        extra["rejected_contexts"] = rejected_contexts
    level(
        f"association.{summary.outcome}",
        association=summary.association,
        peer=peer.address,
        port=peer.port,
        calling_ae=calling,
        called_ae=called,
        tenant=tenant,
        instances=sum(count for _, count in summary.statuses),
        statuses=statuses,
        echoes=summary.echoes,
        bytes=summary.received_bytes,
        seconds=round(summary.seconds, 3),
        **extra,
    )
