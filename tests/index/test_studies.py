"""`storescpd studies`: what it lists, and that it shows no patient data unasked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from storescp.cli import main_group
from storescp.index.database import Database
from support.databases import described, messages

NAME = ("PN", {"Alphabetic": "Secret^Name"})


def listed(url: str, *options: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(main_group, ["studies", "--database", url, "--json", *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def filled(database: Database, url: str) -> str:
    said = {"00100010": NAME, "00081030": ("LO", "Secret description"), "00080060": ("CS", "CT")}
    for number, (modality, days, tenant) in enumerate([("CT", 0, "t"), ("MR", 5, "t"), ("SR", 1, "u")]):
        moment = (datetime.now(UTC) - timedelta(days=days, minutes=1)).isoformat(timespec="microseconds")
        one = described(
            number, said=said | {"00080060": ("CS", modality)}, study_uid=f"1.{number}", series_uid=f"1.{number}.1",
            received_at=moment.replace("+00:00", "Z"), tenant_id=tenant, accession_number=f"A{number}",
            patient_id="Secret ID",
        )  # fmt: skip
        database.apply("main", {0: messages(one, begin=number)})
    return url


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["1.0", "1.2", "1.1"]),
        (["--since", "2d"], ["1.0", "1.2"]),
        (["--since", "3 h"], ["1.0"]),
        (["--modality", "mr"], ["1.1"]),
        (["--modality", "M"], []),
        (["--accession", "A2"], ["1.2"]),
        (["--tenant", "u"], ["1.2"]),
        (["--limit", "1"], ["1.0"]),
    ],
)
def test_studies_are_found(filled: str, options: list[str], expected: list[str]) -> None:
    assert [one["study_uid"] for one in listed(filled, *options)] == expected


def test_patient_data_is_shown_only_when_it_is_asked_for(filled: str) -> None:
    for options in ([], ["--json"]):
        plain = CliRunner().invoke(main_group, ["studies", "--database", filled, *options]).output
        assert "Secret" not in plain
        assert "A0" not in plain
        whole = CliRunner().invoke(main_group, ["studies", "--database", filled, "--patient-data", *options]).output
        assert all(text in whole for text in ("Secret^Name", "Secret ID", "Secret description", "A0"))


def test_a_database_without_tables_is_told_of(tmp_path: Path) -> None:
    result = CliRunner().invoke(main_group, ["studies", "--database", f"sqlite:///{tmp_path}/none.sqlite"])
    assert result.exit_code != 0
    assert "no such table" in str(result.exception)
    result = CliRunner().invoke(main_group, ["studies", "--since", "soon"])
    assert result.exit_code == 2
