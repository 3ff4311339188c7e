"""The deployment files, and the programs that check them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from storescp.cli import main_group
from storescp.cli.common import configuration
from storescp.settings import Settings

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
CHART = DEPLOY / "helm" / "storescp"


def settings_in_force(
    options: list[str], environment: dict[str, str], file: Path | None, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """What the program makes of options, environment and a configuration file."""
    with monkeypatch.context() as patch:
        for key, value in environment.items():
            if key.startswith("STORESCP_"):
                patch.setenv(key, value)
        config = [] if file is None else ["--config", str(file)]
        with main_group.make_context("storescpd", [*config, *options, "check-config"]) as context:
            context.invoked_subcommand = "check-config"
            main_group.callback(**context.params)
            return configuration(context).settings


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


def rendered(values: str) -> str:
    """The manifests of the chart."""
    return subprocess.run(
        [tool("helm"), "template", "r", CHART, "--kube-version", "1.33.0", "--set", values],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def manifest(kind: str, values: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    [found] = [one for one in yaml.safe_load_all(rendered(values)) if one["kind"] == kind]
    return found


def stateful_set(values: str) -> dict[str, Any]:
    """The workload of the chart."""
    return manifest("StatefulSet", values)
