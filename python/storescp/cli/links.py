"""Commands that test a link: echo, send."""

from __future__ import annotations

from pathlib import Path

import click

from storescp import logs
from storescp.cli.common import EXIT_FOUND
from storescp.cli.progress import transfer
from storescp.settings import ae_title


def _title(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return ae_title(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _host(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A host name that can be looked up, or an address."""
    try:
        value.encode("idna")
    except UnicodeError:
        raise click.BadParameter("a host name or an address") from None
    return value


_host_argument = click.argument("host", callback=_host)
_calling_option = click.option(
    "--calling",
    metavar="TITLE",
    default="STORESCU",
    show_default=True,
    callback=_title,
    help="AE title of this program.",
)
_called_option = click.option(
    "--called", metavar="TITLE", default="ANY-SCP", show_default=True, callback=_title, help="AE title of the peer."
)


@click.command("echo")
@_host_argument
@click.argument("port", type=click.IntRange(1, 65535))
@_calling_option
@_called_option
def echo_command(host: str, port: int, calling: str, called: str) -> None:
    """Send a C-ECHO to HOST PORT."""
    from storescp.peer import Peer, echo  # noqa: PLC0415

    logs.configure("error", "console")
    peer = Peer(host, port, calling, called)
    click.echo(f"{peer} answered in {echo(peer) * 1000:.1f} ms")


@click.command("send")
@_host_argument
@click.argument("port", type=click.IntRange(1, 65535))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@_calling_option
@_called_option
@click.option(
    "--associations",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of associations at once.",
)
@click.pass_context
def send_command(
    context: click.Context, host: str, port: int, files: tuple[Path, ...], calling: str, called: str, associations: int
) -> None:
    """Send files, or all of folders, to HOST PORT.

    They are sent as they are. Files that are no DICOM files are skipped. Exit 1 where a file was skipped, refused or
    not sent.
    """
    from storescp.files import find_files  # noqa: PLC0415
    from storescp.peer import Peer, PeerError, read_header, send  # noqa: PLC0415

    logs.configure("error", "console")
    outgoing, unreadable = [], 0
    for path in find_files(files):
        try:
            outgoing.append(read_header(path))
        except PeerError as error:
            unreadable += 1
            click.echo(f"skipped   {error}", err=True)
    total = sum(file.bytes for file in outgoing)
    with transfer("sending", len(outgoing), total) as advance:
        report = send(Peer(host, port, calling, called), outgoing, advance, associations=associations)
    for path, reason in report.refused:
        click.echo(f"not taken {path}: {reason}", err=True)
    for reason in report.broken:
        click.echo(f"storescp: {reason}", err=True)
    sent = report.statuses[0]
    rate = sent / report.seconds if report.seconds else 0.0
    speed = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
    told = f"{report.bytes} bytes, {report.seconds:.2f} s, {rate:.0f}/s, {speed:.1f} MB/s"
    unsent = f", {report.unsent} not acknowledged" if report.unsent else ""
    click.echo(f"{sent} of {len(outgoing)} stored{unsent}, {told}")
    context.exit(EXIT_FOUND if report.refused or report.unsent or unreadable else 0)
