"""An instance whose data set is odd: what is stored, and where the oddity is named."""

from __future__ import annotations

import json
from collections.abc import Callable

import pydicom
import pytest

from support.instances import CT, Instance, ct_slice, dataset_of, explicit, text
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
HTTP = {"STORESCP_HTTP__PORT": "0"}
META = explicit(0x00020010, b"UI", text("1.2.840.10008.1.2", b"\0"))
DELIMITER = b"\xfe\xff\x0d\xe0\0\0\0\0"


def odd(number: int, *, before: bytes = b"", behind: bytes = b"", rows: int = 4) -> tuple[Instance, bytes]:
    """What is sent, and the data set that is stored of it."""
    made = ct_slice(number, rows=rows)
    sent = Instance(made.sop_class, made.sop_instance, made.transfer_syntax, before + made.dataset + behind)
    return sent, made.dataset + behind


def store(service: ServiceProcess, instances: list[Instance]) -> None:
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        for one in instances:
            assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()


@pytest.mark.parametrize("engine", ["rust", "python"])
@pytest.mark.parametrize("rows", [4, 1500], ids=["in memory", "in a file"])
def test_elements_of_group_0002_are_left_out_of_the_file_and_nothing_else(
    start_service: StartService, engine: str, rows: int
) -> None:
    service = start_service(engine=engine)
    sent, stored = odd(1, before=META, behind=DELIMITER, rows=rows)
    store(service, [sent])
    [file] = service.files()
    assert dataset_of(file) == stored
    # Read by another transfer syntax, the file would have other elements.
    assert pydicom.dcmread(file).SOPInstanceUID == sent.sop_instance
    [record] = service.records(count=1)
    assert record["anomalies"] == ["delimiter", "file_meta_in_data_set"]
    assert record["file_size"] == file.stat().st_size
    store(service, [sent])
    assert len(service.records(count=1)) == 1
    assert service.temporary_files() == []


def test_an_anomaly_is_named_in_the_log_the_metrics_and_on_the_page(start_service: StartService) -> None:
    service = start_service(env=HTTP)
    store(service, [odd(number, behind=bytes(10))[0] for number in (1, 2)] + [odd(3, before=META)[0], odd(4)[0]])
    line = service.wait_for_event("association.released")
    assert line["anomalies"] == {"file_meta_in_data_set": 1, "trailing_bytes": 2}
    port = http_port(service)
    _, metrics = get(port, "/metrics")
    assert 'storescp_anomalies_total{kind="trailing_bytes"} 2.0' in metrics
    assert 'storescp_anomalies_total{kind="file_meta_in_data_set"} 1.0' in metrics
    assert 'storescp_anomalies_total{kind="transcoding_busy"} 0.0' in metrics
    latest = json.loads(get(port, "/status")[1])["latest"]
    shown = {tuple(one["anomalies"]) for one in latest}
    assert shown == {(), ("trailing_bytes",), ("file_meta_in_data_set",)}
