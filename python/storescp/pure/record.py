"""The record of a stored instance, in plain Python."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

SCHEMA_VERSION = 2
_MASK = (1 << 64) - 1
_SEED = (0x16F11FE89B0D677C, 0xB480A793D8E6C86C, 0x6FE2E5AAF078EBC9, 0x14F994A4C5259381)


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return UUID(int=value)


def sea_hash(data: bytes) -> int:
    """SeaHash with its default seed: 64 bits."""
    lanes = list(_SEED)
    for number, at in enumerate(range(0, len(data), 8)):
        lane = number % 4
        lanes[lane] = _diffuse(lanes[lane] ^ int.from_bytes(data[at : at + 8], "little"))
    a, b, c, d = lanes
    return _diffuse(a ^ b ^ c ^ d ^ len(data))


def _diffuse(value: int) -> int:
    value = value * 0x6EED0E9DA4D94A4F & _MASK
    value ^= (value >> 32) >> (value >> 60)
    return value * 0x6EED0E9DA4D94A4F & _MASK


def hash_uid(uid: str) -> str:
    """wado-storescp's `hash_uid`: decimal, zero-padded to 20."""
    return f"{sea_hash(uid.encode()):020d}"


def timestamp() -> str:
    """Now: RFC 3339, UTC, microseconds, `Z`."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def created_time(received_at: str, zone: Literal["utc", "local"]) -> str:
    """The same moment in ISO 8601 without a zone."""
    moment = datetime.fromisoformat(received_at)
    return moment.astimezone(UTC if zone == "utc" else None).replace(tzinfo=None).isoformat(timespec="microseconds")


def encode(fields: dict[str, Any], dicom: str) -> str:
    """One JSON object, as the Rust core writes it; `dicom` is JSON already."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1] + f',"dicom":{dicom}}}'
