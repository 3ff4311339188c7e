"""Single frames: made of arrays, and read by the codecs behind `_core.transcode`."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from storescp import _core
from support.instances import explicit, text
from support.scu import EXPLICIT

Array = NDArray[np.generic]


def image(pixels: Array, bits_stored: int | None = None, photometric: str | None = None) -> list[bytes]:
    """The Image Pixel Module of an array (rows, columns[, samples])."""
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    allocated = pixels.dtype.itemsize * 8
    stored = bits_stored or allocated
    us = lambda tag, value: explicit(tag, b"US", struct.pack("<H", value))  # noqa: E731 - shorter than a function here
    interpretation = photometric or ("RGB" if samples == 3 else "MONOCHROME2")
    return [
        us(0x00280002, samples),
        explicit(0x00280004, b"CS", text(interpretation)),
        *([us(0x00280006, 0)] if samples > 1 else []),
        us(0x00280010, pixels.shape[0]),
        us(0x00280011, pixels.shape[1]),
        us(0x00280100, allocated),
        us(0x00280101, stored),
        us(0x00280102, stored - 1),
        us(0x00280103, int(pixels.dtype.kind == "i")),
    ]


def transcode(frame: bytes, transfer_syntax: str, pixels: Array, **attributes: object) -> bytes:
    """A data set with our reading of one frame."""
    frame += b"\0" * (len(frame) % 2)
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (b"", frame))
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    dataset = b"".join(image(pixels, **attributes)) + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + items + end  # type: ignore[arg-type]
    return _core.transcode(dataset, transfer_syntax, EXPLICIT, 1 << 30)


def pixels_of(native: bytes, like: Array) -> Array:
    """The value of Pixel Data in an array like another one."""
    value = native[native.rindex(b"\xe0\x7f\x10\x00O") + 12 :]
    return np.frombuffer(value[: like.nbytes], like.dtype).reshape(like.shape)


def decode(frame: bytes, transfer_syntax: str, pixels: Array, **attributes: object) -> Array:
    """Our reading of one frame."""
    return pixels_of(transcode(frame, transfer_syntax, pixels, **attributes), pixels)


def smooth(shape: tuple[int, ...], bits: int, dtype: type = np.uint16) -> Array:
    """Something like an image: waves with a little noise."""
    generator = np.random.default_rng(sum(shape) + bits)
    grid = np.indices(shape).sum(axis=0)
    wave = (np.sin(grid / 17) + 1) / 2 * ((1 << bits) - 8) + generator.integers(0, 7, shape)
    return wave.astype(dtype)
