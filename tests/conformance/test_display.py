"""What viewers show of a file and of what it became: not the numbers alone, but what they are taken for.

Colour by Photometric Interpretation, the sign, High Bit and the window are read by others, before and after.
"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from storescp import _core
from storescp.errors import CoreError
from storescp.pure.store import file_meta
from support.instances import from_file
from support.references import LOSSY

pytestmark = [pytest.mark.curated, pytest.mark.filterwarnings("ignore::UserWarning")]

EXPLICIT = "1.2.840.10008.1.2.1"
PROGRAMS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")
JPEG_LS = "1.2.840.10008.1.2.4.80"
TARGETS = {EXPLICIT: "dcm2pnm", "1.2.840.10008.1.2.5": "dcm2pnm", JPEG_LS: "dcml2pnm"}
# An overlay in the bits that are not stored: pydicom hides it in native cells and leaves it in those of JPEG-LS.
OVERLAY = ("d4_ovly_p01.dcm", JPEG_LS)


def drawn(program: str, path: Path, picture: Path) -> bytes | None:
    """The first frame as DCMTK shows it, in the window of its least and largest value; none where it does not."""
    picture.unlink(missing_ok=True)
    subprocess.run([program, "+Wm", str(path), str(picture)], capture_output=True, check=False, timeout=60)
    return picture.read_bytes() if picture.exists() else None


def shown(path: Path) -> np.ndarray | None:  # type: ignore[type-arg]
    """All frames, in the colours that pydicom makes of them; none where it does not read them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pixel_array(pydicom.dcmread(path), raw=False)
        except Exception as error:  # noqa: BLE001 - whatever pydicom raises of what it does not read
            print(f"{path.name}: {str(error)[:100]!r}")
            return None


@pytest.mark.timeout(300)
def test_viewers_show_what_they_showed(curated: Path, tmp_path: Path) -> None:
    """Only of what was lossless: decoders of the others differ by some levels."""
    made, picture = tmp_path / "made.dcm", tmp_path / "picture.pnm"
    counts = dict.fromkeys(TARGETS, (0, 0))
    for path in sorted(curated.glob("*.dcm")):
        one = from_file(path)
        if one is None or one.transfer_syntax in LOSSY:
            continue
        array = shown(path)
        if array is None:
            continue
        drawing = next(filter(None, (drawn(program, path, picture) for program in PROGRAMS)), None)
        for target in TARGETS.keys() - {one.transfer_syntax}:
            try:
                dataset = _core.transcode(one.dataset, one.transfer_syntax, target, 1 << 31)
            except CoreError:
                continue
            made.write_bytes(file_meta(one.sop_class, one.sop_instance, target, "TEST") + dataset)
            arrays, drawings = counts[target]
            if (path.name, target) != OVERLAY:
                assert np.array_equal(shown(made), array), (path.name, target)
                arrays += 1
            if drawing is not None:
                assert drawn(TARGETS[target], made, picture) == drawing, (path.name, target)
                drawings += 1
            counts[target] = (arrays, drawings)
    assert all(arrays > 60 and drawings > 50 for arrays, drawings in counts.values()), counts
