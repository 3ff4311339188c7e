"""Replaced files, which stay in `.replaced/` of the storage root for a while."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from storescp.pure.refusal import replaced_bound_refusal
from storescp.pure.store import DIRECTORY, SeriesFolder, Store, reason_of

log = structlog.get_logger("storescp.pure")
REPLACED = ".replaced"
_DAY = re.compile(r"\d{8}", re.ASCII)
_FILE = re.compile(r"(\d{12})_.+\.dcm", re.ASCII)
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
# None younger than so many seconds is removed to make room.
_KEPT_ANYWAY = 86400.0


@dataclass(frozen=True)
class _Replaced:
    day: str
    name: str
    size: int
    moment: float  # seconds since 1970


class ReplacedFiles:
    """All of a storage root; whoever calls holds `Store.one_writer`."""

    def __init__(self, store: Store, retention: float, max_bytes: int | None) -> None:
        self._store = store
        self._retention = retention
        self.max_bytes = store.disk_bytes() // 10 if max_bytes is None else max_bytes
        self.files = self.bytes = self.total = 0
        self._is_counted = False

    @property
    def is_kept(self) -> bool:
        """Whether replaced files are kept at all."""
        return self._retention > 0

    def admit(self, size: int, *, makes_room: bool = True) -> None:
        """Makes room for one more file of `size` bytes: the oldest go first.

        Without `makes_room` none goes, and half of the room stays free: what is done without a sender must cost
        senders nothing.

        Raises:
            Refusal: the bound is reached by files of the last day; nothing was removed.
        """
        if not self._is_counted:
            self._count()
        if not makes_room:
            if self.bytes + size > self.max_bytes // 2:
                raise replaced_bound_refusal()
            return
        excess = self.bytes + size - self.max_bytes
        if excess <= 0:
            return
        oldest, limit = [], time.time() - _KEPT_ANYWAY
        for one in self._all():
            if excess <= 0 or one.moment > limit:
                break
            oldest.append(one)
            excess -= one.size
        if excess > 0:
            raise replaced_bound_refusal()
        for one in oldest:
            self._remove(one)

    @contextlib.contextmanager
    def keep(self, series: SeriesFolder, name: str, tenant: str, content: bytes, *, sync: bool) -> Iterator[None]:
        """Keeps the file `name` of a series with this content; where the block fails, it is taken back."""
        replaced = self._store.open_own_folder(REPLACED, sync=sync)
        try:
            one, is_new_day = self._link(replaced, series, name, tenant, content)
            try:
                if sync:
                    with self._open_day(one.day, replaced) as day:
                        os.fsync(day)
                    os.fsync(replaced)
                yield
            except BaseException:
                os.unlink(f"{one.day}/{one.name}", dir_fd=replaced)
                if is_new_day:
                    os.rmdir(one.day, dir_fd=replaced)
                raise
        finally:
            os.close(replaced)
        self.files += 1
        self.bytes += one.size
        self.total += 1

    def sweep(self) -> int:
        """Removes files whose retention has ended, and counts the others anew; how many were removed."""
        limit, removed = time.time() - self._retention, 0
        for one in list(self._all()):
            if one.moment > limit:
                break
            try:
                self._remove(one)
                removed += 1
            except OSError as error:
                log.warning("replaced.not_removed", file=f"{one.day}/{one.name}", reason=reason_of(error))
        self._count()
        return removed

    def _link(
        self, replaced: int, series: SeriesFolder, name: str, tenant: str, content: bytes
    ) -> tuple[_Replaced, bool]:
        moment = datetime.now(UTC)
        while True:
            day, is_new_day = moment.strftime("%Y%m%d"), False
            with contextlib.suppress(FileExistsError):
                os.mkdir(day, 0o700, dir_fd=replaced)
                is_new_day = True
            one = _Replaced(day, f"{moment:%H%M%S%f}_{tenant}_{name}", len(content), moment.timestamp())
            try:
                with self._open_day(day, replaced) as folder:
                    self._give_name(series, name, folder, one.name, content)
            except FileExistsError:
                moment += timedelta(microseconds=1)
            except BaseException:
                if is_new_day:
                    os.rmdir(day, dir_fd=replaced)
                raise
            else:
                return one, is_new_day

    def _give_name(self, series: SeriesFolder, name: str, day: int, kept_as: str, content: bytes) -> None:
        try:
            os.link(name, kept_as, src_dir_fd=series.descriptor, dst_dir_fd=day, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            self._copy(day, kept_as, content)

    def _copy(self, day: int, kept_as: str, content: bytes) -> None:
        if kept_as in os.listdir(day):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary = f"{kept_as}.part"
        try:
            self._store.write_temporary(temporary, content, sync=True)
            os.rename(temporary, kept_as, src_dir_fd=self._store.incoming, dst_dir_fd=day)
        except BaseException:
            self._store.remove_temporary(temporary)
            raise

    def _count(self) -> None:
        sizes = [one.size for one in self._all()]
        self.files, self.bytes, self._is_counted = len(sizes), sum(sizes), True

    def _all(self) -> Iterator[_Replaced]:
        """All replaced files, the oldest first. A day that cannot be read is named in the log and has none."""
        try:
            replaced = os.open(REPLACED, DIRECTORY, dir_fd=self._store.root)
        except FileNotFoundError:
            return
        try:
            for day in filter(_DAY.fullmatch, _names(replaced)):
                try:
                    files = self._of_day(day, replaced)
                except OSError as error:
                    log.warning("replaced.unreadable", day=day, reason=reason_of(error))
                    continue
                yield from files
        finally:
            os.close(replaced)

    def _of_day(self, day: str, replaced: int) -> list[_Replaced]:
        files = []
        with self._open_day(day, replaced) as folder:
            for name in _names(folder):
                found = _FILE.fullmatch(name)
                moment = None if found is None else _moment(day + found[1])
                if moment is not None:
                    with contextlib.suppress(FileNotFoundError):  # an operator removed it
                        size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
                        files.append(_Replaced(day, name, size, moment))
        return files

    def _remove(self, one: _Replaced) -> None:
        replaced = os.open(REPLACED, DIRECTORY, dir_fd=self._store.root)
        try:
            with contextlib.suppress(FileNotFoundError):  # an operator removed it
                os.unlink(f"{one.day}/{one.name}", dir_fd=replaced)
            self.files -= 1
            self.bytes -= one.size
            try:
                os.rmdir(one.day, dir_fd=replaced)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                    raise
        finally:
            os.close(replaced)

    @contextlib.contextmanager
    def _open_day(self, day: str, replaced: int) -> Iterator[int]:
        descriptor = os.open(day, DIRECTORY, dir_fd=replaced)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


def _moment(text: str) -> float | None:
    """Seconds since 1970 of `YYYYMMDDHHMMSSffffff`, UTC."""
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S%f").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
