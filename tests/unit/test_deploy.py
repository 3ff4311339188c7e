"""What the deployment files say is what the program understands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from storescp.cli import main_group
from storescp.config import Configuration, load
from storescp.liveness import HEARTBEAT_SECONDS
from storescp.settings import Settings

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"


def compose() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())


def configured(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Configuration:
    with monkeypatch.context() as patch:
        for key, value in service["environment"].items():
            patch.setenv(key, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
        return load({}, None)


def test_the_services_of_the_compose_file_are_configured_for_its_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose()["services"]
    inside = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")[0].removeprefix("INTERNAL://")
    script = services["topics"]["command"][0]
    for name in ("storescp", "index"):
        configuration = configured(services[name], monkeypatch)
        assert configuration.warnings == ()
        assert configuration.settings.kafka is not None
        assert configuration.settings.kafka.brokers == inside
        assert configuration.settings.message_queue.topic_main in script
        assert inside in script
    receiver = configured(services["storescp"], monkeypatch).settings
    assert receiver.message_queue.topic_dicom_receive in script
    database = configured(services["index"], monkeypatch).settings.index.database.get_secret_value()
    assert database == "postgresql://storescp:storescp@postgres/index"


def test_what_has_no_status_page_is_not_asked_for_it() -> None:
    # The health check of the image.
    services = [service for service in compose()["services"].values() if service.get("image") == "storescp"]
    for service in services:
        assert ("command" in service) == (service.get("healthcheck") == {"disable": True})
    assert len(services) == 2


def test_a_stop_of_the_compose_file_leaves_time_to_drain_and_to_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    service = compose()["services"]["storescp"]
    settings = configured(service, monkeypatch).settings.service
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.drain_timeout + settings.publish_timeout


def test_everything_published_is_bound_to_loopback_and_every_volume_is_declared() -> None:
    document = compose()
    used = set()
    for service in document["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        used |= {volume.partition(":")[0] for volume in service.get("volumes", ())}
    folders = {volume for volume in used if volume.startswith(".")}
    assert all((DEPLOY / folder).is_dir() for folder in folders)
    assert used - folders == set(document["volumes"])


def test_the_image_has_what_the_build_needs_and_nothing_else() -> None:
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {path for path in kept if not (PROJECT / path).exists()} == set()
    workspace = tomllib.loads((PROJECT / "Cargo.toml").read_text())["workspace"]
    assert {member.partition("/")[0] for member in workspace["members"]} <= kept
    assert {"Cargo.toml", "Cargo.lock", "pyproject.toml", "python", "README.md", "LICENSE"} <= kept


def run(*command: object, **options: Any) -> str:
    """What a linter says; the test fails where it does."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, check=False, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(name: str) -> str:
    """A program that may be absent."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_the_compose_file_follows_its_schema() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_the_container_file_has_no_findings() -> None:
    # DL3008: the build stage takes the versions of its base image.
    run(tool("hadolint"), "--ignore", "DL3008", DEPLOY / "Containerfile")
    text = (DEPLOY / "Containerfile").read_text()
    assert "\nUSER 10001:10001\n" in text
    assert "\nHEALTHCHECK " in text


def test_the_unit_is_right_and_hardened(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "storescp.service").read_text()
    assert "Type=notify" in text
    unit = tmp_path / "storescp.service"
    unit.write_text(text.replace("/opt/storescp/bin/storescpd", "/bin/true"))
    assert run(tool("systemd-analyze"), "verify", "--man=no", unit) == ""
    exposure = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", unit)
    assert "OK" in exposure
    stop = re.search(r"TimeoutStopSec=(\d+)", text)
    defaults = Settings.model_validate({}).service
    assert stop
    assert int(stop[1]) > defaults.drain_timeout + defaults.publish_timeout
    # The main thread may be late for so long before it counts as hanging.
    watchdog = re.search(r"WatchdogSec=(\d+)", text)
    assert watchdog
    assert int(watchdog[1]) > HEARTBEAT_SECONDS


def test_alerts_and_their_tests_hold() -> None:
    promtool, folder = tool("promtool"), DEPLOY / "prometheus"
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", folder / "alerts.yml")
    run(promtool, "test", "rules", "alerts_test.yml", cwd=folder)


def test_the_dashboard_is_one_that_grafana_understands() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    plugins.register_default_plugins()
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "storescp.json").read_text())
    understood = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(dashboard)))
    lost = list(differences(dashboard, understood))
    assert lost == []


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """What Grafana's own types do not take from a document."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{path}/{key}"
            else:
                yield from differences(value, theirs[key], f"{path}/{key}")
    elif isinstance(ours, list):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{number}]")
    elif ours != theirs:
        yield path


@pytest.mark.parametrize(
    "values",
    [
        "image.tag=1.0",
        ",".join(
            (
                "existingSecret=s",
                "podMonitor.enabled=true",
                "prometheusRule.enabled=true",
                "networkPolicy.enabled=true",
                "dicom.tlsPort=2762",
                "dicom.service.type=LoadBalancer",
                "http.tokenSecret=t",
                "env.STORESCP_KAFKA__BROKERS=kafka:9092",
            )
        ),
    ],
)
def test_the_chart_makes_manifests_that_kubernetes_takes(tmp_path: Path, values: str) -> None:
    helm, chart = tool("helm"), DEPLOY / "helm" / "storescp"
    run(helm, "lint", "--strict", chart)
    made = subprocess.run(
        [helm, "template", "r", chart, "--kube-version", "1.33.0", "--set", values],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(made)
    run(tool("kubernetes-validate"), "--strict", "--no-warn", "-k", "1.33", manifests)
    stateful = next(one for one in yaml.safe_load_all(made) if one["kind"] == "StatefulSet")
    [container] = stateful["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    given = [option for option in container["args"] if not option.startswith("--config")]
    with main_group.make_context("storescpd", given, resilient_parsing=True) as context:
        assert str(context.params["output_directory"]) == "/data"


def test_the_chart_refuses_values_that_cannot_be() -> None:
    helm, chart = tool("helm"), DEPLOY / "helm" / "storescp"
    for wrong in ("dicom.port=104", "persistence.size=many", "unknown=1", "env.PATH=x"):
        done = subprocess.run(
            [helm, "template", "r", chart, "--kube-version", "1.33.0", "--set", wrong],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0, wrong


def test_workflows_follow_their_schema_and_ask_for_no_more_than_they_need() -> None:
    workflows = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) >= 2
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *workflows)
    run(tool("zizmor"), "--offline", "--no-progress", "--persona", "regular", *workflows)
    for workflow in workflows:
        for action in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
