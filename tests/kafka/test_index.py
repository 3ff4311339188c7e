"""The tables against the storage: SQLite and a real PostgreSQL, several workers, kills, outages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from storescp.errors import ConfigError
from storescp.index import tables
from storescp.index.database import Database, Message
from support.broker import KafkaBroker, Topics
from support.instances import CT, ct_slice, curated_instances, explicit, text
from support.load import Ledger, start_senders
from support.postgres import Postgres, programs
from support.scu import RawAssociation
from support.service import ServiceProcess, lines_so_far

Serve = Callable[..., ServiceProcess]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/index.sqlite"
        return
    server = request.getfixturevalue("postgres")
    yield server.url
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    tables.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    opened.create()
    yield opened
    opened.close()


def rows(url: str, table: sa.Table) -> list[dict[str, Any]]:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = [dict(row._mapping) for row in connection.execute(sa.select(table))]
    engine.dispose()
    return found


def record(number: int, **changes: object) -> dict[str, Any]:
    return {
        "trace_id": str(uuid.uuid4()),
        "tenant_id": "t",
        "patient_id": "p1",
        "study_uid": "1.1",
        "series_uid": "1.1.1",
        "sop_uid": f"1.1.1.{number}",
        "sop_class_uid": CT,
        "file_path": f"/data/{number}.dcm",
        "file_size": 100 + number,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "target_ts": "1.2.840.10008.1.2.1",
        "study_date": "2024-02-29",
        "transfer_status": "NoNeedTransfer",
        "number_of_frames": 1,
        "accession_number": None,
        "created_time": "2026-01-01T00:00:00.000000Z",
        "source_ip": "127.0.0.1",
        "source_ae": "A",
    } | changes


def messages(*records: object, begin: int = 0) -> list[Message]:
    return [Message(begin + number, json.dumps(one).encode()) for number, one in enumerate(records)]


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
    assert database.next_offsets("main", [0, 1, 2]) == {0: 2, 1: 2, 2: 0}


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
    assert database.next_offsets("main", [0]) == {0: 3}


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


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        json.dumps(record(1) | {"study_uid": ""}).encode(),
        json.dumps(record(1) | {"file_size": "1"}).encode(),
        json.dumps({key: value for key, value in record(1).items() if key != "trace_id"}).encode(),
    ],
)
def test_what_is_not_a_record_is_kept_aside(tmp_path: Path, value: bytes) -> None:
    url = f"sqlite:///{tmp_path}/index.sqlite"
    database = Database(url)
    database.create()
    applied = database.apply("main", {0: [Message(0, value), *messages(record(1), begin=1)]})
    assert (applied.records, applied.unreadable) == (1, 1)
    [kept] = rows(url, tables.unreadable)
    assert (kept["offset"], kept["value"]) == (0, value)
    assert kept["reason"]
    database.close()


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


class IndexProcess:
    """`storescpd index` as a process of its own."""

    def __init__(self, broker: KafkaBroker, topics: Topics, url: str, log: Path, *options: str) -> None:
        self.log_path = log
        env = {"STORESCP_KAFKA__BROKERS": broker.address(), **topics.env}
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "storescp", "index", "--database", url, "--group", topics.main, *options],
            stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | env,
        )  # fmt: skip

    def wait(self, timeout: float = 90.0) -> str:
        output, _ = self.process.communicate(timeout=timeout)
        self._log.close()
        assert self.process.returncode == 0, self.log_path.read_text()
        return output

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in lines_so_far(self.log_path, self.process) if line.startswith("{"))
        return [line for line in lines if line["event"] == name]


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
    for _, one in curated_instances(curated):
        sop_class = one.sop_class or "1.2.840.10008.5.1.4.1.1.7"
        with RawAssociation(service.port, [(1, sop_class, [one.transfer_syntax])]) as association:
            association.store(1, sop_class, one.sop_instance, one.dataset)
            association.release()
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


def wait_for(condition: Callable[[], bool], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):
            pass  # the tables are not there yet, or the server is starting
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


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
    engine = sa.create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
    tables.metadata.drop_all(engine)
    engine.dispose()


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


def test_index_needs_kafka(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "storescp", "index"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 78
    assert "kafka = null: expected a section" in result.stderr
