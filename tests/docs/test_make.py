"""`make run`, with tools that do nothing: what a newcomer reads while it builds. `make kafka`: what it would install."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
FIRST = "make: the first build takes 5 to 7 minutes on two cores"
LATER = "make: building the parts of the Rust core that changed"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A fresh clone whose tools in .venv print their names and nothing else."""
    for name in ("Makefile", "Cargo.toml", "Cargo.lock", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "pip", "maturin"):
        (tools / name).write_text(f"#!/bin/sh\necho ran {name}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    return tmp_path


def make_run(project: Path) -> list[str]:
    done = subprocess.run(
        ["make", "--silent", "run"], cwd=project, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def position(printed: list[str], beginning: str) -> int:
    return next(number for number, line in enumerate(printed) if line.startswith(beginning))


def test_make_run_says_before_the_first_build_how_long_it_takes(project: Path) -> None:
    printed = make_run(project)
    assert position(printed, "make: preparing the virtual environment") < position(printed, "ran pip")
    assert position(printed, FIRST) < position(printed, "ran maturin") < position(printed, "ran python")


def test_make_run_says_nothing_of_a_build_where_nothing_changed(project: Path) -> None:
    make_run(project)
    assert make_run(project) == ["ran python"]


def test_make_run_does_not_promise_minutes_for_a_later_build(project: Path) -> None:
    make_run(project)
    (project / "pyproject.toml").touch()
    printed = make_run(project)
    assert position(printed, LATER) < position(printed, "ran maturin")
    assert not any(line.startswith(FIRST) for line in printed)


def would_run(project: Path, target: str) -> str:
    command = ["make", "--dry-run", target]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True, timeout=60).stdout


def test_make_kafka_installs_java_and_maven_and_nothing_else_of_the_tests(project: Path) -> None:
    [tools] = re.findall(r"for tool in (.*?); do", would_run(project, "kafka"))
    assert tools.split() == ["java:default-jre-headless", "mvn:maven"]
    assert "--group" not in would_run(project, "kafka")
    everything = would_run(project, "test")
    assert "--group test" in everything
    [all_tools] = re.findall(r"for tool in (.*?); do", everything)
    assert {*tools.split(), "dcmsend:dcmtk", "/usr/lib/postgresql/*/bin/initdb:postgresql"} <= {*all_tools.split()}
