"""Compressed instances made by the tests."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

from storescp import _core
from support.instances import Instance, ct_slice, explicit, text
from support.scu import EXPLICIT

RLE = "1.2.840.10008.1.2.5"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
# What a service needs to transcode everything else.
ONLY_EXPLICIT = {"STORESCP_DICOM_STORE_SCP__CORNERSTONEJS_SUPPORTED_TRANSFER_SYNTAX": json.dumps([EXPLICIT])}
_PIXEL_DATA = 0x7FE00010


def compressed_ct(
    number: int, transfer_syntax: str, *, frames: int = 1, rows: int = 64, pixels: bytes | None = None
) -> Instance:
    """CT pixels, given or noise, in a compressed transfer syntax; all frames have the same."""
    one = ct_slice(number, rows=rows)
    if frames > 1 or pixels is not None:
        frame = pixels or one.dataset[-rows * rows * 2 :]
        assert len(frame) == rows * rows * 2
        changes = {
            0x00280008: explicit(0x00280008, b"IS", text(str(frames))),
            _PIXEL_DATA: explicit(_PIXEL_DATA, b"OW", frame * frames),
        }
        one = ct_slice(number, rows=rows, changes=changes)
    dataset = _core.transcode(one.dataset, EXPLICIT, transfer_syntax, 1 << 33, threads=4)
    return replace(one, transfer_syntax=transfer_syntax, dataset=dataset)


def with_attribute(one: Instance, tag: int, vr: bytes, value: bytes | int) -> Instance:
    """The same with another value of a top-level attribute that it has."""
    old_header = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    at = one.dataset.index(old_header)
    (length,) = struct.unpack_from("<H", one.dataset, at + 6)
    raw = struct.pack("<H", value) if isinstance(value, int) else value
    dataset = one.dataset[:at] + explicit(tag, vr, raw) + one.dataset[at + 8 + length :]
    return replace(one, dataset=dataset)


def encapsulated(one: Instance, *items: bytes) -> Instance:
    """The same with other items of encapsulated Pixel Data, the offset table first."""
    at = one.dataset.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB"))
    body = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return replace(one, dataset=one.dataset[:at] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + body + end)
