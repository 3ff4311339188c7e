"""Commands about the quarantine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from storescp import _core
from storescp.cli.common import EXIT_FOUND, config_option, settings_on_root
from storescp.errors import CoreError, StorescpError
from storescp.quarantine import Entry, entries, forget
from storescp.settings import Settings


@click.group("quarantine")
def quarantine_group() -> None:
    """Files put aside, and damaged data sets.

    It works while the service runs.
    """


@quarantine_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@config_option
@click.pass_context
def quarantine_list(context: click.Context, config: Path | None, as_json: bool) -> None:
    """One line for each entry: name, time, where the file lay or which instance it is, the reason."""
    found = entries(storage_roots(settings_on_root(context, config)))
    if as_json:
        document = [
            {
                "name": entry.name,
                "kind": "damaged data set" if entry.is_damaged else "file put aside",
                "storage_root": str(entry.root),
                "quarantined_at": entry.quarantined_at or None,
                "path": entry.path or None,
                "sop_instance_uid": entry.sop_instance_uid or None,
                "reason": entry.reason,
                "has_file": entry.has_file,
            }
            for entry in found
        ]
        click.echo(json.dumps(document, indent=2))
        return
    for entry in found:
        click.echo(_line(entry))


@quarantine_group.command("show")
@click.argument("name", metavar="NAME")
@config_option
@click.pass_context
def quarantine_show(context: click.Context, config: Path | None, name: str) -> None:
    """Print the note of a file, and what the file says of itself.

    Exit 1 where there is no such entry.
    """
    for entry in _named(settings_on_root(context, config), [name]):
        click.echo(f"file      {entry.file}")
        click.echo(_examined(entry))
        click.echo(f"note      {entry.reason}" if entry.note is None else _pretty(entry))


@quarantine_group.command("forget")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="All files in quarantine.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@click.pass_context
def quarantine_forget(
    context: click.Context, config: Path | None, names: tuple[str, ...], everything: bool, yes: bool
) -> None:
    """Remove files and their notes for good.

    They are printed first. Exit 1 where a name is not there; then nothing is removed.
    """
    if everything == bool(names):
        raise click.UsageError("give names, or --all")
    settings = settings_on_root(context, config)
    chosen = list(entries(storage_roots(settings))) if everything else _named(settings, names)
    for entry in chosen:
        click.echo(_line(entry))
    if not chosen:
        return
    if not yes:
        click.confirm(f"Remove {len(chosen)} from quarantine for good?", abort=True, err=True)
    for entry in chosen:
        forget(entry)
    click.echo(f"{len(chosen)} removed", err=True)


@quarantine_group.command("retry")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="All damaged data sets.")
@config_option
@click.pass_context
def quarantine_retry(context: click.Context, config: Path | None, names: tuple[str, ...], everything: bool) -> None:
    """Try to store damaged data sets, as if they came now.

    What is stored leaves the quarantine. Exit 1 where something stays.
    """
    from storescp.retry import retry  # noqa: PLC0415

    if everything == bool(names):
        raise click.UsageError("give names, or --all")
    settings = settings_on_root(context, config)
    chosen = entries(storage_roots(settings)) if everything else _named(settings, names)
    damaged = [entry for entry in chosen if entry.is_damaged]
    foreign = sorted(set(names) - {entry.name for entry in damaged})
    if foreign:
        raise StorescpError(f"put aside at a start, and no damaged data set: {', '.join(foreign)}")
    stored = stay = 0
    for entry, stays in retry(settings, damaged, engine=context.find_root().obj["engine"]):
        stored, stay = stored + (stays is None), stay + (stays is not None)
        outcome = "stored" if stays is None else f"stays   {stays}"
        click.echo(f"{entry.name}  {entry.sop_instance_uid or '-'}  {outcome}")
    click.echo(f"{stored} stored, {stay} stay in quarantine", err=True)
    context.exit(EXIT_FOUND if stay else 0)


def storage_roots(settings: Settings) -> set[Path]:
    """All storage roots: the one of the configuration, and those of tenants."""
    own = {entry.storage_root for entry in settings.tenants.settings if entry.storage_root}
    return {settings.storage.root, *own}


def _named(settings: Settings, names: Sequence[str]) -> list[Entry]:
    chosen = [entry for entry in entries(storage_roots(settings)) if entry.name in names]
    missing = sorted(set(names) - {entry.name for entry in chosen})
    if missing:
        raise StorescpError(f"not in quarantine: {', '.join(missing)}")
    return chosen


def _line(entry: Entry) -> str:
    return f"{entry.name}  {entry.quarantined_at or '-'}  {entry.path or entry.sop_instance_uid or '-'}  {entry.reason}"


def _pretty(entry: Entry) -> str:
    return json.dumps(entry.note, indent=2, ensure_ascii=False)


def _examined(entry: Entry) -> str:
    tenant = entry.path.partition("/")[0] or "TENANT"
    try:
        size, digest, place = _core.examine_file(entry.file, tenant)
    except OSError as error:
        return f"now       unreadable: {error.strerror or error}"
    except CoreError as error:
        return f"now       unreadable: {error}"
    return f"now       {size} bytes, digest {digest.hex()}\ninstance  {place}"
