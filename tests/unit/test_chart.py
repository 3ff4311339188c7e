"""The Helm chart: what it makes, what it refuses, and that its values fit together. Without helm, what can be read of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from storescp.cli import main_group
from storescp.settings import Settings
from storescp.workers import SERVICE_BYTES, fit
from support.deployment import CHART, manifest, rendered, run, settings_in_force, stateful_set, tool


def test_the_chart_makes_a_storage_root_only_where_it_is_told_to() -> None:
    def pod(*values: str) -> dict[str, Any]:
        return stateful_set(",".join(("existingSecret=s", *values)))["spec"]["template"]["spec"]

    assert "initContainers" not in pod()
    made = pod("persistence.create=true")
    [first], [service] = made["initContainers"], made["containers"]
    assert first["args"] == ["--config=/etc/storescp/storescp.toml", "storage", "create"]
    for shared in ("image", "env", "volumeMounts", "workingDir", "securityContext"):
        assert first[shared] == service[shared]
    assert service["workingDir"] == "/data"


@pytest.mark.parametrize(
    "values",
    [
        "image.tag=1.0",
        ",".join(
            (
                "existingSecret=s",
                "persistence.create=true",
                "podMonitor.enabled=true",
                "prometheusRule.enabled=true",
                "networkPolicy.enabled=true",
                "dicom.tlsPort=2762",
                "dicom.service.type=LoadBalancer",
                "http.tokenSecret=t",
                "env.STORESCP_KAFKA__BROKERS=kafka:9092",
                "index.enabled=true",
                "index.databaseSecret=database",
            )
        ),
    ],
)
def test_the_chart_makes_manifests_that_kubernetes_takes(tmp_path: Path, values: str) -> None:
    run(tool("helm"), "lint", "--strict", CHART)
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(rendered(values))
    run(tool("kubernetes-validate"), "--strict", "--no-warn", "-k", "1.33", manifests)
    [container] = stateful_set(values)["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


INDEX = "index.enabled=true,index.databaseSecret=database,env.STORESCP_KAFKA__BROKERS=kafka:9092"


def test_the_chart_has_no_index_unless_it_is_asked_for() -> None:
    assert "Deployment" not in {one["kind"] for one in yaml.safe_load_all(rendered("image.tag=1.0"))}


def test_the_index_of_the_chart_reads_the_topic_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    values = f"{INDEX},env.STORESCP_MESSAGE_QUEUE__TOPIC_MAIN=q,env.STORESCP_LOG__LEVEL=info,index.env.STORESCP_LOG__LEVEL=debug"
    [container] = manifest("Deployment", values)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["index"]
    given = {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}
    assert given.pop("STORESCP_INDEX__DATABASE") == {"secretKeyRef": {"name": "database", "key": "url"}}
    settings = settings_in_force([], given, None, monkeypatch)
    assert settings.kafka is not None
    assert settings.kafka.brokers == "kafka:9092"
    assert (settings.message_queue.topic_main, settings.log.level) == ("q", "debug")


def test_the_index_of_the_chart_has_the_rights_and_the_image_of_the_service() -> None:
    values = f"{INDEX},existingSecret=s,image.tag=1.0"
    ours, index = (manifest(kind, values)["spec"]["template"]["spec"] for kind in ("StatefulSet", "Deployment"))
    [service], [worker] = ours["containers"], index["containers"]
    for shared in ("image", "imagePullPolicy", "securityContext"):
        assert worker[shared] == service[shared]
    assert ours["securityContext"].items() >= index["securityContext"].items()
    assert index["securityContext"]["runAsNonRoot"] is True
    assert worker["args"][0] == service["args"][0] == "--config=/etc/storescp/storescp.toml"
    # The data and the token of the status page are no business of the index.
    assert {mount["name"] for mount in worker["volumeMounts"]} == {"config", "tmp"}
    assert worker["resources"]["limits"] == {"memory": "512Mi"}
    # The command serves no HTTP that a probe could ask.
    assert "http" not in {parameter.name for parameter in main_group.commands["index"].params}
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & worker.keys()


def test_nothing_that_selects_the_service_selects_the_index() -> None:
    values = f"{INDEX},podMonitor.enabled=true,networkPolicy.enabled=true"
    manifests = list(yaml.safe_load_all(rendered(values)))
    index = manifest("Deployment", values)
    labels = index["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= index["spec"]["selector"]["matchLabels"].items()
    selectors = [
        selector.get("matchLabels", selector)
        for one in manifests
        for selector in (one["spec"].get("selector"), one["spec"].get("podSelector"))
        if selector is not None and one["kind"] != "Deployment"
    ]
    assert len(selectors) == 5
    assert not any(labels.items() >= selector.items() for selector in selectors)


def quantity(text: str) -> int:
    """A quantity of Kubernetes in whole units."""
    number, unit = re.fullmatch(r"(\d+)(|Mi|Gi)", text).groups()
    return int(number) * {"": 1, "Mi": 1 << 20, "Gi": 1 << 30}[unit]


def test_the_limits_of_the_chart_have_room_for_a_worker_on_each_processor() -> None:
    limits = chart_values()["resources"]["limits"]
    processors, memory = quantity(limits["cpu"]), quantity(limits["memory"])
    plan = fit(Settings().transcoding, processors, memory)
    assert plan.remark is None
    assert plan.processes == processors == 2
    # No more than a half is left unused.
    assert SERVICE_BYTES + plan.processes * plan.memory_bytes > memory // 2


def chart_values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def test_the_default_values_of_the_chart_follow_its_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(chart_values())
    # What is in one and not in the other is a value that nobody can set, or whose default nobody can see.
    assert set(schema["properties"]) - {"global"} == set(chart_values())


def test_templates_use_only_values_and_parts_that_there_are() -> None:
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    assert {"index.databaseSecret", "resources", "dicom.service.type"} <= used
    for path in used:
        found: Any = chart_values()
        for key in path.split("."):
            assert key in found, path
            found = found[key]
    assert set(re.findall(r'include "([\w.]+)"', templates)) == set(re.findall(r'define "([\w.]+)"', templates))


def test_the_chart_refuses_values_that_cannot_be() -> None:
    helm = tool("helm")
    without_database, without_brokers = "index.enabled=true", "index.enabled=true,index.databaseSecret=database"
    wrongs = ("dicom.port=104", "persistence.size=many", "persistence.create=1", "unknown=1", "env.PATH=x")
    for wrong in (*wrongs, without_database, without_brokers):
        done = subprocess.run(
            [helm, "template", "r", CHART, "--kube-version", "1.33.0", "--set", wrong],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0, wrong
