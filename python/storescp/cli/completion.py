"""Completion of commands and options by the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "storescpd"
_VARIABLE = "_STORESCPD_COMPLETE"
_HELP = """Print what makes SHELL complete storescpd.

\b
bash:  storescpd completion bash \\
         > ~/.local/share/bash-completion/completions/storescpd
zsh:   storescpd completion zsh > _storescpd   (in a folder of $fpath)
fish:  storescpd completion fish \\
         > ~/.config/fish/completions/storescpd.fish
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Prints the script of a shell."""
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the choices are those that click has
    click.echo(found(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
