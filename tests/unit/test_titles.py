"""Every warning of the service has a heading on the status page."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import storescp
from storescp.http.titles import title_of

PACKAGE = Path(storescp.__file__).parent
# The index is a process of its own, without a page.
SOURCES = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "index"]
OUTCOMES = ("aborted_by_peer", "connection_lost", "protocol_error", "released", "stopped", "timeout")


def events_of(file: Path) -> set[str]:
    """The events that a source gives at warning or above."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    named = [
        call.args[0]
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("warning", "error", "exception") and call.args
    ]
    return {one.value for one in named if isinstance(one, ast.Constant) and isinstance(one.value, str)}


EVENTS = sorted({event for file in SOURCES for event in events_of(file)} | {f"association.{one}" for one in OUTCOMES})


def test_the_events_are_found() -> None:
    assert {"licence.expired", "storage.low_space", "publish.failed", "evaluation.mode"} < set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_every_warning_has_words_of_its_own(event: str) -> None:
    assert "." not in title_of(event)
    assert " " in title_of(event)


def test_what_is_not_known_is_named_as_it_is() -> None:
    assert title_of("something else") == "something else"
