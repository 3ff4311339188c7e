"""What the service tells the audit trail."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from storescp import _core
from storescp.audit.messages import (
    APPLICATION_ACTIVITY,
    APPLICATION_START,
    APPLICATION_STOP,
    INSTANCES_TRANSFERRED,
    LOGIN,
    MINOR_FAILURE,
    NODE_AUTHENTICATION,
    RESTRICTED_FUNCTION,
    SECURITY_ALERT,
    SECURITY_CONFIGURATION,
    SUCCESS,
    USER_AUTHENTICATION,
    Event,
    Participant,
    Study,
    message,
    ourselves,
    sender,
)
from storescp.audit.transport import Transport, open_destination
from storescp.network.identity import Peer
from storescp.settings import Settings

_NOT_AUTHORISED = 0x0124
# Rejections that say "who you are" and not "not now".
_ALERTS = frozenset({"peer_address", "called_ae_title", "calling_ae_title", "user_identity"})


class Trail:
    """Writes audit messages, or none where there is no `[audit]`."""

    def __init__(self, settings: Settings) -> None:
        """Opens the destination.

        Raises:
            ConfigError: a file or certificate cannot be used.
            TemporaryFailure: one cannot be used now.
        """
        self._ae_title = settings.dicom_store_scp.ae_title
        self._transport: Transport | None = None
        section = settings.audit
        if section is None:
            return
        self._source_id = section.source_id
        self._transport = Transport(open_destination(section), section.max_queued)

    @property
    def is_kept(self) -> bool:
        """Whether there is one."""
        return self._transport is not None

    def started(self) -> None:
        """Application start."""
        if self._transport is not None:
            self._transport.start()
        self._application(APPLICATION_START)

    def is_alive(self) -> bool:
        """Whether the thread that delivers is alive, where there is one."""
        return self._transport is None or self._transport.is_alive()

    def stopped(self, timeout: float) -> None:
        """Application stop; nothing is written any more."""
        self._application(APPLICATION_STOP)
        if self._transport is not None:
            self._transport.stop(timeout)
            self._transport = None

    def reloaded(self, *, succeeded: bool) -> None:
        """Certificates and users were read anew, or could not be."""
        event = Event(SECURITY_ALERT, SECURITY_CONFIGURATION, "E", SUCCESS if succeeded else MINOR_FAILURE)
        self._put(event, [ourselves(self._ae_title, os.getpid(), is_requestor=True, receives=False)])

    def connection_refused(self, address: str, reason: str, detail: str) -> None:
        """Before it was an association: TLS, limits, something else than DICOM."""
        self._alert(NODE_AUTHENTICATION, sender(address, None, None), f"{reason} {detail}".strip())

    def association_rejected(self, peer: Peer, cause: str) -> None:
        """Only for who it is; a full disk is no security matter."""
        if cause in _ALERTS:
            self._alert(NODE_AUTHENTICATION, sender(peer.address, None, peer.subject_text), cause)

    def association_accepted(self, peer: Peer, calling: str) -> None:
        """A node came in."""
        event = Event(USER_AUTHENTICATION, LOGIN, "E")
        us = ourselves(self._ae_title, os.getpid(), is_requestor=False, receives=False)
        self._put(event, [sender(peer.address, calling, peer.subject_text), us])

    def association_over(self, summary: _core.AssociationSummary, peer: Peer, calling: str, called: str) -> None:
        """What it stored, and what it was not allowed to."""
        source = sender(peer.address, calling, peer.subject_text)
        refused = dict(summary.statuses).get(_NOT_AUTHORISED, 0)
        if refused:
            self._alert(RESTRICTED_FUNCTION, source, f"tenant not authorised: {refused} instances")
        studies = [Study(*study) for study in summary.transfers]
        if studies:
            event = Event(INSTANCES_TRANSFERRED, None, "C")
            us = ourselves(called, os.getpid(), is_requestor=False, receives=True)
            self._put(event, [source, us], studies)

    def _application(self, kind: tuple[str, str]) -> None:
        event = Event(APPLICATION_ACTIVITY, kind, "E")
        self._put(event, [ourselves(self._ae_title, os.getpid(), is_requestor=False, receives=False)])

    def _alert(self, kind: tuple[str, str], source: Participant, description: str) -> None:
        us = ourselves(self._ae_title, os.getpid(), is_requestor=False, receives=False)
        self._put(Event(SECURITY_ALERT, kind, "E", MINOR_FAILURE, description), [source, us])

    def _put(self, event: Event, participants: list[Participant], studies: list[Study] | None = None) -> None:
        transport = self._transport
        if transport is not None:
            at = datetime.now(UTC)
            transport.put(at, message(at, event, participants, self._source_id, studies or ()))
