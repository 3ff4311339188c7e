"""What commands share: the configuration, exit codes, the database of an outbox, names as they are printed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click

from storescp.config import Configuration, examine, load
from storescp.errors import StorescpError
from storescp.settings import Settings

EXIT_FOUND = 1
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_TEMPORARY = 75
EXIT_LICENCE = 77
EXIT_CONFIG = 78

config_option = click.option("-c", "--config", type=click.Path(path_type=Path), help="Configuration file.")


def configuration(context: click.Context, config: Path | None = None) -> Configuration:
    """The configuration of a command; `-c` counts before and after its name.

    Raises:
        ConfigError: with every problem found.
    """
    state = context.find_root().obj
    return load(state["options"], config or state["config"])


def configuration_with_problems(context: click.Context, config: Path | None = None) -> Configuration:
    """The same, with the problems in it.

    Raises:
        ConfigError: the file cannot be read.
    """
    state = context.find_root().obj
    return examine(state["options"], config or state["config"])


def settings_on_root(context: click.Context, config: Path | None) -> Settings:
    """The settings for a command about a storage root, which it names where neither an option nor the file does.

    Raises:
        ConfigError: with every problem found.
    """
    found = configuration(context, config)
    if not found.is_given("storage.root"):
        click.echo(f"storage root {printable(str(found.settings.storage.root))}", err=True)
    return found.settings


@contextlib.contextmanager
def opened_outbox(settings: Settings, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """The database of the storage root, for a command.

    Raises:
        StorescpError: there is none, or it cannot be used.
    """
    from storescp.outbox import open_outbox  # noqa: PLC0415

    connection = open_outbox(settings.storage.root, write=write)
    try:
        yield connection
    except sqlite3.Error as error:
        raise StorescpError(f"{settings.storage.root / '.outbox/outbox.sqlite'}: {error}") from error
    finally:
        connection.close()


def printable(name: str) -> str:
    """A name of a file on one line, with escapes for what cannot be printed."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)
