"""The errors of this package. The Rust half raises `CoreError`, `LinkError`, `TemporaryFailure` and `CoreBug`."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storescp.expected import place

# Only a person can mend these: a permission, or a path that is wrong.
_LASTING = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENOENT,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
    }
)


class StorescpError(Exception):
    """Base of all errors that this package raises on purpose."""


class CoreError(StorescpError):
    """The Rust core says no: the text says why."""


class LinkError(CoreError):
    """What a peer did instead of answering: a code for programs, a text, and the numbers of a rejection or an abort."""

    def __init__(self, code: str, text: str, numbers: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.numbers = tuple(numbers)


class TemporaryFailure(CoreError):
    """It says no for a reason that may pass by itself: a disk that is full, broken or not mounted, another process."""


class CoreBug(StorescpError):
    """A caught panic of the Rust core: our bug."""


class LicenceError(StorescpError):
    """The licence does not allow to serve. The text never shows a hash code."""


class BindError(StorescpError):
    """The address cannot be bound."""


@dataclass(frozen=True)
class ConfigProblem:
    """One thing that is wrong with the configuration. `value` is None where it must not or need not be shown."""

    key: str
    value: str | None
    expected: str
    source: str

    def __str__(self) -> str:
        named = place(self.key)
        given = named if self.value is None else f"{named} = {self.value}"
        return f"{given}: expected {self.expected} (from {self.source})"


class ConfigError(StorescpError):
    """The configuration cannot be used."""

    def __init__(self, *problems: ConfigProblem) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


class StartError(StorescpError):
    """Everything that refuses a start: a `ConfigError`, a `TemporaryFailure` or a `LicenceError` each."""

    def __init__(self, *errors: StorescpError) -> None:
        self.errors = errors
        super().__init__("; ".join(map(str, errors)))


def is_temporary(error: OSError) -> bool:
    """Whether what the operating system says may pass by itself: no space, an I/O error, no descriptors."""
    return error.errno is not None and error.errno not in _LASTING


def start_failure(
    key: str, path: Path, expected: str, error: OSError, *, may_be_unmounted: bool = False
) -> ConfigError | TemporaryFailure:
    """What an error of the operating system means for a start that needs the path of a key of the configuration.

    With `may_be_unmounted` a path that does not exist may come back.
    """
    reason = error.strerror or str(error)
    if is_temporary(error) or (may_be_unmounted and error.errno == errno.ENOENT):
        return TemporaryFailure(f"{key} = {path}: {reason}")
    return ConfigError(ConfigProblem(key, str(path), f"{expected} ({reason})", "configuration"))
