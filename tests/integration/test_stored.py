"""`storescpd transcode --stored`: which instances it finds, what becomes of them, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.pure import pixels
from storescp.pure.engine import PureEngine
from storescp.settings import Settings
from support.command import Done, run_in_process
from support.compressed import JPEG_LS, ONLY_EXPLICIT, RLE, compressed_ct, encapsulated
from support.engines import ENGINES, TENANT, outbox, path_of, records, rows_of, take
from support.instances import Instance, ct_slice, dataset_of
from support.scu import EXPLICIT
from support.waiting import wait_until
from support.workers import SlowWorkers

both_engines = pytest.mark.parametrize("name", ENGINES)
READS_ALL = {"viewer_transfer_syntaxes": [EXPLICIT, RLE, JPEG_LS]}
READS_EXPLICIT = {"viewer_transfer_syntaxes": [EXPLICIT], "max_wait": 0.2}
RLE_CT = compressed_ct(1, RLE, frames=2)


@contextlib.contextmanager
def opened(name: str, root: Path, transcoding: dict[str, Any] = READS_EXPLICIT, **storage: Any) -> Iterator[Engine]:
    settings = Settings.model_validate(
        {"storage": {"root": root, "min_free_bytes": 0} | storage, "transcoding": transcoding}
    )
    engine: Engine = PureEngine(settings) if name == "python" else _core.Engine(engine_config(settings))
    try:
        yield engine
    finally:
        engine.close()


def store_as_received(name: str, root: Path, *instances: Instance) -> dict[str, dict[str, Any]]:
    """Stores instances while viewers read them as they are; their records."""
    with opened(name, root, READS_ALL) as engine:
        for one in instances:
            assert take(engine, one) == (0, "")
        return {record["sop_uid"]: record for record in records(engine)}


def last_record(engine: Engine, one: Instance) -> dict[str, Any]:
    return [record for record in records(engine) if record["sop_uid"] == one.sop_instance][-1]


def replaced(root: Path) -> list[Path]:
    return list(root.glob(".replaced/*/*.dcm"))


def say_busy(root: Path, one: Instance) -> None:
    """Has the record say that transcoding was busy."""
    with outbox(root) as database:
        [(payload,)] = database.execute("SELECT payload FROM instance WHERE path = ?", (path_of(one),)).fetchall()
        changed = json.dumps(json.loads(payload) | {"transfer_status": "Failed", "anomalies": ["transcoding_busy"]})
        database.execute("UPDATE instance SET payload = ? WHERE path = ?", (changed, path_of(one)))


def forget_records(root: Path) -> None:
    with outbox(root) as database:
        database.execute("UPDATE instance SET payload = '', key = '', pending = 0, delivered = 1")


def transcode(root: Path, *options: str, name: str = "rust", env: dict[str, str] | None = None) -> Done:
    return run_in_process(
        "-o", root, "--engine", name, "transcode", "--stored", *options, env=ONLY_EXPLICIT | (env or {})
    )


@both_engines
def test_the_new_record_names_the_sender_and_the_time_of_the_original(tmp_path: Path, name: str) -> None:
    first = store_as_received(name, tmp_path, RLE_CT)[RLE_CT.sop_instance]
    with opened(name, tmp_path) as engine:
        assert engine.transcode_stored(tmp_path, path_of(RLE_CT)) is None
        record = last_record(engine, RLE_CT)
        # Nothing is left to do.
        assert engine.transcode_stored(tmp_path, path_of(RLE_CT)) is None
        assert len(records(engine)) == 2
    file = tmp_path / path_of(RLE_CT)
    changed = {"trace_id", "target_ts", "transfer_status", "file_size"}
    assert {key: record[key] for key in record.keys() - changed} == {key: first[key] for key in first.keys() - changed}
    assert record["trace_id"] != first["trace_id"]
    assert (record["transfer_status"], record["target_ts"]) == ("Success", EXPLICIT)
    assert record["file_size"] == file.stat().st_size
    assert dataset_of(file) == _core.transcode(RLE_CT.dataset, RLE, EXPLICIT, 1 << 30)
    [aside] = replaced(tmp_path)
    assert dataset_of(aside) == RLE_CT.dataset
    assert list((tmp_path / ".incoming").iterdir()) == []


@both_engines
def test_where_the_record_is_forgotten_the_file_says_who_sent_it_and_the_row_says_when(
    tmp_path: Path, name: str
) -> None:
    first = store_as_received(name, tmp_path, RLE_CT)[RLE_CT.sop_instance]
    forget_records(tmp_path)
    with opened(name, tmp_path) as engine:
        assert engine.transcode_stored(tmp_path, path_of(RLE_CT)) is None
        record = last_record(engine, RLE_CT)
        pending, oldest, _ = engine.outbox_lag(0)
    assert (record["source_ae"], record["source_ip"], record["called_ae"]) == ("MODALITY", "", "")
    assert record["transfer_status"] == "Success"
    # The pure engine takes the time of a row a moment later than that of its record.
    assert record["created_time"][:19] == first["created_time"][:19]
    with outbox(tmp_path) as database:
        [(created,)] = database.execute("SELECT max(created) FROM instance").fetchall()
    assert (pending, oldest) == (1, created), "the lag counts from now, not from when the instance was received"


@both_engines
def test_what_cannot_be_done_changes_nothing_and_says_why(tmp_path: Path, name: str) -> None:
    frame = b"\xff\0\0\0"
    broken = encapsulated(compressed_ct(2, RLE), b"", frame)
    damaged = compressed_ct(3, RLE)
    store_as_received(name, tmp_path, RLE_CT, broken, damaged)
    with (tmp_path / path_of(damaged)).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\7\7")
    ours, content = _core.IMPLEMENTATION_CLASS_UID.encode(), (tmp_path / path_of(RLE_CT)).read_bytes()
    foreign = tmp_path / path_of(compressed_ct(4, RLE))
    foreign.write_bytes(content.replace(ours, ours[:-1] + bytes([ours[-1] ^ 1])))
    misplaced = tmp_path / path_of(RLE_CT).replace("20260102", "20260103")
    misplaced.parent.mkdir(parents=True)
    misplaced.write_bytes(content)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.dcm")}
    expected = {
        path_of(damaged): "the file is not what its record says",
        str(foreign.relative_to(tmp_path)): "another program wrote it",
        path_of(compressed_ct(9, RLE)): "it is not stored",
        str(misplaced.relative_to(tmp_path)): "it is another instance than its path says",
        "../../etc/passwd": "it is not stored",
        f"{TENANT}/../{path_of(RLE_CT)}": "it is not stored",
        "": "it is not stored",
    }
    with opened(name, tmp_path) as engine:
        count = len(records(engine))
        for path, reason in expected.items():
            assert engine.transcode_stored(tmp_path, path) == reason, path
        assert engine.transcode_stored(tmp_path, path_of(broken)) not in (None, "")
        assert engine.transcode_stored(tmp_path.parent, path_of(RLE_CT)) == "it is not stored"
        assert len(records(engine)) == count
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.dcm")} == before
    assert list((tmp_path / ".incoming").iterdir()) == []


@both_engines
@pytest.mark.parametrize("duplicates", ["keep", "reject"])
def test_where_duplicates_are_not_replaced_nothing_is(tmp_path: Path, name: str, duplicates: str) -> None:
    store_as_received(name, tmp_path, RLE_CT)
    with opened(name, tmp_path, duplicates=duplicates) as engine:
        reason = engine.transcode_stored(tmp_path, path_of(RLE_CT))
        assert reason == 'storage.duplicates is not "replace": no stored file is replaced'
        assert len(records(engine)) == 1
    assert dataset_of(tmp_path / path_of(RLE_CT)) == RLE_CT.dataset
    env = {"STORESCP_STORAGE__DUPLICATES": duplicates}
    done = transcode(tmp_path, "--all", name=name, env=env)
    assert done.returncode == 1
    assert f'storage.duplicates is "{duplicates}", so no stored file is replaced' in done.stderr
    planned = transcode(tmp_path, "--all", "--dry-run", name=name, env=env)
    assert "1 would be transcoded, 1 of RLE Lossless" in planned.stdout
    assert "no stored file is replaced" in planned.stderr


def newer() -> Instance:
    """Another version of the same instance, which viewers read."""
    one = ct_slice(1, rows=8)
    assert one.sop_instance == RLE_CT.sop_instance
    return one


def test_a_newer_instance_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, root = SlowWorkers(tmp_path), tmp_path / "data"
    for key, value in slow.env.items():
        monkeypatch.setenv(key, value)
    store_as_received("rust", root, RLE_CT)
    slow.hold()
    with opened("rust", root) as engine:
        outcomes: list[str | None] = []
        work = threading.Thread(target=lambda: outcomes.append(engine.transcode_stored(root, path_of(RLE_CT))))
        work.start()
        wait_until(lambda: slow.count("held") == 1)
        assert take(engine, newer()) == (0, "")
        slow.let_go()
        work.join(30)
        assert outcomes == ["another instance took its place meanwhile"]
        assert len(records(engine)) == 2
    assert dataset_of(root / path_of(RLE_CT)) == newer().dataset
    [aside] = replaced(root)
    assert dataset_of(aside) == RLE_CT.dataset
    assert list((root / ".incoming").iterdir()) == []


def test_a_newer_instance_is_not_overwritten_by_the_pure_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_as_received("python", tmp_path, RLE_CT)
    to_explicit = pixels.to_explicit
    with opened("python", tmp_path) as engine:

        def overtaken(dataset: bytes, transfer_syntax: str, most: int) -> bytes:
            assert take(engine, newer()) == (0, "")
            return to_explicit(dataset, transfer_syntax, most)

        monkeypatch.setattr(pixels, "to_explicit", overtaken)
        reason = engine.transcode_stored(tmp_path, path_of(RLE_CT))
        assert reason == "another instance took its place meanwhile"
        assert len(records(engine)) == 2
    assert dataset_of(tmp_path / path_of(RLE_CT)) == newer().dataset


def test_the_pure_engine_stores_as_received_what_gets_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_explicit, begun, go_on = pixels.to_explicit, threading.Event(), threading.Event()

    def slow(dataset: bytes, transfer_syntax: str, most: int) -> bytes:
        begun.set()
        assert go_on.wait(20)
        return to_explicit(dataset, transfer_syntax, most)

    other = compressed_ct(2, RLE)
    with opened("python", tmp_path, READS_EXPLICIT | {"workers": 1}) as engine:
        monkeypatch.setattr(pixels, "to_explicit", slow)
        work = threading.Thread(target=take, args=(engine, RLE_CT))
        work.start()
        assert begun.wait(20)
        assert take(engine, other) == (0, "")
        assert work.is_alive()
        go_on.set()
        work.join(20)
        found = {record["sop_uid"]: record for record in records(engine)}
        assert found[RLE_CT.sop_instance]["transfer_status"] == "Success"
        busy = found[other.sop_instance]
        assert (busy["transfer_status"], busy["target_ts"]) == ("Failed", RLE)
        assert busy["anomalies"] == ["transcoding_busy"]
    done = transcode(tmp_path, name="python")
    assert (done.returncode, done.stderr, done.stdout[:14]) == (0, "", "1 transcoded, ")
    with opened("python", tmp_path) as engine:
        record = last_record(engine, other)
        assert (record["transfer_status"], record["anomalies"]) == ("Success", [])


@both_engines
def test_the_command_takes_what_was_busy_and_what_nobody_knows_and_with_all_the_rest(tmp_path: Path, name: str) -> None:
    busy, other = compressed_ct(2, RLE), compressed_ct(3, JPEG_LS)
    store_as_received(name, tmp_path, RLE_CT, busy, other, ct_slice(4, rows=8))
    say_busy(tmp_path, busy)
    planned = transcode(tmp_path, "--dry-run", name=name)
    shown = f"would be transcoded  {path_of(busy).replace('20260102', '*')}"
    assert (planned.returncode, planned.stdout.splitlines()) == (
        0,
        [shown, "1 would be transcoded, 1 of RLE Lossless"],
    )
    assert rows_of(tmp_path, path_of(busy)) == rows_of(tmp_path, path_of(busy))[:1]
    done = transcode(tmp_path, name=name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 transcoded, 0 stay as they are, ")
    assert len(replaced(tmp_path)) == 1
    forget_records(tmp_path)
    assert "2 would be transcoded" in transcode(tmp_path, "--dry-run", name=name).stdout
    done = transcode(tmp_path, "--all", name=name)
    assert (done.returncode, done.stdout[:14]) == (0, "2 transcoded, ")
    assert transcode(tmp_path, "--all", name=name).stdout.startswith("0 transcoded, ")
    assert len(replaced(tmp_path)) == 3


def test_what_cannot_be_transcoded_is_named_without_patient_data(tmp_path: Path) -> None:
    broken = encapsulated(compressed_ct(2, RLE), b"", b"\xff\0\0\0")
    store_as_received("rust", tmp_path, broken, RLE_CT)
    done = transcode(tmp_path, "--all")
    assert (done.returncode, done.stdout[:34]) == (1, "1 transcoded, 1 stay as they are, ")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"not transcoded  {path_of(broken).replace('20260102', '*')}: ")
    for patient in ("Doe", "P-0001", "ACC1", "20260102"):
        assert patient not in done.stdout + done.stderr


def test_a_tenant_with_a_root_of_its_own_is_looked_at_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    tenants = {"settings": [{"tenant_id": TENANT, "storage_root": str(own)}]}
    settings = {"storage": {"root": tmp_path / "data", "min_free_bytes": 0}, "tenants": tenants}
    engine = _core.Engine(engine_config(Settings.model_validate(settings | {"transcoding": READS_ALL})))
    assert take(engine, RLE_CT) == (0, "")
    engine.close()
    env = {"STORESCP_TENANTS__SETTINGS": json.dumps(tenants["settings"])}
    done = transcode(tmp_path / "data", "--all", env=env)
    assert (done.returncode, done.stdout[:14]) == (0, "1 transcoded, ")
    assert dataset_of(own / path_of(RLE_CT)) == _core.transcode(RLE_CT.dataset, RLE, EXPLICIT, 1 << 30)
    assert len(replaced(own)) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give SRC, DST and --to, or --stored"),
        (("--all",), "--all and --dry-run go with --stored"),
        (("--stored", "--to", EXPLICIT), "--stored takes no SRC, DST or --to"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], reason: str) -> None:
    done = run_in_process("transcode", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
