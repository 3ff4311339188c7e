"""The table of rows: every test that it names exists, and every row of the fault bench is in it."""

from __future__ import annotations

import re
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_TABLE = (_CHECKOUT / "tests" / "ROWS.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", _TABLE)
    assert len(named) > 30
    for file, test in named:
        assert re.search(rf"^def {test}\(", (_CHECKOUT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_row_that_a_test_prints_is_in_the_table() -> None:
    rows = set(re.findall(r"^\| ([SR]\d+) \|", _TABLE, re.MULTILINE))
    sources = (file.read_text() for file in (_CHECKOUT / "tests").glob("*/test_*.py"))
    printed = {row for text in sources for row in re.findall(r'Row\(f?"([SR]\d+) ', text)}
    assert printed >= {"R1", "R4", "R16", "R19"}
    assert printed <= rows
