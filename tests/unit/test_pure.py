"""The parts of the pure-Python engine that have a twin in Rust give the same results."""

from __future__ import annotations

import itertools
import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.errors import CoreError
from storescp.pure import record
from storescp.pure.engine import PureEngine
from storescp.pure.index import read_index, wanted
from storescp.pure.refusal import Refusal
from storescp.pure.structure import WalkLimits, inflate, walk
from storescp.settings import Settings
from support.instances import Instance, ct_slice, explicit, text

LIMITS = WalkLimits(64, 1 << 24, 1 << 31)


def settings(root: Path) -> Settings:
    return Settings.model_validate({"storage": {"root": root, "durability": "none"}})


def test_seahash_gives_the_published_vector() -> None:
    # From the documentation of the reference implementation.
    assert record.sea_hash(b"to be or not to be") == 1988685042348123509


def test_uuid7_is_ordered_and_of_version_7() -> None:
    ids = [record.uuid7() for _ in range(3)]
    assert all(one.version == 7 for one in ids)
    assert all(one.int >> 80 <= two.int >> 80 for one, two in itertools.pairwise(ids))


def pure_outcome(instance: Instance) -> tuple[str, ...]:
    try:
        plain = inflate(instance.dataset, instance.transfer_syntax, LIMITS)
        found = walk(plain, instance.transfer_syntax, wanted(("PatientID", "StudyDate")), LIMITS)
        index = read_index(found, ("PatientID", "StudyDate"))
    except Refusal as refusal:
        return (f"{refusal.status:04X} {refusal.comment}",)
    return (index.study_instance_uid, index.patient_id, str(index.study_date), str(index.number_of_frames))


def rust_outcome(instance: Instance) -> tuple[str, ...]:
    try:
        index = _core.scan(instance.dataset, instance.transfer_syntax, ["PatientID", "StudyDate"])
    except CoreError as error:
        return (str(error),)
    return (index.study_instance_uid, index.patient_id, str(index.study_date), str(index.number_of_frames))


TEMPLATE = ct_slice(1, rows=2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings_of_hypothesis(max_examples=300, deadline=None)
@given(st.integers(0, len(TEMPLATE.dataset)), st.binary(max_size=12), st.sampled_from(["1", "2", "0", "2.1.99"]))
def test_both_scans_say_the_same_of_a_damaged_data_set(at: int, patch: bytes, kind: str) -> None:
    syntax = {"0": "1.2.840.10008.1.2"}.get(kind, f"1.2.840.10008.1.2.{kind}")
    damaged = TEMPLATE.dataset[:at] + patch + TEMPLATE.dataset[at + len(patch) :]
    instance = Instance(TEMPLATE.sop_class, TEMPLATE.sop_instance, syntax, damaged)
    assert rust_outcome(instance) == pure_outcome(instance)


@pytest.mark.parametrize("engine", ["rust", "python"])
@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100", r"\ISO 2022 IR 87"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"AB\0CDE", "AB\ufffdCDE"),
        (b"\0 AB\0 \0", "AB"),
        (b"\tAB\r\nC\x0c", "\ufffdAB\ufffd\ufffdC\ufffd"),
        (b"\x01\x08\x0b\x0e\x1f", "\ufffd" * 5),
        (b"A\x7fB", "A\x7fB"),
        (b"A" * 15 + b"\0" + b"B", None),
    ],
)
def test_no_text_of_a_record_holds_a_control_character(
    tmp_path: Path, engine: str, charset: str, value: bytes, expected: str | None
) -> None:
    changes = {
        0x00080005: explicit(0x00080005, b"CS", text(charset)),
        0x00080050: explicit(0x00080050, b"SH", text(value)),
        0x00100020: explicit(0x00100020, b"LO", text(value)),
    }
    instance = ct_slice(1, rows=2, changes=changes)
    found = record_of(engine, tmp_path, instance)
    assert found["accession_number"] == expected
    assert found["patient_id"] == ("A" * 15 + "\ufffdB" if expected is None else expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings_of_hypothesis(max_examples=200, deadline=None)
@given(st.binary(max_size=64).filter(lambda value: b"\x1b" not in value))
def test_both_engines_read_the_same_patient_id(value: bytes) -> None:
    changes = {0x00100020: explicit(0x00100020, b"LO", text(value)), 0x00080005: None}
    instance = ct_slice(1, rows=2, changes=changes)
    outcome = pure_outcome(instance)
    assert rust_outcome(instance) == outcome
    assert not any(character < " " for part in outcome for character in part)


def record_of(engine: str, root: Path, instance: Instance) -> dict[str, object]:
    """The record that an engine makes of an instance."""
    chosen = settings(root)
    opened: Engine = _core.Engine(engine_config(chosen)) if engine == "rust" else PureEngine(chosen)
    status = opened.ingest(
        instance.dataset,
        instance.sop_class,
        instance.sop_instance,
        instance.transfer_syntax,
        "A",
        "B",
        "127.0.0.1",
        "t",
    )
    assert status == (0, "")
    opened.outbox_flush()
    [row] = opened.outbox_claim(0, 0, 10)
    opened.close()
    found: dict[str, object] = json.loads(row.payload)
    return found


@given(st.integers(1, len(TEMPLATE.dataset)))
def test_both_scans_say_the_same_of_a_cut_data_set(cut: int) -> None:
    instance = Instance(TEMPLATE.sop_class, TEMPLATE.sop_instance, TEMPLATE.transfer_syntax, TEMPLATE.dataset[:cut])
    assert rust_outcome(instance) == pure_outcome(instance)


def test_text_in_every_character_set_is_read_the_same() -> None:
    for charset, value in [
        ("ISO_IR 100", b"M\xfcller"),
        ("ISO_IR 144", b"\xbb\xee\xda"),
        ("ISO_IR 192", "山田".encode()),
        ("GB18030", "王小东".encode("gb18030")),
        ("GBK", "王小东".encode("gbk")),
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde"),
        ("\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B"),
        ("\\ISO 2022 IR 149", b"\x1b$)C\xfb\xf3"),
        ("ISO_IR 166", b"\xa1\xa2"),
        ("", b"plain"),
    ]:
        changes: dict[int, bytes | None] = {
            0x00080005: explicit(0x00080005, b"CS", text(charset)),
            0x00100020: explicit(0x00100020, b"LO", text(value)),
        }
        instance = ct_slice(1, rows=2, changes=changes)
        assert rust_outcome(instance) == pure_outcome(instance), charset


def take(engine: Engine, instance: Instance) -> tuple[int, str]:
    return engine.ingest(
        instance.dataset,
        instance.sop_class,
        instance.sop_instance,
        instance.transfer_syntax,
        "A",
        "B",
        "127.0.0.1",
        "t",
    )


def test_both_engines_write_the_same_file_record_and_row(tmp_path: Path) -> None:
    instance = ct_slice(7, rows=4)
    files, records, rows = [], [], []
    for name in ("rust", "python"):
        chosen = settings(tmp_path / name)
        engine: Engine = _core.Engine(engine_config(chosen)) if name == "rust" else PureEngine(chosen)
        assert take(engine, instance) == (0, "")
        engine.outbox_flush()
        [row] = engine.outbox_claim(0, 0, 10)
        engine.close()
        [file] = (tmp_path / name / "t").rglob("*.dcm")
        files.append((str(file.relative_to(tmp_path / name)), file.read_bytes()))
        record_ = json.loads(row.payload)
        assert record_.pop("trace_id") == row.trace_id
        assert record_.pop("created_time") + "Z" == record_.pop("received_at")
        assert record_.pop("file_path") == str(file)
        records.append(list(record_.items()))
        with sqlite3.connect(tmp_path / name / ".outbox" / "outbox.sqlite") as database:
            rows.append(database.execute("SELECT key, path, path_hash, size, digest, pending FROM instance").fetchall())
        database.close()
    assert files[0] == files[1]
    assert records[0] == records[1]
    assert rows[0] == rows[1]


def claimed(engine: Engine) -> list[int]:
    engine.outbox_flush()
    return [row.id for row in engine.outbox_claim(0, 0, 10)]


def test_an_engine_goes_on_where_the_other_stopped(tmp_path: Path) -> None:
    chosen = settings(tmp_path / "data")
    rust = _core.Engine(engine_config(chosen))
    assert take(rust, ct_slice(1, rows=4)) == (0, "")
    rust.close()
    pure = PureEngine(chosen)
    assert take(pure, ct_slice(1, rows=4)) == (0, "")
    assert take(pure, ct_slice(2, rows=4)) == (0, "")
    assert len(pure.outbox_claim(0, 0, 10)) == 2
    pure.close()
    rust = _core.Engine(engine_config(chosen))
    assert take(rust, ct_slice(2, rows=4)) == (0, "")
    assert len(claimed(rust)) == 2
    rust.close()


def test_one_root_has_one_owner_whatever_the_engine(tmp_path: Path) -> None:
    pure = PureEngine(settings(tmp_path))
    for opening in (lambda: PureEngine(settings(tmp_path)), lambda: _core.Engine(engine_config(settings(tmp_path)))):
        with pytest.raises(CoreError, match="another process"):
            opening()
    pure.close()
