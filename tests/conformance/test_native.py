"""Files that nobody compressed, and those that come with pydicom: after transcoding they have the pixels that they had."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.pixels import pixel_array

from storescp import _core
from storescp.errors import CoreError
from storescp.pure.store import file_meta
from support.instances import Instance, from_file
from support.references import LOSSY, NATIVE, Pixels, largest_difference, references

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPLICIT = "1.2.840.10008.1.2.1"
RLE = "1.2.840.10008.1.2.5"
MOST = 1 << 31
SUBSAMPLED = {RLE: "attribute: native pixels with subsampled colour"}
ONE_BIT = {RLE: "codec: frame 1: RLE does not take one bit a pixel"}
FLOAT = {RLE: "attribute: float pixels cannot be encapsulated"}
TWO_WAYS = dict.fromkeys(
    (EXPLICIT, RLE), "attribute: big endian cells of more than 16 bits, which are read in two ways"
)


def differences(one: Instance, known: list[Pixels], folder: Path) -> dict[str, int | str | None]:
    """By target: the largest difference from the best reference, or why it is not transcoded. None for other shapes."""
    found: dict[str, int | str | None] = {}
    for target in (EXPLICIT, RLE):
        if target == one.transfer_syntax:
            continue
        try:
            dataset = _core.transcode(one.dataset, one.transfer_syntax, target, MOST)
        except CoreError as error:
            found[target] = str(error)
            continue
        made = folder / "made.dcm"
        made.write_bytes(file_meta(one.sop_class, one.sop_instance, target, "TEST") + dataset)
        ours = pixel_array(made, raw=True)
        comparable = [difference for theirs in known if (difference := largest_difference(ours, theirs)) is not None]
        found[target] = min(comparable) if comparable else None
    return found


def wrong(paths: Iterable[Path], folder: Path, at_least: int) -> dict[str, dict[str, int | str | None]]:
    """What differs or is not transcoded, by file and target, of those that a reference reads."""
    found = {}
    compared = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            one = from_file(path)
            known = [theirs for _, theirs in references(path, folder)] if one else []
            if not one or not known:
                continue
            samples = pydicom.dcmread(path, stop_before_pixels=True).SamplesPerPixel
            allowed = (2 if samples == 3 else 1) if one.transfer_syntax in LOSSY else 0
            of_file = differences(one, known, folder)
            compared += 1
            unequal = {
                target: difference
                for target, difference in of_file.items()
                if not isinstance(difference, int) or difference > allowed
            }
            if unequal:
                found[path.name] = unequal
    assert compared >= at_least, compared
    return found


@pytest.mark.timeout(300)
def test_the_files_of_pydicom_keep_their_pixels(tmp_path: Path) -> None:
    paths = sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))
    assert wrong(paths, tmp_path, 55) == {
        "SC_ybr_full_422_uncompressed.dcm": SUBSAMPLED,
        "liver_1frame.dcm": ONE_BIT,
        "liver_expb_1frame.dcm": ONE_BIT,
        "rtdose_expb.dcm": TWO_WAYS,
        "rtdose_expb_1frame.dcm": TWO_WAYS,
    }


@pytest.mark.curated
@pytest.mark.timeout(300)
def test_real_native_files_keep_their_pixels(curated: Path, tmp_path: Path) -> None:
    native = [path for path in sorted(curated.glob("*.dcm")) if _syntax(path) in NATIVE]
    assert wrong(native, tmp_path, 60) == {
        "dcmqi_seg.dcm": ONE_BIT,
        "hd_seg_image_ct_binary_overlap.dcm": ONE_BIT,
        "pdd_liver.dcm": ONE_BIT,
        "pdd_parametric_map_float.dcm": FLOAT,
        "pyd_SC_ybr_full_422_uncompressed.dcm": SUBSAMPLED,
        "pyd_liver_1frame.dcm": ONE_BIT,
        "pyd_liver_expb_1frame.dcm": ONE_BIT,
    }


def _syntax(path: Path) -> str | None:
    """None where it is no PS3.10 file."""
    one = from_file(path)
    return one and one.transfer_syntax
