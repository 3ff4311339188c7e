"""What the deployment files say is what the program understands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from storescp.config import Configuration, load

PROJECT = Path(__file__).parents[2]


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
    assert used == set(document["volumes"])


def test_the_image_has_what_the_build_needs_and_nothing_else() -> None:
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {path for path in kept if not (PROJECT / path).exists()} == set()
    workspace = tomllib.loads((PROJECT / "Cargo.toml").read_text())["workspace"]
    assert {member.partition("/")[0] for member in workspace["members"]} <= kept
    assert {"Cargo.toml", "Cargo.lock", "pyproject.toml", "python", "README.md", "LICENSE"} <= kept
