"""Commands about files: inspect, transcode, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from storescp import _core
from storescp.cli.common import EXIT_FOUND, config_option, configuration, opened_outbox, printable, settings_on_root
from storescp.cli.progress import progress
from storescp.errors import StorescpError
from storescp.names import name_of

if TYPE_CHECKING:
    from storescp.settings import Settings
    from storescp.transcode import Source


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.pass_context
def inspect_command(context: click.Context, config: Path | None, file: Path) -> None:
    """Show what FILE is and what would become of it. Exit 1 where it would not be stored."""
    from storescp.inspection import inspect  # noqa: PLC0415
    from storescp.transcode import read_source  # noqa: PLC0415

    settings = configuration(context, config).settings
    try:
        source = read_source(file)
    except StorescpError as error:
        raise StorescpError(f"{file}: {error}") from None
    dataset = file.read_bytes()[source.offset :]
    click.echo(f"transfer syntax     {source.transfer_syntax} {name_of(source.transfer_syntax)}".rstrip())
    looked = inspect(settings, dataset, source.transfer_syntax)
    if looked.sop_class_uid:
        click.echo(f"SOP class           {looked.sop_class_uid} {name_of(looked.sop_class_uid)}".rstrip())
    if looked.sop_instance_uid:
        click.echo(f"SOP instance        {looked.sop_instance_uid}")
    click.echo(f"tenant              {looked.whose.text}")
    if looked.found is None or looked.refusal is not None:
        kept = f"would be kept in quarantine, answered B007: {looked.refusal}"
        click.echo(kept if looked.is_kept else f"would be refused    {looked.refusal}")
        context.exit(EXIT_FOUND)
    _show_identity(looked.found, looked.whose.name)
    _show_transcoding(settings, source, looked.found)


def _show_identity(found: _core.ScanResult, tenant: str | None) -> None:
    if not found.patient_id:
        click.echo('PatientID           none: would be recorded as ""')
    if found.study_date is None:
        click.echo("StudyDate           none: would be recorded as null, in the folder 00000000")
    if found.anomalies:
        click.echo(f"anomalies           {', '.join(found.anomalies)}")
    day = (found.study_date or "00000000").replace("-", "")
    place = f"{day}/{found.study_instance_uid}/{found.series_instance_uid}/{found.sop_instance_uid}.dcm"
    click.echo(f"would be stored at  {tenant or 'TENANT'}/{place}")


def _show_transcoding(settings: Settings, source: Source, found: _core.ScanResult) -> None:
    from storescp.transcode import FileTranscoder  # noqa: PLC0415

    viewers, target = set(settings.transcoding.viewer_transfer_syntaxes), settings.transcoding.target
    outcome, why = _core.transcode_plan(source.transfer_syntax, found.has_pixel_data, viewers, target)
    if outcome == "as received":
        click.echo(f"would be stored     as received: {why}")
        return
    if outcome == "impossible":
        failure: str | None = why
    elif found.has_odd_pixel_data:
        failure = "the structure of Pixel Data is odd"
    else:
        failure = FileTranscoder(settings).try_out(source, target)
    if failure is None:
        click.echo(f"would be stored     as {target} {name_of(target)}".rstrip())
    else:
        click.echo(f"would be stored     as received, recorded as Failed: {failure}")


@click.command("transcode")
@click.argument("source", metavar="[SRC]", required=False, type=click.Path(exists=True, path_type=Path))
@click.argument("target", metavar="[DST]", required=False, type=click.Path(path_type=Path))
@click.option("--to", "transfer_syntax", metavar="UID", help="Transfer syntax that is wanted.")
@click.option("--stored", is_flag=True, help="In place, what was stored as received because transcoding was busy.")
@click.option(
    "--all", "everything", is_flag=True, help="With --stored: all that viewers cannot read, whatever the reason."
)
@click.option("--dry-run", is_flag=True, help="With --stored: only show what would be transcoded.")
@config_option
@click.pass_context
def transcode_command(
    context: click.Context,
    config: Path | None,
    source: Path | None,
    target: Path | None,
    transfer_syntax: str | None,
    stored: bool,
    everything: bool,
    dry_run: bool,
) -> None:
    """Transcode files, or stored instances.

    SRC is a file or a folder. With --stored, the service transcodes stored instances in place where it runs, else the
    command does. Exit 1 where one could not be.
    """
    if stored:
        from storescp.cli.stored import transcode_stored  # noqa: PLC0415

        if source or target or transfer_syntax:
            raise click.UsageError("--stored takes no SRC, DST or --to: transcoding.target says what is wanted")
        transcode_stored(context, config, everything=everything, dry_run=dry_run)
    elif everything or dry_run:
        raise click.UsageError("--all and --dry-run go with --stored")
    elif source is None or target is None or transfer_syntax is None:
        raise click.UsageError("give SRC, DST and --to, or --stored")
    else:
        _transcode_files(context, config, source, target, transfer_syntax)


def _transcode_files(
    context: click.Context, config: Path | None, source: Path, target: Path, transfer_syntax: str
) -> None:
    from storescp.settings import TARGETS  # noqa: PLC0415
    from storescp.transcode import Totals, plan_files, transcode_files  # noqa: PLC0415

    if transfer_syntax not in TARGETS:
        names = sorted((name_of(uid), uid) for uid in TARGETS)
        listed = "".join(f"\n  {name} ({uid})" for name, uid in names)
        raise click.BadParameter(f"expected the UID of one of these transfer syntaxes:{listed}", param_hint="--to")
    settings = configuration(context, config).settings
    pairs = plan_files(source, target)
    totals, failures = Totals(), []
    with progress("transcoding", len(pairs)) as advance:
        for one in transcode_files(settings, pairs, transfer_syntax):
            advance(1)
            totals.note(one)
            if one.error:
                failures.append(f"not transcoded {one.source}: {one.error}")
    for failure in failures:
        click.echo(failure, err=True)
    click.echo(totals.text())
    context.exit(EXIT_FOUND if totals.failed else 0)


@click.command("verify")
@click.option(
    "--republish",
    type=click.Choice(["unrecorded", "all"]),
    help="Have the service publish the records of files that have none, or of all files.",
)
@config_option
@click.pass_context
def verify_command(context: click.Context, config: Path | None, republish: str | None) -> None:
    """Compare every stored file with its record.

    One line for each that is missing, changed, unreadable, misplaced, foreign or quarantined; exit code 1 where
    there is any.
    """
    from storescp import verify  # noqa: PLC0415

    settings = settings_on_root(context, config)
    own_roots = {entry.tenant_id: entry.storage_root for entry in settings.tenants.settings if entry.storage_root}
    roots = verify.Roots(settings.storage.root, own_roots)
    found: list[verify.Looked] = []
    wished: list[str] = []
    files = size = 0
    with opened_outbox(settings, write=republish is not None) as database:
        with progress("comparing", verify.count_paths(database)) as advance:
            for looked in verify.verify(roots, database):
                advance(looked.kind not in {"foreign", "quarantined"})
                if looked.kind == "whole":
                    files, size = files + 1, size + looked.bytes
                else:
                    found.append(looked)
                if looked.is_unrecorded or (looked.kind == "whole" and republish == "all"):
                    wished.append(looked.path)
        for looked in found:
            click.echo(f"{looked.kind}  {printable(looked.path)}" + (f"  ({looked.reason})" if looked.reason else ""))
        click.echo(f"{files} files, {size} bytes compared, {len(found)} findings", err=True)
        if republish is not None:
            count = verify.request_republication(database, wished)
            click.echo(f"{count} records wished for: the service takes them up at once, or when it starts", err=True)
    context.exit(EXIT_FOUND if found else 0)
