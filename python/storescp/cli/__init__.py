"""The command line: `storescpd` and `python -m storescp`."""

from __future__ import annotations

import gc
import io
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from storescp import _core, logs
from storescp.cli import index, instances, licences, links, quarantine, queue, storage
from storescp.cli.common import (
    EXIT_BUG,
    EXIT_CONFIG,
    EXIT_FOUND,
    EXIT_LICENCE,
    EXIT_TEMPORARY,
    EXIT_UNAVAILABLE,
    config_option,
    configuration,
    configuration_with_problems,
    printable,
)
from storescp.cli.completion import completion_command
from storescp.cli.help import ByTopic
from storescp.errors import (
    BindError,
    ConfigError,
    CoreBug,
    LicenceError,
    StartError,
    StorescpError,
    TemporaryFailure,
    is_temporary,
)
from storescp.signals import remembered

# Command line parameter -> section and key of the configuration.
_OPTION_KEYS = {
    "ae_title": ("dicom_store_scp", "ae_title"),
    "strict": ("dicom_store_scp", "strict"),
    "uncompressed_only": ("dicom_store_scp", "uncompressed_only"),
    "promiscuous": ("dicom_store_scp", "promiscuous"),
    "max_pdu_length": ("dicom_store_scp", "max_pdu_length"),
    "port": ("dicom_store_scp", "port"),
    "host": ("dicom_store_scp", "host"),
    "non_blocking": ("dicom_store_scp", "non_blocking"),
    "output_directory": ("storage", "root"),
}


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    build = dict(_core.build_info())
    rest = ", ".join(f"{name} {version}" for name, version in build.items() if name != "version")
    click.echo(f"storescp {build['version']} (Python {platform.python_version()}, {rest})")
    context.exit()


@click.group(
    cls=ByTopic,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML or wado-storescp's JSON; none: evaluation",
)
@click.option("-v", "--verbose", is_flag=True, help="Log reasons, and a line for each instance.")
@click.option(
    # The second is wado-storescp's name, which the help does not show.
    "--ae-title",
    "--calling-ae-title",
    metavar="TITLE",
    default="STORE-SCP",
    help="AE title of this service.  [STORE-SCP]",
)
@click.option("-s", "--strict", is_flag=True, help="Abort when a P-DATA PDU is too long.")
@click.option("--uncompressed-only", is_flag=True, help="Accept native transfer syntaxes only.")
@click.option("--promiscuous", is_flag=True, help="Accept unknown and private SOP classes.")
@click.option(
    "-m",
    "--max-pdu-length",
    type=click.IntRange(4096, 131072),
    metavar="N",
    default=16384,
    help="Maximum PDU length, 4096 to 131072.  [16384]",
)
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=11111,
    help="TCP port; 0: any free one, printed.  [11111]",
)
@click.option("--host", metavar="ADDR", help="Listen address.  [0.0.0.0, or 127.0.0.1]")
@click.option(
    "-n",
    "--non-blocking/--blocking",
    default=True,
    help="Many associations at once, or one at a time.",
)
@click.option(
    "-o",
    "--output-directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default="storescp-data",
    help="Storage root.  [storescp-data]",
)
@click.option(
    "--engine",
    type=click.Choice(["rust", "python"]),
    metavar="NAME",
    default="rust",
    help="rust, or python to compare.  [rust]",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Versions of the program and its parts.",
)
@click.pass_context
def main_group(context: click.Context, /, **parameters: Any) -> None:
    """Receive DICOM instances, store them durably, publish a record for each.

    Without COMMAND it serves. Options beat STORESCP_SECTION__KEY, then FILE.
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


def _serve(context: click.Context) -> NoReturn:
    with remembered(signal.SIGHUP) as hangups:
        try:
            _run_service(context, hangups)
        except OSError as error:
            if is_temporary(error):
                raise TemporaryFailure(_text_of(error)) from error
            raise RuntimeError(f"the operating system says: {_text_of(error)}") from error


def _run_service(context: click.Context, early_hangups: Sequence[int]) -> NoReturn:
    from storescp.memory import keep_less  # noqa: PLC0415 - other commands start faster without them
    from storescp.preparation import prepare  # noqa: PLC0415

    found = configuration_with_problems(context)
    warned = logs.configure(found.settings.log.level, found.settings.log.format)
    keep_less()
    with prepare(found, context.obj["engine"]) as prepared:
        # Of all the objects that this makes none goes: there is nothing to collect, now or later.
        gc.disable()
        try:
            from storescp.service import Service  # noqa: PLC0415 - takes long to load, while storage opens
        finally:
            gc.enable()
        gc.freeze()
        sys.exit(Service(prepared, warned, early_hangups).run())


@click.command("check-config")
@config_option
@click.pass_context
def check_config(context: click.Context, config: Path | None) -> None:
    """Print every value, and what refuses a start.

    Each value with the place where it comes from; secrets are masked. The exit code is that of a start, which also
    needs a free port and a storage root that no other process serves.
    """
    from storescp.preparation import check  # noqa: PLC0415 - other commands start faster without it
    from storescp.workers import plan_workers  # noqa: PLC0415

    logs.configure("error", "console")
    found = configuration_with_problems(context, config)
    rows = list(found.rows())
    width = max(len(key) for key, _, _ in rows)
    for key, value, source in rows:
        click.echo(f"{key:<{width}} = {value}  # {source}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if found.evaluation:
        click.echo("no configuration file and no licence section: evaluation mode", err=True)
    engine = context.find_root().obj["engine"]
    check(found, engine)
    # The pure-Python engine transcodes in the process of the service.
    if engine == "rust":
        click.echo(plan_workers(found.settings.transcoding).text)
    click.echo("a start would succeed")


@click.command("conformance")
@config_option
@click.pass_context
def conformance_command(context: click.Context, config: Path | None) -> None:
    """Print the DICOM Conformance Statement.

    In Markdown, for the configuration that is given.
    """
    from storescp.conformance import Statement  # noqa: PLC0415

    click.echo(Statement(configuration(context, config).settings).markdown, nl=False)


for command in (
    check_config,
    conformance_command,
    completion_command,
    licences.license_group,
    licences.passcode_command,
    links.echo_command,
    links.send_command,
    instances.inspect_command,
    instances.transcode_command,
    instances.verify_command,
    quarantine.quarantine_group,
    queue.outbox_group,
    storage.storage_group,
    index.index_command,
    index.studies_command,
):
    main_group.add_command(command)


def main() -> NoReturn:
    """Runs the command line and exits with the codes of the manual."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name of a file need not be text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Not standalone, click returns the code of `context.exit`.
        returned = main_group(standalone_mode=False)
        code: Any = returned if isinstance(returned, int) else 0
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except StorescpError as error:
        code = _tell(error)
    except OSError as error:
        # Of a command: the file or folder is the operator's.
        click.echo(f"storescp: {_text_of(error)}", err=True)
        code = EXIT_FOUND
    except Exception as error:  # noqa: BLE001 - the last line of defence names the bug and its exit code
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        click.echo(f"storescp: internal error: {error!r}", err=True)
        code = EXIT_BUG
    sys.exit(code)


def _text_of(error: OSError) -> str:
    name = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
    return f"{name}{error.strerror or error}"


def _tell(error: StorescpError) -> int:
    """Prints an error; its exit code. Of several errors the code is that of the first kind in the order below."""
    if isinstance(error, StartError):
        codes = [_tell(one) for one in error.errors]
        return next(code for code in (EXIT_CONFIG, EXIT_TEMPORARY, EXIT_LICENCE) if code in codes)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            click.echo(f"storescp: configuration: {problem}", err=True)
        return EXIT_CONFIG
    for kind, title, code in (
        (TemporaryFailure, "temporary failure: ", EXIT_TEMPORARY),
        (LicenceError, "licence: ", EXIT_LICENCE),
        (BindError, "", EXIT_UNAVAILABLE),
        (CoreBug, "internal error: ", EXIT_BUG),
    ):
        if isinstance(error, kind):
            click.echo(f"storescp: {title}{error}", err=True)
            return code
    click.echo(f"storescp: {error}", err=True)
    return EXIT_FOUND
