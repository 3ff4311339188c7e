"""Control groups that a test makes for a process of its own: limits of memory and processors, as a container has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000


class NoControlGroupsError(Exception):
    """No group can be made here, or it cannot limit what was asked for."""


class ControlGroup:
    """A group with a limit of memory in bytes, or of processor time in microseconds of each `PERIOD`, or with both.

    A command behind `wrapper` becomes a process of the group.

    Raises:
        NoControlGroupsError: the kernel or the rights of this process do not allow it.
    """

    def __init__(self, memory_bytes: int | None = None, quota: int | None = None) -> None:
        self._folders: list[Path] = []
        name = f"storescp-test-{os.getpid()}"
        is_version_1 = (_ROOT / "memory").is_dir()
        try:
            if memory_bytes is not None:
                self.memory = self._make(_ROOT / "memory" / name if is_version_1 else _ROOT / name)
                (self.memory / ("memory.limit_in_bytes" if is_version_1 else "memory.max")).write_text(
                    str(memory_bytes)
                )
            if quota is not None:
                folder = self._make(_ROOT / "cpu" / name if is_version_1 else _ROOT / name)
                if is_version_1:
                    (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
                    (folder / "cpu.cfs_quota_us").write_text(str(quota))
                else:
                    (folder / "cpu.max").write_text(f"{quota} {PERIOD}")
        except OSError as error:
            self.remove()
            raise NoControlGroupsError(error.strerror) from error

    def _make(self, folder: Path) -> Path:
        if folder not in self._folders:
            folder.mkdir()
            self._folders.append(folder)
        return folder

    @property
    def wrapper(self) -> Sequence[str]:
        enter = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in self._folders)
        return ("sh", "-c", f'{enter}exec "$@"', "sh")

    def kills(self) -> int:
        """How many processes the kernel ended for want of memory."""
        name = "memory.oom_control" if (self.memory / "memory.oom_control").exists() else "memory.events"
        fields = dict(line.split() for line in (self.memory / name).read_text().splitlines())
        return int(fields["oom_kill"])

    def remove(self) -> None:
        for folder in self._folders:
            folder.rmdir()


@contextlib.contextmanager
def control_group(memory_bytes: int | None = None, quota: int | None = None) -> Iterator[ControlGroup]:
    """A group, which is removed at the end. Raises as `ControlGroup`."""
    group = ControlGroup(memory_bytes, quota)
    try:
        yield group
    finally:
        group.remove()
