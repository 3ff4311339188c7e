"""The command line: `storescpd` and `python -m storescp`."""

from __future__ import annotations

import json
import platform
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from storescp import _core, logs
from storescp.config import Configuration, load
from storescp.errors import BindError, ConfigError, LicenceError, StorescpError

EXIT_FOUND = 1
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_LICENCE = 77
EXIT_CONFIG = 78

# Command line parameter -> section and key of the configuration.
_OPTION_KEYS = {
    "calling_ae_title": ("dicom_store_scp", "ae_title"),
    "strict": ("dicom_store_scp", "strict"),
    "uncompressed_only": ("dicom_store_scp", "uncompressed_only"),
    "promiscuous": ("dicom_store_scp", "promiscuous"),
    "max_pdu_length": ("dicom_store_scp", "max_pdu_length"),
    "port": ("dicom_store_scp", "port"),
    "host": ("dicom_store_scp", "host"),
    "non_blocking": ("dicom_store_scp", "non_blocking"),
    "output_directory": ("local_storage", "dicm_store_path"),
}


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    build = dict(_core.build_info())
    rest = ", ".join(f"{name} {version}" for name, version in build.items() if name != "version")
    click.echo(f"storescp {build['version']} (Python {platform.python_version()}, {rest})")
    context.exit()


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="An option beats the environment (STORESCP_SECTION__KEY), which beats the file, which beats the default.",
)
@click.option("-c", "--config", type=click.Path(path_type=Path), help="TOML, or wado-storescp's application.json.")
@click.option("-v", "--verbose", is_flag=True, help="Debug log.")
@click.option(
    "--calling-ae-title",
    "--ae-title",
    metavar="TITLE",
    default="STORE-SCP",
    show_default=True,
    help="Our AE title.",
)
@click.option("-s", "--strict", is_flag=True, help="Abort an association whose P-DATA exceeds the announced length.")
@click.option("--uncompressed-only", is_flag=True, help="Accept native transfer syntaxes only.")
@click.option("--promiscuous", is_flag=True, help="Accept unknown and private SOP classes.")
@click.option(
    "-m",
    "--max-pdu-length",
    type=click.IntRange(4096, 131072),
    default=16384,
    show_default=True,
    help="Announced maximum PDU length.",
)
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    default=11111,
    show_default=True,
    help="0: any free port, printed.",
)
@click.option("--host", metavar="ADDR", help="Bind address (0.0.0.0; 127.0.0.1 in evaluation mode).")
@click.option(
    "-n",
    "--non-blocking/--blocking",
    default=True,
    show_default=True,
    help="Many associations at once, or one at a time.",
)
@click.option(
    "-o",
    "--output-directory",
    type=click.Path(path_type=Path),
    default="storescp-data",
    show_default=True,
    help="Storage root.",
)
@click.option("--engine", type=click.Choice(["rust", "python"]), default="rust", show_default=True, help="Data path.")
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show versions and exit.",
)
@click.pass_context
def main_group(context: click.Context, /, **parameters: Any) -> None:
    """Receive DICOM instances (C-STORE, C-ECHO), store them durably and publish a record for each.

    Without a command it serves. Without a configuration it serves in evaluation mode on 127.0.0.1.
    """
    given = {
        key: parameters[name]
        for name, key in _OPTION_KEYS.items()
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    if parameters["verbose"]:
        given["log", "level"] = "debug"
    context.obj = {"options": given, "config": parameters["config"], "engine": parameters["engine"]}
    if context.invoked_subcommand is None:
        _serve(context)


def _configuration(context: click.Context, config: Path | None = None) -> Configuration:
    state = context.find_root().obj
    return load(state["options"], config or state["config"])


def _serve(context: click.Context) -> None:
    from storescp.service import Service  # noqa: PLC0415 - other commands start faster without it

    configuration = _configuration(context)
    logs.configure(configuration.settings.log.level, configuration.settings.log.format)
    sys.exit(Service(configuration, context.obj["engine"]).run())


_config_option = click.option("-c", "--config", type=click.Path(path_type=Path), help="Configuration file.")


@main_group.command("check-config")
@_config_option
@click.pass_context
def check_config(context: click.Context, config: Path | None) -> None:
    """Print every value and where it comes from, secrets masked."""
    configuration = _configuration(context, config)
    rows = list(configuration.rows())
    width = max(len(key) for key, _, _ in rows)
    for key, value, source in rows:
        click.echo(f"{key:<{width}} = {value}  # {source}")
    for warning in configuration.warnings:
        click.echo(f"warning: {warning}", err=True)
    if configuration.evaluation:
        click.echo("no configuration file and no licence section: evaluation mode", err=True)


@main_group.group("license")
def license_group() -> None:
    """Make, show and verify licences."""


@license_group.command("issue")
@click.option("--client-id", required=True, metavar="ID", help="Common name of the client certificate.")
@click.option("--days", type=click.IntRange(1, 36500), default=365, show_default=True, help="Validity.")
@click.argument("directory", type=click.Path(path_type=Path))
def license_issue(client_id: str, days: int, directory: Path) -> None:
    """Make ca.pem, ca.key, client.pem and client.key, and print the TOML section for them."""
    from storescp.licence import HASH_CODE_OID, issue_licence  # noqa: PLC0415

    issued = issue_licence(client_id, days, directory)
    click.echo("[dicom_license_server]")
    click.echo(f"client_id = {json.dumps(issued.client_id)}")
    click.echo(f"license_key = {json.dumps(issued.license_key)}")
    click.echo(f"client_certificate = {json.dumps(str(issued.client_certificate.absolute()))}")
    click.echo(f"ca_certificate = {json.dumps(str(issued.ca_certificate.absolute()))}")
    click.echo(f"hash_code_oid = {json.dumps(HASH_CODE_OID)}")


@license_group.command("show")
@_config_option
@click.argument("certificate", type=click.Path(path_type=Path), required=False)
@click.pass_context
def license_show(context: click.Context, config: Path | None, certificate: Path | None) -> None:
    """Show what a client certificate says (of the configuration, or CERTIFICATE); the hash code is masked."""
    from storescp.licence import HASH_CODE_OID, read_licence  # noqa: PLC0415

    oid = HASH_CODE_OID
    if certificate is None:
        section = _configuration(context, config).settings.dicom_license_server
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
@_config_option
@click.pass_context
def license_verify(context: click.Context, config: Path | None) -> None:
    """Check the licence of the configuration as the start does."""
    from storescp.service import configured_licence  # noqa: PLC0415

    licence = configured_licence(_configuration(context, config).settings)
    click.echo(f"valid for {licence.client_id}, {licence.days_left(datetime.now(UTC))} days left")


@main_group.group("outbox")
def outbox_group() -> None:
    """Look at the queue of records; works while the service runs."""


@outbox_group.command("status")
@_config_option
@click.pass_context
def outbox_status(context: click.Context, config: Path | None) -> None:
    """Pending records by topic, the oldest one's age, the last error."""
    settings = _configuration(context, config).settings
    connection = _open_outbox(settings.local_storage.dicm_store_path)
    topics = (settings.message_queue.topic_main, settings.message_queue.topic_dicom_receive)
    (rows,) = connection.execute("SELECT count(*) FROM instance").fetchone()
    click.echo(f"instances {rows}")
    for number, topic in enumerate(topics):
        pending, oldest = connection.execute(
            "SELECT count(*), min(created) FROM instance WHERE pending <> 0 AND pending & ?", (1 << number,)
        ).fetchone()
        age = f", oldest {datetime.now(UTC).timestamp() - oldest / 1e6:.0f} s" if oldest else ""
        click.echo(f"{topic}: {pending} pending{age}")
    error = connection.execute(
        "SELECT last_error FROM instance WHERE pending <> 0 AND last_error IS NOT NULL ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if error:
        click.echo(f"last error: {error[0]}")


@outbox_group.command("list")
@click.option("--limit", type=click.IntRange(1, 100000), default=20, show_default=True)
@_config_option
@click.pass_context
def outbox_list(context: click.Context, config: Path | None, limit: int) -> None:
    """Records that are still pending, oldest first: trace id, file, attempts."""
    settings = _configuration(context, config).settings
    connection = _open_outbox(settings.local_storage.dicm_store_path)
    query = "SELECT trace_id, path, attempts, last_error FROM instance WHERE pending <> 0 ORDER BY id LIMIT ?"
    for trace_id, path, attempts, error in connection.execute(query, (limit,)):
        click.echo(f"{trace_id}  {path}  attempts {attempts}" + (f"  {error}" if error else ""))


def _open_outbox(root: Path) -> sqlite3.Connection:
    database = root / ".outbox" / "outbox.sqlite"
    if not database.exists():
        raise StorescpError(f"{database} does not exist: nothing was stored there yet")
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)


def main() -> NoReturn:
    """Runs the command line and exits with the codes of the manual."""
    try:
        main_group(standalone_mode=False)
        code: Any = 0
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"storescp: configuration: {problem}", err=True)
        code = EXIT_CONFIG
    except LicenceError as error:
        click.echo(f"storescp: licence: {error}", err=True)
        code = EXIT_LICENCE
    except BindError as error:
        click.echo(f"storescp: {error}", err=True)
        code = EXIT_UNAVAILABLE
    except StorescpError as error:
        click.echo(f"storescp: {error}", err=True)
        code = EXIT_FOUND
    except Exception as error:  # noqa: BLE001 - the last line of defence names the bug and its exit code
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        click.echo(f"storescp: internal error: {error!r}", err=True)
        code = EXIT_BUG
    sys.exit(code)
