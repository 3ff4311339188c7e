"""The steps in which a program changes a disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """The process ends here."""


def killed_at(step: int, patch: pytest.MonkeyPatch, synced: set[int]) -> list[str]:
    """Ends the program before a step, counted from 0.

    Returns the list to which the steps are added that were taken; what they synced is added to `synced`, by inode.
    """
    steps: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if len(steps) == step:
                raise Killed
            result = function(*arguments, **options)
            steps.append(name)
            if name == "fsync":
                synced.add(os.fstat(arguments[0]).st_ino)
            return result

        return call

    for name in ("mkdir", "rename", "unlink", "rmdir", "fsync", "fchmod"):
        patch.setattr(os, name, counted(name))
    return steps
