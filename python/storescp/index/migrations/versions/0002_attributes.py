"""Attributes of patients, studies, series and instances; places of files; events."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_UID, _MOMENT, _TOPIC = sa.String(64), sa.String(32), sa.String(249)
_DATE, _TIME = sa.String(10), sa.String(15)


def upgrade() -> None:
    """Adds columns and tables, empty for now."""
    _add(
        "patient",
        sa.Column("patient_name", sa.Text),
        sa.Column("patient_name_search", sa.String(200)),
        sa.Column("patient_birth_date", _DATE),
        sa.Column("patient_sex", sa.Text),
        sa.Column("updated", _MOMENT, nullable=False, server_default=""),
    )
    _add(
        "study",
        sa.Column("study_time", _TIME),
        sa.Column("study_id", sa.Text),
        sa.Column("study_description", sa.Text),
        sa.Column("referring_physician_name", sa.Text),
        sa.Column("timezone_offset_from_utc", sa.Text),
        sa.Column("modalities", sa.Text, nullable=False, server_default=""),
        sa.Column("series_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("instance_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("first_received", _MOMENT),
        sa.Column("last_received", _MOMENT),
    )
    _add(
        "series",
        *_of_series(),
        sa.Column("instance_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    )
    _add(
        "instance",
        *[sa.Column(name, sa.Integer) for name in ("instance_number", "rows", "columns", "bits_allocated")],
        sa.Column("node_id", sa.String(255), nullable=False, server_default=""),
        sa.Column("digest", sa.String(32), nullable=False, server_default=""),
    )
    op.create_index("patient_search", "patient", ["tenant_id", "patient_name_search"])
    op.create_index("study_by_date", "study", ["tenant_id", "study_date"])
    op.create_index("study_by_accession_number", "study", ["tenant_id", "accession_number"])
    op.create_index("study_by_last_received", "study", ["last_received"])
    op.create_table(
        "description",
        *(sa.Column(name, _UID, primary_key=True) for name in ("tenant_id", "study_uid", "series_uid")),
        sa.Column("digest", sa.String(32), primary_key=True),
        sa.Column("instance_count", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("last_received", _MOMENT, nullable=False),
        sa.Column("patient_id", _UID, nullable=False),
        sa.Column("patient_name", sa.Text),
        sa.Column("patient_birth_date", _DATE),
        sa.Column("patient_sex", sa.Text),
        sa.Column("study_date", _DATE),
        sa.Column("study_time", _TIME),
        sa.Column("accession_number", sa.String(16)),
        sa.Column("study_id", sa.Text),
        sa.Column("study_description", sa.Text),
        sa.Column("referring_physician_name", sa.Text),
        sa.Column("timezone_offset_from_utc", sa.Text),
        *_of_series(),
    )
    op.create_index("description_of_patient", "description", ["tenant_id", "patient_id"])
    op.create_table(
        "instance_location",
        *(sa.Column(name, _UID, primary_key=True) for name in ("tenant_id", "study_uid", "series_uid", "sop_uid")),
        sa.Column("study_date", _DATE, primary_key=True),
        sa.Column("node_id", sa.String(255), primary_key=True),
        sa.Column("file_path", sa.String(512), nullable=False),
        sa.Column("file_url", sa.Text),
        sa.Column("updated", _MOMENT, nullable=False),
    )
    op.create_table(
        "file_progress",
        sa.Column("file", sa.String(64), primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("tail", sa.String(64), nullable=False),
    )
    op.create_table(
        "study_timer",
        *(sa.Column(name, _UID, primary_key=True) for name in ("tenant_id", "study_uid")),
        sa.Column("topic", _TOPIC, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("opened", sa.Double, nullable=False),
        sa.Column("applied", sa.Double, nullable=False),
    )
    op.create_table(
        "study_event",
        *(sa.Column(name, _UID, primary_key=True) for name in ("tenant_id", "study_uid")),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("topic", _TOPIC, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("opened", "applied", "made")),
        *(sa.Column(name, sa.Boolean, nullable=False) for name in ("to_publish", "to_run")),
    )
    op.create_index("study_event_pending", "study_event", ["to_publish", "to_run"])


def _of_series() -> "list[sa.Column[Any]]":
    return [
        sa.Column("modality", sa.Text),
        sa.Column("series_number", sa.Integer),
        sa.Column("series_description", sa.Text),
        sa.Column("body_part_examined", sa.Text),
        sa.Column("performed_procedure_step_start_date", _DATE),
        sa.Column("performed_procedure_step_start_time", _TIME),
        sa.Column("request_attributes_sequence", sa.Text),
    ]


def _add(table: str, *columns: "sa.Column[Any]") -> None:
    for column in columns:
        op.add_column(table, column)
