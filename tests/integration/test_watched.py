"""A real Prometheus scrapes a real service, and every query of the dashboard and of the alerts is asked."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.load import again_and_again, send_slices
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import http_port

StartService = Callable[..., ServiceProcess]
DEPLOY = Path(__file__).parents[2] / "deploy"
# What there is nothing to say about while all is well.
QUIET = ("storescp_transcodes_total", "storescp_refused_total")

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")


class Prometheus:
    def __init__(self, folder: Path, target: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        configuration["global"] |= {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        configuration["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
        configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target}"]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration))
        self._log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def api(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def is_scraping(self) -> bool:
        try:
            targets = self.api("targets")["activeTargets"]
        except OSError:
            return False
        return bool(targets) and targets[0]["health"] == "up"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._log.close()


def queries() -> Iterator[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "storescp.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace('=~"$instance"', '=~".*"').replace("$__rate_interval", "10s")


def test_every_query_of_the_dashboard_has_an_answer(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(env={"STORESCP_HTTP__PORT": "0"})
    prometheus = Prometheus(tmp_path, http_port(service))
    numbers = itertools.count()
    try:
        with again_and_again(lambda: send_slices(service.port, numbers)):
            ask_everything(prometheus)
    finally:
        prometheus.stop()


def ask_everything(prometheus: Prometheus) -> None:
    wait_until(prometheus.is_scraping, seconds=30)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 4, seconds=10)
    asked = list(queries())
    assert len(asked) > 15
    for query in asked:
        found = prometheus.api("query", query=query)["result"]
        assert found or any(name in query for name in QUIET), query
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    metrics = set(re.findall(r"storescp_\w+", " ".join([*asked, *(rule["query"] for rule in rules)])))
    known = set(prometheus.api("label/__name__/values"))
    assert {name for name in metrics if name not in QUIET} <= known
