"""The documentation: every command in it is run, every configuration in it is read."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
from pydantic import BaseModel

from storescp.config import load
from storescp.settings import Settings
from support.broker import libraries
from support.pages import Command, Written, matches, steps, tables, terminal

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
PAGES = sorted([*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")])
# What a page says that cannot be run here, and what is done instead.
NOT_RUN = {
    "docker compose -f deploy/compose.yaml up --build": "no container runtime here; the file is checked by its schema",
    "podman run --rm --volume images:/data storescp storage create": "no container runtime here",
    "podman run --detach --read-only --volume images:/data --publish 11111:11111 storescp": "no container runtime here",
    "helm install storescp deploy/helm/storescp --set persistence.create=true": "no cluster here; the chart is "
    "rendered and checked by its schemas",
    "helm upgrade storescp deploy/helm/storescp --reuse-values --set persistence.create=false": "no cluster here; the "
    "chart is rendered and checked by its schemas",
    "kubectl create secret generic index-database --from-literal=url=postgresql://storescp:secret@db/index": "no cluster here",
    "helm upgrade storescp deploy/helm/storescp --reuse-values --set index.enabled=true --set index.databaseSecret=index-database": "no "
    "cluster here; the chart is rendered and checked by its schemas",
    "systemctl enable --now storescp": "no systemd as first process here; the unit is checked by systemd-analyze",
    "systemctl reload storescp": "no systemd as first process here; a signal of the tests does the same",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has who cloned the project and built it, in a folder that may be written to."""
    rust = [path for suffix in ("rs", "toml", "sql") for path in (CHECKOUT / "rust").rglob(f"*.{suffix}")]
    sources = {
        "venv": [CHECKOUT / "pyproject.toml"],
        "build": [CHECKOUT / "Cargo.toml", CHECKOUT / "Cargo.lock", *rust],
    }
    for stamp, files in sources.items():
        built = (CHECKOUT / ".make" / stamp).stat().st_mtime
        assert built >= max(path.stat().st_mtime for path in files), f"{stamp} is older than its sources: make build"
    folder = tmp_path_factory.mktemp("checkout")
    for entry in CHECKOUT.iterdir():
        if entry.name not in (".git", "storescp-data", "build", "dist"):
            (folder / entry.name).symlink_to(entry)
    # The terminals have a network of their own, in which nothing can be fetched.
    libraries()
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(isinstance(step, Command) for step in steps(page))], ids=name_of
)
def test_every_command_does_what_the_page_says(page: Path, checkout: Path, tmp_path: Path) -> None:
    # What is said of the project's own files is said to who has them.
    needs = re.compile(r"\bmake |\bdeploy/")
    in_project = page.parent == CHECKOUT or any(isinstance(s, Command) and needs.search(s.text) for s in steps(page))
    folder = checkout if in_project else tmp_path
    with terminal(folder) as shell:
        for step in steps(page):
            if isinstance(step, Written):
                (shell.at / step.name).write_text(step.text, encoding="utf-8")
            elif step.text not in NOT_RUN:
                output = shell.run(step)
                assert step.stays or not step.printed or matches(step.printed, output), f"$ {step.text}\n{output}"


def test_the_commands_of_the_readme_need_no_activated_environment() -> None:
    commands = [step.text for step in steps(CHECKOUT / "README.md") if isinstance(step, Command)]
    assert any(".venv/bin/storescpd" in command for command in commands)
    for command in commands:
        assert not re.search(r"(?<![\w/.-])(?:storescpd|python3?|pip)\s", command), command


def test_nothing_is_left_out_that_no_page_says() -> None:
    said = {step.text for page in PAGES for step in steps(page) if isinstance(step, Command)}
    assert set(NOT_RUN) <= said


@pytest.mark.parametrize(
    ("page", "table"),
    [(page, table) for page in PAGES for table in tables(page)],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_every_configuration_is_read(page: Path, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.exists()
    assert tomllib.loads(table)
    monkeypatch.chdir(tmp_path)
    licence = (
        "" if "[dicom_license_server]" in table else '\n[dicom_license_server]\nclient_id = "a"\nlicense_key = "b"\n'
    )
    tls = (
        '\n[tls]\ncertificate = "a"\nprivate_key = "b"\n' if "[user_identity]" in table and "[tls]" not in table else ""
    )
    Path("storescp.toml").write_text(table + licence + tls, encoding="utf-8")
    load({}, Path("storescp.toml"))


def test_every_make_command_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    said = {verb for page in PAGES for verb in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert {"run", "test"} <= said <= targets


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", str(DOCS), str(tmp_path / "site")],
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / "reference" / "configuration.html").read_text(encoding="utf-8").count("max_pdu_length") >= 1
    # Nothing comes from elsewhere.
    assert not re.findall(
        r'<(?:script|link|img)[^>]+(?:src|href)="https?:', (site / "index.html").read_text(encoding="utf-8")
    )


def test_the_record_of_the_reference_follows_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    page = importlib.import_module("generate").record()
    [example] = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    schema = resources.files("storescp").joinpath("record-2.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(example), json.loads(schema))


def test_every_key_of_the_configuration_is_explained() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            sections = [part for part in (info.annotation, *get_args(info.annotation)) if _is_section(part)]
            inner = [part for part in get_args(next(iter(get_args(info.annotation)), None)) if _is_section(part)]
            assert sections or info.description, (model, name)
            for section in (*sections, *inner):
                check(section)

    check(Settings)


def _is_section(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def test_what_of_pynetdicoms_cases_does_not_apply_is_listed() -> None:
    source = (CHECKOUT / "tests" / "conformance" / "test_pynetdicom_cases.py").read_text(encoding="utf-8")
    names = re.findall(
        r'^    "(test_\w+)": ', source.partition("NOT_APPLICABLE = {")[2].partition("}")[0], re.MULTILINE
    )
    page = (DOCS / "how-to" / "from-pynetdicom.md").read_text(encoding="utf-8")
    assert names
    assert re.findall(r"^\| `(test_\w+)` \| .{10,} \|$", page, re.MULTILINE) == names
