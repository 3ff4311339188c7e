"""Commands about storage roots."""

from __future__ import annotations

from pathlib import Path

import click

from storescp.cli.common import config_option, configuration
from storescp.errors import ConfigError, ConfigProblem
from storescp.root_identity import make_identity, read_identity
from storescp.roots import root_failure, storage_roots


@click.group("storage")
def storage_group() -> None:
    """Make storage roots before the first start."""


@storage_group.command("create")
@config_option
@click.pass_context
def storage_create(context: click.Context, config: Path | None) -> None:
    """Make the storage roots of the configuration, each with an identity.

    With storage.create = false the service starts only where the roots have one, so that it never takes an empty
    folder for a disk that is not mounted. Run this once for a new disk, as the user of the service. What is there
    already stays as it is.
    """
    for key, root in storage_roots(configuration(context, config).settings):
        try:
            around = next((folder for folder in root.parents if (folder / ".outbox").is_dir()), None)
            if around is not None:
                expected = f"a folder that is not within another storage root ({around})"
                raise ConfigError(ConfigProblem(key, str(root), expected, "configuration"))
            identity = read_identity(root)
            if identity is not None:
                click.echo(f"{root} is there with the identity {identity}")
            elif root.exists():
                click.echo(f"{root} was there and has the new identity {make_identity(root)}")
            else:
                click.echo(f"made {root} with the identity {make_identity(root)}")
        except OSError as error:
            raise root_failure(key, root, error) from None
