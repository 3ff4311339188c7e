"""A picture of a file: `python -m storescp.thumbnail_worker FILE EDGE MEMORY_BYTES`, PNG to standard output.

A process of its own, with little memory, little time and the lowest priority.
"""

from __future__ import annotations

import os
import resource
import sys

from storescp import _core
from storescp.errors import CoreError

_CPU_SECONDS = 15
_LOWEST_PRIORITY = 19


def main() -> int:
    """Writes the picture; the exit code."""
    file, edge, memory_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.nice(_LOWEST_PRIORITY)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        picture = _core.thumbnail(file, edge, memory_bytes // 4)
    except CoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
