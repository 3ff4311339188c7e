"""Descriptions, counts and sums of instances of before, which say Patient ID, Study Date and Accession Number."""

import sqlalchemy as sa
from alembic import op

from storescp import _core

revision = "0004"
down_revision = "0003"

_TOGETHER = 1000
# What a description says, in the order of its digest.
_SAID = (
    "patient_id",
    "patient_name",
    "patient_birth_date",
    "patient_sex",
    "study_date",
    "study_time",
    "accession_number",
    "study_id",
    "study_description",
    "referring_physician_name",
    "timezone_offset_from_utc",
    "modality",
    "series_number",
    "series_description",
    "body_part_examined",
    "performed_procedure_step_start_date",
    "performed_procedure_step_start_time",
    "request_attributes_sequence",
)
_SERIES = "d.tenant_id = {0}.tenant_id AND d.study_uid = {0}.study_uid AND d.series_uid = {0}.series_uid"
_STUDY = "d.tenant_id = study.tenant_id AND d.study_uid = study.study_uid"


def upgrade() -> None:
    """A description for each series and Study Date; then what is counted."""
    connection = op.get_bind()
    found = connection.execute(
        sa.text(
            "SELECT i.tenant_id, i.study_uid, i.series_uid, i.study_date, s.patient_id, s.accession_number, "
            "count(*) AS instance_count, sum(i.file_size) AS bytes, max(i.created_time) AS last_received "
            "FROM instance i JOIN study s ON s.tenant_id = i.tenant_id AND s.study_uid = i.study_uid "
            "GROUP BY i.tenant_id, i.study_uid, i.series_uid, i.study_date, s.patient_id, s.accession_number"
        ),
        execution_options={"yield_per": _TOGETHER},
    )
    for rows in found.mappings().partitions(_TOGETHER):
        connection.execute(_INSERT, [_description(row) for row in rows])
    of_instance = f"{_SERIES.format('instance')} AND coalesce(d.study_date, '') = instance.study_date"
    for statement in (
        f"UPDATE instance SET digest = (SELECT d.digest FROM description d WHERE {of_instance})",
        _summed("series", _SERIES.format("series"), ""),
        _summed("study", _STUDY, ", series_count = (SELECT count(DISTINCT d.series_uid) FROM description d "
                f"WHERE {_STUDY}), last_received = updated, first_received = (SELECT min(d.created_time) "
                f"FROM instance d WHERE {_STUDY})"),
    ):  # fmt: skip
        connection.execute(sa.text(statement))


_INSERT = sa.insert(
    sa.table(
        "description",
        *(sa.column(name) for name in ("tenant_id", "study_uid", "series_uid", "digest", "instance_count", "bytes")),
        *(sa.column(name) for name in ("last_received", "patient_id", "study_date", "accession_number")),
    )
)


def _description(row: sa.RowMapping) -> dict[str, object]:
    said = {
        "patient_id": row["patient_id"],
        "study_date": row["study_date"] or None,
        "accession_number": row["accession_number"] or None,
    }
    names = ("tenant_id", "study_uid", "series_uid", "instance_count", "last_received")
    whole = {"digest": _core.description_digest([said.get(name) for name in _SAID]), "bytes": int(row["bytes"])}
    return said | {name: row[name] for name in names} | whole


def _summed(table: str, these: str, others: str) -> str:
    sums = (
        f"{name} = (SELECT coalesce(sum(d.{name}), 0) FROM description d WHERE {these})"
        for name in ("instance_count", "bytes")
    )
    return f"UPDATE {table} SET {', '.join(sums)}{others}"
