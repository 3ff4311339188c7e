"""Applies a file of records to an empty database, and prints the seconds: runs with any version of the package."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from storescp.index.database import Database, Message

_BATCH = 1000


def main() -> None:
    """Arguments: URL of the database, file of JSON lines."""
    lines = Path(sys.argv[2]).read_bytes().splitlines()
    messages = [Message(offset, line) for offset, line in enumerate(lines)]
    database = Database(sys.argv[1])
    database.create()
    began = time.perf_counter()
    applied = 0
    for first in range(0, len(messages), _BATCH):
        applied += database.apply("main", {0: messages[first : first + _BATCH]}).records
    seconds = time.perf_counter() - began
    database.close()
    assert applied == len(messages), applied
    print(seconds)


if __name__ == "__main__":
    main()
