"""Looking at files in quarantine and removing them, beside a service that runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.command import run_in_process, storescp
from support.engines import leave_undecided, opened, path_of, store
from support.instances import ct_slice

COUNT = 3
INSTANCES = [ct_slice(number, rows=4) for number in range(COUNT)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage root with three entries in quarantine: one has no note, one no file."""
    root = tmp_path / "data"
    store("python", root, *INSTANCES)
    for instance in INSTANCES:
        leave_undecided(root, path_of(instance))
        with (root / path_of(instance)).open("ab") as file:
            file.write(b"\1\1")
    with opened("python", root) as engine:
        assert engine.start_up().quarantined_count == COUNT
    _, second, third = names(root)
    (root / ".quarantine" / f"{second}.json").write_text("{")
    (root / ".quarantine" / f"{third}.dcm").unlink()
    return root


def names(root: Path) -> list[str]:
    """In the order in which the instances were stored."""
    return sorted({file.stem for file in (root / ".quarantine").iterdir()})


def test_each_entry_is_a_line_also_without_note_or_file(root: Path) -> None:
    listed = run_in_process("-o", root, "quarantine", "list")
    assert listed.returncode == 0
    first, second, third = listed.stdout.splitlines()
    a, b, c = names(root)
    assert first.startswith(f"{a}  20")
    assert f"  {path_of(INSTANCES[0])}  the file differs" in first
    assert second == f"{b}  -  -  no note"
    assert third.startswith(f"{c}  20")
    assert third.endswith("; the file is missing")


def test_the_list_is_json_for_programs(root: Path) -> None:
    found = json.loads(run_in_process("-o", root, "quarantine", "list", "--json").stdout)
    assert [entry["name"] for entry in found] == names(root)
    assert [entry["path"] for entry in found] == [path_of(INSTANCES[0]), None, path_of(INSTANCES[2])]
    assert [entry["has_file"] for entry in found] == [True, True, False]
    assert {entry["storage_root"] for entry in found} == {str(root)}


def test_an_empty_quarantine_is_an_empty_list(tmp_path: Path) -> None:
    store("python", tmp_path, INSTANCES[0])
    listed = run_in_process("-o", tmp_path, "quarantine", "list")
    assert (listed.returncode, listed.stdout) == (0, "")
    assert run_in_process("-o", tmp_path, "quarantine", "forget", "--all").returncode == 0


def test_show_prints_the_note_and_what_the_file_is_now(root: Path) -> None:
    first, second, third = names(root)
    shown = run_in_process("-o", root, "quarantine", "show", first)
    assert shown.returncode == 0
    note = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert note["record"]["trace_id"] == first
    size = (root / ".quarantine" / f"{first}.dcm").stat().st_size
    assert (note["path"], note["found_size"]) == (path_of(INSTANCES[0]), size)
    assert "now       unreadable: " in shown.stdout, "two bytes too many are no data set"
    assert "no note" in run_in_process("-o", root, "quarantine", "show", second).stdout
    assert "No such file" in run_in_process("-o", root, "quarantine", "show", third).stdout
    assert run_in_process("-o", root, "quarantine", "show", "../outbox").returncode == 1


def test_show_says_which_instance_a_whole_file_is(root: Path) -> None:
    [first, *_] = names(root)
    file = root / ".quarantine" / f"{first}.dcm"
    os.truncate(file, file.stat().st_size - 2)
    shown = run_in_process("-o", root, "quarantine", "show", first).stdout
    assert f"instance  {path_of(INSTANCES[0])}" in shown
    assert f"now       {file.stat().st_size} bytes, digest " in shown


def test_forget_removes_file_and_note_of_what_is_named(root: Path) -> None:
    first, second, third = names(root)
    done = run_in_process("-o", root, "quarantine", "forget", first, third, "--yes")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [first, third]
    assert names(root) == [second]


def test_forget_asks_and_removes_nothing_unless_the_answer_is_yes(root: Path) -> None:
    for typed in ("n\n", ""):
        refused = run_in_process("-o", root, "quarantine", "forget", "--all", typed=typed)
        assert refused.returncode != 0
        assert len(refused.stdout.splitlines()) == COUNT
    assert len(names(root)) == COUNT
    with opened("python", root) as engine:
        # As a service has its storage root open: in another process.
        assert storescp("-o", root, "quarantine", "forget", "--all", typed="y\n").returncode == 0
        engine.sweep()
        assert engine.storage_state().quarantined == 0
    assert names(root) == []


def test_forget_removes_nothing_where_a_name_is_not_there(root: Path) -> None:
    [first, *_] = before = names(root)
    done = run_in_process("-o", root, "quarantine", "forget", first, "other", "--yes")
    assert done.returncode == 1
    assert "not in quarantine: other" in done.stderr
    assert names(root) == before
    assert run_in_process("-o", root, "quarantine", "forget").returncode == 2


def test_verify_finds_what_is_in_quarantine(root: Path) -> None:
    first, second, _ = names(root)
    found = run_in_process("-o", root, "verify")
    assert found.returncode == 1
    lines = found.stdout.splitlines()
    assert f"quarantined  .quarantine/{second}  (no note)" in lines
    assert any(line.startswith(f"quarantined  {path_of(INSTANCES[0])}  (the file differs") for line in lines)
    assert "3 findings" in found.stderr
    assert run_in_process("-o", root, "quarantine", "forget", "--all", "--yes").returncode == 0
    assert run_in_process("-o", root, "verify").returncode == 0
    assert first not in names(root)


def test_the_roots_of_tenants_are_looked_at_too(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (root / ".quarantine").rename(other / ".quarantine")
    tenants = json.dumps([{"tenant_id": "t", "storage_root": str(other)}])
    listed = run_in_process("-o", root, "quarantine", "list", "--json", env={"STORESCP_TENANTS__SETTINGS": tenants})
    assert {entry["storage_root"] for entry in json.loads(listed.stdout)} == {str(other)}
