"""What a start makes of rows that were never marked committed: the files decide, and no file is removed."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from storescp import _core
from storescp.pure.store import digest
from support.engines import (
    ENGINES,
    leave_undecided,
    opened,
    outbox,
    path_of,
    records,
    rows_of,
    run_engine,
    store,
    take,
)
from support.instances import ct_slice

ONE, OTHER = ct_slice(1, rows=4), ct_slice(2, rows=4)
PATH = path_of(ONE)


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage root with two instances."""
    root = tmp_path / "data"
    store("python", root, ONE, OTHER)
    return root


def trace_of(root: Path, path: str = PATH) -> str:
    [(trace_id, _)] = rows_of(root, path)
    return trace_id


def flip_last_byte(file: Path) -> bytes:
    content = file.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 0xFF])
    file.write_bytes(changed)
    return changed


def quarantined(root: Path) -> dict[str, dict[str, Any]]:
    """The notes by name; each has its file."""
    folder = root / ".quarantine"
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {file.stem for file in folder.iterdir()}
    assert {file.name for file in folder.iterdir()} == {f"{name}{end}" for name in names for end in (".dcm", ".json")}
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def break_row(root: Path) -> str:
    """The row of ONE is undecided, and describes other bytes than its file has; its trace id."""
    leave_undecided(root, PATH)
    with outbox(root) as database:
        database.execute("UPDATE instance SET digest = zeroblob(16) WHERE path = ?", (PATH,))
    return trace_of(root)


def test_other_bytes_go_to_quarantine_with_the_record_that_was_not_published(root: Path, engine_name: str) -> None:
    recorded = (root / PATH).read_bytes()
    leave_undecided(root, PATH)
    changed, trace_id = flip_last_byte(root / PATH), trace_of(root)
    inode = (root / PATH).stat().st_ino
    with opened(engine_name, root) as engine:
        found = engine.start_up()
        assert (found.rows_kept, found.rows_dropped) == (0, 1)
        assert (found.quarantined, found.quarantined_count) == ([PATH], 1)
        assert engine.storage_state().quarantined == 1
        assert [record["sop_uid"] for record in records(engine)] == [OTHER.sop_instance]
    file = root / ".quarantine" / f"{trace_id}.dcm"
    assert (file.read_bytes(), file.stat().st_ino) == (changed, inode), "moved, not copied"
    note = quarantined(root)[trace_id]
    assert datetime.now(UTC) - datetime.fromisoformat(note.pop("quarantined_at")) < timedelta(minutes=1)
    assert note.pop("reason")
    assert note.pop("record")["trace_id"] == trace_id
    assert note == {
        "path": PATH,
        "recorded_size": len(recorded),
        "recorded_digest": digest(recorded).hex(),
        "found_size": len(changed),
        "found_digest": digest(changed).hex(),
    }
    assert not (root / PATH).exists()
    assert (root / path_of(OTHER)).exists()
    assert rows_of(root, PATH) == []


def test_a_part_of_a_file_whose_row_is_in_the_journal_is_not_removed(tmp_path: Path, engine_name: str) -> None:
    root = tmp_path / "data"
    assert run_engine("rust", root, 1, kill=True) is None
    [(trace_id, *_)] = _core.read_journal(root / ".outbox")
    os.truncate(root / PATH, 300)
    with opened(engine_name, root) as engine:
        assert engine.start_up().quarantined == [PATH]
        assert records(engine) == []
        assert take(engine, ONE) == (0, "")
    assert (root / ".quarantine" / f"{trace_id}.dcm").stat().st_size == 300
    assert quarantined(root)[trace_id]["record"]["sop_uid"] == ONE.sop_instance


def test_a_row_of_the_journal_whose_file_is_there_is_kept(tmp_path: Path, engine_name: str) -> None:
    root = tmp_path / "data"
    assert run_engine("rust", root, 1, kill=True) is None
    [(trace_id, *_)] = _core.read_journal(root / ".outbox")
    with opened(engine_name, root) as engine:
        assert (engine.start_up().rows_kept, engine.start_up().rows_dropped) == (1, 0)
        assert [record["trace_id"] for record in records(engine)] == [trace_id]
    assert _core.read_journal(root / ".outbox") == []


def test_of_several_rows_of_a_file_the_newest_is_kept(root: Path, engine_name: str) -> None:
    leave_undecided(root, PATH)
    with outbox(root) as database:
        columns = "key, payload, path, path_hash, temporary, size, digest, pending, created"
        for trace_id, described in (("newer", "digest"), ("newest, of other bytes", "zeroblob(16)")):
            database.execute(
                f"INSERT INTO instance (trace_id, {columns}) SELECT ?, {columns.replace('digest', described)} "
                "FROM instance WHERE path = ? LIMIT 1",
                (trace_id, PATH),
            )
    with opened(engine_name, root) as engine:
        assert (engine.start_up().rows_kept, engine.start_up().rows_dropped) == (1, 2)
    assert rows_of(root, PATH) == [("newer", True)]
    assert (root / PATH).exists()


@pytest.mark.parametrize("is_same", [True, False])
def test_a_file_that_has_a_committed_row_stays_and_gets_no_second_trace_id(
    root: Path, engine_name: str, is_same: bool
) -> None:
    committed = trace_of(root)
    with outbox(root) as database:
        columns = "key, payload, path, path_hash, temporary, size, digest, pending, created"
        described = columns if is_same else columns.replace("digest", "zeroblob(16)")
        database.execute(
            f"INSERT INTO instance (trace_id, {columns}) SELECT 'later', {described} FROM instance WHERE path = ?",
            (PATH,),
        )
    with opened(engine_name, root) as engine:
        assert (engine.start_up().rows_kept, engine.start_up().rows_dropped) == (0, 1)
        assert engine.start_up().quarantined == []
    assert rows_of(root, PATH) == [(committed, True)]
    assert (root / PATH).exists()


@pytest.mark.parametrize(("durability", "missing"), [("full", []), ("data", [PATH]), ("none", [PATH])])
def test_a_row_without_a_file_is_dropped_and_reported_where_names_may_be_lost(
    root: Path, engine_name: str, durability: str, missing: list[str]
) -> None:
    leave_undecided(root, PATH)
    (root / PATH).unlink()
    with opened(engine_name, root, durability=durability) as engine:
        found = engine.start_up()
        assert (found.rows_dropped, found.missing, found.missing_count) == (1, missing, len(missing))
        assert engine.storage_state().missing == len(missing)
    assert rows_of(root, PATH) == []


def test_a_file_that_cannot_be_looked_at_leaves_its_row_undecided(root: Path, engine_name: str) -> None:
    """A link in the place of a folder stands for whatever the file system may say."""
    leave_undecided(root, PATH)
    trace_id = trace_of(root)
    series = (root / PATH).parent
    series.rename(series.with_name("elsewhere"))
    series.symlink_to("elsewhere")
    other = ct_slice(1, study="1.2.3", series="1.2.3.4", rows=4)
    for _ in range(2):
        with opened(engine_name, root) as engine:
            found = engine.start_up()
            assert (found.rows_kept, found.rows_dropped, found.undecided_count) == (0, 0, 1)
            [(path, reason)] = found.undecided
            assert path == PATH
            assert reason
            assert engine.storage_state().undecided == 1
            assert take(engine, other) == (0, "")
            assert engine.reconsider() == (0, 0, [], 1)
            assert trace_id not in {record["trace_id"] for record in records(engine)}
    assert rows_of(root, PATH) == [(trace_id, False)]
    with opened(engine_name, root) as engine:
        series.unlink()
        series.with_name("elsewhere").rename(series)
        assert engine.reconsider() == (1, 0, [], 0)
        assert engine.storage_state().undecided == 0
        assert trace_id in {record["trace_id"] for record in records(engine)}
    assert rows_of(root, PATH) == [(trace_id, True)]


def test_an_undecided_row_of_the_journal_outlives_the_start(tmp_path: Path, engine_name: str) -> None:
    root = tmp_path / "data"
    assert run_engine("rust", root, 1, kill=True) is None
    [(trace_id, *_)] = _core.read_journal(root / ".outbox")
    tenant = (root / PATH).parents[3]
    tenant.rename(root / "elsewhere")
    tenant.symlink_to("elsewhere")
    with opened(engine_name, root) as engine:
        assert engine.start_up().undecided_count == 1
    assert rows_of(root, PATH) == [(trace_id, False)]
    tenant.unlink()
    (root / "elsewhere").rename(tenant)
    with opened(engine_name, root) as engine:
        assert engine.start_up().rows_kept == 1
        assert [record["trace_id"] for record in records(engine)] == [trace_id]


def test_where_quarantine_fails_the_row_stays_undecided_and_the_file_where_it_is(root: Path, engine_name: str) -> None:
    trace_id = break_row(root)
    (root / ".quarantine").write_bytes(b"in the way")
    with opened(engine_name, root) as engine:
        assert [path for path, _ in engine.start_up().undecided] == [PATH]
        assert (root / PATH).exists()
        (root / ".quarantine").unlink()
        assert engine.reconsider() == (0, 1, [PATH], 0)
        assert engine.storage_state().quarantined == 1
    assert set(quarantined(root)) == {trace_id}
    assert not (root / PATH).exists()


def test_an_instance_that_comes_again_decides_what_was_undecided(root: Path, engine_name: str) -> None:
    """Its row is kept, so that it has one trace id whatever was published before."""
    leave_undecided(root, PATH)
    trace_id = trace_of(root)
    tenant = root / "t"
    tenant.rename(root / "elsewhere")
    tenant.symlink_to("elsewhere")
    with opened(engine_name, root) as engine:
        assert engine.start_up().undecided_count == 1
        assert take(engine, ONE)[0] == 0xA700
        tenant.unlink()
        (root / "elsewhere").rename(tenant)
        assert take(engine, ONE) == (0, "")
        assert trace_id in {record["trace_id"] for record in records(engine)}
        assert engine.storage_state().undecided == 0
    assert rows_of(root, PATH) == [(trace_id, True)]


def test_a_temporary_file_that_cannot_be_removed_is_named_and_the_start_goes_on(root: Path, engine_name: str) -> None:
    (root / ".incoming" / "a.part").mkdir()
    (root / ".incoming" / "b.part").write_bytes(b"torn")
    with opened(engine_name, root) as engine:
        found = engine.start_up()
        assert found.temporary_files == 1
        [(file, reason)] = found.unusable
        assert file.endswith("a.part")
        assert reason
        assert take(engine, ct_slice(3, rows=4)) == (0, "")


_CALLS = "fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat"


def test_a_start_that_is_killed_before_any_call_quarantines_all_the_same(
    root: Path, engine_name: str, tmp_path: Path
) -> None:
    """Each round ends the process one call later, until it gets through."""
    trace_id = break_row(root)
    content = (root / PATH).read_bytes()
    for call in range(1, 200):
        copy = tmp_path / f"copy-{call}"
        shutil.copytree(root, copy)
        was_killed = run_engine(engine_name, copy, inject=f"{_CALLS}:signal=KILL:when={call}") is None
        with opened(engine_name, copy) as engine:
            found = engine.start_up()
            assert (found.rows_kept, found.undecided, found.missing) == (0, [], [])
            assert found.quarantined in ([], [PATH])
            assert [record["sop_uid"] for record in records(engine)] == [OTHER.sop_instance]
            assert engine.storage_state().quarantined == 1
        note = quarantined(copy)[trace_id]
        assert (note["path"], note["found_size"]) == (PATH, len(content))
        assert (copy / ".quarantine" / f"{trace_id}.dcm").read_bytes() == content
        assert not (copy / PATH).exists()
        assert rows_of(copy, PATH) == []
        if not was_killed:
            break
        shutil.rmtree(copy)
    assert call > 5, "it was killed nowhere"
