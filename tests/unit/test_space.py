"""Free space of the storage roots: one line for each turn."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from storescp import advice
from storescp.pure.refusal import storage_refusal
from storescp.settings import Settings
from storescp.space import SpaceWatch, low_space_reason, roots_of

ROOTS = (Path("/one"), Path("/two"))


def test_each_turn_is_told_once_and_for_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    free = dict.fromkeys(ROOTS, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda root: SimpleNamespace(free=free[root]))
    watch = SpaceWatch(ROOTS, 50)
    with capture_logs() as lines:
        watch.look()
        free[ROOTS[1]] = 49
        watch.look()
        watch.look()
        free[ROOTS[1]] = 50
        watch.look()
        watch.look()
    assert [line["event"] for line in lines] == ["storage.low_space", "storage.enough_space"]
    assert [(line["storage"], line["free_bytes"], line["min_free_bytes"]) for line in lines] == [
        ("/two", 49, 50),
        ("/two", 50, 50),
    ]
    assert [line["log_level"] for line in lines] == ["warning", "info"]


def test_a_root_that_does_not_answer_is_told_once_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(root: Path) -> SimpleNamespace:
        if root == ROOTS[0]:
            raise OSError(errno.EIO, "Input/output error")
        return SimpleNamespace(free=1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    watch = SpaceWatch(ROOTS, 50)
    with capture_logs() as lines:
        watch.look()
        watch.look()
    assert [(line["event"], line["storage"]) for line in lines] == [
        ("storage.space_unknown", "/one"),
        ("storage.low_space", "/two"),
    ]


def test_roots_of_tenants_are_looked_at_too() -> None:
    own = [{"tenant_id": "a", "storage_root": "/a"}, {"tenant_id": "b"}, {"tenant_id": "c", "storage_root": "/a"}]
    settings = Settings.model_validate({"storage": {"root": "/r"}, "tenants": {"settings": own}})
    assert roots_of(settings) == [Path("/r"), Path("/a")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_advice_of_its_own(number: int) -> None:
    comment = storage_refusal(OSError(number, "as the system says")).comment
    text = advice.of_refusal(comment, 0xA700).text()
    assert "Make room" in text
    assert "storage.min_free_bytes" in text
    assert "permissions" not in text
    assert "permissions" in advice.of_refusal("storage: permission denied", 0xA700).text()


def test_the_reason_has_root_and_numbers_and_keeps_its_advice() -> None:
    reason = low_space_reason(Path("/data"), 10, 20)
    assert reason.endswith("/data has 10 bytes free, and storage.min_free_bytes is 20")
    assert advice.of_refusal(reason, 0xA700) is advice.of_refusal("storage: less free space than configured", 0xA700)
