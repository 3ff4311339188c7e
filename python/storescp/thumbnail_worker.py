"""A picture of a file, PNG: `python -m storescp.thumbnail_worker EDGE MEMORY_BYTES MOST_BYTES < FILE > PICTURE`.

A process of its own, with little memory, little time and the lowest priority. It gives up files, the network and most
system calls before it looks at the file.
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
    edge, memory_bytes, most_bytes = (int(argument) for argument in sys.argv[1:])
    os.nice(_LOWEST_PRIORITY)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    # The service tells which protections are missing; they are those of the processes that transcode.
    _core.lock_down()
    try:
        picture = _core.thumbnail(edge, memory_bytes // 4)
    except CoreError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        return 1
    sys.stdout.buffer.write(picture)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    # Python would look for files at its end, which it may not.
    os._exit(main())
