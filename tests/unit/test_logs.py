"""Lines of the log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog
from storescp import logs
logs.configure("info", {form!r})
log = structlog.get_logger("test")
log.info("calm", key="a\\x1b[31m")
log.warning("look")
logging.getLogger("aiokafka").error("of a library")
"""


def lines(form: str, *, journal: bool) -> list[str]:
    reading, writing = os.pipe()
    found = os.fstat(writing)
    stream = f"{found.st_dev}:{found.st_ino if journal else found.st_ino + 1}"
    with os.fdopen(reading, encoding="utf-8") as output:
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(form=form)],
            stderr=writing,
            env=os.environ | {"JOURNAL_STREAM": stream},
            check=True,
            timeout=60,
        )
        os.close(writing)
        return output.read().splitlines()


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_journal_learns_how_urgent_a_line_is(form: str) -> None:
    found = lines(form, journal=True)
    assert [line[:3] for line in found] == ["<6>", "<4>", "<3>"]
    plain = lines(form, journal=False)
    assert len(plain) == 3
    assert not [line for line in plain if re.match("<[0-9]>", line)]


def on_a_terminal(form: str) -> str:
    """What the program writes where standard error is a terminal."""
    terminal, end = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", PROGRAM.format(form=form)], stderr=end, check=True, timeout=60)
        os.close(end)
        text = b""
        # Linux says EIO when the other end is closed.
        with contextlib.suppress(OSError):
            while part := screen.read(4096):
                text += part
    return text.decode()


def is_json(text: str) -> bool:
    try:
        return all(isinstance(json.loads(line), dict) for line in text.splitlines())
    except ValueError:
        return False


def test_lines_are_for_people_on_a_terminal_and_json_elsewhere_unless_a_form_is_named() -> None:
    assert not is_json(on_a_terminal("auto"))
    assert "calm" in on_a_terminal("auto")
    assert is_json(on_a_terminal("json"))
    assert is_json("\n".join(lines("auto", journal=False)))
    assert not is_json("\n".join(lines("console", journal=False)))


def test_a_line_is_one_object_and_cannot_act_on_a_terminal() -> None:
    found = [json.loads(line) for line in lines("json", journal=False)]
    assert [(line["level"], line["event"], line["logger"]) for line in found] == [
        ("info", "calm", "test"),
        ("warning", "look", "test"),
        ("error", "of a library", "aiokafka"),
    ]
    assert "\x1b" not in "".join(lines("json", journal=False))
