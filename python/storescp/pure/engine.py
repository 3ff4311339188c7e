"""The pure-Python engine: one instance from its bytes to "file and record are both durable"."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import structlog

from storescp.errors import CoreError, TemporaryFailure, is_temporary
from storescp.pure import record
from storescp.pure.index import UID, InstanceIndex, captured_tags, read_index
from storescp.pure.outbox import NewRow, Outbox, Row
from storescp.pure.refusal import Refusal, storage_refusal
from storescp.pure.store import OUTBOX, Store, digest, file_meta, split_file
from storescp.pure.structure import WalkLimits, inflate, walk
from storescp.pure.transcode import EXPLICIT, TranscodeError, can_transcode, to_explicit
from storescp.settings import TENANT_ID, Settings

log = structlog.get_logger("storescp.pure")
SUCCESS = 0x0000
_MAY_PASS = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
)


@dataclass(frozen=True)
class Source:
    """Who sends, and for which tenant."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    tenant: str | None
    tenant_by_rule: bool = False
    command_tenant: bytes | None = None


@dataclass(frozen=True)
class _Pixels:
    """A data set as it will be stored, and what became of its pixels."""

    dataset: bytes
    received_as: str
    stored_as: str
    status: str


@dataclass(frozen=True)
class _Instance:
    path: str
    content: bytes
    header_bytes: int
    transfer_syntax: str
    row: NewRow


def is_video_or_jpip(transfer_syntax: str) -> bool:
    """Nothing to decode to (PS3.6 Annex A)."""
    number = transfer_syntax.removeprefix("1.2.840.10008.1.2.4.").split(".")[0]
    if number == transfer_syntax.split(".", maxsplit=1)[0] or not number.isdigit():
        return False
    return int(number) in (94, 95, 204, 205, *range(100, 109))


class PureEngine:
    """The `Engine` protocol without Rust."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._storage = settings.local_storage
        self._required = settings.dicom_store_scp.required_attributes
        limits = settings.limits
        self._walk_limits = WalkLimits(limits.nesting, limits.max_elements, limits.max_decoded_bytes)
        tenants = settings.tenants
        self._private_tag = (
            tenants.private_group << 16 | tenants.private_element if tenants.from_private_element else None
        )
        private = frozenset() if self._private_tag is None else frozenset({self._private_tag})
        self._wanted = captured_tags(self._required) | private
        self._known_tenants = frozenset(tenants.known)
        root = self._storage.dicm_store_path
        try:
            self._store = Store(root, create=self._storage.create)
            self._outbox = Outbox(
                root / OUTBOX / "outbox.sqlite",
                synchronous=self._storage.durability != "none",
                on_disk=self._is_on_disk,
                discard=self._store.discard,
            )
            self._store.sync_outbox_folder()
            self._temporary_files = self._outbox.parts + self._store.clear_incoming()
        except BlockingIOError:
            raise TemporaryFailure("another process serves this storage root") from None
        except OSError as error:
            kind = TemporaryFailure if is_temporary(error) or isinstance(error, FileNotFoundError) else CoreError
            raise kind(f"storage root: {error.strerror}") from None
        except sqlite3.Error as error:
            # The low byte is the primary result code (sqlite.org/rescode.html).
            kind = TemporaryFailure if error.sqlite_errorcode & 0xFF in _MAY_PASS else CoreError
            raise kind(f"outbox: {error}") from None

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
        source = Source(calling_ae_title, called_ae_title, address, tenant)
        return self.store(dataset, sop_class_uid, sop_instance_uid, transfer_syntax, source)

    def store(
        self, dataset: bytes, sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, source: Source
    ) -> tuple[int, str]:
        """Takes one data set; status and error comment."""
        try:
            self._take(dataset, sop_class_uid, sop_instance_uid, transfer_syntax, source)
        except Refusal as refusal:
            return refusal.status, refusal.comment
        except OSError as error:
            failure = storage_refusal(error)
            return failure.status, failure.comment
        return SUCCESS, ""

    def unavailable(self) -> str | None:
        """Nothing when an instance can be taken now, else why not."""
        pending, dead, size = self._outbox.backlog()
        if pending + dead >= self._settings.outbox.max_rows or size >= self._settings.outbox.max_bytes:
            return "outbox limit reached"
        if self._store.free_bytes() < self._storage.min_free_bytes:
            return "storage: less free space than configured"
        return None

    def start_up(self) -> tuple[int, int, int]:
        """What an interrupted predecessor left."""
        return self._outbox.kept, self._outbox.dropped, self._temporary_files

    def outbox_wait(self, after: int, timeout: float) -> int:
        """Waits for something to publish."""
        return self._outbox.wait(after, timeout)

    def outbox_stop_waiting(self) -> None:
        """Ends every `outbox_wait`, now and from now on."""
        self._outbox.stop_waiting()

    def outbox_claim(self, topic_number: int, after: int, most: int) -> list[Row]:
        """The first publishable rows later than `after`."""
        return self._outbox.claim(topic_number, after, most)

    def outbox_done(self, topic_number: int, ids: list[int]) -> None:
        """Records that a topic acknowledged rows."""
        self._outbox.done(topic_number, ids)

    def outbox_flush(self) -> None:
        """Nothing to do: every change is committed by itself."""

    def outbox_fail(self, topic_number: int, reason: str) -> None:
        """Records that publication to a topic failed, and why."""
        self._outbox.fail(topic_number, reason)

    def outbox_reject(self, topic_number: int, rows: list[tuple[int, str]]) -> None:
        """Sets aside rows that a topic refused."""
        self._outbox.reject(topic_number, rows)

    def outbox_adopt_retries(self) -> int:
        """Makes rows pending again that operators want to be tried again."""
        return self._outbox.adopt_retries()

    def republish_wished(self, most: int) -> list[tuple[str, str | None]]:
        """None: wishes wait for the Rust engine."""
        del most
        return []

    def outbox_prune(self, before: int, most: int) -> int:
        """Takes the payload of rows that were delivered long ago."""
        return self._outbox.prune(before, most)

    def outbox_backlog(self) -> tuple[int, int, int]:
        """Rows that a topic has not acknowledged, rows set aside, payload bytes of both."""
        return self._outbox.backlog()

    def outbox_lag(self, topic_number: int) -> tuple[int, int | None, int]:
        """Rows pending, when the oldest was received, rows set aside."""
        return self._outbox.lag(topic_number)

    def close(self) -> None:
        """Gives storage root and outbox back."""
        self._outbox.close()
        self._store.close()

    def _is_on_disk(self, path: str, size: int, expected: bytes) -> bool:
        content = self._store.read(path)
        if content is None or len(content) != size or digest(content) != expected:
            return False
        self._store.make_durable(path, data=True, directories=True)
        return True

    def _take(self, dataset: bytes, sop_class: str, sop_instance: str, transfer_syntax: str, source: Source) -> None:
        if not _is_uid(sop_instance):
            raise Refusal(0x0117, "AffectedSOPInstanceUID breaks the UID grammar")
        if not _is_uid(sop_class):
            raise Refusal(0x0122, "AffectedSOPClassUID differs from the context")
        unavailable = self.unavailable()
        if unavailable:
            raise Refusal(0xA700, unavailable)
        if len(dataset) > self._settings.limits.max_instance_bytes:
            most = self._settings.limits.max_instance_bytes
            raise Refusal(0xA700, f"instance exceeds the size limit of {most} bytes")
        plain = inflate(dataset, transfer_syntax, self._walk_limits)
        found = walk(plain, transfer_syntax, self._wanted, self._walk_limits)
        index = read_index(found.values, self._required)
        if index.sop_class_uid != sop_class:
            raise Refusal(0xA900, "SOPClassUID of the data set differs from the command")
        if index.sop_instance_uid != sop_instance:
            raise Refusal(0xA900, "SOPInstanceUID of the data set differs from the command")
        tenant = self._tenant(source, found.values)
        pixels = self._transcode(dataset, transfer_syntax, has_pixel_data=found.has_pixel_data)
        self._commit(self._instance(pixels, source, tenant, index))

    def _transcode(self, dataset: bytes, transfer_syntax: str, *, has_pixel_data: bool) -> _Pixels:
        """What viewers cannot read becomes what they can; where that fails, the original stays."""
        scp = self._settings.dicom_store_scp
        viewable = transfer_syntax in scp.cornerstonejs_supported_transfer_syntax
        if viewable or is_video_or_jpip(transfer_syntax) or not has_pixel_data:
            return _Pixels(dataset, transfer_syntax, transfer_syntax, "NoNeedTransfer")
        if can_transcode(transfer_syntax) and scp.unsupported_ts_change_to == EXPLICIT:
            try:
                explicit = to_explicit(dataset, transfer_syntax, self._settings.limits.max_decoded_bytes)
                return _Pixels(explicit, transfer_syntax, EXPLICIT, "Success")
            except TranscodeError as error:
                log.info("transcode.failed", source=transfer_syntax, reason=type(error.__cause__ or error).__name__)
        return _Pixels(dataset, transfer_syntax, transfer_syntax, "Failed")

    def _tenant(self, source: Source, values: dict[int, bytes]) -> str:
        tenant = source.tenant
        if self._private_tag is not None and not source.tenant_by_rule:
            value = source.command_tenant
            if value is None:
                value = values.get(self._private_tag)
            if value is not None:
                text = value.rstrip(b"\0 ").decode("utf-8", "replace")
                tenant = text if text in self._known_tenants and TENANT_ID.fullmatch(text) else None
        if not tenant:
            raise Refusal(0x0124, "tenant not authorised")
        return tenant

    def _instance(self, pixels: _Pixels, source: Source, tenant: str, index: InstanceIndex) -> _Instance:
        transfer_syntax = pixels.stored_as
        trace_id = str(record.uuid7())
        header = file_meta(index.sop_class_uid, index.sop_instance_uid, transfer_syntax, source.calling_ae_title)
        content = header + pixels.dataset
        day = index.study_date.strftime("%Y%m%d").zfill(8) if index.study_date else "00000000"
        study, series = index.study_instance_uid, index.series_instance_uid
        path = f"{tenant}/{day}/{study}/{series}/{index.sop_instance_uid}.dcm"
        payload = record.encode(
            {
                "trace_id": trace_id,
                "worker_node_id": record.WORKER_NODE_ID,
                "tenant_id": tenant,
                "patient_id": index.patient_id,
                "study_uid": study,
                "series_uid": series,
                "sop_uid": index.sop_instance_uid,
                "file_path": self._store.absolute(path),
                "file_size": len(content),
                "transfer_syntax_uid": pixels.received_as,
                "target_ts": transfer_syntax,
                "study_date": index.study_date.isoformat() if index.study_date else None,
                "transfer_status": pixels.status,
                "number_of_frames": index.number_of_frames,
                "created_time": record.timestamp(),
                "series_uid_hash": record.hash_uid(series),
                "study_uid_hash": record.hash_uid(study),
                "accession_number": index.accession_number,
                "source_ip": source.address,
                "source_ae": source.calling_ae_title,
                "schema_version": record.SCHEMA_VERSION,
                "sop_class_uid": index.sop_class_uid,
                "called_ae": source.called_ae_title,
            }
        )
        row = NewRow(trace_id, f"{tenant}/{study}", payload, path, f"{trace_id}.part", len(content), digest(content))
        return _Instance(path, content, len(header), transfer_syntax, row)

    def _commit(self, instance: _Instance) -> None:
        durability = self._storage.durability
        data, directories = durability != "none", durability == "full"
        with self._store.one_writer:
            existing = self._store.read(instance.path)
            if existing is not None:
                found = split_file(existing)
                dataset = memoryview(instance.content)[instance.header_bytes :]
                same = found is not None and found[0] == instance.transfer_syntax and found[1] == dataset
                if same or self._storage.duplicates == "keep":
                    self._store.make_durable(instance.path, data=data, directories=directories)
                    if same and not self._outbox.describes(instance.path, len(existing), digest(existing)):
                        self._outbox.publishable(self._outbox.insert(instance.row))
                    return
                if self._storage.duplicates == "reject":
                    raise Refusal(0xA900, "a different instance with this UID is stored")
            self._write(instance, data=data, directories=directories)

    def _write(self, instance: _Instance, *, data: bool, directories: bool) -> None:
        row_id = None
        try:
            self._store.write_temporary(instance.row.temporary, instance.content, sync=data)
            row_id = self._outbox.insert(instance.row)
            self._store.publish(instance.row.temporary, instance.path, sync=directories)
        except OSError:
            if row_id is not None:
                self._outbox.remove(row_id)
            self._store.remove_temporary(instance.row.temporary)
            raise
        self._outbox.publishable(row_id)


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and UID.fullmatch(text.encode("ascii", "replace")) is not None
