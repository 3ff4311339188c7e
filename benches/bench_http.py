"""What it costs to be watched: scrapes, and somebody who has the status page open.

A scrape a second is lost in the noise, so there are twenty; the cost of one a second is a twentieth of what they cost.
"""

from __future__ import annotations

import http.client
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench_peers import Load, send
from quiet import quiet
from support.service import ServiceProcess
from support.web import get, http_port

ROUNDS = int(os.environ.get("STORESCP_PEERS_ROUNDS", "5")) * 3
INSTANCES = 10000
SCRAPES = 60
SCRAPES_A_SECOND = 20

Start = Callable[..., ServiceProcess]


def scrape(port: int, over: threading.Event, texts: list[str]) -> None:
    while not over.wait(1 / SCRAPES_A_SECOND):
        status, text = get(port, "/metrics")
        assert status == 200
        texts.append(text)


def watch(port: int, over: threading.Event, texts: list[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/events")
    response = connection.getresponse()
    while not over.is_set():
        texts.append(response.readline().decode())
    connection.close()


def test_being_watched(bench_folder: Path, start_bench_service: Start) -> None:
    env = {"STORESCP_HTTP__PORT": "0"}
    service = start_bench_service("rust", durability="none", max_pdu=16384, name="service", env=env)
    port = http_port(service)
    rates: dict[str, list[float]] = {"nobody": [], "scraped": [], "page open": []}
    scraped: list[str] = []
    ways: dict[str, tuple[Callable[[int, threading.Event, list[str]], None] | None, list[str]]] = {
        "nobody": (None, []),
        "scraped": (scrape, scraped),
        "page open": (watch, []),
    }
    for number in range(ROUNDS + 1):
        for place, (name, (way, texts)) in enumerate(ways.items()):
            load = Load("", INSTANCES, 4, rows=64)
            instances = load.make(number * 10 + place)
            quiet(bench_folder)
            over = threading.Event()
            watcher = threading.Thread(target=way, args=(port, over, texts)) if way else None
            if watcher:
                watcher.start()
            began = time.perf_counter()
            send(service.port, load, instances)
            took = time.perf_counter() - began
            over.set()
            if watcher:
                watcher.join(10)
            if number:
                rates[name].append(INSTANCES / took)
    assert len(scraped) >= SCRAPES
    for text in scraped:
        families = {family.name for family in text_string_to_metric_families(text)}
        assert "storescp_instances" in families
    # Round by round: the disk is not the same from minute to minute.
    ratios = {
        name: statistics.median(one / alone for one, alone in zip(some, rates["nobody"], strict=True))
        for name, some in rates.items()
    }
    print(f"\n8 KB, 4 associations, {ROUNDS} rounds, {len(scraped)} scrapes under load\n")
    for name, some in rates.items():
        print(
            f"| {name} | {statistics.median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f}) | {ratios[name]:.3f} |"
        )
    cost = (1 - ratios["scraped"]) / SCRAPES_A_SECOND
    print(f"a scrape a second costs {cost:.2%} of the throughput")
    before = service.cpu_seconds()
    for _ in range(SCRAPES):
        get(port, "/metrics")
    each = (service.cpu_seconds() - before) / SCRAPES
    share = each / len(os.sched_getaffinity(0))
    print(f"a scrape takes {each * 1000:.1f} ms of one core: once a second {share:.2%} of the machine")
