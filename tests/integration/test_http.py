"""The HTTP endpoints of the real service."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from storescp.http.health import METRICS
from support.instances import CT, ct_slice
from support.load import again_and_again, send_slices
from support.scu import EXPLICIT, RawAssociation, Rejected
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
HTTP = {"STORESCP_HTTP__PORT": "0"}
PROMISED = {
    "storescp_instances",
    "storescp_received_bytes",
    "storescp_associations_active",
    "storescp_associations",
    "storescp_refused",
    "storescp_stage_duration_seconds",
    "storescp_transcodes",
    "storescp_outbox_pending",
    "storescp_outbox_oldest_age_seconds",
    "storescp_published",
    "storescp_storage_free_bytes",
    "storescp_licence_expiry_timestamp_seconds",
    "storescp_build_info",
}


def metrics(port: int) -> dict[str, Metric]:
    status, text = get(port, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, sample: str | None = None, **labels: str) -> float:
    [found] = [
        one.value
        for one in families[name].samples
        if one.name == (sample or name) and labels.items() <= one.labels.items()
    ]
    return float(found)


def answered(families: dict[str, Metric]) -> float:
    return sum(one.value for one in families["storescp_instances"].samples if one.name.endswith("_total"))


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_metrics_say_what_happened_and_nothing_about_whom(start_service: StartService, engine: str) -> None:
    service = start_service(
        engine=engine, env=HTTP | {"STORESCP_DICOM_STORE_SCP__ALLOWED_CALLING_AE_TITLES": '["SCU"]'}
    )
    port = http_port(service)
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])], calling=b"SCU") as association:
        for number in range(3):
            one = ct_slice(number, rows=64)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        assert association.store(1, CT, "1.2.3", one.dataset).status == 0xA900
        assert value(metrics(port), "storescp_associations_active") == 1
        association.release()
    with pytest.raises(Rejected):
        RawAssociation(service.port, [(1, CT, [EXPLICIT])], calling=b"OTHER")
    service.records(count=3)
    wait_until(lambda: value(metrics(port), "storescp_associations_active") == 0)
    wait_until(lambda: value(metrics(port), "storescp_outbox_pending", topic="log_queue") == 0)
    families = metrics(port)
    reason = "calling_ae_title"
    assert value(families, "storescp_refused", "storescp_refused_total", reason=reason) == 1
    published = {"topic": "storage_queue", "outcome": "delivered"}
    assert value(families, "storescp_published", "storescp_published_total", **published) == 3
    assert value(families, "storescp_licence_expiry_timestamp_seconds") > time.time()
    assert value(families, "storescp_ready") == 1
    if engine == "rust":
        assert families.keys() >= PROMISED
        instances = "storescp_instances_total"
        assert value(families, "storescp_instances", instances, status="0000", tenant="1234567890") == 3
        assert value(families, "storescp_instances", instances, status="A900") == 1
        for stage in ("receive", "scan"):
            name = "storescp_stage_duration_seconds"
            assert value(families, name, f"{name}_count", stage=stage) == 4
        for stage in ("write", "outbox"):
            assert value(families, name, f"{name}_count", stage=stage) == 3
        assert value(families, "storescp_received_bytes", "storescp_received_bytes_total") == 4 * len(one.dataset)
    _, text = get(port, "/metrics")
    assert one.sop_instance not in text
    assert "1.2.826" not in text
    assert service.stop() == 0


def test_readiness_names_its_reasons_until_the_last_association_is_over(start_service: StartService) -> None:
    service = start_service(env=HTTP | {"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": str(1 << 60)})
    port = http_port(service)
    status, text = get(port, "/readyz")
    assert (status, json.loads(text)["ready"]) == (503, False)
    assert "free space" in json.loads(text)["reasons"][0]
    assert get(port, "/livez") == (200, "alive\n")
    assert service.stop() == 0
    service = start_service(env=HTTP)
    port = http_port(service)
    assert get(port, "/readyz") == (200, '{"ready":true,"reasons":[]}')
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        wait_until(lambda: get(port, "/readyz") == (503, '{"ready":false,"reasons":["draining"]}'))
        association.release()
    stopping.join(30)
    assert service.process.returncode == 0


def test_a_token_is_asked_for_where_it_is_configured(start_service: StartService) -> None:
    service = start_service(env=HTTP | {"STORESCP_HTTP__TOKEN": "secret"})
    port = http_port(service)
    assert [get(port, path)[0] for path in ("/livez", "/readyz", "/metrics", "/nothing")] == [200, 200, 401, 404]
    assert [get(port, "/metrics", token)[0] for token in ("wrong", "secret")] == [401, 200]
    assert "secret" not in service.log()


def test_a_port_that_is_taken_is_exit_69(start_service: StartService) -> None:
    first = start_service(env=HTTP)
    port = http_port(first)
    with pytest.raises(AssertionError, match=rf"cannot listen on 127.0.0.1:{port}: .*; .* \(http.port\)"):
        start_service(root=first.root.parent / "other", env={"STORESCP_HTTP__PORT": str(port)})


def test_what_is_declared_is_what_is_exposed(start_service: StartService) -> None:
    told = {
        family.name: (family.kind.__name__.removesuffix("MetricFamily").lower(), set(family.labels))
        for family in METRICS
    }
    service = start_service(env=HTTP)
    families = metrics(http_port(service))
    ours = {name: family for name, family in families.items() if name.startswith("storescp_")}
    # It is left out where there is no damaged data set.
    del told["storescp_quarantined_oldest_timestamp_seconds"]
    assert told.keys() == ours.keys()
    for name, family in ours.items():
        assert family.type == told[name][0], name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == told[name][1], name


def test_sixty_scrapes_under_load_are_valid(start_service: StartService) -> None:
    service = start_service(env=HTTP)
    port = http_port(service)
    numbers = itertools.count()
    with again_and_again(lambda: send_slices(service.port, numbers)):
        counts = [answered(metrics(port)) for _ in range(60)]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_page_of_another_name_cannot_read_it(start_service: StartService) -> None:
    service = start_service(env=HTTP | {"STORESCP_HTTP__ALLOWED_HOSTS": '["pacs.example"]'})
    port = http_port(service)

    def ask(path: str, host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    names = ("evil.example", "evil.example:8042", "pacs.example", f"localhost:{port}", "[::1]:8042", "10.1.2.3", "")
    assert [ask("/status", name) for name in names] == [421, 421, 200, 200, 200, 200, 421]
    assert ask("/metrics", "evil.example") == 200


def test_many_watchers_share_and_the_service_stops_while_they_watch(start_service: StartService) -> None:
    service = start_service(env=HTTP)
    port = http_port(service)
    watchers = []
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/events")
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline() == b"event: history\n"
        watchers.append((connection, response))
    assert get(port, "/events")[0] == 503
    assert get(port, "/readyz")[0] == 200
    assert service.stop() == 0
    for connection, response in watchers:
        response.read()
        connection.close()
    assert "Traceback" not in service.log()


def test_what_cannot_be_shown_says_why(start_service: StartService) -> None:
    service = start_service(env=HTTP | {"STORESCP_HTTP__SHOW_PATIENT_DATA": "true"})
    port = http_port(service)
    assert get(port, "/thumbnails/99") == (404, "no picture: it is none of the last instances any more\n")
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        one = ct_slice(1, rows=64)
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    [file] = service.files()
    file.write_bytes(file.read_bytes()[:-100])
    status, text = get(port, "/thumbnails/1")
    assert (status, text.partition(":")[0]) == (404, "no picture")
    file.unlink()
    wait_until(lambda: get(port, "/thumbnails/1")[0] == 404)
