"""Pictures of instances on demand, each made in a process of its own: what is in a file must not reach the service."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

from storescp import _core

EDGE = 320
_SECONDS = 20.0
_MEMORY_BYTES = 1 << 30
_KEPT = 32
# A picture of EDGE x EDGE pixels, 16 bits and four samples each, is shorter.
_MOST_BYTES = 1 << 20
_REASON_BYTES = 500
_PNG = b"\x89PNG\r\n\x1a\n"


class NoPicture(Exception):
    """There is none, and why."""


class Thumbnails:
    """Makes pictures, and keeps the last few. For one caller at a time."""

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def get(self, number: int) -> bytes:
        """The picture of one of the last instances, PNG.

        Raises:
            NoPicture: it is none of them, or nothing can be shown of it.
        """
        if number not in self._kept:
            self._kept[number] = _render(self._file(number))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[number]

    def _file(self, number: int) -> Path:
        recent = [*self._engine.recent_instances(failed=False), *self._engine.recent_instances(failed=True)]
        file = next((one.file for one in recent if one.number == number), None)
        if file is None:
            raise NoPicture("it is none of the last instances any more")
        return file


def _render(path: Path) -> bytes:
    command = [sys.executable, "-m", "storescp.thumbnail_worker", str(EDGE), str(_MEMORY_BYTES), str(_MOST_BYTES)]
    environment = {name: os.environ[name] for name in _core.WORKER_ENVIRONMENT if name in os.environ}
    # Files, whose length the renderer cannot exceed. Through a pipe it could fill the memory of the service.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            with path.open("rb") as file:
                done = subprocess.run(  # noqa: S603 - our own module
                    command, stdin=file, stdout=output, stderr=errors, timeout=_SECONDS, check=False, env=environment
                )
        except OSError as error:
            raise NoPicture(f"the file cannot be read: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise NoPicture(f"it was not ready after {_SECONDS:.0f} seconds") from None
        output.seek(0)
        errors.seek(0)
        if done.returncode != 0:
            reason = errors.read(_REASON_BYTES).decode(errors="replace").strip()
            raise NoPicture(reason or f"the renderer ended with {done.returncode}")
        picture = output.read(_MOST_BYTES)
    if not picture.startswith(_PNG):
        raise NoPicture("the renderer made no picture")
    return picture
