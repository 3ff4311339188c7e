"""Commands that test a link: echo, send."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storescp import logs
from storescp.cli.common import EXIT_FOUND, printable
from storescp.cli.link_options import tell_of_user, with_peer
from storescp.cli.progress import transfer
from storescp.errors import StorescpError

if TYPE_CHECKING:
    from storescp.peer import Peer


@click.command("echo")
@with_peer
def echo_command(peer: Peer) -> None:
    """Send a C-ECHO to HOST PORT."""
    from storescp.peer import echo  # noqa: PLC0415 - other commands start faster without it

    logs.configure("error", "console")
    answer = echo(peer)
    tell_of_user(peer, is_confirmed=answer.confirms_user)
    click.echo(f"{peer} answered in {answer.seconds * 1000:.1f} ms")


@click.command("send")
@with_peer
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--associations",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of associations at once.",
)
@click.pass_context
def send_command(context: click.Context, peer: Peer, files: tuple[Path, ...], associations: int) -> None:
    """Send files, or all of folders, to HOST PORT.

    They are sent as they are. Files that are no DICOM files, or are damaged, are skipped. Exit 1 where a file was
    skipped, refused or not sent.
    """
    from storescp.files import find_files  # noqa: PLC0415
    from storescp.peer import PeerError, read_header, send  # noqa: PLC0415

    logs.configure("error", "console")
    outgoing, unreadable = [], 0
    for path in find_files(files):
        try:
            outgoing.append(read_header(path))
        except PeerError as error:
            unreadable += 1
            click.echo(f"skipped   {printable(str(error))}", err=True)
    if not outgoing:
        raise StorescpError("there is nothing to send: no DICOM file was found that can be read")
    total = sum(file.bytes for file in outgoing)
    with transfer("sending", len(outgoing), total) as advance:
        report = send(peer, outgoing, advance, associations=associations)
    for path, reason in report.refused:
        click.echo(f"not taken {printable(str(path))}: {printable(reason)}", err=True)
    for reason, count in Counter(report.broken).items():
        click.echo(f"storescp: {reason}" + (f" ({count} associations)" if count > 1 else ""), err=True)
    tell_of_user(peer, is_confirmed=report.confirms_user)
    sent = report.statuses[0]
    rate = sent / report.seconds if report.seconds else 0.0
    speed = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
    told = f"{report.bytes} bytes, {report.seconds:.2f} s, {rate:.0f}/s, {speed:.1f} MB/s"
    unsent = f", {report.unsent} not acknowledged" if report.unsent else ""
    click.echo(f"{sent} of {len(outgoing)} stored{unsent}, {told}")
    context.exit(EXIT_FOUND if report.refused or report.unsent or unreadable else 0)
