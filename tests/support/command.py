"""The program as a command that ends by itself, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import structlog

from storescp import cli

Done = subprocess.CompletedProcess[str]


def storescp(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    wrapper: Sequence[str] = (),
    typed: str = "",
) -> Done:
    """In a process of its own, whose settings are those of `env` alone. `wrapper` is a command that becomes it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STORESCP_")}
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "storescp", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, env=environment | dict(env or {}), cwd=cwd, input=typed,
    )  # fmt: skip


@contextlib.contextmanager
def _logs_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.configure(**configuration)


def run_in_process(*arguments: object, env: Mapping[str, str] | None = None, typed: str = "") -> Done:
    """In this process, which is faster by a start of the interpreter. Never for what serves."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with pytest.MonkeyPatch.context() as patch, _logs_as_they_were():
        given = dict(env or {})
        for name in [name for name in os.environ if name.startswith("STORESCP_")]:
            patch.delenv(name)
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["storescpd", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as over:
            cli.main()
    printed = []
    for stream in streams:
        stream.flush()
        stream.seek(0)
        printed.append(stream.read())
    code = over.value.code
    assert isinstance(code, int)
    return Done(arguments, code, *printed)
