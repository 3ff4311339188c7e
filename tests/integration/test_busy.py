"""Slow images in all processes that transcode: others are stored in time, and transcoded in place later."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storescp import _core
from support.command import Done, storescp
from support.compressed import JPEG_2000, ONLY_EXPLICIT, RLE, compressed_ct
from support.instances import Instance, dataset_of
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port
from support.workers import SlowWorkers

StartService = Callable[..., ServiceProcess]
MAX_WAIT, INSTANCE_TIMEOUT, WORKERS = 2, 6, 2
SLOW_SERVICE = ONLY_EXPLICIT | {
    "STORESCP_HTTP__PORT": "0",
    "STORESCP_TRANSCODING__WORKERS": str(WORKERS),
    "STORESCP_TRANSCODING__MAX_WAIT": str(MAX_WAIT),
    "STORESCP_TRANSCODING__INSTANCE_TIMEOUT": str(INSTANCE_TIMEOUT),
}
OF_SENDER = ("tenant_id", "source_ae", "source_ip", "called_ae", "created_time", "transfer_syntax_uid")


def send(service: ServiceProcess, one: Instance) -> int:
    with RawAssociation(service.port, [(1, one.sop_class, [one.transfer_syntax])], calling=b"CT1") as association:
        association.socket.settimeout(60)
        status = association.store(1, one.sop_class, one.sop_instance, one.dataset).status
        association.release()
    return status


def record_of(service: ServiceProcess, one: Instance, count: int) -> dict[str, Any]:
    """The last one of the instance, once there are `count` records."""
    return [record for record in service.records(count=count) if record["sop_uid"] == one.sop_instance][-1]


def transcode_stored(root: Path, *options: str, env: dict[str, str]) -> Done:
    return storescp("-o", root, *options, "transcode", "--stored", env=env)


@pytest.mark.parametrize("is_served", [True, False], ids=["beside the service", "without a service"])
def test_slow_images_keep_no_other_waiting_and_it_is_transcoded_later(
    start_service: StartService, tmp_path: Path, is_served: bool
) -> None:
    slow = SlowWorkers(tmp_path)
    env = SLOW_SERVICE | slow.env
    service = start_service(env=env)
    port = http_port(service)
    endless = [compressed_ct(number, JPEG_2000, frames=2) for number in range(WORKERS)]
    statuses: list[int] = []
    senders = [threading.Thread(target=lambda one=one: statuses.append(send(service, one))) for one in endless]
    for sender in senders:
        sender.start()
    wait_until(lambda: slow.count("endless") == WORKERS)
    sound = compressed_ct(100, RLE, frames=3)
    began = time.monotonic()
    assert send(service, sound) == 0
    assert MAX_WAIT <= time.monotonic() - began < MAX_WAIT + 1
    assert all(sender.is_alive() for sender in senders), "it was stored while both processes were busy"
    first = record_of(service, sound, 1)
    assert (first["transfer_status"], first["target_ts"], first["anomalies"]) == ("Failed", RLE, ["transcoding_busy"])
    [file] = service.files()
    assert dataset_of(file) == sound.dataset
    released = service.wait_for_event("association.released")
    assert released["anomalies"] == {"transcoding_busy": 1}
    assert released["transcode_failures"] == {"no process was free within 2 s": 1}
    assert 'storescp_anomalies_total{kind="transcoding_busy"} 1.0' in get(port, "/metrics")[1]
    [shown] = json.loads(get(port, "/status")[1])["latest"]
    assert shown["anomalies"] == ["transcoding_busy"]
    for sender in senders:
        sender.join(30)
    assert statuses == [0] * WORKERS
    wait_until(lambda: len(service.events("association.released")) == WORKERS + 1)
    failures = [line["transcode_failures"] for line in service.events("association.released")[1:]]
    assert failures == [{"not finished within 6 s": 1}] * WORKERS
    assert service.records(count=3)[1]["anomalies"] == []
    if not is_served:
        assert service.stop() == 0
    done = transcode_stored(service.root, env=env)
    assert (done.returncode, done.stderr.splitlines()) == (0, [])
    assert done.stdout.startswith("1 transcoded, 0 stay as they are, ")
    if not is_served:
        service = start_service(root=service.root, env=env)
    record = record_of(service, sound, 4)
    assert (record["transfer_status"], record["target_ts"], record["anomalies"]) == ("Success", EXPLICIT, [])
    assert record["trace_id"] != first["trace_id"]
    assert {key: record[key] for key in OF_SENDER} == {key: first[key] for key in OF_SENDER}
    assert record["file_size"] == file.stat().st_size
    assert dataset_of(file) == _core.transcode(sound.dataset, RLE, EXPLICIT, 1 << 30)
    [replaced] = service.root.glob(".replaced/*/*.dcm")
    assert dataset_of(replaced) == sound.dataset
    again = transcode_stored(service.root, env=env)
    assert (again.returncode, again.stdout[:13]) == (0, "0 transcoded,")
    assert service.stop() == 0
    assert service.temporary_files() == []
    assert len(service.records()) == 4


def test_what_cannot_be_transcoded_now_takes_no_place_of_what_is_transcoded(
    start_service: StartService, tmp_path: Path
) -> None:
    sound = compressed_ct(100, RLE, frames=3)
    service = start_service(env=ONLY_EXPLICIT)
    assert send(service, sound) == 0
    assert service.stop() == 0
    [file] = service.files()
    transcoded = dataset_of(file)
    assert transcoded != sound.dataset
    slow = SlowWorkers(tmp_path)
    service = start_service(root=service.root, env=SLOW_SERVICE | slow.env)
    endless = [compressed_ct(number, JPEG_2000, frames=2) for number in range(WORKERS)]
    senders = [threading.Thread(target=send, args=(service, one)) for one in endless]
    for sender in senders:
        sender.start()
    wait_until(lambda: slow.count("endless") == WORKERS)
    assert send(service, sound) == 0xA700
    assert dataset_of(file) == transcoded
    for sender in senders:
        sender.join(30)
    assert send(service, sound) == 0, "identical, once it can be transcoded"
    assert service.stop() == 0
    assert len([one for one in service.records() if one["sop_uid"] == sound.sop_instance]) == 1
    assert list(service.root.glob(".replaced/*/*.dcm")) == []


def test_a_service_that_is_stopped_leaves_the_rest_to_the_command(start_service: StartService, tmp_path: Path) -> None:
    one = compressed_ct(1, RLE)
    service = start_service()
    assert send(service, one) == 0
    assert service.stop() == 0
    slow = SlowWorkers(tmp_path)
    slow.hold()
    env = ONLY_EXPLICIT | slow.env
    service = start_service(root=service.root, env=env)
    done: list[Done] = []
    command = threading.Thread(
        target=lambda: done.append(storescp("-o", service.root, "transcode", "--stored", "--all", env=env))
    )
    command.start()
    wait_until(lambda: slow.count("held") == 1)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 4, "it waits for no image that nobody has sent"
    assert service.events("recovery.not_finished") == []
    wait_until(lambda: slow.count("held") == 2)
    slow.let_go()
    command.join(30)
    assert (done[0].returncode, done[0].stdout[:14]) == (0, "1 transcoded, ")
    [file] = service.files()
    assert dataset_of(file) == _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30)
