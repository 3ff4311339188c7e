"""The tables against the storage: SQLite and a real PostgreSQL, several workers, kills, outages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, errors

from storescp.errors import ConfigError
from storescp.index import tables
from storescp.index.consumer import Indexer
from storescp.index.database import Database, Message, Progress
from storescp.index.refusals import MessageRefusedError, refusal_by
from storescp.settings import Index, Kafka
from support.broker import KafkaBroker, Topics
from support.databases import drop_everything, engine_of, execute, messages, record, rows
from support.index_process import IndexProcess, wait_for
from support.instances import CT, ct_slice, explicit, text
from support.load import Ledger, send_curated, start_senders
from support.postgres import Postgres
from support.scu import RawAssociation
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]


def test_records_become_patients_studies_series_and_instances(database: Database, url: str) -> None:
    others = [record(3, study_uid="1.2", series_uid="1.2.1"), record(4, tenant_id="u", patient_id="")]
    applied = database.apply("main", {0: messages(record(1), record(2)), 1: messages(*others)})
    assert (applied.records, applied.duplicates, applied.unreadable) == (4, 0, 0)
    assert applied.next_offsets == {0: 2, 1: 2}
    assert {(one["tenant_id"], one["patient_id"]) for one in rows(url, tables.patient)} == {("t", "p1"), ("u", "")}
    assert len(rows(url, tables.study)) == 3
    assert len(rows(url, tables.series)) == 3
    [first] = [one for one in rows(url, tables.instance) if one["sop_uid"] == "1.1.1.1"]
    assert (first["file_path"], first["file_size"], first["study_date"]) == ("/data/1.dcm", 101, "2024-02-29")
    assert database.progress("main", [0, 1, 2]) == {0: Progress(2), 1: Progress(2), 2: Progress()}


def test_times_are_those_with_a_zone_where_the_record_has_them(database: Database, url: str) -> None:
    times = {"created_time": "2026-01-01T08:00:00.000000", "received_at": "2026-01-01T00:00:00.000000Z"}
    database.apply("main", {0: messages(record(1, **times, schema_version=2, dicom={}), record(2))})
    assert {one["created_time"] for one in rows(url, tables.instance)} == {"2026-01-01T00:00:00.000000Z"}
    [study] = rows(url, tables.study)
    assert study["updated"] == "2026-01-01T00:00:00.000000Z"


def test_records_of_wado_storescp_are_read(database: Database, url: str) -> None:
    """As its serde writes them: no SOP Class UID, local time with nanoseconds, a status that ours never have."""
    original = record(
        1, created_time="2025-12-01T08:21:56.123456789", transfer_status="NeedTransfer", patient_id="1CT1"
    )
    original |= {"worker_node_id": "DICOM_STORE_SCP", "series_uid_hash": "0" * 20, "study_uid_hash": "0" * 20}
    del original["sop_class_uid"]
    applied = database.apply("main", {0: messages(original)})
    assert (applied.records, applied.unreadable) == (1, 0)
    [instance] = rows(url, tables.instance)
    assert (instance["sop_class_uid"], instance["transfer_status"]) == ("", "NeedTransfer")
    assert instance["created_time"] == "2025-12-01T08:21:56.123456789"


def test_a_second_delivery_changes_nothing_even_after_a_newer_record(database: Database, url: str) -> None:
    old, new = record(1, file_size=1), record(1, file_size=2)
    database.apply("main", {0: messages(old, old, new)})
    applied = database.apply("main", {0: messages(old, begin=3)})
    assert (applied.records, applied.duplicates) == (0, 1)
    [instance] = rows(url, tables.instance)
    assert (instance["file_size"], instance["trace_id"]) == (2, new["trace_id"])


def test_a_worker_that_lost_its_partition_does_no_harm(database: Database, url: str) -> None:
    batch = messages(record(1), record(2), record(3))
    database.apply("main", {0: batch})
    applied = database.apply("main", {0: batch[:2]})
    assert (applied.records, applied.next_offsets) == (0, {0: 3})
    assert database.progress("main", [0]) == {0: Progress(3)}


def test_records_that_the_topic_no_longer_holds_are_told_of(database: Database) -> None:
    assert database.apply("main", {0: messages(record(1), record(2))}).gone == {}
    applied = database.apply(
        "main", {0: messages(record(3), begin=7), 1: messages(record(4, study_uid="1.2"), begin=4)}
    )
    assert (applied.records, applied.gone) == (2, {0: 5, 1: 4})
    assert applied.next_offsets == {0: 8, 1: 5}


def test_a_patient_that_no_study_has_any_more_goes(database: Database, url: str) -> None:
    database.apply("main", {0: messages(record(1), record(2, study_uid="1.2", series_uid="1.2.1", patient_id="p2"))})
    corrected = record(1, patient_id="p3")
    database.apply("main", {0: messages(corrected, begin=2)})
    assert {one["patient_id"] for one in rows(url, tables.patient)} == {"p2", "p3"}
    merged = record(1, patient_id="p2")
    database.apply("main", {0: messages(merged, begin=3)})
    assert {one["patient_id"] for one in rows(url, tables.patient)} == {"p2"}


FOREIGN = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{",
    b"not JSON",
    b"[" * 100_000,
    b'{"trace_id":' * 1000 + b"1" + b"}" * 1000,
    json.dumps(record(1, study_uid="")).encode(),
    json.dumps(record(1, study_uid="1" * 65)).encode(),
    json.dumps(record(1, file_size="1")).encode(),
    json.dumps(record(1, file_size=1 << 63)).encode(),
    json.dumps(record(1, file_size=-1)).encode(),
    json.dumps(record(1, file_size=0)).replace('"file_size": 0', '"file_size": 1e400').encode(),
    json.dumps(record(1, number_of_frames=1 << 31)).encode(),
    json.dumps(record(1, study_date="10000-01-01")).encode(),
    json.dumps(record(1, file_path="/data/1\0.dcm")).encode(),
    json.dumps(record(1, sop_uid="1.2\0")).encode(),
    json.dumps(record(1, patient_id="\ud800")).encode(),
    json.dumps({key: value for key, value in record(1).items() if key != "trace_id"}).encode(),
]


def test_what_is_not_a_record_is_kept_aside(database: Database, url: str) -> None:
    batch = [Message(offset, value) for offset, value in enumerate(FOREIGN)]
    applied = database.apply("main", {0: [*batch, *messages(record(1), begin=len(batch))]})
    assert (applied.records, applied.unreadable) == (1, len(FOREIGN))
    kept = sorted(rows(url, tables.unreadable), key=lambda row: row["offset"])
    assert [row["value"] for row in kept] == FOREIGN
    assert all(row["reason"] for row in kept)


def test_numbers_and_texts_at_the_limits_are_applied(database: Database, url: str) -> None:
    largest = record(1, file_size=(1 << 63) - 1, number_of_frames=(1 << 31) - 1, patient_id="\U0001f9e0" * 64)
    twice = json.dumps(largest).replace('"source_ae": "A"', '"source_ae": "FIRST", "source_ae": "LAST"')
    assert database.apply("main", {0: [Message(0, twice.encode())]}).records == 1
    [instance] = rows(url, tables.instance)
    assert (instance["file_size"], instance["number_of_frames"]) == ((1 << 63) - 1, (1 << 31) - 1)
    assert instance["source_ae"] == "LAST"
    assert [one["patient_id"] for one in rows(url, tables.patient)] == ["\U0001f9e0" * 64]


def test_a_control_character_in_a_record_of_before_is_read_as_new_records_have_it(database: Database, url: str) -> None:
    older = record(1, patient_id="AB\0CDE", accession_number="\x1b1\n", source_ae="A\x01")
    assert database.apply("main", {0: messages(older)}).records == 1
    [study] = rows(url, tables.study)
    assert (study["patient_id"], study["accession_number"]) == ("AB\ufffdCDE", "\ufffd1\ufffd")
    assert [one["source_ae"] for one in rows(url, tables.instance)] == ["A\ufffd"]


def test_a_message_that_the_database_refuses_leaves_everything_as_it_was(database: Database, url: str) -> None:
    execute(url, "CREATE UNIQUE INDEX one_path ON instance (file_path)")
    batch = messages(record(1), record(2, file_path="/data/1.dcm"), record(3))
    with pytest.raises(MessageRefusedError) as refused:
        database.apply("main", {0: batch})
    assert refused.value.may_pass
    assert str(refused.value) in {"database: IntegrityError", "database: UniqueViolation (23505)"}
    assert rows(url, tables.record) == rows(url, tables.progress) == []
    aside = [batch[0], replace(batch[1], refusal=str(refused.value)), batch[2]]
    applied = database.apply("main", {0: aside})
    assert (applied.records, applied.unreadable, applied.next_offsets) == (2, 1, {0: 3})
    [kept] = rows(url, tables.unreadable)
    assert (kept["offset"], kept["reason"], kept["value"]) == (1, str(refused.value), batch[1].value)


@pytest.mark.parametrize(
    ("statement", "value", "may_pass"),
    [
        ("SELECT CAST(:value AS text)", "\0", None),
        ("SELECT CAST(:value AS text)", "\ud800", False),
        ("SELECT CAST(:value AS bigint)", 1 << 63, False),
        ("INSERT INTO record VALUES (:value)", None, True),
        ("SELECT nothing FROM nowhere WHERE nothing = :value", 1, "wait"),
    ],
)
def test_errors_that_a_value_causes_are_told_from_those_that_pass(
    database: Database, url: str, statement: str, value: object, may_pass: object
) -> None:
    refusal = None
    with engine_of(url) as engine:
        try:
            with engine.begin() as connection:
                connection.execute(sa.text(statement), {"value": value})
            assert may_pass is None
            assert engine.dialect.name == "sqlite", "SQLite stores a NUL"
        except (sa.exc.StatementError, ValueError, OverflowError) as error:
            refusal = refusal_by(error)
            assert (refusal is None) == (may_pass == "wait")
    assert refusal is None or refusal.may_pass == bool(may_pass)


def test_an_outage_of_postgresql_refuses_no_message(postgres: Postgres) -> None:
    database = Database(postgres.url)
    database.create()
    batch = {0: messages(record(1))}
    execute(postgres.url, "ALTER TABLE instance RENAME TO elsewhere")
    with pytest.raises(sa.exc.ProgrammingError, match="instance"):
        database.apply("main", batch)
    execute(postgres.url, "ALTER TABLE elsewhere RENAME TO instance")
    postgres.stop()
    try:
        with pytest.raises(sa.exc.OperationalError):
            database.apply("main", batch)
    finally:
        postgres.start()
    assert database.apply("main", batch).records == 1
    database.close()
    drop_everything(postgres.url)


def test_tables_without_a_topic_id_get_the_column_and_keep_their_progress(url: str) -> None:
    execute(
        url,
        "CREATE TABLE kafka_progress (topic VARCHAR(249), partition INTEGER, next_offset BIGINT NOT NULL, "
        "PRIMARY KEY (topic, partition))",
        "INSERT INTO kafka_progress VALUES ('main', 0, 7)",
    )
    database = Database(url)
    for _ in range(2):
        database.create()
        assert database.progress("main", [0]) == {0: Progress(7)}
    database.apply("main", {0: messages(record(1), begin=7)}, "id-1")
    assert database.progress("main", [0]) == {0: Progress(8, "id-1")}
    database.close()


def test_a_worker_that_read_the_topic_before_it_was_made_anew_does_no_harm(database: Database) -> None:
    database.apply("main", {0: messages(record(1), record(2))}, "id-1")
    database.begin_again("main", 0, "id-2")
    applied = database.apply("main", {0: messages(record(3), begin=2)}, "id-1")
    assert (applied.records, applied.gone, applied.next_offsets) == (0, {}, {0: 0})
    assert database.progress("main", [0]) == {0: Progress(0, "id-2")}


def test_fields_of_later_versions_are_ignored(database: Database, url: str) -> None:
    assert database.apply("main", {0: messages(record(1, schema_version=2, new_field={"a": 1}))}).records == 1


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://u:secret@h/d", "oracle://", "postgresql+nosuchdriver://u:secret@h/d"]
)
def test_a_database_that_cannot_be_used_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="SQLAlchemy URL") as found:
        Database(url)
    assert "secret" not in str(found.value)


# The whole way.


def scan(service: ServiceProcess) -> dict[str, set[tuple[Any, ...]]]:
    """What the tables must hold, read from the files."""
    found: dict[str, set[tuple[Any, ...]]] = {"patient": set(), "study": set(), "series": set(), "instance": set()}
    for file in service.files():
        tenant, day, study, series, _ = file.relative_to(service.root).parts
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID", "SOPClassUID"])
        patient = str(dataset.get("PatientID", "") or "").strip()[:64]
        date = "" if day == "00000000" else f"{day[:4]}-{day[4:6]}-{day[6:]}"
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        found["patient"].add((tenant, patient))
        found["study"].add((tenant, study, patient))
        found["series"].add((tenant, study, series))
        found["instance"].add(
            (tenant, study, series, file.stem, date, str(dataset.SOPClassUID), str(file), file.stat().st_size, syntax)
        )
    return found


def indexed(url: str) -> dict[str, set[tuple[Any, ...]]]:
    columns = {
        tables.patient: ["tenant_id", "patient_id"],
        tables.study: ["tenant_id", "study_uid", "patient_id"],
        tables.series: ["tenant_id", "study_uid", "series_uid"],
        tables.instance: [
            "tenant_id", "study_uid", "series_uid", "sop_uid", "study_date", "sop_class_uid", "file_path",
            "file_size", "target_ts",
        ],
    }  # fmt: skip
    return {
        table.name: {tuple(row[name] for name in names) for row in rows(url, table)} for table, names in columns.items()
    }


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.curated
def test_the_index_equals_a_scan_of_the_storage(
    serve: Serve, broker: KafkaBroker, topics: Topics, url: str, curated: Path, tmp_path: Path
) -> None:
    env = {"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": "[]"}
    service = serve(broker.address(), topics, "--promiscuous", env=env)
    send_curated(service.port, curated)
    assert service.stop() == 0
    output = IndexProcess(broker, topics, url, tmp_path / "index.log", "--once").wait()
    expected = scan(service)
    assert indexed(url) == expected
    print(f"\n{ {name: len(found) for name, found in expected.items()} }: {output.strip()}")
    assert IndexProcess(broker, topics, url, tmp_path / "again.log", "--once").wait().startswith("0 records")


@pytest.mark.timeout(240)
def test_workers_of_a_group_share_the_work_and_one_is_killed(
    serve: Serve, broker: KafkaBroker, topics: Topics, url: str, tmp_path: Path
) -> None:
    service = serve(broker.address(), topics)
    workers = [IndexProcess(broker, topics, url, tmp_path / f"{number}.log") for number in range(3)]
    ledger = Ledger()
    senders = start_senders(service.port, ledger, senders=8, count=100_000)
    for _ in range(400):
        assert ledger.enough.acquire(timeout=30)
    wait_for(lambda: all(worker.events("index.assigned") for worker in workers))
    wait_for(lambda: len(rows(url, tables.instance)) > 200)
    for _ in range(400):
        assert ledger.enough.acquire(timeout=30)
    workers[0].kill()
    for _ in range(400):
        assert ledger.enough.acquire(timeout=30)
    # A replacement of what is there already: other pixels, a new record.
    ledger.stop.set()
    for sender in senders:
        sender.join(30)
    for number in range(20):
        changed = ct_slice(
            number, study="1.2.826.0.1.0", series="1.2.826.0.1.0.1", rows=8,
            changes={0x00100020: explicit(0x00100020, b"LO", text("CORRECTED"))},
        )  # fmt: skip
        with RawAssociation(service.port, [(1, CT, [changed.transfer_syntax])]) as association:
            assert association.store(1, CT, changed.sop_instance, changed.dataset).status == 0
            association.release()
    assert service.stop() == 0
    wait_for(lambda: len(rows(url, tables.record)) == broker.end(topics.main), 60)
    for worker in workers[1:]:
        worker.stop()
    actual, expected = indexed(url), scan(service)
    assert actual["instance"] == expected["instance"]
    assert actual["series"] == expected["series"]
    assert len({row["partition"] for row in rows(url, tables.progress)}) > 1
    assert len(rows(url, tables.record)) == len(ledger.uids) + 20


def test_an_outage_of_the_database_and_of_the_broker(
    serve: Serve, broker: KafkaBroker, topics: Topics, postgres: Postgres, tmp_path: Path
) -> None:
    service = serve(broker.address(), topics)
    ledger = Ledger()
    postgres.stop()
    try:
        worker = IndexProcess(broker, topics, postgres.url, tmp_path / "index.log")
        for thread in start_senders(service.port, ledger, senders=3, count=20):
            thread.join(60)
        wait_for(lambda: len(worker.events("index.waiting")) >= 2)
        assert worker.events("index.waiting")[0]["on"] == "database"
    finally:
        postgres.start()
    wait_for(lambda: len(rows(postgres.url, tables.instance)) == 60)
    broker.kill()
    broker.start()
    postgres.stop()
    postgres.start()
    for thread in start_senders(service.port, ledger, senders=3, count=20, prefix="1.2.826.0.2"):
        thread.join(60)
    wait_for(lambda: len(rows(postgres.url, tables.instance)) == 120, 60)
    worker.stop()
    assert service.stop() == 0
    assert indexed(postgres.url) == scan(service)
    drop_everything(postgres.url)


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    broker: KafkaBroker, topics: Topics, serve: Serve, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/index.sqlite"
    ledger = Ledger()
    for number, count in enumerate((20, 3)):
        service = serve(broker.address(), topics)
        for thread in start_senders(service.port, ledger, senders=3, count=count, prefix=f"1.2.826.0.{number}"):
            thread.join(60)
        assert service.stop() == 0
        worker = IndexProcess(broker, topics, url, tmp_path / f"{number}.log", "--once")
        assert worker.wait().startswith(f"{3 * count} records, 0 duplicates")
        broker.delete_topic(topics.main)
        broker.create_topics(topics.main)
    assert worker.events("index.topic_made_anew")
    assert indexed(url) == scan(service)


@pytest.mark.parametrize("when", ["while the index runs", "while the index is away"])
def test_a_topic_that_was_made_anew_and_outgrew_the_old_one_loses_nothing(
    broker: KafkaBroker, names: Topics, tmp_path: Path, when: str
) -> None:
    url = f"sqlite:///{tmp_path}/index.sqlite"
    runs = when == "while the index runs"
    broker.create_topics(names.main, partitions=1)
    worker = IndexProcess(broker, names, url, tmp_path / "0.log", *([] if runs else ["--once"]))
    if not runs:
        worker.wait()
    for generation, count in enumerate((5, 12)):
        if generation:
            broker.delete_topic(names.main)
            broker.create_topics(names.main, partitions=1)
        numbers = range(100 * generation, 100 * generation + count)
        broker.write(names.main, [json.dumps(record(number)).encode() for number in numbers])
        if not runs:
            worker = IndexProcess(broker, names, url, tmp_path / f"{generation + 1}.log", "--once")
            assert worker.wait().startswith(f"{count} records, 0 duplicates")
        uids = {f"1.1.1.{number}" for number in numbers}
        wait_for(lambda uids=uids: uids <= {row["sop_uid"] for row in rows(url, tables.instance)})
    assert worker.events("index.topic_made_anew")
    if runs:
        worker.stop()
    assert len(rows(url, tables.record)) == 17


def test_an_instance_whose_patient_id_holds_a_nul_is_indexed_like_any_other(
    serve: Serve, broker: KafkaBroker, topics: Topics, url: str, tmp_path: Path
) -> None:
    service = serve(broker.address(), topics)
    with RawAssociation(service.port, [(1, CT, ["1.2.840.10008.1.2.1"])]) as association:
        for number in range(26):
            value = b"AB\0CDE" if number == 7 else b"P1"
            changes = {0x00100020: explicit(0x00100020, b"LO", text(value))}
            one = ct_slice(number, study=f"1.2.826.{number}", series=f"1.2.826.{number}.1", rows=4, changes=changes)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    assert service.stop() == 0
    output = IndexProcess(broker, topics, url, tmp_path / "index.log", "--once").wait()
    assert output.startswith("26 records, 0 duplicates, 0 unreadable"), output
    assert {one["patient_id"] for one in rows(url, tables.patient)} == {"P1", "AB\ufffdCDE"}


# What a database refuses of a row: a file that another row has, and a path of more than 15 characters.
REFUSING = {
    "sqlite": "CREATE TRIGGER short BEFORE INSERT ON instance WHEN length(NEW.file_path) > 15 "
    "BEGIN SELECT RAISE(ABORT, 'too long'); END",
    "postgresql": "ALTER TABLE instance ALTER file_path TYPE VARCHAR(15)",
}


def test_messages_that_the_database_refuses_are_found_and_the_others_go_on(
    broker: KafkaBroker, topics: Topics, url: str, tmp_path: Path
) -> None:
    database = Database(url)
    database.create()
    database.apply("another", {0: messages(record(1, file_path="/data/taken.dcm"))})
    database.close()
    execute(url, "CREATE UNIQUE INDEX one_path ON instance (file_path)", REFUSING[sa.make_url(url).drivername])
    refused = {11: "/data/taken.dcm", 12: "/data/long-name.dcm", 39: "/data/long-name.dcm"}
    for partition in range(2):
        sent = [record(100 * partition + number, study_uid=f"1.{partition}") for number in range(40)]
        for number, path in refused.items():
            sent[number]["file_path"] = path
        broker.write(topics.main, [json.dumps(one).encode() for one in sent], partition)
        if partition == 0:
            broker.write(topics.main, FOREIGN, partition)
    worker = IndexProcess(broker, topics, url, tmp_path / "index.log", "--once")
    assert worker.wait().startswith(f"74 records, 0 duplicates, {6 + len(FOREIGN)} unreadable")
    aside = {(row["partition"], row["offset"]): row["reason"] for row in rows(url, tables.unreadable)}
    ours = {place: reason for place, reason in aside.items() if reason.startswith("database: ")}
    assert ours.keys() == {(partition, offset) for partition in range(2) for offset in refused}
    assert len(worker.events("index.message_refused")) == 6
    assert "/data/" not in worker.log_path.read_text(), "values of a message are not for the log"
    progress = {
        row["partition"]: row["next_offset"] for row in rows(url, tables.progress) if row["topic"] == topics.main
    }
    assert (progress[0], progress[1]) == (40 + len(FOREIGN), 40)
    assert IndexProcess(broker, topics, url, tmp_path / "again.log", "--once").wait().startswith("0 records")


def test_a_table_that_is_missing_is_waited_for_and_sets_no_message_aside(
    broker: KafkaBroker, topics: Topics, url: str, tmp_path: Path
) -> None:
    worker = IndexProcess(broker, topics, url, tmp_path / "index.log")
    wait_for(lambda: bool(worker.events("index.assigned")))
    execute(url, "ALTER TABLE record RENAME TO elsewhere")
    broker.write(topics.main, [json.dumps(record(number)).encode() for number in range(5)])
    wait_for(lambda: bool(worker.events("index.waiting")))
    assert "record" in worker.events("index.waiting")[0]["reason"]
    execute(url, "ALTER TABLE elsewhere RENAME TO record")
    wait_for(lambda: len(rows(url, tables.record)) == 5)
    worker.stop()
    assert rows(url, tables.unreadable) == []


def test_records_behind_a_database_that_was_restored_are_read_again(
    broker: KafkaBroker, topics: Topics, url: str, tmp_path: Path
) -> None:
    worker = IndexProcess(broker, topics, url, tmp_path / "index.log")
    broker.write(topics.main, [json.dumps(record(number)).encode() for number in range(10)])
    wait_for(lambda: len(rows(url, tables.record)) == 10)
    # As from a backup that was taken after the fourth record.
    newer = "sop_uid NOT IN ('1.1.1.0', '1.1.1.1', '1.1.1.2', '1.1.1.3')"
    execute(
        url,
        f"DELETE FROM record WHERE trace_id IN (SELECT trace_id FROM instance WHERE {newer})",
        f"DELETE FROM instance WHERE {newer}",
        "UPDATE description SET instance_count = 4, bytes = 406",
        "UPDATE kafka_progress SET next_offset = 4 WHERE next_offset = 10",
    )
    broker.write(topics.main, [json.dumps(record(number)).encode() for number in range(10, 15)])
    wait_for(lambda: len(rows(url, tables.record)) == 15)
    worker.stop()
    assert worker.events("index.progress_went_back")
    assert worker.events("index.records_gone") == []
    [study] = rows(url, tables.study)
    assert (study["instance_count"], study["bytes"]) == (15, sum(100 + number for number in range(15)))


@pytest.mark.parametrize("error", [errors.UnknownError, errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError])
def test_an_error_of_the_client_does_not_end_the_index(
    broker: KafkaBroker, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    broker.write(topics.main, [json.dumps(record(number)).encode() for number in range(5)])
    failures = [error(), error()]
    getmany = AIOKafkaConsumer.getmany

    async def fail_first(consumer: AIOKafkaConsumer, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await getmany(consumer, **options)

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", fail_first)
    database = Database(f"sqlite:///{tmp_path}/index.sqlite")
    kafka, index = Kafka(brokers=broker.address()), Index(group_id=topics.main)
    applied = asyncio.run(Indexer(kafka, index, topics.main, database).run(until_caught_up=True))
    database.close()
    assert (applied.records, applied.duplicates) == (5, 0)


def test_the_beginning_that_a_topic_no_longer_holds_is_told_of_and_the_rest_is_read(
    broker: KafkaBroker, topics: Topics, tmp_path: Path
) -> None:
    broker.write(topics.main, [json.dumps(record(number)).encode() for number in range(10)])
    broker.delete_records(topics.main, 0, before=4)
    worker = IndexProcess(broker, topics, f"sqlite:///{tmp_path}/index.sqlite", tmp_path / "index.log", "--once")
    assert worker.wait().startswith("6 records")
    assert [(event["partition"], event["count"]) for event in worker.events("index.records_gone")] == [(0, 4)]


def test_index_needs_kafka(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "storescp", "index"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 78
    assert "kafka: expected a section" in result.stderr
