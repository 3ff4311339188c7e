"""What the tests ask the HTTP endpoints."""

from __future__ import annotations

import http.client
import re

from support.service import ServiceProcess


def http_port(service: ServiceProcess) -> int:
    assert service.process.stdout is not None
    found = re.fullmatch(r"http on 127\.0\.0\.1:(\d+)\n", service.process.stdout.readline())
    assert found
    return int(found[1])


def get(port: int, path: str, token: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, text
