"""An index in SQLite and in PostgreSQL, and records for it."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storescp.index.database import Database, Message
from support.instances import CT
from support.postgres import Postgres, programs


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
    drop_everything(server.url)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    opened.create()
    yield opened
    opened.close()


@contextlib.contextmanager
def engine_of(url: str) -> Iterator[sa.Engine]:
    """An engine whose connections are closed at the end, also where a statement fails."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        yield engine
    finally:
        engine.dispose()


def drop_everything(url: str) -> None:
    """Makes a database empty."""
    if sa.make_url(url).get_backend_name() == "postgresql":
        execute(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        return
    for suffix in ("", "-wal", "-shm"):
        Path(f"{sa.make_url(url).database}{suffix}").unlink(missing_ok=True)


def rows(url: str, table: sa.Table | str) -> list[dict[str, Any]]:
    """All rows of a table or view."""
    query = sa.select(table) if isinstance(table, sa.Table) else sa.text(f"SELECT * FROM {table}")
    with engine_of(url) as engine, engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def execute(url: str, *statements: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def record(number: int, **changes: object) -> dict[str, Any]:
    """A record of version 1."""
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


def described(number: int, moment: int = 0, *, said: dict[str, Any] | None = None, **changes: object) -> dict[str, Any]:
    """A record of version 2, received `moment` seconds after the first; `said`: tag to VR and values."""
    received = f"2026-01-01T{moment // 3600:02}:{moment // 60 % 60:02}:{moment % 60:02}.000000"
    dicom = {tag: {"vr": vr, "Value": list(values)} for tag, (vr, *values) in (said or {}).items()}
    fields = {"schema_version": 2, "worker_node_id": "node-1", "called_ae": "B", "anomalies": [], "dicom": dicom}
    return record(number, created_time=received, received_at=f"{received}Z", **fields) | changes


def messages(*records: object, begin: int = 0) -> list[Message]:
    return [Message(begin + number, json.dumps(one).encode()) for number, one in enumerate(records)]


def apply_in_parts(database: Database, records: Sequence[object], size: int, topic: str = "main") -> None:
    """In batches of this size, to partition 0 from its beginning."""
    for begin in range(0, len(records), size):
        database.apply(topic, {0: messages(*records[begin : begin + size], begin=begin)})
