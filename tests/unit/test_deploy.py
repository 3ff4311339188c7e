"""What the deployment files say is what the program understands."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import UsageError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from storescp.cli.common import EXIT_CONFIG, EXIT_LICENCE, EXIT_TEMPORARY
from storescp.config import Configuration, load
from storescp.liveness import HEARTBEAT_SECONDS
from storescp.settings import Settings
from support.deployment import DEPLOY, PROJECT, run, settings_in_force, stateful_set, tool


def compose() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())


def configured(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Configuration:
    for name in [name for name in os.environ if name.startswith("STORESCP_")]:
        monkeypatch.delenv(name)
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
    assert len(services) == 3


Started = tuple[list[str], dict[str, str]]


def started_by_the_unit() -> Started:
    text = (DEPLOY / "systemd" / "storescp.service").read_text()
    command = re.search(r"^ExecStart=\S+/storescpd -c /etc/storescp/storescp.toml(.*)$", text, re.MULTILINE)
    assert command
    return command[1].split(), dict(re.findall(r"^Environment=(\w+)=(\S+)$", text, re.MULTILINE))


def started_by_the_image() -> Started:
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    command = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert command
    environment = " ".join(re.findall(r"^ENV (.*)$", text, re.MULTILINE))
    return json.loads(command[1]), dict(re.findall(r"(\w+)=(\S+)", environment))


def started_by_the_compose_file() -> Started:
    options, environment = started_by_the_image()
    return options, environment | compose()["services"]["storescp"]["environment"]


def started_by_the_chart() -> Started:
    container = stateful_set("image.tag=1.0")["spec"]["template"]["spec"]["containers"][0]
    _, environment = started_by_the_image()
    return container["args"], environment | {one["name"]: one["value"] for one in container["env"]}


WAYS = [started_by_the_unit, started_by_the_image, started_by_the_compose_file, started_by_the_chart]


@pytest.mark.parametrize("started", WAYS)
def test_the_configuration_file_alone_says_where_the_storage_root_is(
    started: Callable[[], Started], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that are run beside the service find the same root, with the file and without one."""
    options, environment = started()
    file = tmp_path / "storescp.toml"
    file.write_text("[local_storage]\ndicm_store_path = '/srv/images'\n")
    served = settings_in_force(options, environment, file, monkeypatch)
    assert served.storage.root == Path("/srv/images")
    assert served.storage.create is False
    monkeypatch.chdir(tmp_path)
    for given in (options, []):
        served = settings_in_force(given, environment, None, monkeypatch)
        assert served.storage.root == tmp_path / "storescp-data"


def test_without_a_file_the_root_is_on_the_volume() -> None:
    """The default is relative to the folder in which commands of a container are run."""
    text = (DEPLOY / "Containerfile").read_text()
    assert "\nVOLUME /data\n" in text
    assert text.rpartition("\nWORKDIR ")[2].startswith("/data\n")
    for name in ("storage", "storescp"):
        assert compose()["services"][name]["volumes"] == ["data:/data"]
        assert "working_dir" not in compose()["services"][name]


def test_the_compose_file_makes_its_storage_root_before_the_service_starts() -> None:
    services = compose()["services"]
    assert services["storescp"]["depends_on"]["storage"] == {"condition": "service_completed_successfully"}
    assert services["storage"]["command"] == ["storage", "create"]
    assert services["storage"].get("restart") is None


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
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert set(copied) - {"."} <= kept


def test_every_image_is_named_by_its_full_version() -> None:
    stages = re.findall(r"^FROM (\S+)", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    services = [service["image"] for service in compose()["services"].values()]
    foreign = {*stages, *services} - {"storescp"}
    assert len(foreign) >= 6
    for image in foreign:
        # PostgreSQL has versions of two numbers.
        version = r"17\.\d+" if "/postgres:" in image else r"v?\d+\.\d+\.\d+(-slim-bookworm)?"
        assert re.fullmatch(rf"docker\.io/[\w/]+:{version}", image), image
    # What builds the image is no older than what the project asks for.
    workspace = tomllib.loads((PROJECT / "Cargo.toml").read_text())["workspace"]
    rust = re.search(r"/rust:([\d.]+)-", stages[0])
    assert rust
    assert Version(rust[1]) >= Version(workspace["package"]["rust-version"])


def locked(name: str) -> dict[str, Version]:
    """The packages of a lock file. Each has at least one hash, and nothing else is installed."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    packages = {}
    for entry in entries:
        found = re.fullmatch(r"([\w.-]+)==(\S+)(?: +; [^\\]+?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", entry)
        assert found, entry
        packages[canonicalize_name(found[1])] = Version(found[2])
    return packages


def unmet(requirements: list[str], packages: dict[str, Version]) -> list[str]:
    """Requirements that a lock file does not meet."""
    wanted = [Requirement(text) for text in requirements]
    return [
        str(one)
        for one in wanted
        if (version := packages.get(canonicalize_name(one.name))) is None or version not in one.specifier
    ]


def test_the_lock_files_meet_what_the_project_asks_for() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["postgresql"]]
    runtime = locked("runtime.lock")
    assert unmet(asked, runtime) == []
    assert unmet(project["build-system"]["requires"], locked("build.lock")) == []
    assert unmet(["click<1", "absent"], runtime) == ["click<1", "absent"]
    # What those need in turn is there too: pip takes nothing that has no hash.
    same = [one for one in metadata.distributions() if runtime.get(canonicalize_name(one.name)) == Version(one.version)]
    for one in same:
        needs = [Requirement(text) for text in one.requires or ()]
        here = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        assert {canonicalize_name(need.name) for need in here} <= runtime.keys(), one.name


def test_the_image_installs_what_is_locked() -> None:
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install (.*?)(?= &&|\n)", text)
    assert len(installs) == 3
    from_lock = [one for one in installs if re.search(r"--require-hashes --requirement \S*\w+\.lock *$", one)]
    # The third is the project's own wheel.
    [own] = [one for one in installs if one not in from_lock]
    assert "--no-deps /wheels/*.whl" in own
    assert re.search(r"^COPY deploy/(\w+\.lock) ", text, re.MULTILINE)


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
    drop_in = tmp_path / "storescp.service.d" / "disks.conf"
    drop_in.parent.mkdir()
    shutil.copy(DEPLOY / "systemd" / "storescp.service.d" / "disks.conf", drop_in)
    assert run(tool("systemd-analyze"), "verify", "--man=no", unit) == ""
    drop_in.write_text(drop_in.read_text().replace("ReadWritePaths", "ReadWritePath"))
    assert "Unknown key" in run(tool("systemd-analyze"), "verify", "--man=no", unit)
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


def test_the_unit_is_started_again_without_limit_but_for_what_only_a_person_can_mend() -> None:
    text = (DEPLOY / "systemd" / "storescp.service").read_text()
    keys = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert keys["Restart"] == "on-failure"
    assert keys["RestartSec"] == "10"
    assert keys["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in keys
    not_again = {int(code) for code in keys["RestartPreventExitStatus"].split()}
    # What click makes of a bad option, and ours.
    assert not_again == {UsageError.exit_code, EXIT_LICENCE, EXIT_CONFIG}
    assert EXIT_TEMPORARY not in not_again


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
