"""The errors of this package. The Rust half raises `CoreError` and `CoreBug`."""

from __future__ import annotations

from dataclasses import dataclass


class StorescpError(Exception):
    """Base of all errors that this package raises on purpose."""


class CoreError(StorescpError):
    """The Rust core says no: the text says why."""


class TemporaryFailure(CoreError):
    """It says no for a reason that may pass by itself: a disk that is full, broken or not mounted, another process."""


class CoreBug(StorescpError):
    """A caught panic of the Rust core: our bug."""


class LicenceError(StorescpError):
    """The licence does not allow to serve. The text never shows the expected values."""


class BindError(StorescpError):
    """The address cannot be bound."""


@dataclass(frozen=True)
class ConfigProblem:
    """One thing that is wrong with the configuration."""

    key: str
    value: str
    expected: str
    source: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: expected {self.expected} (from {self.source})"


class ConfigError(StorescpError):
    """The configuration cannot be used."""

    def __init__(self, *problems: ConfigProblem) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))
