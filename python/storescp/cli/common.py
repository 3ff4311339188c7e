"""What commands share: the configuration, exit codes."""

from __future__ import annotations

from pathlib import Path

import click

from storescp.config import Configuration, load

EXIT_FOUND = 1
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_TEMPORARY = 75
EXIT_LICENCE = 77
EXIT_CONFIG = 78

config_option = click.option("-c", "--config", type=click.Path(path_type=Path), help="Configuration file.")


def configuration(context: click.Context, config: Path | None = None) -> Configuration:
    """The configuration of a command; `-c` counts before and after its name."""
    state = context.find_root().obj
    return load(state["options"], config or state["config"])
