"""The listening sockets: the gate accepts, pynetdicom's rules negotiate, the engine does the rest."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import time
from dataclasses import dataclass

import structlog

from storescp import _core
from storescp.advice import Knock
from storescp.audit.trail import Trail
from storescp.errors import BindError
from storescp.network.admission import Admission, network_of
from storescp.network.identity import Peer
from storescp.network.negotiation import MalformedRequest, Negotiator, Rejection, titles_of
from storescp.network.report import Report
from storescp.settings import Settings

log = structlog.get_logger("storescp.network")
BACKLOG = 512
CLEAR_PORT, TLS_PORT, HTTP_PORT = "dicom_store_scp.port or -p", "tls.port", "http.port"
_FIRST_FREE_PORT = 1024
_WAIT_SECONDS = 60.0
_REPORT_SECONDS = 1.0


def bind(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. `setting` is what sets the port, as an error names it.

    Raises:
        BindError: the address is taken or not ours.
    """
    is_v6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError, OverflowError) as error:
        raise bind_error(host, port, setting, error) from None


def bind_error(host: str, port: int, setting: str, error: Exception) -> BindError:
    """Why an address cannot be listened on, and what to change."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    # `create_server` adds the address behind it.
    text = f"cannot listen on {host}:{port}: {reason.partition(' (while ')[0]}"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        text += f"; stop what listens there, or set another port ({setting})"
    elif number == errno.EACCES and port < _FIRST_FREE_PORT:
        text += (
            f"; ports below {_FIRST_FREE_PORT} need a privilege (CAP_NET_BIND_SERVICE): grant it, or set another port "
            f"({setting})"
        )
    return BindError(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
        self._report = Report(settings)
        self._gate = _core.Gate(
            max_connections=limits.max_connections,
            max_connections_per_address=limits.max_connections_per_address,
            handshake_timeout=limits.handshake_timeout,
            request_timeout=limits.request_timeout,
            max_request_bytes=limits.max_pdu_tolerated,
            balancers=[network_of(network) for network in scp.proxy_protocol_from],
            tls=tls,
        )
        # In blocking mode one association is served, and the others wait.
        self._most_workers = scp.max_associations + 1 if scp.non_blocking else 1
        # Who has to be told before an association begins cannot be left out.
        is_nobody_told = not (trail.is_kept or self._report.explains or admission.users is not None)
        self._desk = _core.Desk(self._gate, admission.core, negotiator.answers, serves=is_nobody_told)
        ports = [(scp.port, False, CLEAR_PORT)]
        if settings.tls is not None:
            own_port = settings.tls.port
            clear, encrypted_only = (scp.port, False, CLEAR_PORT), (scp.port, True, CLEAR_PORT)
            ports = [encrypted_only] if own_port is None else [clear, (own_port, True, TLS_PORT)]
        self._sockets: list[socket.socket] = []
        self.addresses: list[Address] = []  # what is listened on, the clear port first
        try:
            for port, encrypted, setting in ports:
                listening = bind(host, port, setting)
                self._sockets.append(listening)
                bound_host, bound_port = listening.getsockname()[:2]
                self.addresses.append(Address(str(bound_host), int(bound_port), encrypted))
        except BindError:
            for listening in self._sockets:
                listening.close()
            self._gate.stop()
            raise
        self._is_started = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        self._starting = 0

    def set_tls(self, tls: _core.Tls) -> None:
        """New connections get other certificates; those that are open go on."""
        self._gate.set_tls(tls)

    def refused_connections(self) -> dict[str, int]:
        """Connections turned away before they were associations, by reason."""
        return dict(self._gate.refused())

    def start(self) -> None:
        """Begins to accept."""
        for listening, address in zip(self._sockets, self.addresses, strict=True):
            self._gate.listen(listening.detach(), address.tls)
        self._see_to_a_waiting_worker()
        self._is_started = True

    def is_alive(self) -> bool:
        """Whether the threads that accept are alive, and any that serves; always before the start and after the end."""
        if not self._is_started:
            return True
        are_alive = self._gate.is_alive() and any(worker.is_alive() for worker in self._workers.copy())
        # Looked at last: they end as soon as it is said.
        return are_alive or self._stopping.is_set()

    def stop_accepting(self) -> None:
        """Closes the listening sockets and the connections that are no associations; associations go on."""
        self._stopping.set()
        self._admission.close("draining")
        self._gate.stop()

    def join(self, timeout: float) -> bool:
        """Waits for the associations; whether all are over."""
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._report_refused(final=True)
        return not any(worker.is_alive() for worker in self._workers)

    def _see_to_a_waiting_worker(self) -> None:
        """While all others serve, one waits for the next connection: at the limit it is the one that refuses."""
        with self._lock:
            if self._starting or self._desk.waiting or self._is_complete():
                return
            self._starting += 1
            number = len(self._workers)
            worker = threading.Thread(target=self._work, name=f"storescp-association-{number}")
            self._workers.append(worker)
        try:
            worker.start()
        except RuntimeError:
            # No more threads for us: those that there are wait again when they have served.
            with self._lock:
                self._starting -= 1
                self._workers.remove(worker)
            log.exception("worker.not_started")

    def _is_complete(self) -> bool:
        """Whether no more workers are to be started."""
        return self._stopping.is_set() or len(self._workers) >= self._most_workers

    def _work(self) -> None:
        """Takes connections and serves those that are admitted."""
        with self._lock:
            self._starting -= 1
        while not self._stopping.is_set():
            try:
                self._take_one()
            except Exception:
                # Without a worker nobody would be let in any more.
                log.exception("connection.failed")

    def _take_one(self) -> None:
        """Waits; tells of associations that needed nobody, and lets in whoever needs somebody."""
        timeout = _REPORT_SECONDS if self._report.has_untold else _WAIT_SECONDS
        served, connection = self._desk.next(self._engine, timeout, may_be_last=self._is_complete())
        try:
            self._report_refused()
            for one in served:
                self._tell(one)
                # An association that is on its way goes first.
                os.sched_yield()
        finally:
            if connection is not None:
                self._let_in(connection)

    def _tell(self, served: _core.Served) -> None:
        """The line of an association that needed nobody."""
        calling, called = served.calling_ae_title, served.called_ae_title
        peer = Peer(*served.peer, proxy_address=served.proxy_address)
        self._report.over(served.summary, peer, calling, called, served.rejected_contexts, served.oddities)

    def _report_refused(self, *, final: bool = False) -> None:
        for peer, reason, detail in self._gate.take_refused():
            self._report.connection_refused(peer, reason, detail)
            if peer is not None:
                self._trail.connection_refused(peer[0], reason, detail)
        self._report.settle(final=final)

    def _refuse(self, connection: _core.Connection, peer: Peer, rejection: Rejection) -> None:
        knock = Knock(peer.address, *titles_of(connection.request), proxy=peer.proxy_address or "")
        self._report.rejected(rejection, knock, peer.port)
        self._admission.note_refusal(rejection.cause)
        self._trail.association_rejected(peer, rejection.cause)
        connection.refuse(rejection.pdu())

    def _let_in(self, connection: _core.Connection) -> None:
        address, port = connection.peer
        place = self._admission.enter(address)
        if isinstance(place, Rejection):
            self._refuse(connection, Peer(address, port, proxy_address=connection.proxy_address), place)
            return
        try:
            self._see_to_a_waiting_worker()
            self._serve(connection, place)
        except Exception:
            # Whatever it is costs this association only, and must not vanish in the pool.
            log.exception("association.failed")
        finally:
            place.leave()

    def _serve(self, connection: _core.Connection, place: _core.Place) -> None:
        address, port = connection.peer
        try:
            peer = Peer.of((address, port), connection.tls, connection.proxy_address)
        except ValueError as error:
            self._report.certificate_unreadable(Knock(address, detail=str(error)), port)
            self._trail.connection_refused(address, "unreadable_certificate", "")
            connection.refuse(MalformedRequest.pdu)
            return
        try:
            agreement = self._negotiator.negotiate(connection.request)
        except MalformedRequest as error:
            self._report.request_malformed(Knock(address, *titles_of(connection.request), str(error)), port)
            connection.refuse(MalformedRequest.pdu)
            return
        if isinstance(agreement, Rejection):
            self._refuse(connection, peer, agreement)
            return
        answer, calling, called = agreement.answer, agreement.calling_ae_title, agreement.called_ae_title
        rejection = (
            self._admission.check_titles(called, calling)
            or self._admission.check_identity(peer, calling, agreement.user)
            or self._admission.enter_calling(place, calling)
        )
        if rejection is not None:
            self._refuse(connection, peer, rejection)
            return
        self._trail.association_accepted(peer, calling)
        oddities = (*answer.oddities, *_core.title_oddities(connection.request))
        self._report.accepted(answer, peer, calling)
        self._report.explain_oddities(oddities, Knock(address, calling, called), port)
        tenancy = self._admission.tenancy(called, calling, peer)
        summary = self._engine.receive(
            connection,
            answer,
            place,
            calling,
            called,
            peer.address,
            tenancy.tenant,
            tenancy.by_rule,
        )
        self._trail.association_over(summary, peer, calling, called)
        rejected_contexts = len(answer.rejected_contexts)
        self._report.over(summary, peer, calling, called, rejected_contexts, oddities)
