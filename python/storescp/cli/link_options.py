"""What `echo` and `send` are told of a peer: titles, TLS, user."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storescp.settings import ae_title, is_utf8

if TYPE_CHECKING:
    from storescp.peer import Peer

PASSWORD_VARIABLE = "STORESCPD_PASSWORD"  # noqa: S105 - the name of it
_MOST_CHARACTERS = 1024


def _title(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return ae_title(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _host(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A host name that can be looked up, or an address."""
    try:
        (value or "").encode("idna")
    except UnicodeError:
        raise click.BadParameter("a host name or an address") from None
    return value


def _user(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _is_identity(value):
        raise click.BadParameter(f"1 to {_MOST_CHARACTERS} characters in UTF-8")
    return value


def _is_identity(text: str) -> bool:
    return 0 < len(text) <= _MOST_CHARACTERS and is_utf8(text)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PARAMETERS = (
    click.argument("host", callback=_host),
    click.argument("port", type=click.IntRange(1, 65535)),
    click.option(
        "--calling",
        metavar="TITLE",
        default="STORESCU",
        show_default=True,
        callback=_title,
        help="AE title of this program.",
    ),
    click.option(
        "--called",
        metavar="TITLE",
        default="ANY-SCP",
        show_default=True,
        callback=_title,
        help="AE title of the peer.",
    ),
    click.option("--tls", is_flag=True, help="Connect by TLS; needs --tls-ca or --tls-insecure."),
    click.option(
        "--tls-ca", type=_FILE, metavar="FILE", help="Authorities that may issue the peer's certificate, PEM."
    ),
    click.option("--tls-certificate", type=_FILE, metavar="FILE", help="Certificate of this program, PEM."),
    click.option(
        "--tls-key",
        type=_FILE,
        metavar="FILE",
        help="Its private key, PEM, not encrypted.  [in the file of the certificate]",
    ),
    click.option(
        "--tls-name", metavar="NAME", callback=_host, help="Name that the peer's certificate must have.  [HOST]"
    ),
    click.option("--tls-insecure", is_flag=True, help="Believe every certificate: anybody may be the peer."),
    click.option("--user", metavar="NAME", callback=_user, help="User to tell the peer (user identity negotiation)."),
    click.option(
        "--password-file",
        type=_FILE,
        metavar="FILE",
        help=f"File whose first line is the passcode of the user.  [{PASSWORD_VARIABLE} in the environment]",
    ),
)


def with_peer(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the arguments and options that say who the peer is; the command gets the `Peer`."""

    @functools.wraps(command)
    def told(*, host: str, port: int, calling: str, called: str, **rest: Any) -> None:
        from storescp.peer import Peer  # noqa: PLC0415 - other commands start faster without it

        names = [name for name in rest if name.startswith("tls") or name in ("user", "password_file")]
        options = {name: rest.pop(name) for name in names}
        tls = _tls(host, options)
        command(Peer(host, port, calling, called, tls, _identity(options, is_encrypted=tls is not None)), **rest)

    for parameter in reversed(_PARAMETERS):
        told = parameter(told)
    return told


def _tls(host: str, options: Mapping[str, Any]) -> Any:
    """TLS as the options say; None without it."""
    given = [name for name in options if name.startswith("tls_") and options[name]]
    if not options["tls"]:
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} needs --tls")
        return None
    ca, is_insecure = options["tls_ca"], options["tls_insecure"]
    if (ca is None) != is_insecure:
        raise click.UsageError("--tls needs either --tls-ca FILE or --tls-insecure")
    if options["tls_key"] and not options["tls_certificate"]:
        raise click.UsageError("--tls-key needs --tls-certificate")
    if is_insecure:
        click.echo("warning: with --tls-insecure every certificate is believed: anybody may be the peer", err=True)
    from storescp import _core  # noqa: PLC0415
    from storescp.errors import CoreError  # noqa: PLC0415

    name = (options["tls_name"] or host).encode("idna").decode()
    try:
        return _core.ClientTls(name, ca, options["tls_certificate"], options["tls_key"])
    except CoreError as error:
        raise click.UsageError(f"--tls-{error}") from None


def _identity(options: Mapping[str, Any], *, is_encrypted: bool) -> tuple[str, str | None] | None:
    """Username and passcode."""
    user, file = options["user"], options["password_file"]
    if user is None:
        if file is not None:
            raise click.UsageError("--password-file needs --user")
        return None
    passcode = os.environ.get(PASSWORD_VARIABLE) if file is None else _first_line(file)
    if passcode is not None and not _is_identity(passcode):
        raise click.UsageError(f"the passcode is not 1 to {_MOST_CHARACTERS} characters in UTF-8")
    if passcode is not None and not is_encrypted:
        click.echo("warning: without --tls everybody on the network can read the passcode", err=True)
    return user, passcode


def _first_line(file: Path) -> str:
    with file.open("rb") as opened:
        line = opened.readline(4 * _MOST_CHARACTERS + 2)
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def tell_of_user(peer: Peer, *, is_confirmed: bool) -> None:
    """A peer that says nothing of the user lets everybody in."""
    if peer.user is not None and not is_confirmed:
        click.echo(f"note: {peer} does not confirm the user: it may not look at users at all", err=True)
