"""Whether the rate stays: more associations, a million instances stored, a hundred tenants; and what idling costs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench_peers import Load, send
from quiet import quiet
from storescp import _core
from support.history import DELIVERED, fill
from support.instances import CT
from support.scu import EXPLICIT
from support.service import ServiceProcess

ROUNDS = int(os.environ.get("STORESCP_PEERS_ROUNDS", "5"))
ASSOCIATIONS = (1, 2, 4, 8, 16, 32, 64)
TENANTS = 100
IDLE_SECONDS = 10
NO_PUBLICATION = {"STORESCP_KAFKA__BROKERS": "127.0.0.1:9", "STORESCP_SERVICE__PUBLISH_TIMEOUT": "0.2"}
RULES = {
    "STORESCP_TENANTS__RULES": json.dumps(
        [{"tenant_id": f"tenant-{number:03}", "called_ae": f"HOSP_{number:03}"} for number in range(TENANTS)]
    )
}

Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(start_bench_service: Start) -> Start:
    """Starts a service on a folder with a name."""

    def start(name: str, *, durability: str = "none", env: dict[str, str] | None = None) -> ServiceProcess:
        return start_bench_service("rust", durability=durability, max_pdu=16384, name=name, env=env)

    return start


def rate(service: ServiceProcess, load: Load, number: int, folder: Path) -> float:
    instances = load.make(number)
    quiet(folder)
    send(service.port, load, instances[: load.before])
    began = time.perf_counter()
    send(service.port, load, instances[load.before :])
    return load.count / (time.perf_counter() - began)


@pytest.mark.parametrize("durability", ["none", "full"])
def test_more_associations(bench_folder: Path, start: Start, durability: str) -> None:
    service = start("service", durability=durability)
    print(f"\n8 KB, durability {durability}\n\n| associations | instances/s (range) |\n|---|---|")
    rates: dict[int, list[float]] = {associations: [] for associations in ASSOCIATIONS}
    for number in range(ROUNDS + 1):
        for associations in ASSOCIATIONS:
            load = Load("", 1280, associations, rows=64)
            measured = rate(service, load, number * 100 + associations, bench_folder)
            if number:
                rates[associations].append(measured)
    for associations, some in rates.items():
        print(f"| {associations} | {statistics.median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f}) |")


def test_a_million_instances_stored_before(bench_folder: Path, start: Start) -> None:
    services = {"empty": start("empty"), f"{DELIVERED:,} rows": start("full")}
    full = services[f"{DELIVERED:,} rows"]
    assert full.stop() == 0
    fill(full.root)
    services[f"{DELIVERED:,} rows"] = start("full")
    _compare(services, Load("", 1000, 1, rows=64), bench_folder)


def test_a_hundred_tenants(bench_folder: Path, start: Start) -> None:
    services = {"one tenant": start("one"), f"{TENANTS} tenants by turns": start("many", env=RULES)}
    rates: dict[str, list[float]] = {name: [] for name in services}
    for number in range(ROUNDS + 1):
        for name, service in services.items():
            load = Load("", TENANTS * 5, 1, rows=64)
            instances = load.make(number)[load.before :]
            quiet(bench_folder)
            began = time.perf_counter()
            for tenant in range(TENANTS):
                association = _core.Sender(
                    "127.0.0.1", service.port, "BENCH", f"HOSP_{tenant:03}", [(CT, EXPLICIT)], 60
                )
                answers = association.store_many(CT, EXPLICIT, instances[tenant::TENANTS])
                association.release()
                assert [status for status, _ in answers] == [0] * 5
            if number:
                rates[name].append(len(instances) / (time.perf_counter() - began))
    _table(rates)
    many = services[f"{TENANTS} tenants by turns"]
    assert len([folder for folder in many.root.iterdir() if folder.name.startswith("tenant-")]) == TENANTS


def test_idling(start: Start) -> None:
    service = start("idle")
    association = _core.Sender("127.0.0.1", service.port, "BENCH", "ANY-SCP", [(CT, EXPLICIT)], 60)
    before = service.cpu_seconds()
    with pytest.raises(subprocess.TimeoutExpired):
        service.process.wait(IDLE_SECONDS)
    spent = service.cpu_seconds() - before
    association.release()
    print(f"\nidle, one association open: {spent / IDLE_SECONDS * 100:.2f} % of a core")


def _compare(services: dict[str, ServiceProcess], load: Load, folder: Path) -> None:
    rates: dict[str, list[float]] = {name: [] for name in services}
    for number in range(ROUNDS + 1):
        for name, service in services.items():
            measured = rate(service, load, number, folder)
            if number:
                rates[name].append(measured)
    _table(rates)


def _table(rates: dict[str, list[float]]) -> None:
    print("\n| storage | instances/s (range) |\n|---|---|")
    for name, some in rates.items():
        print(f"| {name} | {statistics.median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f}) |")
