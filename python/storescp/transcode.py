"""Files from one transfer syntax to another, by the same worker processes as in the service."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storescp import _core
from storescp.engine import pool_config
from storescp.errors import CoreError, StorescpError
from storescp.file_faults import HEAD_BYTES, header_fault
from storescp.files import find_files
from storescp.pure.store import file_meta, locate_dataset
from storescp.settings import Settings


@dataclass(frozen=True)
class Source:
    """A PS3.10 file: its transfer syntax, identity, and where its data set begins."""

    path: Path
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    offset: int


@dataclass(frozen=True)
class Done:
    """What became of a file: `error` is empty where it worked."""

    source: Path
    target: Path
    error: str
    bytes: int


def read_source(path: Path) -> Source:
    """Reads the header of a file.

    Raises:
        StorescpError: it cannot be read, or is no whole PS3.10 file.
    """
    try:
        with path.open("rb") as file:
            found = locate_dataset(file.read(HEAD_BYTES))
        fault = header_fault(path) if found is None or not found.transfer_syntax else None
    except OSError as error:
        raise StorescpError(f"cannot be read: {error.strerror or error}") from None
    if found is None or fault is not None:
        raise StorescpError(fault)
    return Source(path, found.transfer_syntax, found.sop_class_uid, found.sop_instance_uid, found.offset)


class FileTranscoder:
    """Worker processes for files; safe from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._pool = _core.Transcoder(json.dumps(pool_config(settings)))
        self._most = settings.limits.max_decoded_bytes
        self.workers = int(str(pool_config(settings)["workers"]))

    def transcode(self, source: Source, target_path: Path, target: str) -> int:
        """Writes a new file, whole or not at all; bytes of its data set. Nothing is synced: the source is still there.

        Raises:
            CoreError: it cannot be transcoded; the text is `code: reason`.
            StorescpError: there is a file of that name already.
        """
        if target_path.exists():
            raise StorescpError(f"{target_path} is there already")
        target_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = target_path.with_name(f".{target_path.name}.part")
        temporary.unlink(missing_ok=True)
        if source.transfer_syntax == target:
            shutil.copyfile(source.path, temporary)
            size = temporary.stat().st_size - source.offset
        else:
            header = file_meta(source.sop_class_uid, source.sop_instance_uid, target, "")
            _, size = self._pool.transcode_file(
                source.path, source.offset, temporary, header, source.transfer_syntax, target, self._most
            )
        temporary.rename(target_path)
        return size

    def try_out(self, source: Source, target: str) -> str | None:
        """Why a file cannot be transcoded, or nothing. Leaves no file behind."""
        with tempfile.TemporaryDirectory(prefix="storescp-") as folder:
            try:
                self.transcode(source, Path(folder) / "trial.dcm", target)
            except CoreError as error:
                return str(error)
        return None


def plan_files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Which file becomes which: a folder is mirrored, a file goes to a file or into a folder.

    Raises:
        StorescpError: there is nothing to do, or the target lies inside the source.
    """
    if source.is_dir():
        # Not `Path.resolve`, which raises an error for links in a circle.
        if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
            raise StorescpError(f"{target} lies inside {source}")
        pairs = [(path, target / path.relative_to(source)) for path in find_files([source])]
    elif target.is_dir():
        pairs = [(source, target / source.name)]
    else:
        pairs = [(source, target)]
    if not pairs:
        raise StorescpError(f"{source} holds no files")
    return pairs


def transcode_files(settings: Settings, pairs: list[tuple[Path, Path]], target: str) -> Iterator[Done]:
    """Transcodes files, several at a time; yields each as it is done, in order."""
    transcoder = FileTranscoder(settings)

    def one(pair: tuple[Path, Path]) -> Done:
        path, target_path = pair
        try:
            return Done(path, target_path, "", transcoder.transcode(read_source(path), target_path, target))
        except (StorescpError, OSError) as error:
            return Done(path, target_path, str(error), 0)

    with ThreadPoolExecutor(transcoder.workers, "storescp-transcode") as threads:
        yield from threads.map(one, pairs)


@dataclass
class Totals:
    """Of a run."""

    done: int = 0
    failed: int = 0
    bytes: int = 0
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.perf_counter()

    def note(self, one: Done) -> None:
        """Counts a file."""
        if one.error:
            self.failed += 1
        else:
            self.done += 1
            self.bytes += one.bytes

    def text(self) -> str:
        """For people."""
        seconds = time.perf_counter() - self.began
        failed = f", {self.failed} not" if self.failed else ""
        return f"{self.done} transcoded{failed}, {self.bytes} bytes, {seconds:.2f} s"
