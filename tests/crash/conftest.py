"""Fixtures of the fault bench."""

from __future__ import annotations

from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fail_points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the package has its fail points: this package, with the extension of another build."""
    extension = _CHECKOUT / "target" / "failpoints" / "storescp" / "_core.abi3.so"
    if not extension.exists():
        pytest.skip("the extension with fail points is not built (make .make/failpoints)")
    folder = tmp_path_factory.mktemp("failpoints")
    package = folder / "storescp"
    package.mkdir()
    for file in (_CHECKOUT / "python" / "storescp").iterdir():
        if file.name != extension.name:
            (package / file.name).symlink_to(file)
    (package / extension.name).symlink_to(extension)
    return {"PYTHONPATH": str(folder)}
