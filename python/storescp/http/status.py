"""What the status page shows: one snapshot a second for all who look. No patient data unless configured."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from storescp import _core, advice
from storescp.http.health import FINDINGS, Probe
from storescp.http.storage import Storage
from storescp.http.titles import title_of
from storescp.logs import Warned
from storescp.names import name_of

_HISTORY_SECONDS = 300
_SHOWN = 15
# A traceback is for the log: what an exception quotes may be anything.
_OF_A_LINE = frozenset({"timestamp", "level", "logger", "event", "text", "exception", "exc_info"})
_FRESH_SECONDS = 0.9
_QUARANTINED = 0xB007  # a damaged data set that is kept


class Status:
    """Makes snapshots of a running service. `sample` is called once a second, by whoever owns it."""

    def __init__(self, probe: Probe, storage: Storage) -> None:
        self._probe = probe
        self._storage = storage
        self._began = time.time()
        self._history: deque[tuple[int, int]] = deque(maxlen=_HISTORY_SECONDS)
        self._totals = self._count()
        self._lock = asyncio.Lock()
        self._made_at = float("-inf")
        self._snapshot: dict[str, Any] = {}

    def sample(self) -> None:
        """Notes how much came since the last call."""
        instances, received = self._count()
        before, self._totals = self._totals, (instances, received)
        self._history.append((instances - before[0], received - before[1]))

    def history(self) -> list[tuple[int, int]]:
        """Instances and bytes of each of the last seconds, the oldest first."""
        return list(self._history)

    async def snapshot(self) -> dict[str, Any]:
        """What is so now; JSON."""
        async with self._lock:
            if time.monotonic() - self._made_at >= _FRESH_SECONDS:
                await self._storage.refresh()
                self._snapshot = self._make()
                self._made_at = time.monotonic()
            return self._snapshot

    def _count(self) -> tuple[int, int]:
        engine = self._probe.engine
        if not isinstance(engine, _core.Engine):
            return 0, 0
        received, stored = engine.counters()
        return sum(count for _, _, count in stored), received

    def _make(self) -> dict[str, Any]:
        probe = self._probe
        settings, engine = probe.settings, probe.engine
        active, total, rejected = probe.admission.counts()
        refused = probe.refused_connections() | rejected
        reasons = [*probe.not_ready(), *self._storage.reasons()]
        instances, received = self._count()
        made: dict[str, Any] = {
            "now": time.time(),
            "began": self._began,
            "version": _core.__version__,
            "host": probe.host,
            "ae_title": settings.dicom_store_scp.ae_title,
            "durability": settings.storage.durability,
            "shows_patient_data": settings.http is not None and settings.http.show_patient_data,
            "ready": not reasons,
            "reasons": [*reasons, *probe.licence.notes()],
            "instances": instances,
            "bytes": received,
            "last_second": self._history[-1] if self._history else (0, 0),
            "associations": {
                "active": active,
                "most": settings.dicom_store_scp.max_associations,
                "total": total,
                "refused": sum(refused.values()),
                "live": [],
            },
            "latest": [],
            "failed": [],
            "warnings": [self._warning(kind) for kind in probe.warned.kinds()[:_SHOWN]],
            "topics": self._topics(),
            "brokers": settings.kafka.brokers if settings.kafka else None,
            "disk": self._disk(),
            "storage": self._storage_state(),
            "tenants": [],
            "licence": self._licence(),
        }
        if isinstance(engine, _core.Engine):
            made["associations"]["live"] = [_association(one) for one in engine.associations()]
            made["latest"] = [self._instance(one) for one in reversed(engine.recent_instances(failed=False))][:_SHOWN]
            made["failed"] = [self._instance(one) for one in reversed(engine.recent_instances(failed=True))][:_SHOWN]
            made["tenants"] = _tenants(engine)
        return made

    def _instance(self, one: _core.RecentInstance) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "number": one.number,
            "at": one.at,
            "association": one.association,
            "tenant": one.tenant,
            "status": f"{one.status:04X}",
            "comment": one.comment,
            "what": one.modality,
            "class": name_of(one.sop_class_uid) or "private class",
            "bytes": one.bytes,
            "frames": one.frames,
            "received_as": name_of(one.received_as) or one.received_as,
            "stored_as": name_of(one.transcoded_to or one.received_as) or one.transcoded_to,
            "transcoded": one.transcoded_to is not None,
            "transcode_failure": one.transcode_failure,
            "anomalies": one.anomalies,
            "seconds": one.commit_seconds,
        }
        if self._probe.settings.http is not None and self._probe.settings.http.show_patient_data:
            shown |= {"patient_id": one.patient_id, "has_picture": one.file is not None}
        if one.status:
            shown["advice"] = advice.of_refusal(one.comment, one.status, one.tenant_value).text()
        elif one.transcode_failure is not None:
            shown["advice"] = advice.of_transcoding(one.transcode_failure).text()
        return shown

    def _warning(self, kind: Warned) -> dict[str, Any]:
        line = dict(kind.line)
        event, cause = str(line.get("event")), str(line.get("cause") or "")
        if cause:
            is_connection = event == "connection.refused"
            keys = ("peer", "calling_ae", "called_ae", "detail" if is_connection else "reason")
            knock = advice.Knock(*(str(line.get(key) or "") for key in keys))
            of = advice.of_connection if is_connection else advice.of_rejection
            told = of(cause, knock, self._probe.settings).text()
        else:
            sentences = (str(line.get("text") or ""), advice.of_event(event))
            told = " ".join(f"{text.rstrip('.')}." for text in sentences if text)
        details = {
            key: value
            for key, value in line.items()
            if key not in _OF_A_LINE and isinstance(value, str | int | float) and value != ""
        }
        return {
            "level": str(line.get("level")),
            "event": event,
            "title": title_of(event),
            "advice": told,
            "details": details,
            "count": kind.count,
            "first": kind.first,
            "last": kind.last,
        }

    def _topics(self) -> list[dict[str, Any]]:
        """None before the outbox has answered for the first time."""
        now, publisher = time.time(), self._probe.publisher
        return [
            {
                "topic": topic,
                "pending": lag.pending,
                "oldest_seconds": None if lag.oldest is None else max(0.0, now - lag.oldest),
                "set_aside": lag.set_aside,
                "delivered": publisher.published[topic, "delivered"],
                "failing": publisher.failing.get(topic),
            }
            for topic, lag in zip(self._probe.topics, self._storage.outbox.last or (), strict=False)
        ]

    def _disk(self) -> dict[str, int] | None:
        """None before the disk has answered for the first time."""
        disk, least = self._storage.disk.last, self._probe.settings.storage.min_free_bytes
        return None if disk is None else {"free": disk.free_bytes, "total": disk.total_bytes, "least": least}

    def _storage_state(self) -> dict[str, Any]:
        state = self._probe.engine.storage_state()
        return {
            "findings": {kind: getattr(state, kind) for kind in FINDINGS},
            "replaced_files": state.replaced_files,
            "replaced_bytes": state.replaced_bytes,
            "replaced_max_bytes": state.replaced_max_bytes,
            "damaged": state.damaged,
            "damaged_bytes": state.damaged_bytes,
            "damaged_max_bytes": state.damaged_max_bytes,
            "damaged_since": state.damaged_since,
        }

    def _licence(self) -> dict[str, Any]:
        licence, now = self._probe.licence.licence, datetime.now(UTC)
        return {
            "client_id": licence.client_id,
            "state": self._probe.licence.state(now),
            "days": licence.days_left(now),
            "ends": licence.not_after.timestamp(),
        }


def _association(one: _core.LiveAssociation) -> dict[str, Any]:
    return {
        "number": one.association,
        "peer": one.address,
        "calling": one.calling_ae_title,
        "called": one.called_ae_title,
        "tenant": one.tenant,
        "seconds": one.seconds,
        "bytes": one.bytes,
        "stored": one.stored,
        "refused": one.refused,
    }


def _tenants(engine: _core.Engine) -> list[dict[str, Any]]:
    _, stored = engine.counters()
    quotas = {tenant: (used, most) for tenant, used, most in engine.quotas()}
    tenants: dict[str, dict[str, Any]] = {}
    for tenant in sorted({*quotas, *(tenant for _, tenant, _ in stored)}):
        used, most = quotas.get(tenant, (None, None))
        tenants[tenant] = {
            "tenant": tenant,
            "stored": 0,
            "quarantined": 0,
            "refused": 0,
            "used_bytes": used,
            "quota_bytes": most,
        }
    for status, tenant, count in stored:
        kind = {0: "stored", _QUARANTINED: "quarantined"}.get(status, "refused")
        tenants[tenant][kind] += count
    return list(tenants.values())
