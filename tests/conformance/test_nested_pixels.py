"""Pixels in items: native in every result, with everything around them as it was; else the original is kept."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.errors import CoreError
from storescp.pure.engine import PureEngine
from storescp.pure.store import file_meta
from storescp.settings import Settings
from support.engines import take
from support.instances import Instance, dataset_of, explicit
from support.nested import (
    FORMS,
    GREY,
    ICONS,
    JPEG,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    PRIVATE,
    RESULT,
    RLE,
    Form,
    Nested,
    Picture,
    instance,
    nested,
    picture,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
JPEG_XL, UNCOMPRESSED = "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.1.98"
SYNTAXES = (JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE)
MOST = 1 << 30
NUMBERS = itertools.count(2000000)


def cases() -> Iterator[Nested]:
    for syntax in SYNTAXES:
        yield from nested(syntax)


CASES = list(cases())


@contextlib.contextmanager
def engines(root: Path, viewers: list[str], target: str = EXPLICIT) -> Iterator[dict[str, Engine]]:
    def settings(name: str) -> Settings:
        return Settings.model_validate(
            {
                "storage": {"root": root / name, "durability": "none", "min_free_bytes": 0},
                "dicom_store_scp": {"required_attributes": []},
                "transcoding": {"viewer_transfer_syntaxes": viewers, "target": target},
            }
        )

    opened: dict[str, Engine] = {
        "rust": _core.Engine(engine_config(settings("rust"))),
        "python": PureEngine(settings("python")),
    }
    try:
        yield opened
    finally:
        for engine in opened.values():
            engine.close()


def outcome(engine: Engine, one: Instance) -> tuple[str, str, bytes]:
    """Transfer status, transfer syntax and data set of what is stored. Each is stored under a UID of its own."""
    uid = f"{one.sop_instance.rpartition('.')[0]}.{next(NUMBERS)}"
    old, new = one.sop_instance.encode(), uid.encode()
    assert len(old) == len(new)
    assert take(engine, replace(one, sop_instance=uid, dataset=one.dataset.replace(old, new))) == (0, "")
    engine.outbox_flush()
    [row] = engine.outbox_claim(0, 0, 1000)
    for topic in (0, 1):
        engine.outbox_done(topic, [row.id])
    engine.outbox_flush()
    record = json.loads(row.payload)
    return record["transfer_status"], record["target_ts"], dataset_of(Path(record["file_path"])).replace(new, old)


@pytest.fixture(scope="module")
def only_explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    with engines(tmp_path_factory.mktemp("engines"), [EXPLICIT]) as opened:
        yield opened


def test_both_engines_decode_icons_of_every_kind_and_change_nothing_around_them(
    only_explicit: dict[str, Engine],
) -> None:
    for case in CASES:
        for name, engine in only_explicit.items():
            assert outcome(engine, case.instance) == ("Success", EXPLICIT, case.expected), (case.name, name)
    assert len(CASES) > 100


@pytest.mark.parametrize("icon", SYNTAXES)
def test_an_icon_of_another_codec_is_told_by_its_first_bytes(icon: str) -> None:
    """Not RLE, which has none that are its own."""
    for syntax in SYNTAXES:
        if icon in (syntax, RLE):
            continue
        for case in nested(syntax, icon):
            result = _core.transcode(case.instance.dataset, syntax, EXPLICIT, MOST)
            assert result == case.expected, case.name


def images(dataset: Dataset) -> Iterator[Dataset]:
    """Every data set with Pixel Data, that at the top first."""
    if "PixelData" in dataset:
        yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from images(item)


def read(dataset: bytes, syntax: str) -> Dataset:
    return pydicom.dcmread(BytesIO(file_meta("1.2", "1.3", syntax, "TEST") + dataset))


@pytest.mark.parametrize("target", sorted(uid for uid, _, _, encodes in _core.transfer_syntaxes() if encodes))
def test_pixels_in_items_are_native_in_every_target(target: str) -> None:
    native = target in (EXPLICIT, IMPLICIT, DEFLATED)
    for case in CASES:
        if case.instance.transfer_syntax == target:
            continue
        result = _core.transcode(case.instance.dataset, case.instance.transfer_syntax, target, MOST)
        ours, expected = list(images(read(result, target))), list(images(read(case.expected, EXPLICIT)))
        assert len(ours) == len(expected), case.name
        for number, (one, other) in enumerate(zip(ours, expected, strict=True)):
            if number or native:
                assert one.PixelData == other.PixelData, case.name
                assert not one["PixelData"].is_undefined_length
            assert one.PhotometricInterpretation == other.PhotometricInterpretation, case.name
        # And back.
        back = read(_core.transcode(result, target, EXPLICIT, MOST), EXPLICIT)
        assert [one.PixelData for one in images(back)] == [one.PixelData for one in expected], case.name


def _with(sequences: dict[int, bytes], syntax: str = RLE) -> Instance:
    return instance(1, syntax, sequences, picture(GREY, syntax))


def _fragments(tag: int) -> bytes:
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in (b"", b"abcd"))
    return explicit(tag, b"OB", items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF)


def undecodable() -> Iterator[tuple[str, Instance]]:
    """What nobody but its sender can read."""
    icon = picture(GREY, RLE)
    for form in FORMS.values():
        for name, content in {
            "cut short": replace(icon, frames=[icon.frames[0][:100]]).compressed(form),
            "of zeros": replace(icon, frames=[bytes(80)]).compressed(form),
            "without frames": replace(icon, frames=[]).compressed(form),
            "of another size": replace(icon, pixels=np.vstack([GREY, GREY])).compressed(form),
            "of a PNG": replace(icon, frames=[b"\x89PNG\r\n\x1a\n" + bytes(80)]).compressed(form),
            "with two frames of one": replace(
                icon, frames=list(icon.frames) * 2, more=((0x00280008, b"IS", b"1 "),)
            ).compressed(form),
            "without attributes": _fragments(0x7FE00010),
            "with Rows twice": form.element(0x00280010, b"US", b"\x08\0") + icon.compressed(form),
            "and private fragments": icon.native(form)[:0] + _fragments(0x00091011),
        }.items():
            yield f"icon {name}", _with({ICONS: form.sequence(ICONS, content)})
            deeper = form.sequence(0x00081140, form.sequence(ICONS, content))
            yield f"icon {name}, deeper", _with({0x00081140: deeper})
            # One that could be decoded beside it.
            both = form.sequence(ICONS, icon.compressed(form), content)
            yield f"icon {name}, the second", _with({ICONS: both})
    yield "private fragments", _with({PRIVATE: explicit(0x00090010, b"LO", b"ACME") + _fragments(PRIVATE)})
    yield "overlay in fragments", _with({0x60003000: _fragments(0x60003000)})


def test_what_cannot_be_decoded_is_kept_as_received(only_explicit: dict[str, Engine]) -> None:
    checked = 0
    for case, one in undecodable():
        for name, engine in only_explicit.items():
            assert outcome(engine, one) == ("Failed", RLE, one.dataset), (case, name)
        for target in (EXPLICIT, IMPLICIT, JPEG_LS):
            with pytest.raises(CoreError, match=r"^(codec|frames|attribute): "):
                _core.transcode(one.dataset, RLE, target, MOST)
        checked += 1
    assert checked > 100


def mislabelled() -> Iterator[tuple[str, Instance]]:
    """Encapsulated pixels in a native transfer syntax."""
    icon = picture(GREY, JPEG)
    native = instance(1, EXPLICIT, {}, picture(GREY, RLE), native=True)
    for name, form in FORMS.items():
        sequences = {ICONS: form.sequence(ICONS, icon.compressed(form))}
        yield f"icon, {name}", instance(1, EXPLICIT, sequences, picture(GREY, RLE), native=True)
    yield "Pixel Data", replace(_with({}, JPEG), transfer_syntax=EXPLICIT)
    at = native.dataset.index(b"\x20\x00\x0d\x00")
    private = explicit(0x00190010, b"LO", b"ACME") + _fragments(0x00191010)
    yield "private fragments", replace(native, dataset=native.dataset[:at] + private + native.dataset[at:])


def test_encapsulated_pixels_in_a_native_syntax_are_never_called_success(tmp_path: Path) -> None:
    """Where viewers read the syntax nothing is transcoded; elsewhere there is nothing that tells how to."""
    for viewer, status in ((EXPLICIT, "NoNeedTransfer"), (IMPLICIT, "Failed")):
        with engines(tmp_path / status, [viewer], viewer) as opened:
            for case, one in mislabelled():
                for name, engine in opened.items():
                    assert outcome(engine, one) == (status, EXPLICIT, one.dataset), (case, name)
    for case, one in mislabelled():
        for target in (IMPLICIT, DEFLATED, RLE, JPEG_2000):
            with pytest.raises(CoreError, match=r"^frames: "):
                print(case, _core.transcode(one.dataset, EXPLICIT, target, MOST))


def test_implicit_vr_with_encapsulated_pixels_is_not_success(tmp_path: Path) -> None:
    implicit = Form(explicit_vr=False)
    explicit_one = _with({}, JPEG)
    elements = read_dataset(BytesIO(explicit_one.dataset), is_implicit_VR=False, is_little_endian=True)
    tags = (0x00080016, 0x00080018, 0x00080020, 0x00100020, 0x0020000D, 0x0020000E)
    head = b"".join(implicit.element(tag, b"", elements.get_item(tag).value) for tag in tags)
    one = replace(explicit_one, transfer_syntax=IMPLICIT, dataset=head + picture(GREY, JPEG).compressed(implicit))
    with engines(tmp_path, [EXPLICIT]) as opened:
        for name, engine in opened.items():
            assert outcome(engine, one) == ("Failed", IMPLICIT, one.dataset), name
    with pytest.raises(CoreError, match=r"^frames: encapsulated pixels in a native transfer syntax"):
        _core.transcode(one.dataset, IMPLICIT, EXPLICIT, MOST)


def test_the_budget_of_decoded_bytes_is_that_of_all_images() -> None:
    case = CASES[0]
    needed = 24 * 20 + GREY.nbytes
    dataset, syntax = case.instance.dataset, case.instance.transfer_syntax
    assert _core.transcode(dataset, syntax, EXPLICIT, needed) == case.expected
    with pytest.raises(CoreError, match=r"^too_large: "):
        _core.transcode(dataset, syntax, EXPLICIT, needed - 1)


def test_icons_of_default_syntaxes_are_decoded() -> None:
    """What is transcoded by default: JPEG XL, and frames that are encapsulated and not compressed."""
    imagecodecs = pytest.importorskip("imagecodecs")
    for syntax, frame in (
        (JPEG_XL, imagecodecs.jpegxl_encode(GREY, lossless=True)),
        (UNCOMPRESSED, GREY.tobytes()),
    ):
        main = Picture(GREY, [frame], 8)
        for icon in (main, picture(GREY, JPEG)):
            before = instance(
                1, syntax, {ICONS: FORMS["lengths"].sequence(ICONS, icon.compressed(FORMS["lengths"]))}, main
            )
            after = instance(1, syntax, {ICONS: RESULT.sequence(ICONS, icon.native(RESULT))}, main, native=True)
            assert _core.transcode(before.dataset, syntax, EXPLICIT, MOST) == after.dataset, syntax


@pytest.mark.skipif(shutil.which("dcmconv") is None, reason="needs DCMTK")
def test_dcmtk_reads_and_rewrites_every_result(tmp_path: Path) -> None:
    for number, case in enumerate(CASES[:: max(1, len(CASES) // 25)]):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(file_meta("1.2", "1.3", EXPLICIT, "TEST") + case.expected)
        command = ["dcmconv", "+ti", str(path), str(tmp_path / "implicit.dcm")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, (case.name, done.stderr)
        assert "E: " not in done.stderr, case.name


def test_pydicom_decodes_the_icons_as_ours(tmp_path: Path) -> None:
    """The oracle of the oracle: an icon's pixels by pydicom, in a file of its own."""
    for case in CASES:
        source = read(case.instance.dataset, case.instance.transfer_syntax)
        ours = [one for one in images(read(case.expected, EXPLICIT)) if one is not None][1:]
        theirs = list(images(source))[1:]
        for one, other in zip(ours, theirs, strict=True):
            if not other["PixelData"].is_undefined_length:
                continue
            other.file_meta, one.file_meta = source.file_meta, read(case.expected, EXPLICIT).file_meta
            a, b = (np.asarray(which.pixel_array, np.int64) for which in (one, other))
            limit = 2 if case.instance.transfer_syntax == JPEG else 0
            assert a.shape == b.shape, case.name
            if one.PhotometricInterpretation == other.PhotometricInterpretation:
                assert np.abs(a - b).max() <= limit, case.name
