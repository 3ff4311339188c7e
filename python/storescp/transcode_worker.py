"""A transcoder in a process of its own: `python -m storescp.transcode_worker MEMORY_BYTES`, started by the engine.

Its standard input is a socket over which jobs come; it ends with the process that started it.
"""

from __future__ import annotations

import sys

from storescp import _core


def main() -> None:
    """Serves until the supervisor is gone."""
    _core.transcode_worker(int(sys.argv[1]))


if __name__ == "__main__":
    main()
