"""From real senders to a real broker: each record exactly once in each topic, every field right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest

import storescp
from storescp.pure.store import file_meta
from support.broker import PROJECT, KafkaBroker, Message, Topics
from support.instances import CT, ct_slice, curated_instances
from support.load import Ledger, check_delivery, start_senders
from support.scu import RawAssociation
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]
SENDERS, EACH = 8, 250
SCHEMA = json.loads((Path(storescp.__file__).parent / "record-2.schema.json").read_text())


def write_studies(folder: Path) -> list[Path]:
    """One folder of files for each sender."""
    folders = []
    for sender in range(SENDERS):
        series = f"1.2.826.0.1.77.{sender}.1"
        folders.append(folder / str(sender))
        folders[-1].mkdir(parents=True)
        for number in range(EACH):
            one = ct_slice(number, study=series.rsplit(".", 1)[0], series=series, rows=8)
            header = file_meta(one.sop_class, one.sop_instance, one.transfer_syntax, "TEST")
            (folders[-1] / f"{number:04}.dcm").write_bytes(header + one.dataset)
    return folders


def by_trace(messages: list[Message]) -> dict[str, bytes]:
    counts = Counter(dict(message.headers)["trace_id"].decode() for message in messages)
    assert set(counts.values()) == {1}, "a record is there twice"
    return {dict(message.headers)["trace_id"].decode(): message.value for message in messages}


def start_sender(number: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Every other one is DCMTK's, the others are pynetdicom's."""
    pynetdicom = [sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", str(port), str(folder), "-r"]
    dcmtk = ["dcmsend", "-nh", "+sd", "127.0.0.1", str(port), str(folder)]
    command = dcmtk if number % 2 else pynetdicom
    return subprocess.Popen(
        command, env=os.environ | {"TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.timeout(600)
def test_2000_instances_of_dcmtk_and_pynetdicom_over_8_associations(
    serve: Serve, broker: KafkaBroker, topics: Topics, tmp_path: Path
) -> None:
    service = serve(broker.address(), topics)
    folders = write_studies(tmp_path / "outgoing")
    senders = [start_sender(number, service.port, folder) for number, folder in enumerate(folders)]
    assert [sender.wait(240) for sender in senders] == [0] * SENDERS
    for _ in service.events("association.aborted_by_peer"):
        # pynetdicom loses a response now and then and gives up after 30 s: its reactor takes it when the thread that waits
        # for it saw a pause that was just over. A device would send again, and so do we, one after the other.
        assert [start_sender(0, service.port, folder).wait(240) for folder in folders[::2]] == [0] * (SENDERS // 2)
    assert service.stop() == 0
    main, log = (by_trace(broker.read(topic)) for topic in topics)
    assert len(main) == SENDERS * EACH
    assert main == log
    for value in main.values():
        record = json.loads(value)
        assert Path(record["file_path"]).stat().st_size == record["file_size"]
    assert len({json.loads(value)["sop_uid"] for value in main.values()}) == SENDERS * EACH


def expected_from_pydicom(path: Path) -> dict[str, Any]:
    """What the record must say, read by pydicom from the stored file."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)

    def text(keyword: str) -> str:
        value = dataset.get(keyword)
        if isinstance(value, pydicom.multival.MultiValue):
            value = "\\".join(map(str, value))
        return "" if value is None else str(value).strip(" \0")

    date = text("StudyDate").replace(".", "")
    accession = text("AccessionNumber")
    frames = text("NumberOfFrames")
    return {
        "patient_id": text("PatientID")[:64],
        "study_uid": text("StudyInstanceUID"),
        "series_uid": text("SeriesInstanceUID"),
        "sop_uid": text("SOPInstanceUID"),
        "sop_class_uid": text("SOPClassUID"),
        "study_date": f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 and date.isdigit() else None,
        "accession_number": accession if accession and len(accession) <= 16 else None,
        "number_of_frames": int(frames) if frames.isdigit() and int(frames) > 0 else 1,
        "target_ts": str(dataset.file_meta.TransferSyntaxUID),
        "file_size": path.stat().st_size,
        "tenant_id": "1234567890",
        "source_ae": "RAW",
        "called_ae": "STORE-SCP",
        "source_ip": "127.0.0.1",
    }


@pytest.mark.curated
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_fields_of_every_curated_file_are_what_pydicom_reads(
    serve: Serve, broker: KafkaBroker, topics: Topics, curated: Path
) -> None:
    service = serve(
        broker.address(), topics, "--promiscuous", env={"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": "[]"}
    )
    source: dict[str, str] = {}
    sent_as: dict[str, str] = {}
    acknowledged = 0
    for name, one in curated_instances(curated):
        sop_class = one.sop_class or "1.2.840.10008.5.1.4.1.1.7"
        with RawAssociation(service.port, [(1, sop_class, [one.transfer_syntax])]) as association:
            if association.store(1, sop_class, one.sop_instance, one.dataset).status == 0:
                acknowledged += 1
                source[one.sop_instance] = name
                sent_as[one.sop_instance] = one.transfer_syntax
            association.release()
    assert service.stop() == 0
    main, log = (by_trace(broker.read(topic)) for topic in topics)
    assert main == log
    assert acknowledged >= 150
    last = {json.loads(value)["sop_uid"]: json.loads(value) for _, value in sorted(main.items())}
    assert set(last) == set(source)
    differences = {}
    for uid, record in last.items():
        jsonschema.validate(record, SCHEMA)
        expected = expected_from_pydicom(Path(record["file_path"]))
        expected["transfer_syntax_uid"] = sent_as[uid]
        if record["transfer_status"] != "Success":
            expected["target_ts"] = sent_as[uid]
        wrong = {key: (record[key], value) for key, value in expected.items() if record[key] != value}
        if wrong:
            differences[source[uid]] = wrong
    assert differences == {}
    print(f"\n{len(last)} files, {acknowledged} acknowledgements, {len(main)} records")


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_codec(serve: Serve, broker: KafkaBroker, topics: Topics, codec: str) -> None:
    service = serve(broker.address(), topics, kafka={"compression_codec": codec})
    ledger = Ledger()
    for thread in start_senders(service.port, ledger, senders=3, count=20):
        thread.join(60)
    assert service.stop() == 0
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).records == 60


def test_order_is_kept_with_small_batches_and_several_partitions(
    serve: Serve, broker: KafkaBroker, topics: Topics
) -> None:
    service = serve(broker.address(), topics, kafka={"batch_num_messages": 3, "linger_ms": 0})
    ledger = Ledger()
    for thread in start_senders(service.port, ledger, senders=8, count=60):
        thread.join(60)
    assert service.stop() == 0
    for topic in topics:
        messages = broker.read(topic)
        assert check_delivery(service, ledger, messages).duplicates == 0
        assert len({message.partition for message in messages}) > 1


def test_the_pure_engine_publishes_to_kafka_too(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics, engine="python")
    ledger = Ledger()
    for thread in start_senders(service.port, ledger, senders=2, count=5):
        thread.join(60)
    assert service.stop() == 0
    assert len(ledger.uids) == 10
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).records == 10


def test_a_sender_that_repeats_itself_makes_no_second_record(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics)
    one = ct_slice(1, rows=4)
    for _ in range(3):
        with RawAssociation(service.port, [(1, CT, [one.transfer_syntax])]) as association:
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
            association.release()
    assert service.stop() == 0
    assert [broker.end(topic) for topic in topics] == [1, 1]


def test_the_consumer_of_the_how_to_works(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    page = (PROJECT / "docs" / "how-to" / "kafka.md").read_text()
    [code] = re.findall(r"```python title=[^\n]*acquisitions.py\"\n(.*?)```", page, re.DOTALL)
    for ours, theirs in (("log_queue", topics.log), ("127.0.0.1:9092", broker.address()), ("acquisitions", topics.log)):
        assert ours in code
        code = code.replace(ours, theirs)
    service = serve(broker.address(), topics)
    ledger = Ledger()
    for thread in start_senders(service.port, ledger, senders=3, count=4):
        thread.join(60)
    consumer = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    assert consumer.stdout is not None
    lines = [consumer.stdout.readline().split() for _ in range(12)]
    consumer.kill()
    consumer.communicate()
    assert {line[2] for line in lines} == ledger.uids
    assert {line[1] for line in lines} == {"RAW"}
    assert service.stop() == 0
