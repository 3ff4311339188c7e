"""Tables with identifiers only; before they had migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_UID, _MOMENT, _TRACE, _TOPIC = sa.String(64), sa.String(32), sa.String(36), sa.String(249)


def _tables() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table(
        "patient",
        metadata,
        sa.Column("tenant_id", _UID, primary_key=True),
        sa.Column("patient_id", _UID, primary_key=True),
    )
    sa.Table(
        "study",
        metadata,
        sa.Column("tenant_id", _UID, primary_key=True),
        sa.Column("study_uid", _UID, primary_key=True),
        sa.Column("patient_id", _UID, nullable=False),
        sa.Column("study_date", sa.String(10)),
        sa.Column("accession_number", sa.String(16)),
        sa.Column("updated", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id", "patient_id"], ["patient.tenant_id", "patient.patient_id"]),
        sa.Index("study_patient", "tenant_id", "patient_id"),
    )
    sa.Table(
        "series",
        metadata,
        sa.Column("tenant_id", _UID, primary_key=True),
        sa.Column("study_uid", _UID, primary_key=True),
        sa.Column("series_uid", _UID, primary_key=True),
        sa.Column("updated", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id", "study_uid"], ["study.tenant_id", "study.study_uid"]),
    )
    sa.Table(
        "instance",
        metadata,
        sa.Column("tenant_id", _UID, primary_key=True),
        sa.Column("study_uid", _UID, primary_key=True),
        sa.Column("series_uid", _UID, primary_key=True),
        sa.Column("sop_uid", _UID, primary_key=True),
        sa.Column("study_date", sa.String(10), primary_key=True),
        sa.Column("sop_class_uid", _UID, nullable=False),
        sa.Column("file_path", sa.String(512), nullable=False),
        sa.Column("file_size", sa.BigInteger, nullable=False),
        sa.Column("transfer_syntax_uid", _UID, nullable=False),
        sa.Column("target_ts", _UID, nullable=False),
        sa.Column("transfer_status", sa.String(16), nullable=False),
        sa.Column("number_of_frames", sa.Integer, nullable=False),
        sa.Column("source_ae", sa.String(16), nullable=False),
        sa.Column("source_ip", _UID, nullable=False),
        sa.Column("trace_id", _TRACE, nullable=False),
        sa.Column("created_time", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "study_uid", "series_uid"], ["series.tenant_id", "series.study_uid", "series.series_uid"]
        ),
    )
    sa.Table("record", metadata, sa.Column("trace_id", _TRACE, primary_key=True))
    sa.Table(
        "kafka_progress",
        metadata,
        sa.Column("topic", _TOPIC, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("topic_id", sa.String(36)),
    )
    sa.Table(
        "unreadable_message",
        metadata,
        sa.Column("topic", _TOPIC, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    return metadata


def upgrade() -> None:
    """Makes what is not there."""
    connection = op.get_bind()
    _tables().create_all(connection)
    if "topic_id" not in {one["name"] for one in sa.inspect(connection).get_columns("kafka_progress")}:
        op.add_column("kafka_progress", sa.Column("topic_id", sa.String(36)))
