"""The tables of earlier versions, and the steps from one to the next (Alembic)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

VERSION_TABLE = "index_version"


class LaterVersionError(Exception):
    """The tables are of a later version than this program."""


def migrate_one_step(connection: sa.Connection) -> bool:
    """Takes the tables one step further, in the transaction of the connection; whether there was one to take.

    Raises:
        LaterVersionError: nothing was done.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if current == scripts.get_current_head():
        return False
    if current is not None and current not in {one.revision for one in scripts.walk_revisions()}:
        raise LaterVersionError(current)
    command.upgrade(config, "+1")
    return True
