"""Tables of earlier versions become those of today, also when a step is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from storescp.errors import ConfigError
from storescp.index import tables
from storescp.index.database import Database
from storescp.index.migrations import migrate_one_step
from support.databases import apply_in_parts, described, drop_everything, engine_of, execute, messages, record, rows

# Filled by the migration from what the version before knew.
TABLES = (tables.patient, tables.study, tables.series, tables.description, tables.instance, tables.record)


def make_first_version(url: str, records: list[dict[str, Any]]) -> None:
    """The tables of version 1 as its workers filled them: the last record of each row counts."""
    with engine_of(url) as engine, engine.begin() as connection:
        assert migrate_one_step(connection)
        # Workers of version 1 knew nothing of migrations.
        connection.execute(sa.text("DROP TABLE index_version"))
        metadata = sa.MetaData()
        metadata.reflect(connection)
        of: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {name: {} for name in metadata.tables}
        for one in records:
            tenant, study, series = one["tenant_id"], one["study_uid"], one["series_uid"]
            moment = one["created_time"]
            of["patient"][tenant, one["patient_id"]] = {}
            of["study"][tenant, study] = {
                "patient_id": one["patient_id"], "study_date": one["study_date"],
                "accession_number": one["accession_number"], "updated": moment,
            }  # fmt: skip
            of["series"][tenant, study, series] = {"updated": moment}
            names = [column.name for column in metadata.tables["instance"].columns if not column.primary_key]
            key = (tenant, study, series, one["sop_uid"], one["study_date"] or "")
            of["instance"][key] = {name: one[name] for name in names}
            of["record"][one["trace_id"],] = {}
        for name in ("patient", "study", "series", "instance", "record"):
            table = metadata.tables[name]
            keys = [column.name for column in table.primary_key.columns]
            connection.execute(
                sa.insert(table), [dict(zip(keys, key, strict=True)) | row for key, row in of[name].items()]
            )
        connection.execute(sa.text("INSERT INTO kafka_progress VALUES ('main', 0, 7, 'id-1')"))


def first_records(count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        study = number // 20
        day = None if study % 7 == 0 else f"2024-01-{study % 28 + 1:02}"
        found.append(
            record(
                number, study_uid=f"1.{study}", series_uid=f"1.{study}.{number % 3}", patient_id=f"p{study // 2}",
                study_date=day, accession_number=f"A{study}" if study % 3 else None,
                created_time=f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}.000000Z",
            )
        )  # fmt: skip
    return found


def content(url: str, table: sa.Table) -> list[tuple[Any, ...]]:
    return sorted((tuple(row.values()) for row in rows(url, table)), key=repr)


def test_migrated_tables_equal_those_that_are_filled_today(url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    sent = first_records(500)
    make_first_version(url, sent)
    database = Database(url)
    database.create()
    other = f"sqlite:///{tmp_path_factory.mktemp('fresh')}/index.sqlite"
    fresh = Database(other)
    fresh.create()
    apply_in_parts(fresh, sent, 100)
    for table in TABLES:
        without = {"updated"} if table is tables.patient else set()
        for one, two in zip(content(url, table), content(other, table), strict=True):
            named = zip([column.name for column in table.columns], one, two, strict=True)
            assert all(left == right for name, left, right in named if name not in without), (table.name, one, two)
    assert {one["node_id"] for one in rows(url, tables.location)} == {""}
    assert database.progress("main", [0])[0].next_offset == 7
    # What comes next finds its rows.
    moved = described(0, 5000, study_uid="1.0", series_uid="1.0.0", patient_id="p0", study_date=None, file_size=1)
    assert database.apply("main", {0: messages(moved, begin=7)}, "id-1").records == 1
    [study] = [one for one in rows(url, tables.study) if one["study_uid"] == "1.0"]
    assert (study["instance_count"], study["bytes"]) == (20, sum(100 + number for number in range(1, 20)) + 1)
    nodes = {
        one["node_id"] for one in rows(url, tables.location) if (one["study_uid"], one["sop_uid"]) == ("1.0", "1.1.1.0")
    }
    assert nodes == {"node-1"}
    database.close()
    fresh.close()


def test_the_steps_make_what_the_tables_say(database: Database, url: str) -> None:
    def is_ours(_object: object, name: str | None, kind: str, _reflected: bool, _compared: object) -> bool:
        return not (kind == "table" and name == "index_version")

    with engine_of(url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_ours, "compare_type": True})
        found = compare_metadata(context, tables.metadata)
    # Comments are for readers of the source.
    assert [one for one in found if not (isinstance(one, list) and one[0][0] == "modify_comment")] == []
    database.create()


CREATE = "import sys; from storescp.index.database import Database; Database(sys.argv[1]).create()"
INSTANCES = int(os.environ.get("STORESCP_INDEX_INSTANCES", "20000"))
# Instances of a series, and series of a study.
_EACH, _SERIES = 50, 3
NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count}) ",
    "postgresql": "WITH n(i) AS (SELECT generate_series(0, {count} - 1)) ",
}


def fill_first_version(url: str, count: int) -> None:
    """Many instances of version 1, made by the database."""
    make_first_version(url, [record(0, tenant_id="other")])
    numbers = NUMBERS[sa.make_url(url).get_backend_name()]
    text = "CAST({} AS text)"
    study, series = f"'1.2.' || {text.format(f'i / {_EACH * _SERIES}')}", f"'1.3.' || {text.format(f'i / {_EACH}')}"
    moment = "'2026-01-01T00:00:00.000000Z'"
    execute(
        url,
        f"INSERT INTO patient (tenant_id, patient_id) {numbers}SELECT DISTINCT 't', {study} FROM n"
        .format(count=count),
        f"INSERT INTO study (tenant_id, study_uid, patient_id, study_date, updated) {numbers}"
        f"SELECT DISTINCT 't', {study}, {study}, '2026-01-01', {moment} FROM n".format(count=count),
        f"INSERT INTO series (tenant_id, study_uid, series_uid, updated) {numbers}"
        f"SELECT DISTINCT 't', {study}, {series}, {moment} FROM n".format(count=count),
        "INSERT INTO instance (tenant_id, study_uid, series_uid, sop_uid, study_date, sop_class_uid, file_path, file_size, "
        "transfer_syntax_uid, target_ts, transfer_status, number_of_frames, source_ae, source_ip, trace_id, created_time) "
        f"{numbers}SELECT 't', {study}, {series}, '1.4.' || {text.format('i')}, '2026-01-01', '1.2', "
        f"'/data/' || {text.format('i')}, 100, '1.2', '1.2', 'NoNeedTransfer', 1, 'A', '', '', {moment} FROM n"
        .format(count=count),
    )  # fmt: skip


@pytest.mark.timeout(0 if "STORESCP_INDEX_INSTANCES" in os.environ else 120)
def test_a_migration_that_is_killed_half_way_goes_on(url: str) -> None:
    fill_first_version(url, INSTANCES)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", CREATE, url], check=True)
    whole = time.monotonic() - began
    expected = {table.name: content(url, table) for table in (tables.study, tables.series)}
    drop_everything(url)
    fill_first_version(url, INSTANCES)
    for part in (0.5, 0.5, 0.7):
        process = subprocess.Popen([sys.executable, "-c", CREATE, url])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(whole * part)
        process.kill()
        process.wait()
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", CREATE, url], check=True)
    print(
        f"\n{INSTANCES} instances: {whole:.1f} s; the last of several starts, after kills: {time.monotonic() - began:.1f} s"
    )
    assert {table.name: content(url, table) for table in (tables.study, tables.series)} == expected
    studies = [one for one in rows(url, tables.study) if one["tenant_id"] == "t"]
    assert sum(one["instance_count"] for one in studies) == INSTANCES
    assert {one["bytes"] for one in studies[:-1]} <= {100 * _EACH * _SERIES, 100 * (INSTANCES % (_EACH * _SERIES))}
    with engine_of(url) as engine, engine.connect() as connection:
        places = sa.select(sa.func.count()).select_from(tables.location)
        assert connection.execute(places).scalar_one() == INSTANCES + 1


def test_workers_that_start_together_migrate_once(url: str) -> None:
    make_first_version(url, first_records(2000))
    workers = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(Database.create, workers))
    for worker in workers:
        worker.close()
    assert sum(one["instance_count"] for one in rows(url, tables.study)) == 2000


def test_tables_of_a_later_version_are_refused(url: str) -> None:
    database = Database(url)
    database.create()
    execute(url, "UPDATE index_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="revision 9999"):
        database.create()
    database.close()


def test_a_start_with_nothing_to_do_is_quick(database: Database) -> None:
    began = time.monotonic()
    database.create()
    assert time.monotonic() - began < 2


def test_a_row_of_a_worker_of_the_version_before_is_replaced(database: Database, url: str) -> None:
    """While workers are replaced one by one; its instance is counted from then on."""
    database.apply("main", {0: messages(record(1), record(2))})
    execute(url, "UPDATE instance SET digest = '' WHERE sop_uid = '1.1.1.1'", "DELETE FROM description",
            "UPDATE instance SET digest = ''")  # fmt: skip
    database.apply("main", {0: messages(record(1), record(2), begin=2)})
    [study] = rows(url, tables.study)
    assert study["instance_count"] == 2


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> None:
    """A PostgreSQL database without tables, also where one test left some."""
    if "url" in request.fixturenames and "postgresql" in request.getfixturevalue("url"):
        drop_everything(request.getfixturevalue("url"))
