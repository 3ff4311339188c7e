"""The tables, for SQLite and PostgreSQL. Migrations make them; what is here must say the same.

Dates and times are ISO 8601 texts in both. Attributes of patients, studies and series have the names of PS3.6 in lower
case; what QIDO-RS returns of each level is in PS3.18 10.6.3.3. Of that, these are derived: Modalities in Study and the
numbers of related series and instances are columns here, Instance Availability is ONLINE for whatever is listed, and
Retrieve URL is known to the server that retrieves, not to us.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
_TENANT = sa.String(64)
_UID = sa.String(64)
_DATE = sa.String(10)
_TIME = sa.String(15)
_MOMENT = sa.String(32)
_TRACE = sa.String(36)
_TOPIC = sa.String(249)
# Seconds since 1970, by the clock of the database.
_SECONDS = sa.Double
# What the search column of a name holds at most.
SEARCH_CHARACTERS = 200

patient = sa.Table(
    "patient",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("patient_id", sa.String(64), primary_key=True, comment="empty where the instances have none"),
    sa.Column("patient_name", sa.Text, comment="as DICOM writes it: family^given=ideographic=phonetic"),
    sa.Column("patient_name_search", sa.String(SEARCH_CHARACTERS), comment="lower case, without accents"),
    sa.Column("patient_birth_date", _DATE),
    sa.Column("patient_sex", sa.Text),
    sa.Column("updated", _MOMENT, nullable=False, server_default="", comment="when the last record was received"),
    sa.Index("patient_search", "tenant_id", "patient_name_search"),
)

study = sa.Table(
    "study",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("study_date", _DATE, comment="ISO 8601"),
    sa.Column("accession_number", sa.String(16)),
    sa.Column("updated", _MOMENT, nullable=False, comment="when the last record was received"),
    sa.Column("study_time", _TIME),
    sa.Column("study_id", sa.Text),
    sa.Column("study_description", sa.Text),
    sa.Column("referring_physician_name", sa.Text),
    sa.Column("timezone_offset_from_utc", sa.Text),
    sa.Column("modalities", sa.Text, nullable=False, server_default="", comment="sorted: CT\\SR"),
    sa.Column("series_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("instance_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("first_received", _MOMENT),
    sa.Column("last_received", _MOMENT),
    sa.ForeignKeyConstraint(["tenant_id", "patient_id"], ["patient.tenant_id", "patient.patient_id"]),
    sa.Index("study_patient", "tenant_id", "patient_id"),
    sa.Index("study_by_date", "tenant_id", "study_date"),
    sa.Index("study_by_accession_number", "tenant_id", "accession_number"),
    sa.Index("study_by_last_received", "last_received"),
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("series_uid", _UID, primary_key=True),
    sa.Column("updated", _MOMENT, nullable=False),
    sa.Column("modality", sa.Text),
    sa.Column("series_number", sa.Integer),
    sa.Column("series_description", sa.Text),
    sa.Column("body_part_examined", sa.Text),
    sa.Column("performed_procedure_step_start_date", _DATE),
    sa.Column("performed_procedure_step_start_time", _TIME),
    sa.Column("request_attributes_sequence", sa.Text, comment="its Value in the DICOM JSON model"),
    sa.Column("instance_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.ForeignKeyConstraint(["tenant_id", "study_uid"], ["study.tenant_id", "study.study_uid"]),
)

# What the instances of a series say of their patient, study and series: nearly always the same, so one row. Patients,
# studies and series are made from these rows: of each attribute the newest value counts, and the others are conflicts
# (the view `conflict`).
description = sa.Table(
    "description",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("series_uid", _UID, primary_key=True),
    sa.Column("digest", sa.String(32), primary_key=True, comment="of the attributes"),
    sa.Column("instance_count", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("last_received", _MOMENT, nullable=False),
    sa.Column("patient_id", sa.String(64), nullable=False),
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
    sa.Column("modality", sa.Text),
    sa.Column("series_number", sa.Integer),
    sa.Column("series_description", sa.Text),
    sa.Column("body_part_examined", sa.Text),
    sa.Column("performed_procedure_step_start_date", _DATE),
    sa.Column("performed_procedure_step_start_time", _TIME),
    sa.Column("request_attributes_sequence", sa.Text),
    sa.Index("description_of_patient", "tenant_id", "patient_id"),
)

OF_PATIENT = ("patient_name", "patient_birth_date", "patient_sex")
OF_STUDY = (
    "study_date",
    "study_time",
    "accession_number",
    "study_id",
    "study_description",
    "referring_physician_name",
    "timezone_offset_from_utc",
)
OF_SERIES = (
    "modality",
    "series_number",
    "series_description",
    "body_part_examined",
    "performed_procedure_step_start_date",
    "performed_procedure_step_start_time",
    "request_attributes_sequence",
)
# Every column of a description that an instance says.
SAID = ("patient_id", *OF_PATIENT, *OF_STUDY, *OF_SERIES)

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
    sa.Column("file_path", sa.String(512), nullable=False, comment="of the newest record: see instance_location"),
    sa.Column("file_size", sa.BigInteger, nullable=False),
    sa.Column("transfer_syntax_uid", _UID, nullable=False, comment="as received"),
    sa.Column("target_ts", _UID, nullable=False, comment="as stored"),
    sa.Column("transfer_status", sa.String(16), nullable=False),
    sa.Column("number_of_frames", sa.Integer, nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("source_ip", sa.String(64), nullable=False),
    sa.Column("trace_id", _TRACE, nullable=False, comment="empty where no record is known: rebuilt from the file"),
    sa.Column("created_time", _MOMENT, nullable=False, comment="received_at where the record has it"),
    sa.Column("instance_number", sa.Integer),
    sa.Column("rows", sa.Integer),
    sa.Column("columns", sa.Integer),
    sa.Column("bits_allocated", sa.Integer),
    sa.Column("node_id", sa.String(255), nullable=False, server_default="", comment="of the newest record"),
    sa.Column("digest", sa.String(32), nullable=False, server_default="", comment="of its description"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "study_uid", "series_uid"], ["series.tenant_id", "series.study_uid", "series.series_uid"]
    ),
)

# Where the file of an instance is: a row for each node that has it.
location = sa.Table(
    "instance_location",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("series_uid", _UID, primary_key=True),
    sa.Column("sop_uid", _UID, primary_key=True),
    sa.Column("study_date", _DATE, primary_key=True),
    sa.Column("node_id", sa.String(255), primary_key=True, comment="worker_node_id of the record"),
    sa.Column("file_path", sa.String(512), nullable=False),
    sa.Column("file_url", sa.Text, comment="in object storage"),
    sa.Column("updated", _MOMENT, nullable=False),
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

# The same for JSON lines. A file is known by its first line, wherever it is moved and copied.
file_progress = sa.Table(
    "file_progress",
    metadata,
    sa.Column("file", sa.String(64), primary_key=True, comment="SHA-256 of its first line, hexadecimal"),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("tail", sa.String(64), nullable=False, comment="SHA-256 of the bytes before it, at most 4,096"),
)

# Studies that have had a record since their last event.
study_timer = sa.Table(
    "study_timer",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("topic", _TOPIC, nullable=False, comment="that the last record came from, or the root"),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("opened", _SECONDS, nullable=False, comment="when the first record was applied"),
    sa.Column("applied", _SECONDS, nullable=False, comment="when the last record was applied"),
)

study_event = sa.Table(
    "study_event",
    metadata,
    sa.Column("tenant_id", _TENANT, primary_key=True),
    sa.Column("study_uid", _UID, primary_key=True),
    sa.Column("generation", sa.Integer, primary_key=True),
    sa.Column("event", sa.String(16), nullable=False, comment="study.quiet or study.forced"),
    sa.Column("message", sa.Text, nullable=False, comment="as it is published"),
    sa.Column("topic", _TOPIC, nullable=False, comment="as in study_timer"),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("opened", _SECONDS, nullable=False),
    sa.Column("applied", _SECONDS, nullable=False),
    sa.Column("made", _SECONDS, nullable=False),
    sa.Column("to_publish", sa.Boolean, nullable=False),
    sa.Column("to_run", sa.Boolean, nullable=False, comment="a command is waiting for it"),
    sa.Index("study_event_pending", "to_publish", "to_run"),
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
