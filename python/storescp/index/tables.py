"""The tables, for SQLite and PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
_TENANT = sa.String(64)
_UID = sa.String(64)
_DATE = sa.String(10)
_TRACE = sa.String(36)
_TOPIC = sa.String(249)

patient = sa.Table(
    "patient",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("patient_id", sa.String(64), primary_key=True, comment="empty where the instances have none"),
)

study = sa.Table(
    "study",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("study_date", _DATE, comment="ISO 8601"),
    sa.Column("accession_number", sa.String(16)),
    sa.Column("updated", sa.String(32), nullable=False, comment="when the last record was received"),
    sa.ForeignKeyConstraint(["tenant_id", "patient_id"], ["patient.tenant_id", "patient.patient_id"]),
    sa.Index("study_patient", "tenant_id", "patient_id"),
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("series_uid", _UID, primary_key=True),
    sa.Column("updated", sa.String(32), nullable=False),
    sa.ForeignKeyConstraint(["tenant_id", "study_uid"], ["study.tenant_id", "study.study_uid"]),
)

# One row for each file: an instance with another Study Date is another file.
instance = sa.Table(
    "instance",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("series_uid", _UID, primary_key=True),
    sa.Column("sop_uid", _UID, primary_key=True),
    sa.Column("study_date", _DATE, primary_key=True, comment="ISO 8601, empty where there is none"),
    sa.Column("sop_class_uid", _UID, nullable=False, comment="empty in records of wado-storescp"),
    sa.Column("file_path", sa.String(512), nullable=False),
    sa.Column("file_size", sa.BigInteger, nullable=False),
    sa.Column("transfer_syntax_uid", _UID, nullable=False, comment="as received"),
    sa.Column("target_ts", _UID, nullable=False, comment="as stored"),
    sa.Column("transfer_status", sa.String(16), nullable=False),
    sa.Column("number_of_frames", sa.Integer, nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("source_ip", sa.String(64), nullable=False),
    sa.Column("trace_id", _TRACE, nullable=False),
    sa.Column("created_time", sa.String(32), nullable=False, comment="received_at where the record has it"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "study_uid", "series_uid"], ["series.tenant_id", "series.study_uid", "series.series_uid"]
    ),
)

# Every record that is in the tables: a second delivery has the same trace id.
record = sa.Table("record", metadata, sa.Column("trace_id", _TRACE, primary_key=True))

# Committed with the data: what is counted here is in the tables, and nothing else is.
progress = sa.Table(
    "kafka_progress",
    metadata,
    sa.Column("topic", _TOPIC, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("topic_id", sa.String(36), comment="of the topic that the offset belongs to; null where it is not known"),
)

# What is not a record of ours: kept for people, never in the way.
unreadable = sa.Table(
    "unreadable_message",
    metadata,
    sa.Column("topic", _TOPIC, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
