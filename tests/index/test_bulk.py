"""What is asked for by keys is found by an index: tables have millions of rows."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from storescp.index import bulk, tables
from storescp.index.database import Database
from support.databases import engine_of

STUDY, INSTANCE = ("t", "1"), ("t", "1", "1.1", "1.1.1", "2026-01-01")
ASKED = [
    (tables.record, ("x",)),
    (tables.instance, INSTANCE),
    (tables.location, INSTANCE),
    (tables.location, STUDY),
    (tables.description, STUDY),
    (tables.series, STUDY),
    (tables.study, STUDY),
    (tables.patient, STUDY),
]


@pytest.mark.parametrize(("table", "key"), ASKED, ids=[f"{table.name}-{len(key)}" for table, key in ASKED])
def test_no_table_is_looked_through_for_some_keys(
    database: Database, url: str, table: sa.Table, key: tuple[str, ...]
) -> None:
    keys = [(*key[:-1], f"{key[-1]}{number}") for number in range(3)]
    with engine_of(url) as engine, engine.connect() as connection:
        is_postgres = engine.dialect.name == "postgresql"
        if is_postgres:
            # Of an empty table it would be right to look through it.
            connection.exec_driver_sql("SET enable_seqscan = off")
        for source, parameters in bulk._joined(connection, table, keys):
            explain = "EXPLAIN" if is_postgres else "EXPLAIN QUERY PLAN"
            rows = connection.exec_driver_sql(f"{explain} SELECT t.* {source}", parameters)
            plan = "\n".join(str(row) for row in rows)
            assert "SCAN t" not in plan, plan
            assert f"Seq Scan on {table.name}" not in plan, plan
            assert "SEARCH t USING" in plan or "Index" in plan, plan


def test_rows_of_many_keys_are_found(database: Database, url: str) -> None:
    rows = [(f"{number:04}",) for number in range(2500)]
    with engine_of(url) as engine, engine.begin() as connection:
        bulk.insert(connection, tables.record, ["trace_id"], rows)
        assert bulk.select(connection, tables.record, (), rows[::2]).keys() == set(rows[::2])
        assert bulk.select(connection, tables.record, (), []) == {}
        bulk.delete(connection, tables.record, rows[:2400])
        assert bulk.distinct(connection, tables.record, ["trace_id"], rows) == set(rows[2400:])
