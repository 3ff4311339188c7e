"""Tables and study events with several workers, of which one is killed again and again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest
import sqlalchemy as sa

import storescp
from storescp.index import tables
from support.broker import KafkaBroker, Topics
from support.databases import described, engine_of, rows
from support.index_process import IndexProcess, wait_for
from support.instances import CT, ct_slice, explicit, text
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]
# Of the records one in ten is of a real file; the rest are made.
RECORDS = int(os.environ.get("STORESCP_INDEX_RECORDS", "6000"))
KILLS_EVERY = float(os.environ.get("STORESCP_INDEX_KILLS_EVERY", "1"))
MOST_KILLS = 2 if RECORDS == 6000 else 1 << 30
PARTITIONS, WORKERS, QUIET, FORCE = 8, 3, 4.0, 3600.0
IN_A_STUDY = 20
# Fires, and what a look and a transaction take.
LATE_SECONDS = 2.0
SCHEMA = json.loads((Path(storescp.__file__).parent / "study-event.schema.json").read_text())


def real_slice(number: int, *, corrected: bool = False) -> Any:
    study = number // IN_A_STUDY
    name = f"Study {study}{' corrected' if corrected else ''}"
    changes = {
        0x00100020: explicit(0x00100020, b"LO", text(f"R{study // 2}")),
        0x00100010: explicit(0x00100010, b"PN", text(f"Real^{study // 2}")),
        0x00081030: explicit(0x00081030, b"LO", text(name)),
        0x00200011: explicit(0x00200011, b"IS", text(str(number % 3))),
    }
    uid = f"1.2.826.0.1.{study}"
    return ct_slice(number, study=uid, series=f"{uid}.{number % 3}", rows=8 + 8 * corrected, changes=changes)


def send_real_files(port: int, count: int) -> None:
    """Four senders at once, a study over each association; every tenth study is sent again, corrected."""

    def send(first: int) -> None:
        for study in range(first, count // IN_A_STUDY, 4):
            numbers = range(study * IN_A_STUDY, (study + 1) * IN_A_STUDY)
            sent = [real_slice(number) for number in numbers]
            sent += [real_slice(number, corrected=True) for number in numbers] if study % 10 == 0 else []
            with RawAssociation(port, [(1, CT, [EXPLICIT])]) as association:
                for one in sent:
                    assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
                association.release()

    senders = [threading.Thread(target=send, args=(first,)) for first in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(600)


def made_record(number: int) -> dict[str, Any]:
    study = number // IN_A_STUDY
    said = {
        "00100010": ("PN", {"Alphabetic": f"Made^{study}"}),
        "00080060": ("CS", "CT" if number % 2 else "SR"),
        "00081030": ("LO", f"Study {study}"),
    }
    return described(
        number, number % 3600, said=said, study_uid=f"1.9.{study}", series_uid=f"1.9.{study}.{number % 2}",
        patient_id=f"M{study}", file_size=number, worker_node_id=f"node-{number % 2}",
    )  # fmt: skip


def publish_made(broker: KafkaBroker, topic: str, count: int, every: int = 1) -> None:
    """Every so many studies, each to one partition; and every hundredth record twice."""
    for partition in range(PARTITIONS):
        values: list[bytes] = []
        for study in range(partition, -(-count // IN_A_STUDY), PARTITIONS):
            if study % every == 0:
                for number in range(study * IN_A_STUDY, min((study + 1) * IN_A_STUDY, count)):
                    values += [json.dumps(made_record(number)).encode()] * (2 if number % 100 == 0 else 1)
        broker.write(topic, values, partition)


def scan_of_files(service: ServiceProcess) -> dict[str, set[tuple[Any, ...]]]:
    """What the tables must hold of the real files, as pydicom reads them."""
    found: dict[str, set[tuple[Any, ...]]] = {"patient": set(), "instance": set()}
    studies: dict[str, list[Any]] = defaultdict(list)
    serieses: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for file in service.files():
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        study, series = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
        studies[study].append((dataset, file.stat().st_size))
        serieses[study, series].append((dataset, file.stat().st_size))
        found["patient"].add((str(dataset.PatientID), str(dataset.PatientName)))
        found["instance"].add((str(dataset.SOPInstanceUID), str(file), file.stat().st_size, int(dataset.Rows)))
    return found | {
        "study": {
            (
                study, str(of[0][0].PatientID), str(of[0][0].StudyDescription),
                "\\".join(sorted({str(one.Modality) for one, _ in of})),
                len({one.SeriesInstanceUID for one, _ in of}), len(of), sum(size for _, size in of),
            )
            for study, of in studies.items()
        },
        "series": {
            (study, series, int(of[0][0].SeriesNumber), len(of), sum(size for _, size in of))
            for (study, series), of in serieses.items()
        },
    }  # fmt: skip


def real_rows(url: str) -> dict[str, set[tuple[Any, ...]]]:
    def of(table: sa.Table, key: str, names: list[str]) -> set[tuple[Any, ...]]:
        wanted = [row for row in rows(url, table) if str(row[key]).startswith(("1.2.826.0.1.", "R"))]
        return {tuple(row[name] for name in names) for row in wanted}

    columns = ["study_uid", "patient_id", "study_description", "modalities", "series_count", "instance_count", "bytes"]
    return {
        "patient": of(tables.patient, "patient_id", ["patient_id", "patient_name"]),
        "study": of(tables.study, "study_uid", columns),
        "series": of(
            tables.series, "study_uid", ["study_uid", "series_uid", "series_number", "instance_count", "bytes"]
        ),
        "instance": of(tables.instance, "study_uid", ["sop_uid", "file_path", "file_size", "rows"]),
    }


def check_made(url: str, count: int) -> None:
    found = {row["study_uid"]: row for row in rows(url, tables.study) if row["study_uid"].startswith("1.9.")}
    assert len(found) == -(-count // IN_A_STUDY)
    for study in range(len(found)):
        numbers = range(study * IN_A_STUDY, min((study + 1) * IN_A_STUDY, count))
        row = found[f"1.9.{study}"]
        assert (row["instance_count"], row["bytes"], row["modalities"]) == (len(numbers), sum(numbers), "CT\\SR")
        assert (row["patient_id"], row["study_description"]) == (f"M{study}", f"Study {study}")


def count_records(url: str) -> int:
    with engine_of(url) as engine, engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(tables.record)).scalar_one())


@pytest.mark.timeout(0 if "STORESCP_INDEX_RECORDS" in os.environ else 240)
def test_tables_and_events_are_right_whichever_worker_is_killed(
    serve: Serve, broker: KafkaBroker, names: Topics, url: str, tmp_path: Path
) -> None:
    real, made = RECORDS // 10 // IN_A_STUDY * IN_A_STUDY, RECORDS * 9 // 10
    # Every tenth study is sent twice.
    expected = real + sum(IN_A_STUDY for study in range(real // IN_A_STUDY) if study % 10 == 0) + made
    broker.create_topics(*names, partitions=PARTITIONS)
    events_topic = f"{names.main}_events"
    broker.create_topics(events_topic)
    env = {
        "STORESCP_EVENTS__QUIET": str(QUIET), "STORESCP_EVENTS__FORCE": str(FORCE),
        "STORESCP_EVENTS__TOPIC": events_topic,
    }  # fmt: skip
    service = serve(broker.address(), names)
    sender = threading.Thread(target=send_real_files, args=(service.port, real))
    publisher = threading.Thread(target=publish_made, args=(broker, names.main, made))
    for thread in (sender, publisher):
        thread.start()
    workers = [IndexProcess(broker, names, url, tmp_path / f"{number}.log", env=env) for number in range(WORKERS)]
    wait_for(lambda: count_records(url) > 0)
    began, kills = time.monotonic(), 0
    while count_records(url) < expected * 9 // 10 and kills < MOST_KILLS:
        threading.Event().wait(KILLS_EVERY)
        workers[kills % WORKERS].kill()
        log = tmp_path / f"{WORKERS + kills}.log"
        workers[kills % WORKERS] = IndexProcess(broker, names, url, log, env=env)
        kills += 1
    for thread in (sender, publisher):
        thread.join()
    wait_for(lambda: count_records(url) == expected, 300)
    print(f"\n{expected} records, {kills} kills, applied in {time.monotonic() - began:.0f} s")
    assert service.stop() == 0
    wait_for(lambda: rows(url, tables.study_timer) == [], 60)
    # Every partition has had an owner since then. Replacements open the next generation.
    settled = time.time()
    publish_made(broker, names.main, made, every=5)
    again = sum(number // IN_A_STUDY % 5 == 0 for number in range(made))
    wait_for(lambda: count_records(url) == expected + again, 120)
    wait_for(lambda: rows(url, tables.study_timer) == [], 60)
    wait_for(lambda: not any(row["to_publish"] for row in rows(url, tables.study_event)), 60)
    for worker in workers:
        worker.stop()
    assert kills > 0
    assert rows(url, tables.unreadable) == []
    assert real_rows(url) == scan_of_files(service)
    check_made(url, made)
    check_events(url, settled)
    check_topic(url, broker, events_topic)


def check_events(url: str, settled: float) -> None:
    """Each study has its generations, each once; none is made before its time, or late once everything was read."""
    generations: dict[str, list[int]] = defaultdict(list)
    for row in rows(url, tables.study_event):
        assert row["event"] == "study.quiet"
        generations[row["study_uid"]].append(row["generation"])
        assert row["made"] >= row["applied"] + QUIET - 0.001
    assert generations.keys() == {row["study_uid"] for row in rows(url, tables.study)}
    assert all(sorted(found) == list(range(1, len(found) + 1)) for found in generations.values())
    # A partition is read to its end when its last record is applied.
    later = [row for row in rows(url, tables.study_event) if row["applied"] > settled]
    ends: dict[int, float] = defaultdict(float)
    for row in later:
        ends[row["partition"]] = max(ends[row["partition"]], row["applied"])
    late = [row["made"] - max(row["applied"] + QUIET, ends[row["partition"]]) for row in later]
    worst = max(late)
    assert worst < LATE_SECONDS
    count = sum(map(len, generations.values()))
    print(f"{count} events of {len(generations)} studies; {len(late)} of them at most {worst:.2f} s after their time")


def check_topic(url: str, broker: KafkaBroker, topic: str) -> None:
    """Each event is in the topic, as in the table, those of a study in their order."""
    found: dict[str, list[int]] = defaultdict(list)
    published = set()
    for message in broker.read(topic):
        event = json.loads(message.value)
        published.add(message.value.decode())
        found[event["study_uid"]].append(event["generation"])
    events = rows(url, tables.study_event)
    assert published == {row["message"] for row in events}
    jsonschema.validate(json.loads(events[0]["message"]), SCHEMA)
    for numbers in found.values():
        assert all(after - before <= 1 for before, after in pairwise(numbers)), "an event was left out at first"
