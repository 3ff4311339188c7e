"""Fixtures of the benches: services that write beneath one folder of a real file system."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.memory import fill_page_cache
from support.service import ServiceProcess


@pytest.fixture(scope="session")
def all_bench_folders() -> Iterator[Path]:
    """Removed only at the end: deleting many files slows the creation of others for a while."""
    folder = Path(tempfile.mkdtemp(prefix="storescp-bench-", dir=Path.cwd() / "target"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def bench_folder(all_bench_folders: Path) -> Path:
    """A new folder for one bench, on a machine whose memory is in use."""
    fill_page_cache(all_bench_folders / "page-cache")
    return Path(tempfile.mkdtemp(dir=all_bench_folders))


@pytest.fixture
def start_bench_service(bench_folder: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services with an engine, durability and maximum PDU length; `name` is that of the folder."""
    started: list[ServiceProcess] = []

    def start(
        engine: str, *, durability: str, max_pdu: int, name: str | None = None, env: dict[str, str] | None = None
    ) -> ServiceProcess:
        service = ServiceProcess(
            bench_folder / (name or f"{engine}-{durability}-{max_pdu}-{len(started)}"),
            "-m",
            str(max_pdu),
            engine=engine,
            env={"STORESCP_LOCAL_STORAGE__DURABILITY": durability} | (env or {}),
        )
        started.append(service)
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.stop()
