"""Frames made by other encoders, decoded by ours: lossless to the bit, lossy as the other library decodes them."""

from __future__ import annotations

import base64
import io
import itertools
import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import get_frame

from storescp import _core
from storescp.errors import CoreError
from support.frames import Array, decode, image, pixels_of, smooth, transcode
from support.instances import explicit
from support.scu import EXPLICIT

SHAPES = [(64, 64), (63, 65), (1, 40), (40, 1), (200, 131)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
def test_jpeg_lossless(shape: tuple[int, int], bits: int) -> None:
    pixels = smooth(shape, bits, np.uint8 if bits == 8 else np.uint16)
    for syntax in ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"):
        frame = imagecodecs.ljpeg_encode(pixels, bitspersample=bits)
        assert np.array_equal(decode(frame, syntax, pixels, bits_stored=bits), pixels)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_with_losses(colour: bool, progressive: bool, subsampling: int) -> None:
    """Baseline (.50) and full progression (.55) with every usual subsampling."""
    pixels = smooth((121, 83, 3) if colour else (121, 83), 8, np.uint8)
    buffer = io.BytesIO()
    options = {"subsampling": subsampling} if colour else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, progressive=progressive, **options)
    syntax = "1.2.840.10008.1.2.4.55" if progressive else "1.2.840.10008.1.2.4.50"
    photometric = "YBR_FULL_422" if colour else "MONOCHROME2"
    ours = decode(buffer.getvalue(), syntax, pixels, photometric=photometric)
    theirs = np.asarray(Image.open(buffer))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (2 if colour else 1)


@pytest.mark.parametrize("shape", [*SHAPES, (61, 47, 3)])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_ls_2000_and_htj2k_without_losses(shape: tuple[int, ...], bits: int) -> None:
    pixels = smooth(shape, bits, np.uint8 if bits == 8 else np.uint16)
    encoders: dict[str, Callable[[], bytes]] = {
        "1.2.840.10008.1.2.4.80": lambda: imagecodecs.jpegls_encode(pixels),
        "1.2.840.10008.1.2.4.90": lambda: imagecodecs.jpeg2k_encode(
            pixels, reversible=True, codecformat="J2K", level=0, bitspersample=bits
        ),
        "1.2.840.10008.1.2.4.92": lambda: imagecodecs.jpeg2k_encode(
            pixels, reversible=True, codecformat="JP2", level=0, bitspersample=bits
        ),
        "1.2.840.10008.1.2.4.201": lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
    }
    for syntax, encode in encoders.items():
        if syntax.endswith(".201") and min(shape[:2]) == 1:
            continue  # OpenJPH itself does not take a single line here
        assert np.array_equal(decode(encode(), syntax, pixels), pixels), syntax


@pytest.mark.parametrize("bits", [17, 20, 24])
def test_jpeg_2000_of_more_than_16_bits(bits: int) -> None:
    pixels = np.random.default_rng(bits).integers(0, 1 << bits, (61, 47)).astype(np.uint32)
    options = {"reversible": True, "codecformat": "J2K", "level": 0, "bitspersample": bits}
    frame = imagecodecs.jpeg2k_encode(pixels, **options)
    assert np.array_equal(decode(frame, "1.2.840.10008.1.2.4.90", pixels, bits_stored=bits), pixels)


def test_jpeg_2000_of_more_bits_than_its_decoder_has_room_for_is_refused() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64)
    frame = bytearray(imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="J2K", level=0, bitspersample=20))
    assert frame[42] == 20 - 1  # Ssiz, ISO/IEC 15444-1 A.5.1
    for bits in (28, 29, 32):
        frame[42] = bits - 1
        if bits == 28:
            decode(bytes(frame), "1.2.840.10008.1.2.4.90", pixels, bits_stored=bits)
            continue
        with pytest.raises(CoreError, match=r"more than 28 bits a sample|prec=32"):
            decode(bytes(frame), "1.2.840.10008.1.2.4.90", pixels, bits_stored=bits)


def test_htj2k_with_losses() -> None:
    pixels = smooth((200, 131), 12)
    frame = imagecodecs.htj2k_encode(pixels, reversible=False)
    theirs = imagecodecs.htj2k_decode(frame)
    ours = decode(frame, "1.2.840.10008.1.2.4.203", pixels)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("near", [1, 3])
def test_jpeg_ls_with_losses(near: int) -> None:
    pixels = smooth((63, 65), 12)
    frame = imagecodecs.jpegls_encode(pixels, level=near)
    ours = decode(frame, "1.2.840.10008.1.2.4.81", pixels)
    assert np.array_equal(ours, imagecodecs.jpegls_decode(frame))
    assert 0 < np.abs(ours.astype(int) - pixels.astype(int)).max() <= near


@pytest.mark.parametrize("shape", [(64, 64), (63, 65), (61, 47, 3)])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_xl_without_losses(shape: tuple[int, ...], bits: int) -> None:
    pixels = smooth(shape, bits, np.uint8 if bits == 8 else np.uint16)
    frame = imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=bits)
    assert np.array_equal(decode(frame, "1.2.840.10008.1.2.4.110", pixels, bits_stored=bits), pixels)


@pytest.mark.parametrize("shape", [*SHAPES, (61, 47, 3), (1, 70, 3), (300, 290)])
@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_xl_with_losses(shape: tuple[int, ...], bits: int) -> None:
    pixels = smooth(shape, bits, np.uint8 if bits == 8 else np.uint16)
    for distance in (0.3, 3):
        frame = imagecodecs.jpegxl_encode(pixels, lossless=False, distance=distance)
        native = transcode(frame, "1.2.840.10008.1.2.4.112", pixels)
        theirs = imagecodecs.jpegxl_decode(frame).reshape(shape)
        assert np.abs(pixels_of(native, pixels).astype(int) - theirs.astype(int)).max() <= (2 if len(shape) == 3 else 1)
        assert explicit(0x00282114, b"CS", b"ISO_18181_1 ") in native


# Made by cjxl of libjxl 0.7 with -x color_space=Gra_D65_Rel_Lin, from a ramp.
LINEAR = base64.b64decode(
    "/wpDQFK0CAASiAIAeAFd5RIAABUqo4wbvJzr+fJDh8W0jesMbbVtYUmiyDg2SSdwSBJrIOxchEDUAe5w5rsPx3UADoe9p1SoJJGQ573Y+3Y6NRSjuv/9"
    "Zn7qdJ8RBMEiHNOkUhTX2907SVEI"
)
# The same with --progressive_dc=2, from noise.
IN_THREE_LEVELS = base64.b64decode(
    "/wpBQFJcCAoRAABoAAA4AFgAWEoosG3YpwE9YACcEg5zkE8GQ2cA4sMEAACQApRclHSUfP7/AgCACpVRxg1ezvV8+aHDYtrGdYa22rawJBFKIYk1GkCk"
    "0UBsylDRVBFU0WOoaKoIqugxVDRVBFX0GCqaKoIqegwVTRVBFT2GiqaKoIoeQ0VTRVBFj6GiqSKoosdQ0VQRVNFjqGiqCKroMVQ0VQRV9BgqmiqCKnoM"
    "FU0VQRU9hoqmiqCKHkNFU0VQRY+hoqkiqKLHUNFUEVTRoyQB4MMEogEABAGpVR0AgAqVUcYNXs71fPmhw2LaxnWGttq2sCQRSiGJJA0QlAa2rCSRCJm3"
    "6gCAP1SP5DbXZYFFlKzozR1QqiE4AA=="
)


@pytest.mark.parametrize("frame", [LINEAR, IN_THREE_LEVELS], ids=["linear grey levels", "in three levels"])
def test_jpeg_xl_has_the_levels_that_libjxl_finds(frame: bytes) -> None:
    theirs = imagecodecs.jpegxl_decode(frame)
    ours = decode(frame, "1.2.840.10008.1.2.4.112", theirs)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_recompressed_jpeg() -> None:
    pixels = smooth((120, 88, 3), 8, np.uint8)
    for colour, photometric in ((pixels, "YBR_FULL_422"), (pixels[..., 0].copy(), "MONOCHROME2")):
        frame = imagecodecs.jpegxl_encode_jpeg(imagecodecs.jpeg8_encode(colour, level=90))
        native = transcode(frame, "1.2.840.10008.1.2.4.111", colour, photometric=photometric)
        theirs = imagecodecs.jpegxl_decode(frame)
        assert np.abs(pixels_of(native, colour).astype(int) - theirs.astype(int)).max() <= 2
        assert explicit(0x00282114, b"CS", b"ISO_18181_1 ") in native
        assert explicit(0x00280004, b"CS", b"RGB " if colour.ndim == 3 else b"MONOCHROME2 ") in native


@pytest.mark.parametrize(
    ("form", "photometric", "expected"),
    [
        ("XYB", "XYB", b"RGB "),
        ("XYB", "RGB", b"RGB "),
        ("XYB", "YBR_FULL", "a frame in XYB, and another Photometric Interpretation"),
        ("YCbCr", "YBR_FULL_422", b"RGB "),
        ("coefficients", "RGB", b"RGB "),
        ("coefficients", "YBR_FULL", b"YBR_FULL"),
        ("samples", "RGB", b"RGB "),
        ("samples", "YBR_FULL", b"YBR_FULL"),
        ("samples", "XYB", "XYB of a frame that is not"),
    ],
)
def test_jpeg_xl_has_the_colours_that_both_frame_and_data_set_say(
    form: str, photometric: str, expected: bytes | str
) -> None:
    pixels = smooth((61, 47, 3), 8, np.uint8)
    frame = {
        "XYB": lambda: imagecodecs.jpegxl_encode(pixels, lossless=False, distance=1.0),
        "YCbCr": lambda: imagecodecs.jpegxl_encode_jpeg(imagecodecs.jpeg8_encode(pixels, level=90)),
        "coefficients": lambda: imagecodecs.jpegxl_encode_jpeg(rgb_jpeg(pixels, with_adobe=True)),
        "samples": lambda: imagecodecs.jpegxl_encode(pixels, lossless=True),
    }[form]()
    if isinstance(expected, str):
        with pytest.raises(CoreError, match=expected):
            transcode(frame, "1.2.840.10008.1.2.4.112", pixels, photometric=photometric)
        return
    native = transcode(frame, "1.2.840.10008.1.2.4.112", pixels, photometric=photometric)
    assert explicit(0x00280004, b"CS", expected) in native
    assert (explicit(0x00282114, b"CS", b"ISO_18181_1 ") in native) is (form != "samples")
    theirs = imagecodecs.jpegxl_decode(frame)
    assert np.abs(pixels_of(native, pixels).astype(int) - theirs.astype(int)).max() <= 2


def boxes(codestream: bytes, *cuts: int) -> bytes:
    """A container with the codestream in parts (ISO/IEC 18181-2 9), and something else between them."""
    box = lambda kind, content: struct.pack(">L4s", 8 + len(content), kind) + content  # noqa: E731 - as above
    parts = [codestream[begin:end] for begin, end in itertools.pairwise((0, *cuts, len(codestream)))]
    numbers = [*range(len(parts) - 1), len(parts) - 1 | 0x80000000]
    inside = [box(b"jxlp", struct.pack(">L", number) + part) for number, part in zip(numbers, parts, strict=True)]
    return box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"xml ", b"<a/>").join(inside)


def test_jpeg_xl_in_a_container_of_several_parts() -> None:
    pixels = smooth((20, 30, 3), 8, np.uint8)
    for lossless in (True, False):
        frame = imagecodecs.jpegxl_encode(pixels, lossless=lossless, usecontainer=False)
        assert frame.startswith(b"\xff\x0a")
        plain = transcode(frame, "1.2.840.10008.1.2.4.112", pixels)
        assert (explicit(0x00282114, b"CS", b"ISO_18181_1 ") in plain) is not lossless
        for cut in range(2, 40):
            parts = transcode(boxes(frame, cut, cut + 1), "1.2.840.10008.1.2.4.112", pixels)
            assert pixels_of(parts, pixels).tobytes() == pixels_of(plain, pixels).tobytes()
            assert (explicit(0x00282114, b"CS", b"ISO_18181_1 ") in parts) is not lossless


def encoded(pixels: Array, bits: int, transfer_syntax: str) -> bytes:
    """Our frame of these pixels."""
    value = pixels.tobytes()
    value += b"\0" * (len(value) % 2)
    vr = b"OW" if pixels.dtype.itemsize == 2 else b"OB"
    native = b"".join(image(pixels, bits)) + explicit(0x7FE00010, vr, value)
    dataset = _core.transcode(native, EXPLICIT, transfer_syntax, 1 << 30)
    items = dataset[dataset.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12 :]
    return get_frame(items, 0, number_of_frames=1)


@pytest.mark.parametrize("bits", [1, 2, 8, 10, 16])
@pytest.mark.parametrize("colour", [False, True])
def test_other_decoders_find_what_was_encoded(bits: int, colour: bool) -> None:
    # The noise of one bit is larger after five levels than its subbands usually have room for.
    dtype = np.uint8 if bits <= 8 else np.uint16
    for seed, shape in ((69, (33, 33)), (136, (33, 33)), (168, (33, 33)), (1, (200, 129))):
        wanted = (*shape, 3) if colour else shape
        noise = np.random.default_rng(seed).integers(0, 1 << bits, wanted)
        waves = smooth(wanted, max(bits, 4), np.int64) % (1 << bits)
        for pixels in (noise.astype(dtype), waves.astype(dtype)):
            decoders = {
                "1.2.840.10008.1.2.4.80": [imagecodecs.jpegls_decode],
                "1.2.840.10008.1.2.4.90": [imagecodecs.jpeg2k_decode],
                "1.2.840.10008.1.2.4.201": [imagecodecs.htj2k_decode, imagecodecs.jpeg2k_decode],
                "1.2.840.10008.1.2.4.202": [imagecodecs.htj2k_decode, imagecodecs.jpeg2k_decode],
            }
            for syntax, others in decoders.items():
                frame = encoded(pixels, bits, syntax)
                for other in others:
                    assert np.array_equal(other(frame), pixels), (syntax, other, shape, seed)


def test_signed_pixels_keep_their_sign() -> None:
    pixels = smooth((40, 30), 12).astype(np.int16) - 2048
    words = (pixels.astype(np.int32) & 0xFFF).astype(np.uint16)
    frame = imagecodecs.ljpeg_encode(words, bitspersample=12)
    assert np.array_equal(decode(frame, "1.2.840.10008.1.2.4.70", pixels, bits_stored=12), pixels)
    frame = imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="J2K", level=0)
    assert np.array_equal(decode(frame, "1.2.840.10008.1.2.4.90", pixels), pixels)


def test_a_sign_that_only_one_of_frame_and_data_set_knows_is_refused() -> None:
    """A sample of 12 bits in a data set that says 16 bits are stored: 0x800 is negative to pydicom and positive to DCMTK."""
    pixels = smooth((40, 30), 12)
    for syntax, frame in {
        "1.2.840.10008.1.2.4.70": imagecodecs.ljpeg_encode(pixels, bitspersample=12),
        "1.2.840.10008.1.2.4.110": imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=12),
    }.items():
        assert np.array_equal(decode(frame, syntax, pixels), pixels), syntax
        with pytest.raises(CoreError, match="12 bits a sample, unsigned"):
            decode(frame, syntax, pixels.astype(np.int16))


def rgb_jpeg(pixels: Array, *, with_adobe: bool) -> bytes:
    """Components that are RGB, and say so by their names, and by the transform 0 of an Adobe segment."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, keep_rgb=True)
    frame = buffer.getvalue()
    at = frame.index(b"\xff\xee\x00\x0eAdobe")
    return frame if with_adobe else frame[:at] + frame[at + 16 :]


def test_a_jpeg_frame_that_names_its_components_rgb_is_rgb() -> None:
    pixels = smooth((61, 47, 3), 8, np.uint8)
    plain = rgb_jpeg(pixels, with_adobe=False)
    theirs = np.asarray(Image.open(io.BytesIO(rgb_jpeg(pixels, with_adobe=True)))).astype(int)
    for photometric in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        native = transcode(plain, "1.2.840.10008.1.2.4.50", pixels, photometric=photometric)
        assert explicit(0x00280004, b"CS", b"RGB ") in native
        assert np.abs(pixels_of(native, pixels).astype(int) - theirs).max() <= 1
    adobe = rgb_jpeg(pixels, with_adobe=True)
    assert np.array_equal(decode(adobe, "1.2.840.10008.1.2.4.50", pixels), pixels_of(native, pixels))
    with pytest.raises(CoreError, match="RGB by its Adobe segment"):
        decode(adobe, "1.2.840.10008.1.2.4.50", pixels, photometric="YBR_FULL_422")


def test_what_jpeg_xl_can_hold_and_an_image_cannot_is_refused() -> None:
    pixels = smooth((40, 30, 3), 8, np.uint8)
    with_alpha = np.dstack([pixels, pixels[..., 0]])
    animated = np.stack([pixels, pixels[::-1]])
    half = (pixels / 255).astype(np.float16)
    for frame, said in [
        (imagecodecs.jpegxl_encode(with_alpha, lossless=True), "channels besides those of colour"),
        (imagecodecs.jpegxl_encode(animated, lossless=True), "several frames in one"),
        (imagecodecs.jpegxl_encode(half, lossless=True), "no whole numbers"),
    ]:
        with pytest.raises(CoreError, match=said):
            decode(frame, "1.2.840.10008.1.2.4.110", pixels.astype(np.uint16))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_frame_that_is_cut_short_is_refused(kept: float) -> None:
    pixels = smooth((200, 131), 8, np.uint8)
    frames = {
        "1.2.840.10008.1.2.4.50": imagecodecs.jpeg8_encode(pixels),
        "1.2.840.10008.1.2.4.70": imagecodecs.ljpeg_encode(pixels, bitspersample=8),
        "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode(pixels),
        "1.2.840.10008.1.2.4.90": imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="J2K", level=0),
        "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_encode(pixels, reversible=True),
        "1.2.840.10008.1.2.4.110": imagecodecs.jpegxl_encode(pixels, lossless=True),
    }
    for syntax, frame in frames.items():
        with pytest.raises(CoreError, match=r"^codec: frame 1"):
            decode(frame[: int(len(frame) * kept)], syntax, pixels)
