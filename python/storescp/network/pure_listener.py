"""The listener of the pure-Python engine: pynetdicom from the socket to the C-STORE handler.

Contexts are shared instead of copied for each association, and each context is negotiated in its sender's order, as
for the Rust engine.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from socketserver import BaseServer
from typing import Any, cast

import structlog
from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from storescp import _core
from storescp.advice import Knock
from storescp.network import instances
from storescp.network.admission import Admission
from storescp.network.contexts import Offer
from storescp.network.identity import Peer
from storescp.network.listener import BACKLOG, CLEAR_PORT, Address, bind_error
from storescp.network.negotiation import (
    APPLICATION_CONTEXT_NAME,
    UNKNOWN_APPLICATION_CONTEXT,
    UNUSABLE_PDU_LENGTH,
    Rejection,
    negotiate_contexts,
    peer_information,
)
from storescp.network.pure_intake import Intake
from storescp.network.pure_proxy import Balancers, NoHeaderError, plain_address, read_header
from storescp.network.report import Report
from storescp.pure.engine import SUCCESS, Outcome, PureEngine, is_uid
from storescp.pure.source import Source
from storescp.settings import Settings

log = structlog.get_logger("storescp.network")
_POLL_SECONDS = 0.25


class PureAcse(ACSE):
    """Negotiates with our rules; everything else is pynetdicom's."""

    def __init__(self, assoc: Association, intake: Intake) -> None:
        super().__init__(assoc)
        self.intake = intake

    def _negotiate_as_acceptor(self) -> None:
        server = cast(PureServer, self.assoc._server)  # noqa: SLF001 - the only way to the server
        request = cast(A_ASSOCIATE, self.requestor.primitive)
        # Where a PROXY header had taken some of it, the timer has its whole time again.
        self.dul.artim_timer.timeout = self.acse_timeout
        self.requestor.ae_title = request.calling_ae_title
        rejection = self.intake.rejection or server.admit(self.assoc, request)
        if rejection is not None:
            server.note_refusal(rejection, self.intake.knock, self.intake.port)
            self.send_reject(rejection.result, rejection.source, rejection.reason)
            evt.trigger(self.assoc, evt.EVT_REJECTED, {})
            self.assoc.kill()
            return
        server.report.odd_request(self.intake.oddities, self.intake.knock, self.intake.port)
        results = negotiate_contexts(request.presentation_context_definition_list, server.offer)
        self.assoc._accepted_cx = {cast(int, c.context_id): c for c in results if c.result == 0}  # noqa: SLF001
        self.assoc._rejected_cx = [c for c in results if c.result != 0]  # noqa: SLF001
        self.send_accept()
        evt.trigger(self.assoc, evt.EVT_ACCEPTED, {})
        self.assoc.is_established = True
        evt.trigger(self.assoc, evt.EVT_ESTABLISHED, {})


class PureHandler(RequestHandler):
    """Reads the PROXY header, and makes an association without copying 170 contexts of 60 transfer syntaxes."""

    def handle(self) -> None:
        """Reads the header within the deadline of the request, in the thread of the connection."""
        server, connection = cast(PureServer, self.server), cast(socket.socket, self.request)
        self._deadline = time.monotonic() + server.request_timeout
        address, port = plain_address(self.client_address[0]), self.client_address[1]
        self._proxy_address = address if address in server.balancers else ""
        self.client_address = (address, port)
        if self._proxy_address:
            try:
                self.client_address = read_header(connection, self._deadline) or self.client_address
            except NoHeaderError as error:
                if error.detail:
                    server.refuse_connection(self.client_address, error.detail)
                server.shutdown_request(connection)
                return
        super().handle()

    def _create_association(self) -> Association:
        contexts, self.server.contexts = self.server.contexts, []
        assert not contexts  # noqa: S101 - PureServer is made without contexts: nothing to copy
        cast(socket.socket, self.request).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assoc = super()._create_association()
        server = cast(PureServer, self.server)
        assoc.acse = PureAcse(assoc, Intake(assoc, server.report, self._proxy_address))
        # Header and request share one deadline.
        assoc.dul.artim_timer.timeout = max(0.0, self._deadline - time.monotonic())
        return assoc


class PureServer(ThreadedAssociationServer):
    """pynetdicom's threaded server with our admission."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        address: Any,
        handlers: Any,
        admission: Admission,
        offer: Offer,
        report: Report,
        balancers: Balancers,
        *,
        blocking: bool,
    ) -> None:
        self.offer = offer
        self.report = report
        self.balancers = balancers
        self.request_timeout = float(ae.acse_timeout or 0)
        self.wrong_headers = 0
        self._counting = threading.Lock()
        self._turn = threading.Semaphore(1) if blocking else None
        self._admission = admission
        self._admitted: dict[int, _core.Place] = {}
        super().__init__(ae, address, ae.ae_title, [], None, handlers, PureHandler)

    def admit(self, assoc: Association, request: A_ASSOCIATE) -> Rejection | None:
        """The same checks as for the Rust engine."""
        if request.application_context_name != APPLICATION_CONTEXT_NAME:
            return UNKNOWN_APPLICATION_CONTEXT
        if peer_information(request).has_unusable_length:
            return UNUSABLE_PDU_LENGTH
        called, calling = str(request.called_ae_title).strip(), str(request.calling_ae_title).strip()
        self._wait_for_turn()
        place = self._enter(called, calling, str(assoc.requestor.address))
        if isinstance(place, Rejection):
            if self._turn is not None:
                self._turn.release()
            return place
        self._admitted[id(assoc)] = place
        return None

    def note_refusal(self, rejection: Rejection, knock: Knock, port: int) -> None:
        """Tells and counts it."""
        self.report.rejected(rejection, knock, port)
        self._admission.note_refusal(rejection.cause)

    def refuse_connection(self, peer: tuple[str, int], detail: str) -> None:
        """Tells and counts a connection without the PROXY header that it has to begin with."""
        with self._counting:
            self.wrong_headers += 1
        self.report.connection_refused(peer, "proxy_header", detail)

    def _wait_for_turn(self) -> None:
        """In blocking mode one association is served and the others wait."""
        while self._turn is not None and not self._turn.acquire(timeout=_POLL_SECONDS):
            continue

    def _enter(self, called: str, calling: str, address: str) -> _core.Place | Rejection:
        place = self._admission.enter(address)
        if isinstance(place, Rejection):
            return place
        refused = self._admission.check_titles(called, calling) or self._admission.enter_calling(place, calling)
        if refused is not None:
            place.leave()
            return refused
        return place

    def left(self, assoc: Association) -> None:
        """Gives the places of an association back, once."""
        place = self._admitted.pop(id(assoc), None)
        if place is not None:
            place.leave()
            if self._turn is not None:
                self._turn.release()

    def shutdown(self) -> None:
        """Stops accepting and closes the listening socket."""
        BaseServer.shutdown(self)
        self.server_close()


@dataclass
class _Counted:
    """Number of an association, and the instances of it that were refused."""

    association: int
    refused: int = 0


class PureListener:
    """Accepts, negotiates and receives with pynetdicom."""

    def __init__(self, settings: Settings, host: str, engine: PureEngine, admission: Admission, offer: Offer) -> None:
        scp = settings.dicom_store_scp
        # The offer decides which classes are taken; without this pynetdicom has no service for retired ones.
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        ae = ApplicationEntity(scp.ae_title)
        ae.maximum_pdu_size = scp.max_pdu_length
        ae.network_timeout = settings.limits.idle_timeout
        ae.acse_timeout = settings.limits.request_timeout
        ae.implementation_class_uid = _core.IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = _core.IMPLEMENTATION_VERSION_NAME
        self._engine = engine
        self._admission = admission
        self._report = Report(settings)
        self._numbers = itertools.count(1)
        self._counts: dict[int, _Counted] = {}
        handlers = [
            (evt.EVT_C_STORE, self._on_c_store),
            (evt.EVT_C_ECHO, lambda _event: 0x0000),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        address = (host, scp.port, 0, 0) if ":" in host else (host, scp.port)
        try:
            blocking = not scp.non_blocking
            balancers = Balancers(scp.proxy_protocol_from)
            self._server = PureServer(
                ae, address, handlers, admission, offer, self._report, balancers, blocking=blocking
            )
        except (OSError, ValueError) as error:
            raise bind_error(host, scp.port, CLEAR_PORT, error) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_SECONDS}, name="storescp-accept"
        )
        self._is_accepting = False

    @property
    def addresses(self) -> list[Address]:
        """What is listened on."""
        host, port = self._server.server_address[:2]
        return [Address(str(host), int(port))]

    def refused_connections(self) -> dict[str, int]:
        """Connections turned away before they were associations, by reason: only PROXY headers are looked at here."""
        return {"proxy_header": self._server.wrong_headers}

    def start(self) -> None:
        """Begins to accept."""
        self._thread.start()
        self._is_accepting = True

    def is_alive(self) -> bool:
        """Whether the thread that accepts is alive; always before the start and after the end."""
        return self._thread.is_alive() or not self._is_accepting

    def stop_accepting(self) -> None:
        """Refuses new associations; those that run go on."""
        self._is_accepting = False
        self._admission.close("draining")
        self._server.shutdown()
        self._thread.join()

    def join(self, timeout: float) -> bool:
        """Waits for the associations; whether all are over."""
        deadline = time.monotonic() + timeout
        for association in self._server.active_associations:
            association.join(max(0.0, deadline - time.monotonic()))
        self._report.settle(final=True)
        return not self._server.active_associations

    def abort_all(self) -> None:
        """Aborts every association."""
        for association in self._server.active_associations:
            association.abort()

    def _on_close(self, event: evt.Event) -> None:
        self._server.left(event.assoc)
        counted = self._counts.pop(id(event.assoc), None)
        if counted is not None:
            calling = str(cast(A_ASSOCIATE, event.assoc.requestor.primitive).calling_ae_title).strip()
            instances.tell_of_more(counted.refused, counted.association, str(event.assoc.requestor.address), calling)

    def _on_c_store(self, event: evt.Event) -> Dataset:
        began = time.perf_counter()
        request = cast(C_STORE, event.request)
        source = self._source(event)
        class_uid, instance_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        dataset = cast(BytesIO, request.DataSet).getvalue()
        if class_uid != event.context.abstract_syntax:
            outcome = Outcome(0x0122, "AffectedSOPClassUID differs from the context")
        else:
            transfer_syntax = str(event.context.transfer_syntax)
            outcome = self._engine.store(dataset, class_uid, instance_uid, transfer_syntax, source)
        self._tell(event, source, outcome, len(dataset), time.perf_counter() - began)
        answer = Dataset()
        answer.Status = outcome.status
        if outcome.comment:
            answer.ErrorComment = outcome.comment
        return answer

    def _source(self, event: evt.Event) -> Source:
        proposal = cast(A_ASSOCIATE, event.assoc.requestor.primitive)
        calling, called = str(proposal.calling_ae_title).strip(), str(proposal.called_ae_title).strip()
        address = str(event.assoc.requestor.address)
        tenancy = self._admission.tenancy(called, calling, Peer(address, int(event.assoc.requestor.port or 0)))
        message_id = int(cast(C_STORE, event.request).MessageID or 0)
        return Source(calling, called, address, tenancy.tenant, tenancy.by_rule, message_id=message_id)

    def _tell(self, event: evt.Event, source: Source, outcome: Outcome, size: int, seconds: float) -> None:
        """The line of an instance; the first refused ones of an association are named."""
        request, key = cast(C_STORE, event.request), id(event.assoc)
        if key not in self._counts:
            self._counts[key] = _Counted(next(self._numbers))
        counted, is_refused = self._counts[key], outcome.status != SUCCESS
        counted.refused += is_refused
        instance_uid = str(request.AffectedSOPInstanceUID)
        fact = instances.PureFact(
            counted.association,
            int(request.MessageID or 0),
            outcome.status,
            outcome.comment,
            instance_uid if is_uid(instance_uid) else "",
            size,
            seconds,
            is_refused and counted.refused <= _core.MOST_NAMED_REFUSALS,
            source.address,
            source.calling_ae_title,
            outcome.tenant_value,
            outcome.tenant,
            outcome.stored,
        )
        instances.tell(fact, explains=self._report.explains)
