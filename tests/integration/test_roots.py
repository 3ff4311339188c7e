"""Storage roots that an administrator makes, and a service that makes none."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from storescp.root_identity import make_identity, read_identity
from storescp.settings import Settings
from support.command import run_in_process, storescp
from support.service import ServiceProcess
from support.steps import Killed, killed_at

StartService = Callable[..., ServiceProcess]
NEVER_MADE = {"STORESCP_LOCAL_STORAGE__CREATE": "false"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two storage roots, one of them that of a tenant."""
    file = tmp_path / "storescp.toml"
    file.write_text(
        "[local_storage]\ndicm_store_path = 'disks/main'\n"
        "[[tenants.settings]]\ntenant_id = 'clinic'\nstorage_root = 'disks/clinic'\n"
        "[[tenants.settings]]\ntenant_id = 'other'\n"
    )
    return file


def test_each_root_is_made_once_with_an_identity(config: Path, tmp_path: Path) -> None:
    (tmp_path / "disks" / "clinic" / "clinic").mkdir(parents=True)
    first = run_in_process("storage", "create", "-c", config)
    assert (first.returncode, first.stderr) == (0, "")
    told = re.findall(r"^(?:made )?(/\S+) .* identity (\S+)$", first.stdout, re.MULTILINE)
    roots = [tmp_path / "disks" / "main", tmp_path / "disks" / "clinic"]
    assert first.stdout.startswith(f"made {roots[0]} with the identity ")
    assert f"\n{roots[1]} was there and has the new identity " in first.stdout
    assert [root for root, _ in told] == [str(root) for root in roots]
    for root, identity in told:
        outbox = Path(root, ".outbox")
        assert (outbox / "identity").read_text() == f"{uuid.UUID(identity)}\n"
        assert stat.S_IMODE(outbox.stat().st_mode) == 0o700
        assert [file.name for file in outbox.iterdir()] == ["identity"]
    second = run_in_process("storage", "create", "-c", config)
    assert second.returncode == 0
    assert second.stdout == "".join(f"{root} is there with the identity {identity}\n" for root, identity in told)


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_service_that_makes_no_root_starts_only_in_one_that_was_made(
    start_service: StartService, tmp_path: Path, engine: str
) -> None:
    """An empty folder where a disk should be mounted is no root."""
    (tmp_path / "data").mkdir()
    for root in (tmp_path / "data", tmp_path / "absent"):
        refused = storescp("-p", "0", "-o", str(root), "--engine", engine, env=NEVER_MADE)
        assert refused.returncode == 75
        assert f"{root}" in refused.stderr
        assert "is not there" in refused.stderr
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "absent").exists()
    named = {"STORESCP_LOCAL_STORAGE__DICM_STORE_PATH": str(tmp_path / "data")}
    assert run_in_process("storage", "create", env=named).returncode == 0
    service = start_service(engine=engine, env=NEVER_MADE)
    assert service.root == tmp_path / "data"
    assert service.stop() == 0


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root, code in ((tmp_path / "file" / "root", 78), (Path("/proc/absent/root"), 75)):
        done = run_in_process("storage", "create", env={"STORESCP_LOCAL_STORAGE__DICM_STORE_PATH": str(root)})
        assert done.returncode == code
        [line] = done.stderr.splitlines()
        assert str(root) in line
        assert done.stdout == ""


def test_no_root_is_made_within_another_one(tmp_path: Path) -> None:
    make_identity(tmp_path / "data")
    env = {"STORESCP_LOCAL_STORAGE__DICM_STORE_PATH": str(tmp_path / "data" / "storescp-data")}
    done = run_in_process("storage", "create", env=env)
    assert done.returncode == 78
    assert f"within another storage root ({tmp_path / 'data'})" in done.stderr
    assert not (tmp_path / "data" / "storescp-data").exists()


def test_a_power_cut_while_a_root_is_made_leaves_one_with_an_identity_or_none(tmp_path: Path) -> None:
    for step in itertools.count():
        root, synced = tmp_path / str(step) / "root", set[int]()
        with pytest.MonkeyPatch.context() as patch:
            steps = killed_at(step, patch, synced)
            with contextlib.suppress(Killed):
                make_identity(root)
        for file in root.rglob("*"):
            if file.is_file() and file.stat().st_ino not in synced:
                os.truncate(file, 0)
        found = read_identity(root)
        assert uuid.UUID(found or make_identity(root))
        if len(steps) < step:
            break
    assert step > 5


@pytest.mark.parametrize("section", [{}, {"durability": "none"}])
def test_the_default_root_is_absolute_whatever_else_is_configured(
    section: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records name files by it."""
    monkeypatch.chdir(tmp_path)
    assert Settings.model_validate({"storage": section}).storage.root == tmp_path / "storescp-data"
