"""Commands about the queue of records."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from storescp.cli.common import EXIT_FOUND, config_option, opened_outbox, settings_on_root
from storescp.settings import Settings

_AGES_IN_SECONDS = 600


@click.group("outbox")
def outbox_group() -> None:
    """Look at the queue of records.

    It works while the service runs.
    """


@outbox_group.command("status")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@config_option
@click.pass_context
def outbox_status(context: click.Context, config: Path | None, as_json: bool) -> None:
    """For each topic: records pending, age of the oldest, records set aside, the last error."""
    from storescp import outbox  # noqa: PLC0415

    settings = settings_on_root(context, config)
    with opened_outbox(settings) as connection:
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
@config_option
@click.pass_context
def outbox_list(context: click.Context, config: Path | None, limit: int, dead: bool) -> None:
    """Records that a topic has not got, oldest first: state, trace id, file, topics, the reason."""
    from storescp import outbox  # noqa: PLC0415

    settings = settings_on_root(context, config)
    with opened_outbox(settings) as connection:
        for kind in (True,) if dead else (True, False):
            for entry in outbox.entries(connection, _topics(settings), dead=kind, limit=limit):
                reason = f"  {entry.error}" if entry.error else ""
                click.echo(f"{entry.state:<7}  {entry.trace_id}  {entry.path}  {','.join(entry.topics)}{reason}")


@outbox_group.command("retry")
@click.argument("trace_ids", nargs=-1, metavar="[TRACE_ID]...")
@click.option("--all", "everything", is_flag=True, help="All that were set aside.")
@config_option
@click.pass_context
def outbox_retry(context: click.Context, config: Path | None, trace_ids: tuple[str, ...], everything: bool) -> None:
    """Have records tried again that a broker refused. The running service does it, else the next start."""
    from storescp import outbox  # noqa: PLC0415

    if everything == bool(trace_ids):
        raise click.UsageError("give trace ids, or --all")
    settings = settings_on_root(context, config)
    with opened_outbox(settings, write=True) as connection:
        count = outbox.request_retry(connection, None if everything else trace_ids)
    click.echo(f"{count} to be tried again")
    context.exit(0 if count else EXIT_FOUND)


def _topics(settings: Settings) -> tuple[str, str]:
    return settings.message_queue.topic_main, settings.message_queue.topic_dicom_receive


def _age(at: datetime) -> str:
    seconds = max(0, round((datetime.now(UTC) - at).total_seconds()))
    return f"{seconds} s" if seconds < _AGES_IN_SECONDS else str(timedelta(seconds=seconds))
