"""The pure-Python engine: one instance from its bytes to "file and record are both durable"."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from storescp import _core
from storescp.engine import MOST_NAMED, StartUp, StorageState
from storescp.errors import CoreError, TemporaryFailure, is_temporary
from storescp.pure import record
from storescp.pure.damaged import (
    CANNOT_UNDERSTAND,
    DamagedDataSets,
    StaysError,
    note_of,
    refusal_of_full_quarantine,
    refusal_of_kept,
    source_of,
)
from storescp.pure.index import UID, InstanceIndex, read_index, wanted
from storescp.pure.outbox import NewRow, Outbox, Row
from storescp.pure.pixels import BUSY, Pixels, Transcoding
from storescp.pure.reconcile import Reconciler
from storescp.pure.refusal import (
    Refusal,
    busy_refusal,
    storage_refusal,
    tenant_refusal,
    undecided_refusal,
    unrecorded_refusal,
)
from storescp.pure.replaced import REPLACED, ReplacedFiles
from storescp.pure.source import Source
from storescp.pure.store import OUTBOX, Store, digest, file_meta, locate_dataset, reason_of, split_file
from storescp.pure.stored import NOT_REPLACED, Original, UnchangedError, read_original
from storescp.pure.structure import ANOMALIES, Walked, WalkLimits, inflate, walk
from storescp.quarantine import DAMAGED, QUARANTINE
from storescp.roots import IN_USE
from storescp.settings import TENANT_ID, Settings

SUCCESS = 0x0000
_MAY_PASS = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
)


@dataclass(frozen=True)
class Outcome:
    """What a C-STORE is answered, the tenant that it asked for and nobody knows, and for the log what became of it."""

    status: int
    comment: str = ""
    tenant_value: str | None = None
    tenant: str | None = None
    stored: str = ""  # "new", "replaced", "identical" or "kept"; empty where it was refused


@dataclass(frozen=True)
class _Instance:
    path: str
    content: bytes
    header_bytes: int
    transfer_syntax: str
    row: NewRow
    was_busy: bool = False  # nothing was free to transcode it


class PureEngine:
    """The `Engine` protocol without Rust."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._storage = settings.storage
        self._required = settings.dicom_store_scp.required_attributes
        limits = settings.limits
        self._walk_limits = WalkLimits(limits.nesting, limits.max_elements, limits.max_decoded_bytes)
        tenants = settings.tenants
        self._private_tag = (
            tenants.private_group << 16 | tenants.private_element if tenants.from_private_element else None
        )
        self._described = settings.message_queue.record_attributes
        self._wanted = wanted(self._required, self._described, self._private_tag)
        self._known_tenants = frozenset(tenants.known)
        self._transcoding = Transcoding(settings)
        root = self._storage.root
        try:
            self._store = Store(root, create=self._storage.create)
            self._outbox = Outbox(
                root / OUTBOX / "outbox.sqlite",
                synchronous=self._storage.durability != "none",
            )
            self._store.sync_outbox_folder()
            self._replaced = ReplacedFiles(
                self._store, self._storage.replaced_retention, self._storage.replaced_max_bytes
            )
            self._reconciler = Reconciler(self._store, self._outbox, durability=self._storage.durability)
            reconciled = self._reconciler.start()
            removed, left = self._store.clear_incoming()
            self._damaged = DamagedDataSets(
                self._store, root, self._storage.durability, self._storage.quarantine_max_bytes
            )
            unfinished, also_left = self._damaged.clear_unfinished()
            removed, left = removed + unfinished, [*left, *also_left]
            with contextlib.suppress(OSError):  # told of by the sweep, which follows at once
                self._damaged.count()
            self._start_up = replace(
                reconciled, temporary_files=removed, unusable=left[:MOST_NAMED], unusable_count=len(left)
            )
        except BlockingIOError:
            raise TemporaryFailure(f"{root}: {IN_USE}") from None
        except OSError as error:
            kind = TemporaryFailure if is_temporary(error) or isinstance(error, FileNotFoundError) else CoreError
            raise kind(f"{root}: {error.strerror}") from None
        except sqlite3.Error as error:
            # The low byte is the primary result code (sqlite.org/rescode.html).
            kind = TemporaryFailure if error.sqlite_errorcode & 0xFF in _MAY_PASS else CoreError
            raise kind(f"{root}: outbox: {error}") from None

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
        outcome = self.store(dataset, sop_class_uid, sop_instance_uid, transfer_syntax, source)
        return outcome.status, outcome.comment

    def store(
        self, dataset: bytes, sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, source: Source
    ) -> Outcome:
        """Takes one data set."""
        try:
            tenant, stored = self._take(dataset, sop_class_uid, sop_instance_uid, transfer_syntax, source)
        except Refusal as refusal:
            answer = refusal
            if refusal.status == CANNOT_UNDERSTAND and self._settings.dicom_store_scp.malformed == "quarantine":
                answer = self._keep_damaged(refusal, dataset, sop_class_uid, sop_instance_uid, transfer_syntax, source)
            return Outcome(answer.status, answer.comment, answer.tenant_value)
        except OSError as error:
            failure = storage_refusal(error)
            return Outcome(failure.status, failure.comment)
        return Outcome(SUCCESS, tenant=tenant, stored=stored)

    def unavailable(self) -> str | None:
        """Nothing when an instance can be taken now, else why not."""
        pending, dead, size = self._outbox.backlog()
        if pending + dead >= self._settings.outbox.max_rows or size >= self._settings.outbox.max_bytes:
            return "outbox limit reached"
        if self._store.free_bytes() < self._storage.min_free_bytes:
            return "storage: less free space than configured"
        return None

    def start_up(self) -> StartUp:
        """What an interrupted predecessor left, and what became of it."""
        return self._start_up

    def reconsider(self) -> tuple[int, int, list[str], int]:
        """Tries the undecided rows again: rows kept, rows dropped, paths quarantined, how many are still undecided."""
        for path in self._reconciler.undecided_paths():
            try:
                with self._store.one_writer:
                    self._reconciler.reconsider(path)
            except sqlite3.Error as error:
                raise CoreError(f"outbox: {error}") from None
        kept, dropped, quarantined = self._reconciler.take_decided()
        return kept, dropped, quarantined[:MOST_NAMED], self._reconciler.undecided

    def sweep(self) -> tuple[int, list[tuple[str, str]]]:
        """Removes replaced files whose retention has ended, and counts the others anew."""
        with self._store.one_writer:
            self._reconciler.count_quarantined()
            removed, unreadable = 0, []
            try:
                removed = self._replaced.sweep()
            except OSError as error:
                unreadable.append((REPLACED, reason_of(error)))
            try:
                self._damaged.count()
            except OSError as error:
                unreadable.append((QUARANTINE, reason_of(error)))
            return removed, unreadable

    def storage_state(self) -> StorageState:
        """What is known of the storage."""
        return StorageState(
            quarantined=self._reconciler.quarantined,
            undecided=self._reconciler.undecided,
            missing=self._reconciler.missing,
            replaced_files=self._replaced.files,
            replaced_bytes=self._replaced.bytes,
            replaced_max_bytes=self._replaced.max_bytes,
            replaced_total=self._replaced.total,
            damaged=self._damaged.usage.data_sets,
            damaged_bytes=self._damaged.usage.bytes,
            damaged_max_bytes=self._damaged.max_bytes,
            damaged_since=self._damaged.usage.since,
        )

    def outbox_is_alive(self) -> bool:
        """Whether the outbox can still take rows."""
        return self._outbox.is_open

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

    def retry(self, root: Path, name: str, tenant: str | None, by_rule: bool) -> str | None:
        """Stores a damaged data set that is in quarantine: None where it is stored, else why it stays."""
        if not root.exists() or not root.samefile(self._storage.root):
            return "it is not in quarantine"
        try:
            note, dataset, size = self._damaged.read(name)
            source = source_of(note, tenant, by_rule=by_rule)
            sop_class, sop_instance = note.affected_sop_class_uid, note.affected_sop_instance_uid
            self._take(dataset, sop_class, sop_instance, note.transfer_syntax_uid, source)
        except StaysError as stays:
            return str(stays)
        except Refusal as refusal:
            return f"{refusal.status:04X} {refusal.comment}"
        except OSError as error:
            failure = storage_refusal(error)
            return f"{failure.status:04X} {failure.comment}"
        try:
            self._damaged.remove(name, size)
        except OSError as error:
            return f"it is stored, but cannot be removed from quarantine: {reason_of(error)}"
        return None

    def transcode_stored(self, root: Path, path: str) -> str | None:
        """Transcodes a stored instance in place: None where viewers can read it now, else why it stays as it is."""
        if not root.exists() or not root.samefile(self._storage.root):
            return "it is not stored"
        try:
            original = read_original(self._store, self._outbox, path)
            if not self._transcoding.is_readable(original.transfer_syntax):
                self._transcode_in_place(original)
        except UnchangedError as unchanged:
            return str(unchanged)
        except Refusal as refusal:
            return f"{refusal.status:04X} {refusal.comment}"
        except OSError as error:
            failure = storage_refusal(error)
            return f"{failure.status:04X} {failure.comment}"
        return None

    def retry_wished(self, most: int) -> list[tuple[bool, str, str | None]]:
        """Takes up at most `most` wishes of operators."""
        outcomes = []
        try:
            for wish in self._outbox.retry_wishes(most):
                root = Path(wish.root)
                if wish.is_stored:
                    outcome = self.transcode_stored(root, wish.name)
                else:
                    outcome = self.retry(root, wish.name, wish.tenant, wish.by_rule)
                self._outbox.answer_retry(wish.id, outcome or "")
                outcomes.append((wish.is_stored, wish.name, outcome))
        except sqlite3.Error as error:
            raise CoreError(f"outbox: {error}") from None
        if any(not is_stored and outcome is None for is_stored, _, outcome in outcomes):
            with contextlib.suppress(OSError):  # the next sweep says so
                self._damaged.count()
        return outcomes

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

    def _take(
        self, dataset: bytes, sop_class: str, sop_instance: str, transfer_syntax: str, source: Source
    ) -> tuple[str, str]:
        """Stores and records a data set; its tenant, and how it was stored."""
        if not is_uid(sop_instance):
            raise Refusal(0x0117, "AffectedSOPInstanceUID breaks the UID grammar")
        if not is_uid(sop_class):
            raise Refusal(0x0122, "AffectedSOPClassUID differs from the context")
        unavailable = self.unavailable()
        if unavailable:
            raise Refusal(0xA700, unavailable)
        if len(dataset) > self._settings.limits.max_instance_bytes:
            most = self._settings.limits.max_instance_bytes
            raise Refusal(0xA700, f"instance exceeds the size limit of {most} bytes")
        plain = inflate(dataset, transfer_syntax, self._walk_limits)
        found = walk(plain, transfer_syntax, self._wanted, self._walk_limits)
        index = self._identify(found, sop_class, sop_instance)
        tenant = self._tenant(source, found.values)
        if plain is dataset:
            # Readers of the file would take them for its own meta information (PS3.10 7.1).
            dataset = dataset[found.file_meta_bytes :]
        pixels = self._transcoding.of(
            dataset, transfer_syntax, has_pixel_data=found.has_pixel_data, is_odd=found.odd_pixel_data
        )
        if pixels.was_busy:
            index = replace(index, anomalies=(*index.anomalies, BUSY))
        return tenant, self._commit(self._instance(pixels, source, tenant, index))

    def _identify(self, found: Walked, sop_class: str, sop_instance: str) -> InstanceIndex:
        index = read_index(found, self._required, self._described)
        if index.sop_class_uid != sop_class:
            raise Refusal(0xA900, "SOPClassUID of the data set differs from the command")
        if index.sop_instance_uid != sop_instance:
            raise Refusal(0xA900, "SOPInstanceUID of the data set differs from the command")
        odd = {*index.anomalies, *found.anomalies}
        return replace(index, anomalies=tuple(code for code in ANOMALIES if code in odd))

    def _transcode_in_place(self, original: Original) -> None:
        """The transcoded instance takes the place of the original, with a record of its own.

        Raises:
            UnchangedError, Refusal: nothing has changed.
        """
        if self._storage.duplicates != "replace":
            raise UnchangedError(NOT_REPLACED)
        unavailable = self.unavailable()
        if unavailable:
            raise Refusal(0xA700, unavailable)
        plain = inflate(original.dataset, original.transfer_syntax, self._walk_limits)
        found = walk(plain, original.transfer_syntax, self._wanted, self._walk_limits)
        index = self._identify(found, original.sop_class_uid, original.sop_instance_uid)
        pixels = self._transcoding.of(
            original.dataset,
            original.transfer_syntax,
            has_pixel_data=found.has_pixel_data,
            is_odd=found.odd_pixel_data,
        )
        if pixels.status != "Success":
            raise UnchangedError(pixels.failure or "it has no pixel data")
        odd = {*index.anomalies, *original.anomalies}
        index = replace(index, anomalies=tuple(code for code in ANOMALIES if code in odd))
        instance = self._instance(pixels, original.source, original.tenant, index, original.received_at)
        if instance.path != original.path:
            raise UnchangedError("it is another instance than its path says")
        durability = self._storage.durability
        with self._store.one_writer:
            if not self._reconciler.reconsider(original.path):
                raise undecided_refusal()
            if self._store.read(original.path) != original.content:
                raise UnchangedError("another instance took its place meanwhile")
            data, directories = durability != "none", durability == "full"
            self._write(instance, original.content, data=data, directories=directories, makes_room=False)

    def _keep_damaged(
        self, damage: Refusal, dataset: bytes, sop_class: str, sop_instance: str, transfer_syntax: str, source: Source
    ) -> Refusal:
        """Keeps a damaged data set as received; the answer."""
        try:
            tenant: str | None = self._tenant(source, damage.values)
        except Refusal:
            tenant = None
        private = None if self._private_tag is None else damage.values.get(self._private_tag)
        content = file_meta(sop_class, sop_instance, transfer_syntax, source.calling_ae_title) + dataset
        whose = (tenant, None if tenant is None else self._tenant_from(source, private), private)
        note = note_of(damage, (sop_class, sop_instance, transfer_syntax), source, whose, content)
        name = f"{DAMAGED}{record.uuid7()}"
        try:
            if not self._damaged.keep(name, content, note.encode()):
                return refusal_of_full_quarantine(damage)
        except OSError as error:
            return storage_refusal(error)
        return refusal_of_kept(damage)

    def _tenant_from(self, source: Source, private: bytes | None) -> str:
        if source.tenant_by_rule:
            return "rule"
        if self._private_tag is not None and source.command_tenant is not None:
            return "command set"
        return "default" if private is None else "data set"

    def _tenant(self, source: Source, values: dict[int, bytes]) -> str:
        tenant = source.tenant
        if self._private_tag is not None and not source.tenant_by_rule:
            value = source.command_tenant
            if value is None:
                value = values.get(self._private_tag)
            if value is not None:
                named = value.rstrip(b"\0 ")
                tenant = named.decode("utf-8", "replace")
                if tenant not in self._known_tenants or not TENANT_ID.fullmatch(tenant):
                    raise tenant_refusal(named)
        if not tenant:
            raise tenant_refusal(None)
        return tenant

    def _instance(
        self, pixels: Pixels, source: Source, tenant: str, index: InstanceIndex, received_at: str | None = None
    ) -> _Instance:
        transfer_syntax = pixels.stored_as
        header = file_meta(index.sop_class_uid, index.sop_instance_uid, transfer_syntax, source.calling_ae_title)
        content = header + pixels.dataset
        row = self._row(content, source, tenant, index, pixels, received_at)
        return _Instance(row.path, content, len(header), transfer_syntax, row, pixels.was_busy)

    def _row(
        self,
        content: bytes,
        source: Source,
        tenant: str,
        index: InstanceIndex,
        pixels: Pixels,
        received_at: str | None = None,
    ) -> NewRow:
        trace_id = str(record.uuid7())
        study, series = index.study_instance_uid, index.series_instance_uid
        path = _path(tenant, index.study_date, study, series, index.sop_instance_uid)
        queue = self._settings.message_queue
        received_at = received_at or record.timestamp()
        payload = record.encode(
            {
                "trace_id": trace_id,
                "worker_node_id": self._settings.service.node_name,
                "tenant_id": tenant,
                "patient_id": index.patient_id,
                "study_uid": study,
                "series_uid": series,
                "sop_uid": index.sop_instance_uid,
                "file_path": self._store.absolute(path),
                "file_size": len(content),
                "transfer_syntax_uid": pixels.received_as,
                "target_ts": pixels.stored_as,
                "study_date": str(index.study_date or queue.missing_study_date or "") or None,
                "transfer_status": pixels.status,
                "number_of_frames": index.number_of_frames,
                "created_time": record.created_time(received_at, queue.created_time),
                "series_uid_hash": record.hash_uid(series),
                "study_uid_hash": record.hash_uid(study),
                "accession_number": index.accession_number,
                "source_ip": source.address,
                "source_ae": source.calling_ae_title,
                "schema_version": record.SCHEMA_VERSION,
                "sop_class_uid": index.sop_class_uid,
                "called_ae": source.called_ae_title,
                "anomalies": index.anomalies,
                "received_at": received_at,
                "file_url": None,
                "dicom_omitted": index.omitted,
            },
            index.described,
        )
        return NewRow(trace_id, f"{tenant}/{study}", payload, path, f"{trace_id}.part", len(content), digest(content))

    def _row_of_file(self, path: str, content: bytes) -> NewRow:
        """What is known from a stored file alone: the address of its sender and the called AE title are lost.

        Raises:
            Refusal: it is no file of ours, or another instance than its path says.
        """
        located = locate_dataset(content)
        if located is None or located.implementation_class_uid != _core.IMPLEMENTATION_CLASS_UID:
            raise unrecorded_refusal()
        syntax, dataset = located.transfer_syntax, content[located.offset :]
        try:
            plain = inflate(dataset, syntax, self._walk_limits)
            found = walk(plain, syntax, wanted(described=self._described), self._walk_limits)
            index = read_index(found, described=self._described)
        except Refusal:
            raise unrecorded_refusal() from None
        source = Source(located.source_ae_title, "", "", path.partition("/")[0])
        row = self._row(content, source, source.tenant or "", index, Pixels(b"", syntax, syntax, "NoNeedTransfer"))
        if row.path != path:
            raise unrecorded_refusal()
        return row

    def _commit(self, instance: _Instance) -> str:
        """How it was stored: `new`, `replaced`, `identical` or `kept`."""
        durability = self._storage.durability
        data, directories = durability != "none", durability == "full"
        with self._store.one_writer:
            if not self._reconciler.reconsider(instance.path):
                raise undecided_refusal()
            existing = self._store.read(instance.path)
            if existing is not None:
                found = split_file(existing)
                dataset = memoryview(instance.content)[instance.header_bytes :]
                if found is not None and found[0] == instance.transfer_syntax and found[1] == dataset:
                    self._store.make_durable(instance.path, data=data, directories=directories)
                    if (len(existing), digest(existing)) not in self._outbox.committed(instance.path):
                        self._outbox.publishable(self._outbox.insert(instance.row))
                    return "identical"
                if instance.was_busy:
                    # The same bytes may be stored transcoded: nobody can tell.
                    raise busy_refusal()
                if self._storage.duplicates == "keep":
                    self._keep(instance.path, existing, data=data, directories=directories)
                    return "kept"
                if self._storage.duplicates == "reject":
                    raise Refusal(0xA900, "a different instance with this UID is stored")
            self._write(instance, existing, data=data, directories=directories)
            return "new" if existing is None else "replaced"

    def _keep(self, path: str, existing: bytes, *, data: bool, directories: bool) -> None:
        """The stored file stays; success speaks of it, so it must have a record."""
        self._store.make_durable(path, data=data, directories=directories)
        if not self._outbox.committed(path):
            self._outbox.publishable(self._outbox.insert(self._row_of_file(path, existing)))

    def _write(
        self, instance: _Instance, existing: bytes | None, *, data: bool, directories: bool, makes_room: bool = True
    ) -> None:
        row, keeps = instance.row, existing is not None and self._replaced.is_kept
        if existing is not None and keeps:
            self._replaced.admit(len(existing), makes_room=makes_room)
        row_id, has_replaced = None, False
        try:
            self._store.write_temporary(row.temporary, instance.content, sync=data)
            row_id = self._outbox.insert(row)
            with self._store.series_folder(instance.path) as series:
                name = instance.path.rpartition("/")[2]
                with contextlib.ExitStack() as kept:
                    if existing is not None and keeps:
                        tenant = instance.path.partition("/")[0]
                        kept.enter_context(self._replaced.keep(series, name, tenant, existing, sync=directories))
                    os.rename(row.temporary, name, src_dir_fd=self._store.incoming, dst_dir_fd=series.descriptor)
                has_replaced = existing is not None
                try:
                    if directories:
                        series.sync()
                except OSError:
                    if not has_replaced:
                        os.unlink(name, dir_fd=series.descriptor)
                    raise
        except BaseException:
            if has_replaced and row_id is not None:
                # What was acknowledged before is gone from its place: what took it stays, with its record.
                self._outbox.publishable(row_id)
            else:
                self._store.remove_temporary(row.temporary)
                if row_id is not None:
                    self._outbox.remove(row_id)
            raise
        self._outbox.publishable(row_id)


def _path(tenant: str, study_date: date | None, study: str, series: str, instance: str) -> str:
    day = study_date.strftime("%Y%m%d").zfill(8) if study_date else "00000000"
    return f"{tenant}/{day}/{study}/{series}/{instance}.dcm"


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 9.1)."""
    return len(text) <= 64 and UID.fullmatch(text.encode("ascii", "replace")) is not None
