"""An outbox with a long history."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import xxhash

# With the payload of what was delivered, as it is within the first week; without it the test takes less time.
KEEPS_PAYLOAD = "STORESCP_CRASH_ROUNDS" in os.environ
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
