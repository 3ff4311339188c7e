"""Frames by the encoders of other projects, with every option that changes what is in a stream.

Ours are the pixels that were encoded; where something was lost, those of another decoder, to a grey level (two in colour).
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from storescp.errors import CoreError
from support.frames import Array, decode, smooth
from support.scu import EXPLICIT

Encoder = Callable[[Array, int, Sequence[str], Path], bytes | None]
Decoder = Callable[[bytes], Array]
PROGRESSIONS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


def pictures(*kinds: tuple[tuple[int, ...], int, type]) -> list[tuple[str, int, Array]]:
    """Waves and noise: shapes, bits a sample and types."""
    found = []
    for shape, bits, dtype in kinds:
        lowest = -(1 << bits - 1) if np.dtype(dtype).kind == "i" else 0
        noise = np.random.default_rng(1).integers(0, 1 << bits, shape)
        for kind, values in (("waves", smooth(shape, bits, np.int64)), ("noise", noise)):
            found.append((f"{kind} {shape} {bits}", bits, (values + lowest).astype(dtype)))
    return found


GREY_8 = ((131, 97), 8, np.uint8)
GREY_12 = ((90, 70), 12, np.uint16)
GREY_16 = ((97, 131), 16, np.uint16)
COLOUR_8 = ((61, 77, 3), 8, np.uint8)
COLOUR_16 = ((60, 77, 3), 16, np.uint16)
SIGNED = ((63, 65), 16, np.int16)
ROW, COLUMN = ((1, 50), 8, np.uint8), ((50, 1), 16, np.uint16)


def run(command: Iterable[str | Path], result: Path) -> bytes | None:
    """What an encoder wrote; none where it does not do this."""
    result.unlink(missing_ok=True)
    subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=60)
    return result.read_bytes() if result.exists() else None


def netpbm(path: Path, pixels: Array, bits: int) -> Path:
    kind = "P6" if pixels.ndim == 3 else "P5"
    header = f"{kind}\n{pixels.shape[1]} {pixels.shape[0]}\n{(1 << bits) - 1}\n".encode()
    path.write_bytes(header + (pixels.astype(">u2") if bits > 8 else pixels).tobytes())
    return path


def by_opj_compress(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    raw = folder / "source.rawl"
    raw.write_bytes((np.moveaxis(pixels, 2, 0) if pixels.ndim == 3 else pixels).tobytes())
    rows, columns, samples = (*pixels.shape, 1)[:3]
    form = f"{columns},{rows},{samples},{bits},{'s' if pixels.dtype.kind == 'i' else 'u'}"
    result = folder / "result.j2k"
    return run(["opj_compress", "-i", raw, "-o", result, "-F", form, *options], result)


def by_ojph_compress(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    source = netpbm(folder / ("source.ppm" if pixels.ndim == 3 else "source.pgm"), pixels, bits)
    result = folder / "result.j2c"
    found = run(["ojph_compress", "-i", source, "-o", result, *options], result)
    return found if found and found.endswith(b"\xff\xd9") else None  # else it gave up


def by_cjpeg(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    source, result = netpbm(folder / "source.pnm", pixels, bits), folder / "result.jpg"
    (folder / "alone.scan").write_text("0;\n1;\n2;\n")
    given = [option.replace("FOLDER", str(folder)) for option in options]
    return run(["cjpeg", *given, "-outfile", result, source], result) or None


def by_cjxl(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    source = netpbm(folder / ("source.ppm" if pixels.ndim == 3 else "source.pgm"), pixels, bits)
    result = folder / "result.jxl"
    return run(["cjxl", source, result, "--quiet", "--num_threads=0", *options], result)


def by_dcmtk(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    """An instance of them, compressed; `options` begin with the program."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = "2.25.2", "2.25.3", "variants"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    value = pixels.tobytes()
    dataset.add_new(0x7FE00010, "OW" if pixels.dtype.itemsize == 2 else "OB", value + b"\0" * (len(value) % 2))
    source, result = folder / "source.dcm", folder / "result.dcm"
    pydicom.dcmwrite(source, dataset, enforce_file_format=True)
    program, *rest = options
    return run([program, *rest, source, result], result)


def instance_of(file: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file))


def frame_of(file: bytes) -> bytes:
    return get_frame(instance_of(file).PixelData, 0, number_of_frames=1)


def compare(
    encode: Encoder,
    transfer_syntax: str,
    shown: list[tuple[str, int, Array]],
    variants: Iterable[Sequence[str]],
    folder: Path,
    theirs: Decoder | None = None,
    **attributes: object,
) -> int:
    """How many frames of these pictures there were; every one has the right pixels."""
    wrong, seen = [], 0
    for (name, bits, pixels), options in itertools.product(shown, variants):
        frame = encode(pixels, bits, options, folder)
        if frame is None:
            continue
        seen += 1
        expected = theirs(frame).reshape(pixels.shape) if theirs else pixels
        most = 0 if theirs is None else 2 if pixels.ndim == 3 else 1
        try:
            ours = decode(frame, transfer_syntax, pixels, bits_stored=bits, **attributes)
            difference = int(np.abs(ours.astype(int) - expected.astype(int)).max())
        except CoreError as error:
            wrong.append((name, options, str(error)))
            continue
        if difference > most:
            wrong.append((name, options, difference))
    assert not wrong
    return seen


@needs("opj_compress")
def test_jpeg_2000_of_openjpeg(tmp_path: Path) -> None:
    tiles = [["-t", "64,64"], ["-t", "50,37"]]
    lossless = [
        [],
        *(["-n", levels] for levels in "126"),
        *(["-b", block] for block in ("32,32", "4,4", "1024,4", "4,1024", "16,64")),
        *(["-c", precincts] for precincts in ("[64,64]", "[128,128],[64,64],[32,32]")),
        *tiles,
        *(["-p", order] for order in PROGRESSIONS),
        *(["-p", order, *tiles[0], "-c", "[32,32],[32,32]"] for order in PROGRESSIONS),
        *(["-M", mode] for mode in ("1", "2", "4", "8", "16", "32", "63")),
        *(["-TP", by, *tiles[0]] for by in "RLC"),
        ["-SOP", "-EPH"],
        ["-SOP", "-EPH", *tiles[0]],
        ["-PLT", "-TLM"],
        ["-d", "5,7"],
        ["-r", "40,20,10,5,1", "-p", "RLCP"],
        ["-ROI", "c=0,U=5"],
        ["-mct", "0"],
        ["-GuardBits", "4"],
    ]
    shown = pictures(GREY_8, GREY_12, GREY_16, COLOUR_8, COLOUR_16, SIGNED, ROW, COLUMN)
    assert compare(by_opj_compress, "1.2.840.10008.1.2.4.90", shown, lossless, tmp_path) > 500
    lossy = [
        ["-r", "10"],
        ["-I"],
        ["-I", "-r", "30,10"],
        ["-I", "-q", "30,40"],
        ["-I", "-M", "63", *tiles[0], "-r", "8"],
    ]
    shown = pictures(GREY_8, GREY_12, COLOUR_8)
    decoder = imagecodecs.jpeg2k_decode
    assert compare(by_opj_compress, "1.2.840.10008.1.2.4.91", shown, lossy, tmp_path, decoder) == 30


@needs("ojph_compress")
def test_htj2k_of_openjph(tmp_path: Path) -> None:
    forms = [
        [],
        *(["-num_decomps", levels] for levels in "013"),
        *(["-block_size", block] for block in ("{32,32}", "{4,4}", "{4,1024}", "{1024,4}", "{16,128}")),
        *(["-precincts", precincts] for precincts in ("{64,64}", "{128,128},{256,256}")),
        *(["-tile_size", tile] for tile in ("{64,64}", "{50,37}", "{33,200}")),
        *(["-prog_order", order] for order in PROGRESSIONS),
        *(["-prog_order", order, "-tile_size", "{64,64}", "-precincts", "{32,32}"] for order in PROGRESSIONS),
        ["-image_offset", "{5,7}"],
        ["-image_offset", "{5,7}", "-tile_offset", "{3,2}", "-tile_size", "{64,64}"],
        ["-colour_trans", "false"],
    ]
    shown = pictures(GREY_8, GREY_12, GREY_16, COLOUR_8, COLOUR_16)
    lossless = [["-reversible", "true", *form] for form in forms]
    assert compare(by_ojph_compress, "1.2.840.10008.1.2.4.201", shown, lossless, tmp_path) > 250
    lossy = [["-qstep", step, *form] for step in ("0.001", "0.05") for form in ([], ["-tile_size", "{64,64}"])]

    def theirs(frame: bytes) -> Array:  # imagecodecs begins at 0 again above the largest level
        components = frame[41]
        source, result = tmp_path / "result.j2c", tmp_path / ("back.ppm" if components == 3 else "back.pgm")
        found = run(["ojph_expand", "-i", source, "-o", result], result)
        assert found is not None
        _, _, largest, values = found.split(b"\n", 3)
        return np.frombuffer(values, ">u2" if int(largest) > 255 else np.uint8)

    shown = pictures(GREY_8, GREY_12, COLOUR_8)
    assert compare(by_ojph_compress, "1.2.840.10008.1.2.4.203", shown, lossy, tmp_path, theirs) == 24


@needs("cjpeg")
@pytest.mark.parametrize("process", ["baseline", "progressive"])
def test_jpeg_of_libjpeg_turbo(process: str, tmp_path: Path) -> None:
    samplings = ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "1x1,2x2,2x2", "2x2,2x1,1x2", "2x1,2x1,1x1")
    variants = [
        *(["-sample", factors] for factors in samplings),
        *(["-restart", every, "-sample", factors] for every in ("1", "3B") for factors in ("1x1", "2x2", "2x1")),
        *(["-quality", quality] for quality in ("1", "100")),
        ["-optimize"],
    ]
    if process == "baseline":
        alone = ["-scans", "FOLDER/alone.scan"]
        variants += [alone, [*alone, "-sample", "2x2", "-restart", "1"]]
    else:
        variants = [["-progressive", *options] for options in variants]
    syntax = "1.2.840.10008.1.2.4.50" if process == "baseline" else "1.2.840.10008.1.2.4.55"
    theirs = lambda frame: np.asarray(Image.open(io.BytesIO(frame)))  # noqa: E731 - a name for a call below
    colours = pictures(COLOUR_8, ((1, 40, 3), 8, np.uint8), ((16, 16, 3), 8, np.uint8))
    seen = compare(by_cjpeg, syntax, colours, variants, tmp_path, theirs, photometric="YBR_FULL_422")
    assert seen >= 6 * (len(variants) - 1)
    greys = pictures(GREY_8, ROW, ((1, 1), 8, np.uint8))
    plain = [options for options in variants if not any("scan" in option for option in options)]
    assert compare(by_cjpeg, syntax, greys, plain, tmp_path, theirs) == 6 * len(plain)


@needs("cjxl")
def test_jpeg_xl_of_libjxl(tmp_path: Path) -> None:
    fast = ["-e", "5"]
    lossless = [
        *(["-e", effort] for effort in "137"),
        *(["-P", predictor, *fast] for predictor in ("0", "6", "14", "15")),
        *(["-C", transform, *fast] for transform in ("0", "1", "6")),
        *(["-g", size, *fast] for size in "02"),
        *([option, *fast] for option in ("-p", "--container=1", "--group_order=1", "--faster_decoding=4")),
        ["-R", "1", *fast],
        ["--modular_palette_colors=0", *fast],
        ["-X", "0", "-Y", "0", *fast],
    ]
    shown = pictures(GREY_8, GREY_16, COLOUR_8, COLOUR_16, ROW, COLUMN)
    without_loss = [["-d", "0", *options] for options in lossless]
    assert compare(by_cjxl, "1.2.840.10008.1.2.4.110", shown, without_loss, tmp_path) == 12 * len(lossless)
    lossy = [
        *(["-d", distance, "-e", effort] for distance in ("0.1", "5") for effort in "37"),
        *(["--progressive_dc=" + levels, *fast] for levels in "12"),
        *(["--epf=" + times, "--gaborish=" + blur, *fast] for times in "03" for blur in "01"),
        *([option, *fast] for option in ("-p", "--qprogressive_ac", "--photon_noise=ISO3200", "--container=1")),
        *([option, *fast] for option in ("--group_order=1", "--intensity_target=100", "--patches=1", "--dots=1")),
        ["-m", "1", *fast],
    ]
    shown = pictures(GREY_8, COLOUR_8, ROW, ((1, 70, 3), 8, np.uint8), ((17, 3), 8, np.uint8))
    decoder = imagecodecs.jpegxl_decode
    assert compare(by_cjxl, "1.2.840.10008.1.2.4.112", shown, lossy, tmp_path, decoder) == 10 * len(lossy)


def frame_by_dcmtk(pixels: Array, bits: int, options: Sequence[str], folder: Path) -> bytes | None:
    file = by_dcmtk(pixels, bits, options, folder)
    return file and frame_of(file)


@needs("dcmcjpls")
@pytest.mark.parametrize(
    ("syntax", "variants"),
    [
        (
            "1.2.840.10008.1.2.4.80",
            [
                [],
                *([interleave] for interleave in ("+il", "+is", "+in")),
                *(["+rs", reset] for reset in ("31", "128")),
                ["+t1", "2", "+t2", "9", "+t3", "30"],
            ],
        ),
        ("1.2.840.10008.1.2.4.57", [["+el", "+sv", str(predictor)] for predictor in range(1, 8)]),
        ("1.2.840.10008.1.2.4.70", [["+e1"], ["+e1", "-ho"]]),
        ("1.2.840.10008.1.2.5", [[]]),
    ],
    ids=["JPEG-LS", "JPEG Lossless", "JPEG Lossless SV1", "RLE"],
)
def test_lossless_frames_of_dcmtk(syntax: str, variants: list[list[str]], tmp_path: Path) -> None:
    program = {"80": "dcmcjpls", "57": "dcmcjpeg", "70": "dcmcjpeg"}.get(syntax[-2:], "dcmcrle")
    shown = pictures(GREY_8, GREY_12, GREY_16, COLOUR_8, SIGNED, ((63, 65), 12, np.int16), ROW, COLUMN)
    commands = [[program, *options] for options in variants]
    assert compare(frame_by_dcmtk, syntax, shown, commands, tmp_path) == 16 * len(variants)


@needs("dcmcjpeg")
@pytest.mark.parametrize(
    ("process", "variants"),
    [
        ("+eb", [[], ["+q", "100"], ["+q", "20"]]),
        ("+ee", [[], ["+q", "100"], ["+bt"]]),
        ("+es", [[], ["+bt"]]),
        ("+ep", [[], ["+bt"], ["+q", "50"]]),
        ("+el", [["+sv", predictor, "+pt", bits] for predictor in "146" for bits in "14"]),
    ],
    ids=["baseline", "extended", "spectral selection", "progression", "point transform"],
)
def test_lossy_frames_of_dcmtk(process: str, variants: list[list[str]], tmp_path: Path) -> None:
    wrong, seen = [], 0
    for (name, bits, pixels), options in itertools.product(pictures(GREY_8, GREY_12, ROW), variants):
        file = by_dcmtk(pixels, bits, ["dcmcjpeg", process, *options], tmp_path)
        if file is None:
            continue
        seen += 1
        dataset = instance_of(file)
        back = run(["dcmdjpeg", tmp_path / "result.dcm", tmp_path / "back.dcm"], tmp_path / "back.dcm")
        assert back is not None
        theirs = pixel_array(instance_of(back), raw=True)
        like = np.empty_like(theirs)
        stored = int(dataset.BitsStored)
        ours = decode(frame_of(file), dataset.file_meta.TransferSyntaxUID, like, bits_stored=stored)
        difference = np.abs(ours.astype(int) - theirs.astype(int)).max()
        if difference > (0 if process == "+el" else 1):
            wrong.append((name, options, difference))
    assert not wrong
    assert seen >= 3 * len(variants)
