"""The operator's view of an outbox, from a process of its own as in life.

Never from the process of the engine: it has another copy of SQLite, locks belong to processes and not to copies, and so
the end of one connection takes away the log that the other still writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from storescp import outbox


def _ask(root: Path, function: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    connection = outbox.open_outbox(root, write=True)
    try:
        if function == "execute":
            with connection:
                return connection.execute(*args).fetchall()
        answer = getattr(outbox, function)(connection, *args, **options)
        return list(answer) if isinstance(answer, Iterator) else answer
    finally:
        connection.close()


class Operator:
    """Calls the functions of `storescp.outbox` on the database of a storage root; `execute` runs a statement."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __getattr__(self, function: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self._process.submit(_ask, self._root, function, args, options).result(30)

        return call

    def close(self) -> None:
        self._process.shutdown()
