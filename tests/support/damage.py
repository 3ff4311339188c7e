"""Data sets that are no instance, and a service that keeps them."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.pure.engine import PureEngine
from storescp.settings import Settings
from support.instances import CT, Instance, ct_slice, explicit
from support.scu import RawAssociation, Response
from support.service import ServiceProcess

KEEPS = {"STORESCP_DICOM_STORE_SCP__MALFORMED": "quarantine", "STORESCP_STORAGE__MIN_FREE_BYTES": "0"}
QUARANTINED, CANNOT_UNDERSTAND = 0xB007, 0xC000
DEFLATED = "1.2.840.10008.1.2.1.99"


def truncated(number: int = 1, *, rows: int = 16) -> Instance:
    one = ct_slice(number, rows=rows)
    return replace(one, dataset=one.dataset[:-9])


def contradictory(number: int = 2) -> Instance:
    """Study Instance UID twice."""
    one = ct_slice(number, rows=16)
    study = explicit(0x0020000D, b"UI", b"1.2.3.4.5.6\0")
    at = one.dataset.index(explicit(0x00200013, b"IS", b"2 ")[:8])
    return replace(one, dataset=one.dataset[:at] + study + one.dataset[at:])


def with_wrong_uid(number: int = 3) -> Instance:
    return ct_slice(number, rows=16, changes={0x0020000E: explicit(0x0020000E, b"UI", b"1.2.3/4\0")})


def deflated_cut_short(number: int = 4) -> Instance:
    one = ct_slice(number, rows=64)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(one.dataset) + packer.flush()
    return replace(one, transfer_syntax=DEFLATED, dataset=packed[: len(packed) // 2])


def nested(number: int, depth: int) -> Instance:
    """Sequences of undefined length inside each other: damaged only where `limits.nesting` says so."""
    opening = b"\x40\x00\x00\x01SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    one = ct_slice(number, rows=16)
    at = one.dataset.index(b"\xe0\x7f\x10\x00OW")
    sequence = opening * depth + closing * depth
    return replace(one, dataset=one.dataset[:at] + sequence + one.dataset[at:])


def send(service: ServiceProcess, *instances: Instance, calling: bytes = b"CT1") -> list[Response]:
    """All over one association."""
    contexts = [(2 * at + 1, CT, [one.transfer_syntax]) for at, one in enumerate(instances)]
    with RawAssociation(service.port, contexts, calling=calling) as association:
        found = [
            association.store(context, CT, one.sop_instance, one.dataset)
            for (context, _, _), one in zip(contexts, instances, strict=True)
        ]
        association.release()
    return found


@contextlib.contextmanager
def opened_keeping(name: str, root: Path, **sections: dict[str, Any]) -> Iterator[Engine]:
    """An engine that keeps damaged data sets; closed at the end."""
    settings = Settings.model_validate(
        {"storage": {"root": root, "min_free_bytes": 0}, "dicom_store_scp": {"malformed": "quarantine"}} | sections
    )
    engine: Engine = PureEngine(settings) if name == "python" else _core.Engine(engine_config(settings))
    try:
        yield engine
    finally:
        engine.close()


def entries(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """File and note of each entry, in the order in which they came."""
    files = sorted((root / ".quarantine").glob("*.dcm")) if (root / ".quarantine").exists() else []
    notes = sorted((root / ".quarantine").glob("*.json")) if files else []
    assert [file.stem for file in files] == [note.stem for note in notes], "file and note"
    return [(file, json.loads(file.with_suffix(".json").read_text())) for file in files]
