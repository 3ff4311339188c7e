"""A transcoder in a process of its own: `python -m storescp.transcode_worker MEMORY_BYTES`, started by the engine.

Its standard input is a socket over which jobs come; it ends with the process that started it. Before the first job it
gives up files, the network and most system calls.
"""

from __future__ import annotations

import os
import sys

from storescp import _core

_FIRST_NOT_STANDARD = 3


def main() -> None:
    """Serves until the supervisor is gone; does not return."""
    # Whoever started the service may have left descriptors open for all that it starts.
    os.closerange(_FIRST_NOT_STANDARD, os.sysconf("SC_OPEN_MAX"))
    _core.transcode_worker(int(sys.argv[1]))
    # Python would look for files at its end, which it may not.
    os._exit(0)


if __name__ == "__main__":
    main()
