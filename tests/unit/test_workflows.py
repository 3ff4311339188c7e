"""The workflows of GitHub: what they run, with which rights, and what a release waits for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from support.deployment import PROJECT, run, tool

WORKFLOWS = PROJECT / ".github" / "workflows"
VERSION = tomllib.loads((PROJECT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())


def commands(job: dict[str, Any]) -> str:
    """What the steps of a job run."""
    return "\n".join(step.get("run", "") for step in job["steps"])


def waits_for(jobs: dict[str, Any], name: str) -> set[str]:
    """The jobs that must have passed before a job begins, those that these wait for included."""
    needs = jobs[name].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*(waits_for(jobs, one) for one in direct))


def test_workflows_follow_their_schema_and_ask_for_no_more_than_they_need() -> None:
    workflows = sorted(WORKFLOWS.glob("*.yml"))
    assert len(workflows) >= 2
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *workflows)
    run(tool("zizmor"), "--offline", "--no-progress", "--persona", "regular", *workflows)
    for file in workflows:
        for action in re.findall(r"uses: (?!\./)(\S+)", file.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert yaml.safe_load(file.read_text())["permissions"] == {}


def test_each_push_compiles_the_build_for_macos_and_makes_no_wheel_of_it() -> None:
    job = workflow("ci")["jobs"]["macos"]
    assert job["runs-on"].startswith("macos-")
    for command in ("check", "clippy"):
        assert re.search(rf"^cargo {command} --locked --workspace --all-targets", commands(job), re.MULTILINE)
    assert "-D warnings" in commands(job)
    assert "wheel" not in commands(job)
    # YAML reads the key `on` as true.
    assert "push" in workflow("ci")[True]
    platforms = workflow("release")["jobs"]["wheels"]["strategy"]["matrix"]["include"]
    assert {one["platform"] for one in platforms if one["runner"].startswith("macos-")} == {
        "macos-arm64",
        "macos-x86_64",
    }


def test_nothing_is_published_before_the_tests_pass_and_the_tag_names_the_version() -> None:
    jobs = workflow("release")["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in workflow("ci")[True]
    publishing = [name for name, job in jobs.items() if "gh-action-pypi-publish" in str(job)]
    assert publishing == ["publish"]
    everything = jobs.keys() - {"publish", "attach"}
    assert {"tests", "version", "wheels", "source"} <= everything
    assert waits_for(jobs, "publish") == everything
    for name in everything - {"version"}:
        assert "version" in waits_for(jobs, name)
    assert commands(jobs["version"]).strip() == '.ci/version "$GITHUB_REF_NAME"'
    for name in ("wheels", "source"):
        assert ".ci/smoke" in commands(jobs[name])


@pytest.mark.parametrize(
    ("tag", "code"), [(f"v{VERSION}", 0), (VERSION, 1), (f"v{VERSION}.1", 1), ("v99.0.0", 1), ("", 1)]
)
def test_a_tag_is_compared_with_the_version_of_each_place(tag: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / ".ci" / "version", tag], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code
    told = [
        f"Cargo.toml has {VERSION}",
        f"version of the chart has {VERSION}",
        f"appVersion of the chart has {VERSION}",
    ]
    assert all((text in done.stderr) == (code == 1) for text in told)


def test_the_wheel_has_the_version_that_the_tag_is_compared_with() -> None:
    assert "version" in tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dynamic"]
    crate = tomllib.loads((PROJECT / "rust" / "py" / "Cargo.toml").read_text())["package"]
    assert crate["version"] == {"workspace": True}


def test_the_bills_of_materials_are_attached_to_the_release() -> None:
    jobs = workflow("release")["jobs"]
    made = set(re.findall(r"dist/(storescp-\w+\.cdx\.json)", (PROJECT / "Makefile").read_text()))
    made |= set(re.findall(r"mv rust/py/(storescp-\w+\.cdx\.json) dist/", (PROJECT / "Makefile").read_text()))
    assert made == {"storescp-python.cdx.json", "storescp-rust.cdx.json"}
    assert "make sdist sbom" in commands(jobs["source"])
    [kept] = [step["with"] for step in jobs["source"]["steps"] if step.get("with", {}).get("name") == "sbom"]
    assert (kept["path"], kept["if-no-files-found"]) == ("dist/*.cdx.json", "error")
    [fetched] = [step["with"] for step in jobs["attach"]["steps"] if "download-artifact" in step.get("uses", "")]
    assert fetched == {"name": "sbom", "path": "sbom"}
    assert "gh release upload" in commands(jobs["attach"])
    assert "sbom/*.cdx.json" in commands(jobs["attach"])
    # PyPI takes wheels and sources, and this right is given to one job.
    [given] = [step["with"] for step in jobs["publish"]["steps"] if "download-artifact" in step.get("uses", "")]
    assert given["pattern"] == "{wheel-*,source}"
    assert {name for name, job in jobs.items() if "write" in (job.get("permissions") or {}).values()} == {
        "publish",
        "attach",
    }
    assert jobs["attach"]["permissions"] == {"contents": "write"}
