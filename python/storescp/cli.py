"""The command line: `storescpd` and `python -m storescp`."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from storescp import _core, logs
from storescp.config import Configuration, load
from storescp.errors import BindError, ConfigError, ConfigProblem, CoreError, LicenceError, StorescpError
from storescp.settings import Settings

EXIT_FOUND = 1
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_LICENCE = 77
EXIT_CONFIG = 78
_AGES_IN_SECONDS = 600

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
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_config_option
@click.pass_context
def outbox_status(context: click.Context, config: Path | None, as_json: bool) -> None:
    """For each topic: records pending, age of the oldest, records set aside, the last error."""
    from storescp import outbox  # noqa: PLC0415

    settings = _configuration(context, config).settings
    connection = outbox.open_outbox(settings.local_storage.dicm_store_path)
    topics = [outbox.topic_status(connection, number, topic) for number, topic in enumerate(_topics(settings))]
    instances = outbox.count_instances(connection)
    if as_json:
        document = {"instances": instances, "topics": [vars(topic) for topic in topics]}
        click.echo(json.dumps(document, default=lambda at: at.isoformat(), indent=2))
        return
    click.echo(f"instances {instances}")
    for topic in topics:
        oldest = f", oldest {_age(topic.oldest)}" if topic.oldest else ""
        click.echo(f"{topic.topic}: {topic.pending} pending{oldest}, {topic.dead} set aside")
        if topic.succeeded:
            click.echo(f"  last success {_age(topic.succeeded)} ago")
        if topic.last_error and topic.failed:
            state = f"{topic.failures} in a row" if topic.failures else "recovered"
            click.echo(f"  last error {_age(topic.failed)} ago ({state}): {topic.last_error}")


@outbox_group.command("list")
@click.option("--limit", type=click.IntRange(1, 100000), default=20, show_default=True)
@click.option("--dead", is_flag=True, help="Only those set aside because a broker refused them.")
@_config_option
@click.pass_context
def outbox_list(context: click.Context, config: Path | None, limit: int, dead: bool) -> None:
    """Records that a topic has not got, oldest first: state, trace id, file, topics, the reason."""
    from storescp import outbox  # noqa: PLC0415

    settings = _configuration(context, config).settings
    connection = outbox.open_outbox(settings.local_storage.dicm_store_path)
    for kind in (True,) if dead else (True, False):
        for entry in outbox.entries(connection, _topics(settings), dead=kind, limit=limit):
            reason = f"  {entry.error}" if entry.error else ""
            click.echo(f"{entry.state:<7}  {entry.trace_id}  {entry.path}  {','.join(entry.topics)}{reason}")


@outbox_group.command("retry")
@click.argument("trace_ids", nargs=-1, metavar="[TRACE_ID]...")
@click.option("--all", "everything", is_flag=True, help="All that were set aside.")
@_config_option
@click.pass_context
def outbox_retry(context: click.Context, config: Path | None, trace_ids: tuple[str, ...], everything: bool) -> None:
    """Have records tried again that a broker refused. The running service does it, else the next start."""
    from storescp import outbox  # noqa: PLC0415

    if everything == bool(trace_ids):
        raise click.UsageError("give trace ids, or --all")
    settings = _configuration(context, config).settings
    connection = outbox.open_outbox(settings.local_storage.dicm_store_path, write=True)
    count = outbox.request_retry(connection, None if everything else trace_ids)
    click.echo(f"{count} to be tried again")
    context.exit(0 if count else EXIT_FOUND)


def _topics(settings: Settings) -> tuple[str, str]:
    return settings.message_queue.topic_main, settings.message_queue.topic_dicom_receive


def _age(at: datetime) -> str:
    seconds = max(0, round((datetime.now(UTC) - at).total_seconds()))
    return f"{seconds} s" if seconds < _AGES_IN_SECONDS else str(timedelta(seconds=seconds))


@main_group.command("verify")
@click.option(
    "--republish",
    type=click.Choice(["unrecorded", "all"]),
    help="Have the service publish the records of files that have none, or of all files.",
)
@_config_option
@click.pass_context
def verify_command(context: click.Context, config: Path | None, republish: str | None) -> None:
    """Compare every stored file with its record.

    One line for each that is missing, changed, unreadable, misplaced or foreign; exit code 1 where there is any.
    """
    from storescp import verify  # noqa: PLC0415
    from storescp.outbox import open_outbox  # noqa: PLC0415

    settings = _configuration(context, config).settings
    own_roots = {entry.tenant_id: entry.storage_root for entry in settings.tenants.settings if entry.storage_root}
    root = settings.local_storage.dicm_store_path
    roots, database = verify.Roots(root, own_roots), open_outbox(root, write=republish is not None)
    found: list[verify.Looked] = []
    wished: list[str] = []
    files = size = 0
    with click.progressbar(length=verify.count_paths(database), label="comparing", file=sys.stderr) as bar:
        for looked in verify.verify(roots, database):
            bar.update(looked.kind != "foreign")
            if looked.kind == "whole":
                files, size = files + 1, size + looked.bytes
            else:
                found.append(looked)
            if looked.is_unrecorded or (looked.kind == "whole" and republish == "all"):
                wished.append(looked.path)
    for looked in found:
        click.echo(f"{looked.kind}  {looked.path}" + (f"  ({looked.reason})" if looked.reason else ""))
    click.echo(f"{files} files, {size} bytes compared, {len(found)} findings", err=True)
    if republish is not None:
        count = verify.request_republication(database, wished)
        click.echo(f"{count} records wished for: the service takes them up at once, or when it starts", err=True)
    context.exit(EXIT_FOUND if found else 0)


@main_group.command("passcode")
@click.argument("username")
@click.password_option("--passcode", prompt="Passcode", help="Asked for where it is not given.")
def passcode_command(username: str, passcode: str) -> None:
    """Print a line for the file of [user_identity]: USERNAME and what is left of its passcode."""
    from storescp.network.identity import entry  # noqa: PLC0415

    try:
        click.echo(entry(username, passcode))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="USERNAME") from None


@main_group.command("index")
@click.option("--database", metavar="URL", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.")
@click.option("--group", "group_id", metavar="ID", help="Consumer group; its members share the partitions.")
@click.option("--once", is_flag=True, help="End when everything is read that the topic holds.")
@_config_option
@click.pass_context
def index_command(
    context: click.Context, config: Path | None, database: str | None, group_id: str | None, once: bool
) -> None:
    """Keep tables of patients, studies, series and instances up to date from topic_main."""
    import asyncio  # noqa: PLC0415

    from storescp.index.consumer import Indexer  # noqa: PLC0415
    from storescp.index.database import Database  # noqa: PLC0415

    options = context.find_root().obj["options"]
    if database is not None:
        options["index", "database"] = database
    if group_id is not None:
        options["index", "group_id"] = group_id
    settings = _configuration(context, config).settings
    if settings.kafka is None:
        raise ConfigError(ConfigProblem("kafka", "null", "a section: the index reads topic_main", "configuration"))
    logs.configure(settings.log.level, settings.log.format)

    async def run() -> None:
        assert settings.kafka is not None  # noqa: S101 - seen above
        store = Database(settings.index.database.get_secret_value())
        try:
            indexer = Indexer(settings.kafka, settings.index, settings.message_queue.topic_main, store)
            done = await indexer.run(until_caught_up=once)
        finally:
            store.close()
        click.echo(f"{done.records} records, {done.duplicates} duplicates, {done.unreadable} unreadable")

    asyncio.run(run())


@main_group.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@_config_option
@click.pass_context
def inspect_command(context: click.Context, config: Path | None, file: Path) -> None:
    """Show what FILE is and what would become of it. Exit 1 where it would be refused."""
    from storescp.transcode import FileTranscoder, read_source  # noqa: PLC0415

    settings = _configuration(context, config).settings
    try:
        source = read_source(file)
    except StorescpError as error:
        raise StorescpError(f"{file}: {error}") from None
    dataset = file.read_bytes()[source.offset :]
    click.echo(f"transfer syntax     {source.transfer_syntax} {_name_of(source.transfer_syntax)}".rstrip())
    required = list(settings.dicom_store_scp.required_attributes)
    try:
        found = _core.scan(dataset, source.transfer_syntax, required)
    except CoreError as error:
        click.echo(f"would be refused    {error}")
        context.exit(EXIT_FOUND)
    click.echo(f"SOP class           {found.sop_class_uid} {_name_of(found.sop_class_uid)}".rstrip())
    click.echo(f"SOP instance        {found.sop_instance_uid}")
    day = (found.study_date or "00000000").replace("-", "")
    place = f"{day}/{found.study_instance_uid}/{found.series_instance_uid}/{found.sop_instance_uid}.dcm"
    click.echo(f"would be stored at  {settings.tenants.default or 'TENANT'}/{place}")
    scp = settings.dicom_store_scp
    viewers, target = set(scp.cornerstonejs_supported_transfer_syntax), scp.unsupported_ts_change_to
    outcome, why = _core.transcode_plan(source.transfer_syntax, found.has_pixel_data, viewers, target)
    if outcome == "as received":
        click.echo(f"would be stored     as received: {why}")
        return
    failure = why if outcome == "impossible" else FileTranscoder(settings).try_out(source, target)
    if failure is None:
        click.echo(f"would be stored     as {target} {_name_of(target)}".rstrip())
    else:
        click.echo(f"would be stored     as received, recorded as Failed: {failure}")


def _name_of(uid: str) -> str:
    from pydicom._uid_dict import UID_dictionary  # noqa: PLC0415 - the dictionary is large and rarely needed

    names = {known: name for known, name, *_ in _core.transfer_syntaxes()}
    return names.get(uid) or (UID_dictionary[uid][0] if uid in UID_dictionary else "")


@main_group.command("transcode")
@click.argument("source", metavar="SRC", type=click.Path(exists=True, path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--to", "transfer_syntax", required=True, metavar="UID", help="Transfer syntax that is wanted.")
@_config_option
@click.pass_context
def transcode_command(
    context: click.Context, config: Path | None, source: Path, target: Path, transfer_syntax: str
) -> None:
    """Transcode SRC (a file, or all files of a folder) to DST. Exit 1 where one could not be."""
    from storescp.settings import TARGETS  # noqa: PLC0415
    from storescp.transcode import Totals, plan_files, transcode_files  # noqa: PLC0415

    if transfer_syntax not in TARGETS:
        raise click.BadParameter(f"one of {', '.join(TARGETS)}", param_hint="--to")
    settings = _configuration(context, config).settings
    pairs = plan_files(source, target)
    totals, failures = Totals(), []
    with click.progressbar(
        transcode_files(settings, pairs, transfer_syntax), length=len(pairs), file=sys.stderr, label="transcoding"
    ) as files:
        for one in files:
            totals.note(one)
            if one.error:
                failures.append(f"not transcoded {one.source}: {one.error}")
    for failure in failures:
        click.echo(failure, err=True)
    click.echo(totals.text())
    context.exit(EXIT_FOUND if totals.failed else 0)


_calling_option = click.option(
    "--calling", metavar="TITLE", default="STORESCU", show_default=True, help="Our AE title."
)
_called_option = click.option(
    "--called", metavar="TITLE", default="ANY-SCP", show_default=True, help="The peer's AE title."
)


@main_group.command("echo")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@_calling_option
@_called_option
def echo_command(host: str, port: int, calling: str, called: str) -> None:
    """Send a C-ECHO to HOST PORT."""
    from storescp.peer import echo  # noqa: PLC0415

    logs.configure("error", "console")
    click.echo(f"{host}:{port} answered in {echo(host, port, calling, called) * 1000:.1f} ms")


@main_group.command("send")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@_calling_option
@_called_option
@click.pass_context
def send_command(
    context: click.Context, host: str, port: int, files: tuple[Path, ...], calling: str, called: str
) -> None:
    """Send FILES (or all files of folders) to HOST PORT as they are. Exit 1 where one was not taken."""
    from storescp.files import find_files  # noqa: PLC0415
    from storescp.peer import PeerError, read_header, send  # noqa: PLC0415

    logs.configure("error", "console")
    outgoing, unreadable = [], 0
    for path in find_files(files):
        try:
            outgoing.append(read_header(path))
        except PeerError as error:
            unreadable += 1
            click.echo(f"skipped   {error}", err=True)
    total = sum(file.bytes for file in outgoing)
    with click.progressbar(length=total, label="sending", file=sys.stderr) as bar:
        report = send(host, port, calling, called, outgoing, bar.update)
    for path, reason in report.refused:
        click.echo(f"not taken {path}: {reason}", err=True)
    sent = report.statuses[0]
    rate = sent / report.seconds if report.seconds else 0.0
    speed = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
    told = f"{report.bytes} bytes, {report.seconds:.2f} s, {rate:.0f}/s, {speed:.1f} MB/s"
    click.echo(f"{sent} of {len(outgoing)} stored, {told}")
    context.exit(EXIT_FOUND if report.refused or unreadable else 0)


def main() -> NoReturn:
    """Runs the command line and exits with the codes of the manual."""
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
