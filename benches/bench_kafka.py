"""What Kafka costs reception, and how fast a full outbox empties; a real broker on the same machine."""

from __future__ import annotations

import json
import sqlite3
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiet import quiet
from sender import Round
from storescp import outbox
from storescp.pure.outbox import path_hash
from support.broker import KafkaBroker, Topics, free_ports
from support.service import ServiceProcess

INSTANCES = 200
ROUNDS = 7
ROWS = 200_000
STUDIES = 500


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    running = KafkaBroker(tmp_path_factory.mktemp("kafka")).start()
    yield running
    running.stop()


def start(folder: Path, name: str, brokers: str | None, topics: Topics, durability: str) -> ServiceProcess:
    env = {"STORESCP_LOCAL_STORAGE__DURABILITY": durability, **topics.env}
    if brokers is not None:
        env["STORESCP_KAFKA__BROKERS"] = brokers
    env["STORESCP_SERVICE__PUBLISH_TIMEOUT"] = "60" if name == "up" else "0.1"
    return ServiceProcess(folder / name, env=env)


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize(("size", "rows"), [("512 KiB", 512), ("8 KiB", 64)])
def test_reception_with_the_broker_up_down_and_without_kafka(
    bench_folder: Path, broker: KafkaBroker, size: str, rows: int, durability: str
) -> None:
    """Interleaved rounds; the ratios of the medians to the rate without Kafka (records to JSON lines)."""
    topics = Topics(f"main-{rows}-{durability}", f"log-{rows}-{durability}")
    broker.create_topics(*topics)
    [closed] = free_ports(1)
    services = {
        name: start(bench_folder, name, brokers, topics, durability)
        for name, brokers in {"without": None, "down": f"127.0.0.1:{closed}", "up": broker.address()}.items()
    }
    count = INSTANCES if rows == 512 else INSTANCES * 5
    seconds: dict[str, list[float]] = {name: [] for name in services}
    for number in range(ROUNDS + 1):
        one = Round(number, count, 16384, rows=rows)
        # Each comes first, second and last equally often.
        order = list(services)[number % 3 :] + list(services)[: number % 3]
        for name in order:
            quiet(bench_folder)
            began = time.perf_counter()
            one.send(services[name].port)
            if number:
                seconds[name].append(time.perf_counter() - began)
    total = count * (ROUNDS + 1)
    for service in services.values():
        assert len(service.files()) == total
        assert service.stop() == 0
    assert [broker.end(topic) for topic in topics] == [total, total]
    view = outbox.open_outbox(services["down"].root)
    assert [outbox.topic_status(view, number, "").pending for number in (0, 1)] == [total, total]
    view.close()
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    print(
        f"\n{size}, durability {durability}: without Kafka {rates['without']:.0f}/s, "
        f"broker down {rates['down']:.0f}/s ({rates['down'] / rates['without']:.2f}), "
        f"broker up {rates['up']:.0f}/s ({rates['up'] / rates['without']:.2f})"
    )


# The default attributes of a CT slice.
DICOM = {
    "00080030": {"vr": "TM", "Value": ["101500.123000"]},
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "00080090": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]},
    "00081030": {"vr": "LO", "Value": ["CT head without contrast"]},
    "0008103E": {"vr": "LO", "Value": ["Axial 5.0 H31s"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    "00100030": {"vr": "DA", "Value": ["19700101"]},
    "00100040": {"vr": "CS", "Value": ["F"]},
    "00180015": {"vr": "CS", "Value": ["HEAD"]},
    "00200010": {"vr": "SH", "Value": ["4711"]},
    "00200011": {"vr": "IS", "Value": [2]},
    "00200013": {"vr": "IS", "Value": [17]},
    "00280010": {"vr": "US", "Value": [512]},
    "00280011": {"vr": "US", "Value": [512]},
    "00280100": {"vr": "US", "Value": [16]},
    "00400244": {"vr": "DA", "Value": ["20240229"]},
    "00400245": {"vr": "TM", "Value": ["101400"]},
}


def fill(root: Path) -> None:
    """An outbox of records that no topic has yet, of the size of real ones."""
    ServiceProcess(root).stop()
    connection = sqlite3.connect(root / ".outbox" / "outbox.sqlite")
    now = time.time_ns() // 1000

    def row(number: int) -> tuple[object, ...]:
        study = f"1.2.826.0.1.3680043.8.498.{10**20 + number % STUDIES}"
        instance = f"{study}.1.{number}"
        trace_id = str(uuid.UUID(int=number, version=4))
        path = f"1234567890/20240229/{study}/{study}.1/{instance}.dcm"
        record = {
            "trace_id": trace_id, "worker_node_id": "DICOM_STORE_SCP", "tenant_id": "1234567890",
            "patient_id": f"PATIENT-{number % STUDIES}", "study_uid": study, "series_uid": f"{study}.1",
            "sop_uid": instance, "file_path": f"{root}/{path}", "file_size": 525_000 + number,
            "transfer_syntax_uid": "1.2.840.10008.1.2.1", "target_ts": "1.2.840.10008.1.2.1",
            "study_date": "2024-02-29", "transfer_status": "NoNeedTransfer", "number_of_frames": 1,
            "created_time": "2024-02-29T12:00:00.000000", "series_uid_hash": f"{number:020}",
            "study_uid_hash": f"{number:020}", "accession_number": f"A{number}", "source_ip": "10.20.30.40",
            "source_ae": "CT1", "schema_version": 2, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
            "called_ae": "STORE-SCP", "anomalies": [], "received_at": "2024-02-29T12:00:00.000000Z", "file_url": None,
            "dicom_omitted": [], "dicom": DICOM,
        }  # fmt: skip
        key, payload = f"1234567890/{study}", json.dumps(record, separators=(",", ":"))
        return now + number, trace_id, key, payload, path, path_hash(path), "", 525_000, b"\0" * 16, 3, now

    with connection:
        connection.executemany(
            "INSERT INTO instance (ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, "
            "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row(number) for number in range(ROWS)),
        )
    connection.close()


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("durability", ["none", "full"])
def test_a_full_outbox_empties(bench_folder: Path, broker: KafkaBroker, codec: str, durability: str) -> None:
    """From the start of the service to the last acknowledgement in the outbox; a record is one row, in both topics."""
    topics = Topics(f"full-main-{codec}-{durability}", f"full-log-{codec}-{durability}")
    broker.create_topics(*topics)
    root = bench_folder / "full"
    fill(root)
    view = outbox.open_outbox(root)
    env = {
        "STORESCP_KAFKA__BROKERS": broker.address(),
        "STORESCP_KAFKA__COMPRESSION_CODEC": codec,
        "STORESCP_LOCAL_STORAGE__DURABILITY": durability,
        **topics.env,
    }
    began = time.perf_counter()
    service = ServiceProcess(root, env=env)
    started = time.perf_counter() - began
    try:
        while view.execute(
            "SELECT EXISTS (SELECT 1 FROM instance WHERE pending <> 0 AND ready IS NOT NULL)"
        ).fetchone()[0]:
            assert time.perf_counter() - began < 600
            threading.Event().wait(0.05)
        seconds = time.perf_counter() - began
    finally:
        view.close()
        assert service.stop() == 0
    assert [broker.end(topic) for topic in topics] == [ROWS, ROWS]
    print(
        f"\n{ROWS} records, {codec}, durability {durability}: {ROWS / seconds:.0f} records/s to both topics "
        f"({seconds:.1f} s, of which {started:.1f} s to start)"
    )
