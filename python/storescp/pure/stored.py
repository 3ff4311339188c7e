"""A stored instance that is to be transcoded in place, and what is known of where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from storescp import _core
from storescp.pure.index import UID
from storescp.pure.outbox import Outbox, Recorded
from storescp.pure.pixels import BUSY
from storescp.pure.source import Source
from storescp.pure.store import Located, Store, digest, locate_dataset
from storescp.settings import TENANT_ID

NOT_REPLACED = 'storage.duplicates is not "replace": no stored file is replaced'
_LEVELS = 5


class UnchangedError(Exception):
    """Why a stored instance stays as it is."""


@dataclass(frozen=True)
class Original:
    """The stored instance."""

    path: str  # relative to the storage root
    content: bytes  # of the file
    dataset: bytes
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    tenant: str
    source: Source
    received_at: str | None  # RFC 3339, UTC; None where nothing says so
    anomalies: tuple[str, ...]  # of its record, but for `transcoding_busy`


def read_original(store: Store, outbox: Outbox, path: str) -> Original:
    """The instance at a path relative to the storage root.

    Sender and time are those of its record as far as it is kept. Else the calling AE title is that of the file, the
    time that of the row, and address and called AE title are lost.

    Raises:
        UnchangedError: it is not there, not ours, or not what its record says.
        OSError: it cannot be read.
    """
    tenant, *others = path.removesuffix(".dcm").split("/")
    if len(others) + 1 != _LEVELS or not TENANT_ID.fullmatch(tenant) or not all(map(_is_uid, others)):
        raise UnchangedError("it is not stored")
    content = store.read(path)
    if content is None:
        raise UnchangedError("it is not stored")
    located = locate_dataset(content)
    if located is None or located.implementation_class_uid != _core.IMPLEMENTATION_CLASS_UID:
        raise UnchangedError("another program wrote it")
    row = outbox.newest(path)
    if row is not None and (row.size, row.digest) != (len(content), digest(content)):
        raise UnchangedError("the file is not what its record says")
    source, received_at, anomalies = _known(row, located, tenant)
    return Original(
        path=path,
        content=content,
        dataset=content[located.offset :],
        transfer_syntax=located.transfer_syntax,
        sop_class_uid=located.sop_class_uid,
        sop_instance_uid=others[-1],
        tenant=tenant,
        source=source,
        received_at=received_at,
        anomalies=anomalies,
    )


def _known(row: Recorded | None, located: Located, tenant: str) -> tuple[Source, str | None, tuple[str, ...]]:
    lost = Source(located.source_ae_title, "", "", tenant, tenant_by_rule=True)
    if row is None:
        return lost, None, ()
    if not row.payload:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row.created)
        return lost, _text_of(moment), ()
    try:
        record = json.loads(row.payload)
        source = Source(record["source_ae"], record["called_ae"], record["source_ip"], tenant, tenant_by_rule=True)
        anomalies = tuple(code for code in record["anomalies"] if code != BUSY)
        # Version 1 has no `received_at`, and a zone in `created_time`.
        received_at = datetime.fromisoformat(record.get("received_at", record["created_time"]))
        return source, _text_of(received_at), anomalies
    except (ValueError, KeyError, TypeError):
        # A record of another version, or one that was saved from a damaged outbox.
        return lost, None, ()


def _text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_uid(text: str) -> bool:
    return UID.fullmatch(text.encode("ascii", "replace")) is not None
