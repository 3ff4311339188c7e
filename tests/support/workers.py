"""Worker processes that are slow: this package, with another program in the place of the one that they run.

An image in JPEG 2000 has endless frames, one a second. Other images are transcoded as ever, but not before the file `go` is there
where the file `hold` is. The notes have a file for each process that works on the one or the other.
"""

from __future__ import annotations

from pathlib import Path

from support.compressed import JPEG_2000

_PACKAGE = Path(__file__).parents[2] / "python" / "storescp"
_PROGRAM = f"""
import os, select, socket, sys
from pathlib import Path
from storescp import _core

# A worker gets no variable of a test.
notes = Path(__file__).parents[2] / "notes"
supervisor = socket.socket(fileno=0)
request = supervisor.recv(4096, socket.MSG_PEEK)
if b'"source":"{JPEG_2000}"' in request:
    supervisor.recv(4096), supervisor.recv(4096)
    (notes / f"endless-{{os.getpid()}}").touch()
    while not select.select([supervisor], [], [], 1)[0]:
        supervisor.send(b'"Progress"')
    sys.exit()
if request and (notes / "hold").exists():
    (notes / f"held-{{os.getpid()}}").touch()
    while not (notes / "go").exists():
        select.select([], [], [], 0.01)
supervisor.detach()
_core.transcode_worker(int(sys.argv[1]))
"""


class SlowWorkers:
    """The environment in which workers are slow, and what they note."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        package = folder / "slow" / "storescp"
        package.mkdir(parents=True)
        for file in _PACKAGE.iterdir():
            if file.name != "transcode_worker.py":
                (package / file.name).symlink_to(file)
        (package / "transcode_worker.py").write_text(_PROGRAM)
        self.env = {"PYTHONPATH": str(package.parent)}

    def count(self, kind: str) -> int:
        """Processes that are, or were, `endless` or `held`."""
        return len(list(self.notes.glob(f"{kind}-*")))

    def hold(self) -> None:
        """From now on an image waits for `let_go`."""
        (self.notes / "hold").touch()

    def let_go(self) -> None:
        """No image waits any more."""
        (self.notes / "go").touch()
