"""`storescpd transcode --stored`: what was stored as received is transcoded in place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from storescp.cli.common import EXIT_FOUND, opened_outbox, printable, settings_on_root
from storescp.cli.progress import progress
from storescp.errors import StorescpError
from storescp.names import name_of
from storescp.settings import Settings
from storescp.stored import Candidate, candidates


def transcode_stored(context: click.Context, config: Path | None, *, everything: bool, dry_run: bool) -> None:
    """Finds the instances, and has them transcoded by the service that runs, or without one.

    Raises:
        StorescpError: no stored file may be replaced, or nothing can be asked.
    """
    settings = settings_on_root(context, config)
    why_not = _why_none_is_replaced(settings)
    if why_not and not dry_run:
        raise StorescpError(why_not)
    found = _find(settings, everything=everything)
    faults = [one for one in found if one.fault]
    for one in faults:
        click.echo(f"unreadable  {_shown(one.path)}: {one.fault}", err=True)
    chosen = [one for one in found if not one.fault]
    if dry_run:
        _tell_plan(chosen)
        if why_not:
            click.echo(why_not, err=True)
        failed = 0
    else:
        failed = _transcode(settings, chosen, engine=context.find_root().obj["engine"])
    context.exit(EXIT_FOUND if failed or faults else 0)


def _why_none_is_replaced(settings: Settings) -> str | None:
    duplicates = settings.storage.duplicates
    if duplicates == "replace":
        return None
    return (
        f'storage.duplicates is "{duplicates}", so no stored file is replaced and nothing is transcoded: '
        'it takes "replace", in the configuration of the service too'
    )


def _find(settings: Settings, *, everything: bool) -> list[Candidate]:
    from storescp.verify import count_paths  # noqa: PLC0415

    with opened_outbox(settings) as database, progress("looking", count_paths(database)) as advance:
        return list(candidates(settings, database, advance, everything=everything))


def _tell_plan(chosen: Sequence[Candidate]) -> None:
    for one in chosen:
        click.echo(f"would be transcoded  {_shown(one.path)}")
    kinds = Counter(one.transfer_syntax for one in chosen)
    listed = "".join(f", {count} of {name_of(uid) or uid}" for uid, count in sorted(kinds.items()))
    click.echo(f"{len(chosen)} would be transcoded{listed}")


def _transcode(settings: Settings, chosen: Sequence[Candidate], *, engine: str) -> int:
    """How many were not."""
    from storescp.retry import Wish, grant  # noqa: PLC0415

    began, failures = time.perf_counter(), []
    wishes = [Wish(one.root, one.path, is_stored=True) for one in chosen]
    with progress("transcoding", len(wishes)) as advance:
        for wish, stays in grant(settings, wishes, engine=engine):
            advance(1)
            if stays is not None:
                failures.append(f"not transcoded  {_shown(wish.name)}: {stays}")
    for failure in failures:
        click.echo(failure, err=True)
    seconds = time.perf_counter() - began
    click.echo(f"{len(wishes) - len(failures)} transcoded, {len(failures)} stay as they are, {seconds:.2f} s")
    return len(failures)


def _shown(path: str) -> str:
    from storescp.upkeep import without_date  # noqa: PLC0415

    # A folder that cannot be read may be that of the date.
    return printable(without_date(f"{path}/").removesuffix("/"))
