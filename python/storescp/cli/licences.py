"""Commands about licences and who may come in."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from storescp.cli.common import config_option, configuration
from storescp.errors import LicenceError


@click.group("license")
def license_group() -> None:
    """Make, show and verify licences."""


@license_group.command("issue")
@click.option("--client-id", required=True, metavar="ID", help="Common name of the client certificate.")
@click.option("--days", type=click.IntRange(1, 36500), default=365, show_default=True, help="Validity.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the section in JSON, for wado-storescp's application.json."
)
@click.argument("directory", type=click.Path(path_type=Path))
def license_issue(client_id: str, days: int, as_json: bool, directory: Path) -> None:
    """Make ca.pem, ca.key, client.pem and client.key, and print the section of the configuration for them.

    The service reads ca.pem and client.pem, which every user may read. The keys are for you alone: keep them or
    remove them.
    """
    from storescp.licence import HASH_CODE_OID, issue_licence  # noqa: PLC0415

    issued = issue_licence(client_id, days, directory)
    section = {
        "client_id": issued.client_id,
        "license_key": issued.license_key,
        "client_certificate": str(issued.client_certificate.absolute()),
        "ca_certificate": str(issued.ca_certificate.absolute()),
        "hash_code_oid": HASH_CODE_OID,
    }
    if as_json:
        click.echo(json.dumps({"dicom_license_server": section}, indent=2))
        return
    click.echo("[dicom_license_server]")
    for key, value in section.items():
        click.echo(f"{key} = {json.dumps(value)}")


@license_group.command("show")
@config_option
@click.argument("certificate", type=click.Path(path_type=Path), required=False)
@click.pass_context
def license_show(context: click.Context, config: Path | None, certificate: Path | None) -> None:
    """Show what a client certificate says (of the configuration, or CERTIFICATE); the hash code is masked."""
    from storescp.licence import HASH_CODE_OID, read_licence  # noqa: PLC0415

    oid = HASH_CODE_OID
    if certificate is None:
        section = configuration(context, config).settings.dicom_license_server
        if section is None:
            raise LicenceError("no certificate given, and the configuration has no [dicom_license_server] section")
        certificate, oid = section.client_certificate, section.hash_code_oid
    licence, _ = read_licence(certificate, oid)
    click.echo(f"client id   {licence.client_id}")
    click.echo(f"hash code   {licence.hash_code[:4]}... ({len(licence.hash_code)} characters)")
    click.echo(f"issuer      {licence.issuer}")
    click.echo(f"valid from  {licence.not_before:%Y-%m-%d %H:%M} UTC")
    click.echo(f"valid until {licence.not_after:%Y-%m-%d %H:%M} UTC ({licence.days_left(datetime.now(UTC))} days)")


@license_group.command("verify")
@config_option
@click.pass_context
def license_verify(context: click.Context, config: Path | None) -> None:
    """Check the licence of the configuration; one that has ended is a failure.

    A service whose licence has ended goes on receiving, and starts in a storage root that has served under a valid one.
    """
    from storescp.licensing import RENEW_AND_SIGNAL, checked_licence  # noqa: PLC0415

    now = datetime.now(UTC)
    licence = checked_licence(configuration(context, config).settings)
    if licence.has_ended(now):
        raise LicenceError(f"{licence.describe_end(now)}. {RENEW_AND_SIGNAL}")
    click.echo(f"valid for {licence.client_id}, {licence.days_left(now)} days left")


@click.command("passcode")
@click.argument("username")
@click.password_option("--passcode", prompt="Passcode", help="Asked for where it is not given.")
def passcode_command(username: str, passcode: str) -> None:
    """Print a line for the file of users.

    The file is that of [user_identity].
    """
    from storescp.network.identity import entry  # noqa: PLC0415

    try:
        click.echo(entry(username, passcode))
    except ValueError as error:
        raise click.UsageError(f"expected {error}") from None
