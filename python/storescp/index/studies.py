"""Studies of the index, as `storescpd studies` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from storescp.index import tables
from storescp.index.database import Database

_PLAIN = (
    "last_received",
    "tenant_id",
    "study_date",
    "modalities",
    "series_count",
    "instance_count",
    "bytes",
    "study_uid",
)
_OF_STUDY = ("accession_number", "study_description")
_OF_PATIENT = ("patient_id", "patient_name", "patient_birth_date", "patient_sex")


@dataclass(frozen=True)
class Wanted:
    """Which studies: those that match everything that is given. `since`: seconds before now."""

    tenant_id: str | None = None
    since: float | None = None
    modality: str | None = None
    accession_number: str | None = None
    limit: int = 100


def find(database: Database, wanted: Wanted, *, with_patient_data: bool) -> list[dict[str, object]]:
    """Studies, the last received first: name of a column to its value.

    Raises:
        StorescpError: there are no tables, or the database is away.
    """
    study, patient = tables.study, tables.patient
    columns = [study.c[name] for name in _PLAIN]
    where: list[sa.ColumnElement[bool]] = []
    source: sa.FromClause = study
    if with_patient_data:
        same = (patient.c.tenant_id == study.c.tenant_id) & (patient.c.patient_id == study.c.patient_id)
        source = study.join(patient, same)
        columns += [study.c[name] for name in _OF_STUDY] + [patient.c[name] for name in _OF_PATIENT]
    if wanted.tenant_id is not None:
        where.append(study.c.tenant_id == wanted.tenant_id)
    if wanted.since is not None:
        begin = (datetime.now(UTC) - timedelta(seconds=wanted.since)).isoformat(timespec="microseconds")
        where.append(study.c.last_received >= begin.replace("+00:00", "Z"))
    if wanted.modality is not None:
        # The list has backslashes between its codes.
        listed = sa.literal("\\") + study.c.modalities + sa.literal("\\")
        where.append(sa.func.replace(listed, f"\\{wanted.modality.upper()}\\", "") != listed)
    if wanted.accession_number is not None:
        where.append(study.c.accession_number == wanted.accession_number)
    query = sa.select(*columns).select_from(source).where(*where)
    query = query.order_by(study.c.last_received.desc(), study.c.study_uid).limit(wanted.limit)
    return database.read(query)
