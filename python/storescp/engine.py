"""The two data paths behind one protocol, and what the Rust one is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from storescp.settings import Settings


class StartUp(Protocol):
    """What start-up found of an interrupted predecessor. Lists have the first hundred."""

    @property
    def rows_kept(self) -> int:
        """Undecided records whose file is there."""

    @property
    def rows_dropped(self) -> int:
        """Undecided records of instances that were never acknowledged, or that another record describes."""

    @property
    def temporary_files(self) -> int:
        """Files removed from `.incoming`."""

    @property
    def quarantined(self) -> list[str]:
        """Paths of files that were not what was to be recorded: they are in quarantine."""

    @property
    def quarantined_count(self) -> int:
        """How many there are."""

    @property
    def missing(self) -> list[str]:
        """Paths without a file where, at a durability below full, a power cut may have taken an acknowledged one."""

    @property
    def missing_count(self) -> int:
        """How many there are."""

    @property
    def undecided(self) -> list[tuple[str, str]]:
        """Paths that could not be looked at, and why: they are looked at again."""

    @property
    def undecided_count(self) -> int:
        """How many there are."""

    @property
    def unusable(self) -> list[tuple[str, str]]:
        """Files and folders that could not be read or removed, and why."""

    @property
    def unusable_count(self) -> int:
        """How many there are."""


class StorageState(Protocol):
    """How the storage is: what needs an operator, and what is kept beside the instances."""

    @property
    def quarantined(self) -> int:
        """Files in quarantine."""

    @property
    def undecided(self) -> int:
        """Records of which it is not known whether their file is there."""

    @property
    def changed(self) -> int:
        """Files that are not what their record says."""

    @property
    def unreadable(self) -> int:
        """Files and folders that could not be read."""

    @property
    def missing(self) -> int:
        """Records whose file is not there."""

    @property
    def replaced_files(self) -> int:
        """Files in `.replaced`."""

    @property
    def replaced_bytes(self) -> int:
        """Their bytes."""

    @property
    def replaced_max_bytes(self) -> int:
        """Bytes that they may have."""

    @property
    def replaced_total(self) -> int:
        """Files that were replaced since the start."""


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

    def start_up(self) -> StartUp:
        """What an interrupted predecessor left."""

    def storage_state(self) -> StorageState:
        """How the storage is, by what is in memory: this asks no disk."""

    def reconsider(self) -> tuple[int, int, int, int]:
        """Decides again about rows whose file could not be looked at.

        Rows kept, rows dropped, files put into quarantine, paths that are still undecided.
        """

    def sweep(self) -> tuple[int, list[tuple[str, str]]]:
        """Removes replaced files whose time is over, and counts anew what operators may have removed.

        How many went, and folders that cannot be read, with the reason.
        """

    def outbox_is_alive(self) -> bool:
        """Whether what records and publishes still works."""

    def close(self) -> None:
        """Gives storage root and outbox back."""


def engine_config(settings: Settings) -> str:
    """The engine's configuration, JSON."""
    scp, storage, limits, tenants = (
        settings.dicom_store_scp,
        settings.local_storage,
        settings.limits,
        settings.tenants,
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
            "root": str(storage.dicm_store_path),
            "durability": storage.durability,
            "duplicates": storage.duplicates,
            "create": storage.create,
            "replaced_retention": storage.replaced_retention,
            "replaced_max_bytes": storage.replaced_max_bytes,
            "min_free_bytes": storage.min_free_bytes,
            "viewer_transfer_syntaxes": list(scp.cornerstonejs_supported_transfer_syntax),
            "required_attributes": list(scp.required_attributes),
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
            "transcoding": {"target": scp.unsupported_ts_change_to, "pool": pool_config(settings)},
        }
    )


def pool_config(settings: Settings) -> dict[str, object]:
    """How processes that transcode are started, and how many."""
    transcoding = settings.transcoding
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "command": [sys.executable, "-m", "storescp.transcode_worker", str(transcoding.worker_memory_bytes)],
        "workers": transcoding.workers or cores,
        "threads": cores,
        "timeout": transcoding.timeout,
    }
