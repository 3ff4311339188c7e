"""What `storescpd --version` names is what was built, and no number that somebody typed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from storescp import _core

PROJECT = Path(__file__).parents[2]
LIBRARIES = {"dicom-rs", "sqlite", "libjpeg-turbo", "CharLS", "OpenJPEG", "jxl-rs"}


def built() -> dict[str, str]:
    return dict(_core.build_info())


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_each_library_has_a_full_version(library: str) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", built()[library])


@pytest.mark.parametrize(("library", "crate"), [("dicom-rs", "dicom-core"), ("jxl-rs", "jxl")])
def test_crates_have_the_version_of_the_lock_file(library: str, crate: str) -> None:
    packages = tomllib.loads((PROJECT / "Cargo.lock").read_text())["package"]
    assert [built()[library]] == [one["version"] for one in packages if one["name"] == crate]


def test_the_sources_have_no_version_of_a_library() -> None:
    sources = [*(PROJECT / "rust" / "codecs" / "src").rglob("*.rs"), PROJECT / "rust" / "py" / "src" / "info.rs"]
    assert len(sources) > 10
    typed = [file.name for file in sources if re.search(r'"\d+\.\d+(?:\.\d+)?"', file.read_text())]
    assert typed == []
