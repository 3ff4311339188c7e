"""The help of the program: one screen, a line for each option and command, by topic."""

from __future__ import annotations

import click

_SHORT = 46
_NAME_WIDTH = 32
_MARGIN = "    "
_OPTIONS = {
    "What to listen to": (
        "--host",
        "--port",
        "--ae-title",
        "--max-pdu-length",
        "--strict",
        "--uncompressed-only",
        "--promiscuous",
        "--non-blocking",
    ),
    "How to run": ("--output-directory", "--config", "--engine", "--verbose", "--version", "--help"),
}
_COMMANDS = {
    "Commands, each with --help": ("check-config", "storage", "license", "passcode", "conformance", "completion"),
    "Links and files": ("echo", "send", "inspect", "transcode"),
    "Records and storage": ("outbox", "index", "studies", "verify", "quarantine"),
}


class ByTopic(click.Group):
    """A group whose help has topics instead of an alphabet."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes options and commands."""
        formatter.write("\n")
        options = {name: option for option in self.get_params(ctx) for name in option.opts}
        for topic, names in _OPTIONS.items():
            _write_topic(formatter, topic, [_row_of_option(options[name]) for name in names])
        for topic, names in _COMMANDS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(f"{_MARGIN}{name}", command.get_short_help_str(_SHORT)) for name, command in commands if command]
            _write_topic(formatter, topic, rows)


def _row_of_option(option: click.Parameter) -> tuple[str, str]:
    assert isinstance(option, click.Option)  # noqa: S101 - the group has no arguments
    names = ", ".join(option.opts) if option.opts[0].count("-") == 1 else f"{_MARGIN}{option.opts[0]}"
    metavar = "" if option.is_flag else f" {option.metavar}"
    return " / ".join((names, *option.secondary_opts)) + metavar, option.help or ""


def _write_topic(formatter: click.HelpFormatter, topic: str, rows: list[tuple[str, str]]) -> None:
    formatter.write(f"{topic}:\n")
    for name, text in rows:
        formatter.write(f"  {name:<{_NAME_WIDTH}}{text}\n")
