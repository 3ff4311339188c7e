"""Storage roots before they are opened: whether each can be used, and making the main one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from storescp.errors import ConfigError, ConfigProblem, TemporaryFailure, start_failure
from storescp.files import check_folder
from storescp.settings import Settings

IDENTITY = Path(".outbox", "identity")
_OUR_FOLDERS = (".incoming", ".outbox")
# As the core says it too.
IN_USE = "another process serves this storage root"


def storage_roots(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Every storage root with its key in the configuration, the main one first."""
    yield "storage.root", settings.storage.root
    for entry in settings.tenants.settings:
        if entry.storage_root is not None:
            yield "tenants.settings.storage_root", entry.storage_root


def check_root(key: str, root: Path, *, create: bool) -> None:
    """Whether a storage root can be used, or made where `create` allows it. Makes nothing and takes no lock.

    Raises:
        ConfigError: it cannot be used.
        TemporaryFailure: it cannot be used now: not mounted, read-only, an I/O error.
    """
    try:
        if not create:
            _check_identity(key, root)
        if not create or os.path.lexists(root):
            check_folder(root, os.R_OK | os.W_OK | os.X_OK)
            for folder in (root / name for name in _OUR_FOLDERS):
                if os.path.lexists(folder):
                    check_folder(folder, os.R_OK | os.W_OK | os.X_OK)
        else:
            check_folder(_first_that_exists(root.parents), os.W_OK | os.X_OK)
    except OSError as error:
        raise root_failure(key, root, error) from None


def make_root(settings: Settings) -> None:
    """Makes the main storage root where it is not there and `storage.create` allows it.

    Raises:
        ConfigError: it cannot be used.
        TemporaryFailure: it cannot be used now.
    """
    create = settings.storage.create
    key, root = next(storage_roots(settings))
    check_root(key, root, create=create)
    if create:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # Not for want of a mount: the folder above is there, and takes none, as /proc.
            above = _first_that_exists(root.parents)
            expected = f"a folder that can be made: {above} takes no folder ({error.strerror})"
            raise ConfigError(ConfigProblem(key, str(root), expected, "configuration")) from None
        except OSError as error:
            raise root_failure(key, root, error) from None


def root_failure(key: str, root: Path, error: OSError) -> ConfigError | TemporaryFailure:
    """What an error of the operating system means for a start that needs a storage root."""
    return start_failure(key, root, "a folder that can be written", error, may_be_unmounted=True)


def _check_identity(key: str, root: Path) -> None:
    for path in (root, root / IDENTITY):
        try:
            path.stat()
        except FileNotFoundError:
            raise TemporaryFailure(
                f"{key} = {root}: {path} is not there, and storage.create is false (is the file system mounted?)"
            ) from None


def _first_that_exists(folders: Sequence[Path]) -> Path:
    """A link that leads nowhere counts: what it leads to may not be mounted."""
    for folder in folders:
        try:
            folder.lstat()
        except FileNotFoundError:
            continue
        return folder
    return Path("/")
