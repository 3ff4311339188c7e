"""Commands about the tables of patients, studies, series and instances."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storescp import logs
from storescp.cli.common import EXIT_FOUND, config_option, configuration, printable
from storescp.errors import ConfigError, ConfigProblem
from storescp.quantities import seconds
from storescp.settings import Settings

if TYPE_CHECKING:
    from storescp.index.database import Applied, Database
    from storescp.index.study_events import Command

database_option = click.option(
    "--database", metavar="URL", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE."
)


@click.command("index")
@database_option
@click.option("--group", "group_id", metavar="ID", help="Consumer group; its members share the partitions.")
@click.option("--once", is_flag=True, help="End when everything is read that there is.")
@click.option(
    "--follow",
    metavar="ROOT",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read the JSON lines of a storage root instead of Kafka.",
)
@click.option(
    "--rebuild",
    metavar="ROOT",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Make the tables from the files of a storage root, and end.",
)
@click.option("--on-study", metavar="COMMAND", help="Run for each study event, which is on its standard input.")
@config_option
@click.pass_context
def index_command(
    context: click.Context,
    config: Path | None,
    database: str | None,
    group_id: str | None,
    once: bool,
    follow: Path | None,
    rebuild: Path | None,
    on_study: str | None,
) -> None:
    """Keep tables of patients, studies and series.

    And of instances; they follow topic_main. It tells when a study has been received: see [events].
    """
    from storescp.index.database import Database  # noqa: PLC0415

    if follow is not None and rebuild is not None:
        raise click.UsageError("--follow or --rebuild, not both")
    options = context.find_root().obj["options"]
    if database is not None:
        options["index", "database"] = database
    if group_id is not None:
        options["index", "group_id"] = group_id
    if rebuild is not None:
        options["storage", "root"] = rebuild
    settings = configuration(context, config).settings
    logs.configure(settings.log.level, settings.log.format)
    store = Database(settings.index.database.get_secret_value())
    try:
        if rebuild is not None:
            context.exit(_rebuild(settings, store))
        done = asyncio.run(_keep_up(settings, store, follow, _command(settings, on_study), once))
    finally:
        store.close()
    click.echo(f"{done.records} records, {done.duplicates} duplicates, {done.unreadable} unreadable")


async def _keep_up(
    settings: Settings, store: Database, follow: Path | None, on_study: Command | None, once: bool
) -> Applied:
    from storescp.index.consumer import Indexer  # noqa: PLC0415
    from storescp.index.follow import Follower  # noqa: PLC0415

    topic = settings.message_queue.topic_main
    if follow is not None:
        most = settings.json_lines.max_bytes
        follower = Follower(follow, settings.index, topic, store, settings.events, on_study, max_bytes=most)
        return await follower.run(until_caught_up=once)
    if settings.kafka is None:
        expected = "a section: the index reads topic_main, or the JSON lines of a storage root (--follow ROOT)"
        raise ConfigError(ConfigProblem("kafka", None, expected, "configuration"))
    indexer = Indexer(settings.kafka, settings.index, topic, store, settings.events, on_study)
    return await indexer.run(until_caught_up=once)


def _command(settings: Settings, text: str | None) -> Command | None:
    from storescp.index.study_events import Command  # noqa: PLC0415

    if text is None:
        return None
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--on-study") from None
    if not arguments:
        raise click.BadParameter("a command", param_hint="--on-study")
    return Command(arguments, settings.events.command_timeout)


def _rebuild(settings: Settings, store: Database) -> int:
    """The exit code: files that are no instances are not a failure, but something that was found."""
    from storescp.cli.progress import progress  # noqa: PLC0415
    from storescp.index.rebuild import rebuild  # noqa: PLC0415

    def skip(path: str, reason: str) -> None:
        click.echo(f"skipped {printable(path)}: {printable(reason)}", err=True)

    with progress("files", None) as advance:
        found = rebuild(settings, store, advance, skip)
    click.echo(f"{found.instances} instances, {found.removed} removed, {found.skipped} files skipped")
    return EXIT_FOUND if found.skipped else 0


@click.command("studies")
@database_option
@click.option("--since", metavar="DURATION", help="Received in this time, for instance 2d.")
@click.option("--modality", metavar="CODE", help="That have series of this modality.")
@click.option("--accession", metavar="NUMBER", help="Of this accession number.")
@click.option("--tenant", metavar="ID", help="Of this tenant.")
@click.option("--limit", type=click.IntRange(1, 100000), default=100, show_default=True)
@click.option("--patient-data", is_flag=True, help="Show patients, descriptions and accession numbers, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object on each line.")
@config_option
@click.pass_context
def studies_command(
    context: click.Context,
    config: Path | None,
    database: str | None,
    since: str | None,
    modality: str | None,
    accession: str | None,
    tenant: str | None,
    limit: int,
    patient_data: bool,
    as_json: bool,
) -> None:
    """List studies, the last received first."""
    from storescp.index.database import Database  # noqa: PLC0415
    from storescp.index.studies import Wanted, find  # noqa: PLC0415

    options = context.find_root().obj["options"]
    if database is not None:
        options["index", "database"] = database
    settings = configuration(context, config).settings
    wanted = Wanted(tenant, _duration(since), modality, accession, limit)
    store = Database(settings.index.database.get_secret_value())
    try:
        rows = find(store, wanted, with_patient_data=patient_data)
    finally:
        store.close()
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    _print_table(rows)


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None
    if not isinstance(value, int | float | str) or float(value) <= 0:
        raise click.BadParameter("more than 0", param_hint="--since")
    return float(value)


def _print_table(rows: list[dict[str, object]]) -> None:
    if not rows:
        click.echo("no studies", err=True)
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return "" if value is None else printable(str(value))
