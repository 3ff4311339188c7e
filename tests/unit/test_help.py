"""The help of the program, and what makes a shell complete it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from storescp.cli import main_group


def storescp(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "storescp", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.stdout


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_help_is_one_screen_with_everything_in_it(columns: str) -> None:
    lines = storescp("--help", COLUMNS=columns).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")]
    text = "\n".join(lines)
    for parameter in main_group.params:
        assert isinstance(parameter, click.Option)
        assert parameter.opts[0] in text
    for name in main_group.commands:
        assert f"      {name} " in text


@pytest.mark.parametrize(
    ("shell", "part"), [("bash", "complete -o"), ("zsh", "#compdef storescpd"), ("fish", "complete ")]
)
def test_shells_get_a_script(shell: str, part: str) -> None:
    assert part in storescp("completion", shell)


def test_bash_completes_commands_and_options() -> None:
    program = Path(sys.executable).with_name("storescpd")

    def complete(*words: str) -> list[str]:
        environment = {
            "_STORESCPD_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("storescpd", *words)),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            [program], capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("tra") == ["transcode"]
    assert complete("outbox", "r") == ["retry"]
    assert "--max-pdu-length" in complete("--max")
