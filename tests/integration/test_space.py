"""A disk that fills up while the service runs: log, `/readyz` and refusals say so, and it goes on by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.instances import CT, ct_slice
from support.load import CONTEXTS
from support.mounts import tmpfs
from support.scu import RawAssociation
from support.service import ServiceProcess
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
LEAST = 16 << 20


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_disk_that_fills_up_is_told_once_and_once_that_it_is_over(
    start_service: StartService, tmp_path: Path, engine: str
) -> None:
    with tmpfs(tmp_path / "small", "size=64m") as folder:
        env = {"STORESCP_STORAGE__MIN_FREE_BYTES": str(LEAST), "STORESCP_HTTP__PORT": "0"}
        service = start_service(root=folder / "data", engine=engine, env=env)
        port = http_port(service)
        filler = folder / "filler"
        facts = os.statvfs(folder)
        filler.write_bytes(bytes(facts.f_bavail * facts.f_frsize - (8 << 20)))

        low = service.wait_for_event("storage.low_space")
        assert (low["level"], low["storage"], low["min_free_bytes"]) == ("warning", str(service.root), LEAST)
        assert 0 < low["free_bytes"] < LEAST
        status, text = get(port, "/readyz")
        [reason] = json.loads(text)["reasons"]
        assert status == 503
        assert str(service.root) in reason
        assert str(LEAST) in reason

        filler.unlink()
        back = service.wait_for_event("storage.enough_space")
        assert back["free_bytes"] >= LEAST
        assert get(port, "/readyz")[0] == 200
        one = ct_slice(1, rows=4)
        with RawAssociation(service.port, CONTEXTS) as association:
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
            association.release()
        assert service.stop() == 0
        assert [len(service.events(f"storage.{name}_space")) for name in ("low", "enough")] == [1, 1]
