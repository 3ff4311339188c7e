"""Comparing the storage with its records: what is missing, changed or foreign."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that is not as recorded."""

    kind: str  # "missing", "changed" or "foreign"
    path: str


@dataclass
class Verified:
    """How many files were looked at, and what was found."""

    files: int = 0
    bytes: int = 0


def verify(
    root: Path, tenant_roots: Mapping[str, Path], database: sqlite3.Connection, totals: Verified
) -> Iterator[Finding]:
    """Every recorded file by size and digest, then every file without a record.

    `tenant_roots` has the storage roots of tenants that have their own. A path that was replaced has several rows; the
    last one describes the file.
    """
    recorded: set[str] = set()
    query = "SELECT path, size, digest FROM instance WHERE id IN (SELECT max(id) FROM instance GROUP BY path)"
    for path, size, digest in database.execute(query):
        recorded.add(path)
        try:
            found_size, found_digest = _measure(tenant_roots.get(path.partition("/")[0], root) / path)
        except FileNotFoundError:
            yield Finding("missing", path)
            continue
        totals.files += 1
        totals.bytes += found_size
        if (found_size, found_digest) != (size, digest):
            yield Finding("changed", path)
    for each in sorted({root, *tenant_roots.values()}):
        for file in _stored_files(each):
            relative = file.relative_to(each)
            belongs = tenant_roots.get(relative.parts[0], root) == each
            if not belongs or str(relative) not in recorded:
                yield Finding("foreign", str(relative) if each == root else str(file))


def _measure(file: Path) -> tuple[int, bytes]:
    digest, size = xxhash.xxh3_128(), 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.digest()


def _stored_files(root: Path) -> Iterator[Path]:
    for tenant in sorted(root.iterdir()):
        if tenant.name.startswith(".") or not tenant.is_dir():
            continue
        for folder, _, names in os.walk(tenant):
            for name in sorted(names):
                yield Path(folder) / name
