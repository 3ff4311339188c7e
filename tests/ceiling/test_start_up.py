"""How long a start takes with a long history."""

from __future__ import annotations

import statistics

import pytest

from conftest import StartService
from support.history import DELIVERED, PENDING, fill

pytestmark = pytest.mark.ceiling
# The pending rows stay, and a stop does not wait for them.
NO_BROKER = {"STORESCP_KAFKA__BROKERS": "127.0.0.1:9", "STORESCP_SERVICE__PUBLISH_TIMEOUT": "0.2"}


@pytest.mark.timeout(600)
def test_a_start_with_a_million_delivered_rows_takes_less_than_2_s(start_service: StartService) -> None:
    empty = start_service()
    assert empty.stop() == 0
    fill(empty.root)
    seconds = []
    for kind in ("stopped", "killed", "stopped") * 2:
        service = start_service(root=empty.root, env=NO_BROKER)
        seconds.append(service.ready_seconds)
        if kind == "killed":
            service.kill()
        else:
            assert service.stop() == 0
    size = (empty.root / ".outbox" / "outbox.sqlite").stat().st_size
    told = ", ".join(f"{one:.2f}" for one in seconds)
    print(f"\n{DELIVERED} delivered and {PENDING} pending rows, {size >> 20} MiB: ready in {told} s")
    print(f"empty: {empty.ready_seconds:.2f} s; median {statistics.median(seconds):.2f} s")
    assert max(seconds) < 2
