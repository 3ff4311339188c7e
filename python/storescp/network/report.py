"""What the log says of associations: one line for each that is over or was turned away, and at debug level why."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import structlog

from storescp import _core
from storescp.advice import Knock, of_connection, of_context, of_oddity, of_rejection
from storescp.network import instances
from storescp.network.identity import Peer
from storescp.network.negotiation import Rejection
from storescp.settings import Settings

log = structlog.get_logger("storescp.network")
# A flood of connections must not become one of log lines: so many in a second, the others in one line.
_LINES = 20
_PERIOD_SECONDS = 1.0

# Code, detail, and how many are alike.
Oddity = tuple[str, str, int]


class _Budget:
    """So many lines in each second; the others are counted and told together."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._lock = threading.Lock()
        self._began = 0.0
        self._left = 0
        self.untold = 0

    def allows(self) -> bool:
        """Whether there is a line left, which is then used."""
        self.settle()
        with self._lock:
            if self._left == 0:
                self.untold += 1
                return False
            self._left -= 1
            return True

    def settle(self, *, final: bool = False) -> None:
        """Tells how many were left out of a period that is over."""
        with self._lock:
            now = time.monotonic()
            if not final and now - self._began < _PERIOD_SECONDS:
                return
            untold, self.untold = self.untold, 0
            self._began, self._left = now, _LINES
        if untold:
            log.warning(self._event, count=untold)


class Report:
    """Writes the lines; safe from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Bound once: this is done for each association.
        self._log = log.bind()
        # Whether there is something to tell of an association that was accepted.
        self.explains = settings.log.level == "debug"
        self._refused = _Budget("connection.refused_more")
        self._rejected = _Budget("association.rejected_more")

    def settle(self, *, final: bool = False) -> None:
        """Tells what was left out, when it is time."""
        self._refused.settle(final=final)
        self._rejected.settle(final=final)

    @property
    def has_untold(self) -> bool:
        """Whether `settle` has something to tell soon."""
        return bool(self._refused.untold or self._rejected.untold)

    def connection_refused(self, peer: tuple[str, int] | None, reason: str, detail: str) -> None:
        """A connection that was closed before it was an association; without peer, one that could not be accepted."""
        if not self._refused.allows():
            return
        if peer is None:
            log.warning("connection.not_accepted", reason=detail)
            return
        advice = of_connection(reason, Knock(peer[0], detail=detail), self._settings)
        extra = {"text": advice.text()} if self.explains else {}
        log.warning("connection.refused", peer=peer[0], port=peer[1], cause=reason, detail=detail or None, **extra)

    def request_malformed(self, knock: Knock, port: int) -> None:
        """A request that cannot be followed, answered with A-ABORT; the detail says why."""
        self._aborted("malformed_request", knock, port)

    def certificate_unreadable(self, knock: Knock, port: int) -> None:
        """A certificate that cannot be read, answered with A-ABORT; the detail says why."""
        self._aborted("unreadable_certificate", knock, port)

    def _aborted(self, cause: str, knock: Knock, port: int) -> None:
        if self._refused.allows():
            log.warning(
                f"association.{cause}",
                peer=knock.address,
                port=port,
                calling_ae=knock.calling or None,
                called_ae=knock.called or None,
                cause=cause,
                reason=knock.detail,
                **self._explanation(cause, knock),
            )

    def rejected(self, rejection: Rejection, knock: Knock, port: int) -> None:
        """An association that was answered with A-ASSOCIATE-RJ."""
        if not self._rejected.allows():
            return
        log.warning(
            "association.rejected",
            peer=knock.address,
            port=port,
            calling_ae=knock.calling,
            called_ae=knock.called,
            cause=rejection.cause,
            result=rejection.result,
            source=rejection.source,
            reason=rejection.reason,
            **({"proxy_address": knock.proxy} if knock.proxy else {}),
            **({"detail": rejection.detail} if rejection.detail else {}),
            **self._explanation(rejection.cause, knock),
        )

    def accepted(self, answer: _core.Answer, peer: Peer, calling: str) -> None:
        """At debug level a line for each context that was not accepted."""
        if not self.explains:
            return
        for abstract_syntax, result, transfer_syntaxes in answer.rejected_contexts:
            log.debug(
                "context.rejected",
                peer=peer.address,
                port=peer.port,
                calling_ae=calling,
                abstract_syntax=abstract_syntax,
                result=result,
                text=of_context(abstract_syntax, result, transfer_syntaxes).text(),
            )

    def explain_oddities(self, oddities: Sequence[Oddity], knock: Knock, port: int) -> None:
        """At debug level a line for each thing that was odd in a request."""
        if not self.explains:
            return
        for code, detail, count in oddities:
            log.debug(
                "request.odd",
                peer=knock.address,
                port=port,
                calling_ae=knock.calling,
                called_ae=knock.called,
                code=code,
                detail=detail,
                count=count,
                text=of_oddity(code, detail).text(),
            )

    def odd_request(self, oddities: Sequence[Oddity], knock: Knock, port: int) -> None:
        """What was odd in a request, for the engine that writes no line when an association is over."""
        if oddities:
            log.info(
                "association.odd_request",
                peer=knock.address,
                port=port,
                calling_ae=knock.calling,
                called_ae=knock.called,
                oddities=_as_objects(oddities),
            )
        self.explain_oddities(oddities, knock, port)

    def over(
        self,
        summary: _core.AssociationSummary,
        peer: Peer,
        calling: str,
        called: str,
        rejected_contexts: int,
        oddities: Sequence[Oddity] = (),
    ) -> None:
        """An association that is over; the oddities are those of its request."""
        instances.tell_of_more(summary.refused, summary.association, peer.address, calling)
        statuses = {f"{status:04X}": count for status, count in summary.statuses}
        level = self._log.info if summary.outcome == "released" and not summary.failures else self._log.warning
        level(
            f"association.{summary.outcome}",
            association=summary.association,
            peer=peer.address,
            port=peer.port,
            calling_ae=calling,
            called_ae=called,
            tenant=summary.tenants[0] if len(summary.tenants) == 1 else None,
            instances=sum(count for _, count in summary.statuses),
            statuses=statuses,
            echoes=summary.echoes,
            bytes=summary.received_bytes,
            seconds=round(summary.seconds, 3),
            **_details(summary, peer, rejected_contexts),
            **({"oddities": _as_objects(oddities)} if oddities else {}),
        )

    def _explanation(self, cause: str, knock: Knock) -> dict[str, str]:
        return {"text": of_rejection(cause, knock, self._settings).text()} if self.explains else {}


def _as_objects(oddities: Sequence[Oddity]) -> list[dict[str, Any]]:
    return [{"code": code, "detail": detail, "count": count} for code, detail, count in oddities]


def _details(summary: _core.AssociationSummary, peer: Peer, rejected_contexts: int) -> dict[str, Any]:
    """What is only told where there is something to tell."""
    details: dict[str, Any] = {}
    if summary.reason:
        details["reason"] = summary.reason
    if summary.failures:
        details["failures"] = [
            {"status": f"{status:04X}", "comment": comment, "count": count}
            for status, comment, count in summary.failures
        ]
    if summary.transcodes:
        details["transcodes"] = [
            {"source": source, "target": target, "outcome": outcome, "count": count}
            for source, target, outcome, count in summary.transcodes
        ]
    if summary.transcode_failures:
        details["transcode_failures"] = dict(summary.transcode_failures)
    if summary.anomalies:
        details["anomalies"] = dict(summary.anomalies)
    if summary.quarantined:
        details["quarantined"] = summary.quarantined
    if summary.oversized_pdus:
        details["oversized_pdus"] = summary.oversized_pdus
    if len(summary.tenants) > 1:
        details["tenants"] = summary.tenants
    if summary.identical or summary.kept or summary.replaced:
        details |= {"identical": summary.identical, "kept": summary.kept, "replaced": summary.replaced}
    if peer.proxy_address:
        details["proxy_address"] = peer.proxy_address
    if peer.tls_version:
        details |= {"tls": peer.tls_version, "tls_subject": peer.subject_text}
    if rejected_contexts:
        details["rejected_contexts"] = rejected_contexts
    return details
