"""The two data paths behind one protocol, and what the Rust one is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from storescp.settings import Settings
from storescp.workers import plan_workers

if TYPE_CHECKING:
    from storescp import _core

MOST_NAMED = 100


@dataclass(frozen=True)
class StartUp:
    """What a start found of its interrupted predecessor, and what became of it.

    Each list has `MOST_NAMED` entries at most; the counts are exact. Paths are relative to the storage root.
    """

    rows_kept: int = 0
    rows_dropped: int = 0
    temporary_files: int = 0
    quarantined: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    undecided: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    unusable: list[tuple[str, str]] = field(
        default_factory=list
    )  # file or folder that cannot be read or removed, reason
    quarantined_count: int = 0
    missing_count: int = 0
    undecided_count: int = 0
    unusable_count: int = 0


@dataclass(frozen=True)
class StorageState:
    """What is known of the storage without a look at the disk."""

    quarantined: int = 0  # entries of the quarantine
    undecided: int = 0  # paths whose rows wait for a look at their file
    changed: int = 0
    unreadable: int = 0
    missing: int = 0
    replaced_files: int = 0
    replaced_bytes: int = 0
    replaced_max_bytes: int = 0
    replaced_total: int = 0  # replacements since the start
    damaged: int = 0  # damaged data sets in quarantine
    damaged_bytes: int = 0
    damaged_max_bytes: int = 0
    damaged_since: float | None = None  # when the oldest of them came; seconds since 1970


class QueuedRecord(Protocol):
    """A record to be published."""

    @property
    def id(self) -> int:
        """Row id."""

    @property
    def ready(self) -> int:
        """Grows in the order of acknowledgement to the sender."""

    @property
    def trace_id(self) -> str:
        """Trace id of the record."""

    @property
    def key(self) -> str:
        """`tenant_id/study_uid`."""

    @property
    def payload(self) -> bytes:
        """The record, JSON (UTF-8)."""


class RecordQueue(Protocol):
    """The durable queue of records, as the publisher needs it.

    Topic 0 is `topic_main`, topic 1 is `topic_dicom_receive`.
    """

    def outbox_wait(self, after: int, timeout: float) -> int:
        """Waits up to `timeout` seconds for a publishable row later than `after`; order of the last there was."""

    def outbox_stop_waiting(self) -> None:
        """Ends every `outbox_wait`, now and from now on."""

    def outbox_claim(self, topic_number: int, after: int, most: int) -> Sequence[QueuedRecord]:
        """The first publishable rows later than `after`, in the order of acknowledgement to the sender."""

    def outbox_done(self, topic_number: int, ids: list[int]) -> None:
        """Records that a topic acknowledged rows; committed soon, a crash before it means a second delivery."""

    def outbox_flush(self) -> None:
        """Commits what was recorded before."""

    def outbox_fail(self, topic_number: int, reason: str) -> None:
        """Records that publication to a topic failed, and why; commits what was recorded before."""

    def outbox_reject(self, topic_number: int, rows: list[tuple[int, str]]) -> None:
        """Sets aside rows that a topic refused: id and reason."""

    def outbox_adopt_retries(self) -> int:
        """Makes rows pending again that operators want to be tried again; how many."""

    def republish_wished(self, most: int) -> list[tuple[str, str | None]]:
        """Takes up at most `most` wishes for the record of a file: path, and why it could not be, or None."""

    def outbox_prune(self, before: int, most: int) -> int:
        """Takes the payload of at most `most` rows delivered before a time (microseconds since 1970); how many."""

    def outbox_backlog(self) -> tuple[int, int, int]:
        """Rows that a topic has not acknowledged, rows set aside, payload bytes of both."""

    def outbox_lag(self, topic_number: int) -> tuple[int, int | None, int]:
        """Of one topic: rows pending, when the oldest was received (microseconds since 1970), rows set aside."""


class Engine(RecordQueue, Protocol):
    """Receives, validates, stores and records."""

    def ingest(
        self,
        dataset: bytes,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax: str,
        calling_ae_title: str,
        called_ae_title: str,
        address: str,
        tenant: str | None,
    ) -> tuple[int, str]:
        """Takes one data set as a C-STORE would; status and error comment."""

    def unavailable(self) -> str | None:
        """Nothing when an instance can be taken now, else why not."""

    def start_up(self) -> StartUp | _core.StartUp:
        """What an interrupted predecessor left, and what became of it."""

    def reconsider(self) -> tuple[int, int, list[str], int]:
        """Tries the undecided rows again.

        Rows kept and rows dropped since the last call, paths of files put into quarantine (`MOST_NAMED` at most), how
        many paths are still undecided.
        """

    def sweep(self) -> tuple[int, list[tuple[str, str]]]:
        """Removes replaced files whose retention has ended, and counts anew what operators may have removed.

        How many were removed, and folders that cannot be read, with the reason.
        """

    def storage_state(self) -> StorageState | _core.StorageState:
        """What is known of the storage; does not touch the disk."""

    def retry(self, root: Path, name: str, tenant: str | None, by_rule: bool) -> str | None:
        """Stores a damaged data set that is in the quarantine of a root: None where it is stored, else why it stays.

        `tenant`, and whether a rule names it, count where its note names none.
        """

    def transcode_stored(self, root: Path, path: str) -> str | None:
        """Transcodes a stored instance in place: None where viewers can read it now, else why it stays as it is.

        `path` is relative to the storage root. The rules of duplicates hold; the sender and the time of the new record
        are those of the original.
        """

    def retry_wished(self, most: int) -> list[tuple[bool, str, str | None]]:
        """Takes up at most `most` wishes of operators.

        Whether it is a stored instance that is to be transcoded, its path or the name of a damaged data set, and why it
        stays as it is, or None.
        """

    def outbox_is_alive(self) -> bool:
        """Whether the outbox can still take rows."""

    def close(self) -> None:
        """Gives storage root and outbox back."""


def engine_config(settings: Settings) -> str:
    """The engine's configuration, JSON."""
    scp, storage, limits, tenants, queue = (
        settings.dicom_store_scp,
        settings.storage,
        settings.limits,
        settings.tenants,
        settings.message_queue,
    )
    private = None
    if tenants.from_private_element:
        private = {
            "group": tenants.private_group,
            "element": tenants.private_element,
            "known": list(tenants.known),
        }
    return json.dumps(
        {
            "root": str(storage.root),
            "create": storage.create,
            "durability": storage.durability,
            "duplicates": storage.duplicates,
            "replaced_retention": storage.replaced_retention,
            "replaced_max_bytes": storage.replaced_max_bytes,
            "quarantine_max_bytes": storage.quarantine_max_bytes,
            "min_free_bytes": storage.min_free_bytes,
            "viewer_transfer_syntaxes": list(settings.transcoding.viewer_transfer_syntaxes),
            "required_attributes": list(scp.required_attributes),
            "record": {
                "attributes": list(queue.record_attributes),
                "node_id": settings.service.node_name,
                "created_time": queue.created_time,
                "missing_study_date": queue.missing_study_date and queue.missing_study_date.isoformat(),
            },
            "malformed": scp.malformed,
            "max_pdu_length": scp.max_pdu_length,
            "strict": scp.strict,
            "spool_memory_bytes": storage.spool_memory_bytes,
            "limits": {
                "max_instance_bytes": limits.max_instance_bytes,
                "max_decoded_bytes": limits.max_decoded_bytes,
                "nesting": limits.nesting,
                "max_elements": limits.max_elements,
                "max_connections": limits.max_connections,
                "max_connections_per_address": limits.max_connections_per_address,
                "request_timeout": limits.request_timeout,
                "idle_timeout": limits.idle_timeout,
                "min_rate": limits.min_rate,
                "max_pdu_tolerated": limits.max_pdu_tolerated,
            },
            "outbox": {"max_rows": settings.outbox.max_rows, "max_bytes": settings.outbox.max_bytes},
            "private_tenant": private,
            "audit": settings.audit is not None,
            "tenants": {
                entry.tenant_id: entry.model_dump(mode="json", exclude={"tenant_id"}) for entry in tenants.settings
            },
            "transcoding": {"target": settings.transcoding.target, "pool": pool_config(settings)},
        }
    )


def pool_config(settings: Settings) -> dict[str, object]:
    """How processes that transcode are started, and how many."""
    transcoding = settings.transcoding
    plan = plan_workers(transcoding)
    return {
        "command": [sys.executable, "-m", "storescp.transcode_worker", str(plan.memory_bytes)],
        "workers": plan.processes,
        "threads": plan.threads,
        "timeout": transcoding.timeout,
        "instance_timeout": transcoding.instance_timeout,
        "max_wait": transcoding.max_wait,
    }
