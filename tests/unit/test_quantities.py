"""Sizes and durations with a unit, in every key that has one and in every source."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storescp import quantities
from storescp.config import load
from storescp.errors import ConfigError
from support.settings import REQUIRED, Key, all_keys

KEYS = {unit: [key for key in all_keys() if key.schema.get("unit") == unit] for unit in ("bytes", "seconds")}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STORESCP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("10 GiB", 10 << 30),
        ("10GB", 10_000_000_000),
        ("10 gb", 10_000_000_000),
        ("512 MiB", 512 << 20),
        ("1.5 KiB", 1536),
        ("2 TiB", 2 << 40),
        (" 64 kB ", 64000),
        ("7 B", 7),
    ],
)
def test_a_size_is_a_number_of_bytes(text: str, count: int) -> None:
    assert quantities.size(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("7 d", 604800), ("12 h", 43200), ("30 min", 1800), ("45 s", 45), ("500 ms", 0.5), ("1.5h", 5400), ("0 s", 0)],
)
def test_a_duration_is_a_number_of_seconds(text: str, count: float) -> None:
    assert quantities.seconds(text) == count
    assert quantities.milliseconds(text) == count * 1000


@pytest.mark.parametrize("value", [5, 0.5, "5", "0.5", " 5 ", "5_000", "1e3", None])
def test_a_number_stays_what_it_is(value: Any) -> None:
    assert quantities.size(value) is value
    assert quantities.seconds(value) is value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ten",
        "GiB",
        "10 GiBs",
        "10 G",
        "1 2",
        "1,5 GiB",
        "-1 GiB",
        "10 GiB GiB",
        "1.2.3 GB",
        "\u0661 GiB",
        "9" * 21 + " B",
    ],
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a number of bytes, or a size such as"):
        quantities.size(text)


@pytest.mark.parametrize("text", ["", "soon", "5 m", "5 M", "1 week", "7 D", "5 GiB", "-7 d"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a number of seconds, or a duration such as"):
        quantities.seconds(text)


def test_every_key_in_bytes_or_seconds_is_looked_at() -> None:
    in_bytes = {str(key) for key in KEYS["bytes"]}
    assert {str(key) for key in all_keys() if key.name.endswith("_bytes")} <= in_bytes
    assert {"limits.max_pdu_tolerated", "dicom_store_scp.max_pdu_length"} <= in_bytes
    timed = {
        str(key) for key in all_keys() if key.name.endswith(("timeout", "_retention", "keep_delivered", "max_wait"))
    }
    assert timed
    timed |= {"events.quiet", "events.force"}
    assert timed == {str(key) for key in KEYS["seconds"]}


def with_unit(key: Key) -> tuple[str, int]:
    """A value within the bounds of a key, with a unit, and as a number."""
    if key.schema["unit"] == "seconds":
        return "2 min", 120
    count = max(1, -(-key.schema.get("minimum", 1) // 1024))
    return f"{count} KiB", count * 1024


@pytest.mark.parametrize("key", [*KEYS["bytes"], *KEYS["seconds"]], ids=str)
def test_every_source_takes_a_unit_and_the_number_is_shown(
    key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, count = with_unit(key)

    def value_in(file: Path | None) -> Any:
        found: Any = load({}, file).settings
        for part in key.table.split("."):
            found = getattr(found, part)
        return getattr(found[0] if key.in_list else found, key.name)

    toml, document = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(key.toml(key.name, text))
    document.write_text(json.dumps(key.document(key.name, text)))
    assert value_in(toml) == value_in(document) == count
    shown = [row for row in load({}, toml).rows() if row[0] == (key.table if key.in_list else str(key))]
    assert [json.loads(value) for _, value, _ in shown] == [count] or key.in_list
    section, _, inner = key.table.partition(".")
    if inner:
        monkeypatch.setenv(
            f"STORESCP_{section}__{inner}".upper(), json.dumps(key.document(key.name, text)[section][inner])
        )
    else:
        for name, value in (REQUIRED.get(section, {}) | {key.name: text}).items():
            monkeypatch.setenv(f"STORESCP_{section}__{name}".upper(), str(value))
    assert value_in(None) == count


@pytest.mark.parametrize("key", [*KEYS["bytes"], *KEYS["seconds"]], ids=str)
def test_a_wrong_unit_is_told_with_what_is_expected(key: Key, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(key.toml(key.name, "7 parsecs"))
    with pytest.raises(ConfigError) as error:
        load({}, tmp_path / "a.toml")
    said = str(error.value)
    assert f'{key.place} = "7 parsecs": expected a number of {key.schema["unit"]}, or a' in said


def test_a_fraction_of_a_byte_and_a_size_out_of_bounds_are_refused(tmp_path: Path) -> None:
    for text in ("0.3 B", "1 B"):
        (tmp_path / "a.toml").write_text(f'[storage]\nspool_memory_bytes = "{text}"\n')
        with pytest.raises(ConfigError, match=r"storage\.spool_memory_bytes"):
            load({}, tmp_path / "a.toml")


def test_milliseconds_of_librdkafka_stay_milliseconds_in_a_text(tmp_path: Path) -> None:
    kafka = {"brokers": "b", "message.timeout.ms": "60000", "request.timeout.ms": "20 s", "queue.buffering.max.ms": "7"}
    (tmp_path / "a.json").write_text(json.dumps({"kafka": kafka}))
    found = load({}, tmp_path / "a.json").settings.kafka
    assert found is not None
    assert (found.delivery_timeout, found.request_timeout, found.linger_ms) == (60.0, 20.0, 7)


@pytest.mark.parametrize(
    ("count", "text"),
    [(2 << 30, "2 GiB"), (1 << 20, "1 MiB"), (16384, "16 KiB"), (1 << 40, "1 TiB"), (1000, ""), (0, "")],
)
def test_sizes_are_told_in_a_unit_where_they_are_whole(count: int, text: str) -> None:
    assert quantities.text_of_size(count) == text


@pytest.mark.parametrize(("count", "text"), [(604800, "7 d"), (5400.0, "90 min"), (60, "1 min"), (30, ""), (0, "")])
def test_durations_are_told_in_a_unit_where_they_are_whole(count: float, text: str) -> None:
    assert quantities.text_of_seconds(count) == text
