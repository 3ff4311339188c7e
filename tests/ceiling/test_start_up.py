"""How long a start takes with a long history."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from conftest import StartService

pytestmark = pytest.mark.ceiling
# With the payload of what was delivered, as it is within the first week; without it the test takes less time.
KEEPS_PAYLOAD = "STORESCP_CRASH_ROUNDS" in os.environ
# The pending rows stay, and a stop does not wait for them.
NO_BROKER = {"STORESCP_KAFKA__BROKERS": "127.0.0.1:9", "STORESCP_SERVICE__PUBLISH_TIMEOUT": "0.2"}
DELIVERED, PENDING = 1_000_000, 10_000
RECORD = {
    "trace_id": "",
    "worker_node_id": "DICOM_STORE_SCP",
    "tenant_id": "1234567890",
    "patient_id": "P-0001",
    "study_uid": "1.2.826.0.1.3680043.10.9999.1",
    "series_uid": "1.2.826.0.1.3680043.10.9999.1.1",
    "sop_uid": "1.2.826.0.1.3680043.10.9999.1.1.1",
    "padding": "x" * 500,
}


def rows(count: int) -> Iterator[tuple[object, ...]]:
    now = int(time.time() * 1e6)
    for number in range(count + PENDING):
        waits = number >= count
        trace_id = str(uuid.UUID(int=number))
        path = f"1234567890/20260102/1.2.826.0.1.{number // 500}/1.2.826.0.2.{number // 500}/1.2.826.0.3.{number}.dcm"
        unsigned = xxhash.xxh3_64_intdigest(path.encode())
        path_hash = unsigned - (1 << 64) if unsigned >> 63 else unsigned
        payload = json.dumps(RECORD | {"trace_id": trace_id}) if waits or KEEPS_PAYLOAD else ""
        created = now - (count + PENDING - number)
        yield (
            created,
            trace_id,
            "1234567890/1.2.826" if payload else "",
            payload,
            path,
            path_hash,
            525_000,
            bytes(16),
            3 if waits else 0,
            created,
            None if waits else created,
        )


def fill(root: Path) -> None:
    database = sqlite3.connect(root / ".outbox" / "outbox.sqlite")
    with database:
        database.executemany(
            "INSERT INTO instance (ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, "
            "created, delivered) VALUES (?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?)",
            rows(DELIVERED),
        )
    database.close()


@pytest.mark.timeout(600)
def test_a_start_with_a_million_delivered_rows_takes_less_than_2_s(start_service: StartService) -> None:
    empty = start_service()
    assert empty.stop() == 0
    fill(empty.root)
    seconds = []
    for kind in ("stopped", "killed", "stopped") * 2:
        service = start_service(root=empty.root, env=NO_BROKER)
        seconds.append(service.ready_seconds)
        if kind == "killed":
            service.kill()
        else:
            assert service.stop() == 0
    size = (empty.root / ".outbox" / "outbox.sqlite").stat().st_size
    told = ", ".join(f"{one:.2f}" for one in seconds)
    print(f"\n{DELIVERED} delivered and {PENDING} pending rows, {size >> 20} MiB: ready in {told} s")
    print(f"empty: {empty.ready_seconds:.2f} s; median {statistics.median(seconds):.2f} s")
    assert max(seconds) < 2
