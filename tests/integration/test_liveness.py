"""A service in which a thread has ended or hangs says so to probes and to systemd, and to nobody as long as all live."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
HTTP = {"STORESCP_HTTP__PORT": "0"}
# What goes wrong in a service, as the interpreter reads it before anything else.
PUBLISHER_ENDS = "from storescp.publish.publisher import Publisher\nPublisher._run = lambda self: None\n"
MAIN_THREAD_HANGS = """
import threading
from storescp import liveness, service
liveness.HEARTBEAT_SECONDS = 0.3
def hang(self):
    self._liveness.beat()
    threading.Event().wait(60)
service.Service._show_life = hang
"""
RELOAD_HANGS = """
import threading
from storescp import service
service.Service._reload = lambda self, server: threading.Event().wait(60)
"""

RELOAD_HAS_A_BUG = """
from storescp import service
def reload(self, server):
    raise ZeroDivisionError("ours")
service.Service._reload = reload
"""

StartBroken = Callable[..., ServiceProcess]


@pytest.fixture
def start_broken(start_service: StartService, tmp_path: Path) -> StartBroken:
    """Starts a service in which something goes wrong."""

    def start(what: str, **env: str) -> ServiceProcess:
        (tmp_path / "sitecustomize.py").write_text(what)
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        return start_service(env=HTTP | {"PYTHONPATH": path} | env)

    return start


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the socket that a service tells how it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        yield manager


def watched(manager: socket.socket, seconds: float, **env: str) -> dict[str, str]:
    """The environment of a unit with `WatchdogSec`."""
    return {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": str(int(seconds * 1e6))} | env


def told(manager: socket.socket) -> list[bytes]:
    """All that was said and not yet heard."""
    manager.setblocking(False)
    heard = []
    while True:
        try:
            heard.append(manager.recv(100))
        except BlockingIOError:
            return heard


def test_livez_names_a_thread_that_has_ended(start_broken: StartBroken) -> None:
    service = start_broken(PUBLISHER_ENDS)
    port = http_port(service)
    assert get(port, "/livez") == (503, "dead: publisher\n")
    assert service.wait_for_event("service.dead")["threads"] == ["publisher"]
    # It stores all the same.
    assert get(port, "/readyz")[0] == 200
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        one = ct_slice(1, rows=16)
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    assert service.stop() == 0
    assert len(service.events("service.dead")) == 1


def test_livez_sees_a_main_thread_that_hangs(start_broken: StartBroken) -> None:
    service = start_broken(MAIN_THREAD_HANGS)
    port = http_port(service)
    wait_until(lambda: get(port, "/livez") == (503, "dead: main thread\n"))
    service.kill()


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_livez_is_well_from_the_first_answer_to_the_last(start_service: StartService, engine: str) -> None:
    service = start_service("-v", engine=engine, env=HTTP)
    port = http_port(service)
    assert get(port, "/livez") == (200, "alive\n")
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_event("service.draining")
        assert get(port, "/livez") == (200, "alive\n")
        association.release()
    assert service.process.wait(20) == 0
    assert service.events("service.dead") == []


def test_a_reload_that_hangs_stops_nothing_else(start_broken: StartBroken) -> None:
    service = start_broken(RELOAD_HANGS)
    port = http_port(service)
    service.process.send_signal(signal.SIGHUP)
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        association.release()
    assert get(port, "/livez") == (200, "alive\n")
    assert service.stop(20) == 0


def test_a_reload_with_a_bug_has_an_end_and_the_service_goes_on(
    start_broken: StartBroken, manager: socket.socket
) -> None:
    service = start_broken(RELOAD_HAS_A_BUG, NOTIFY_SOCKET=manager.getsockname())
    assert manager.recv(100) == b"READY=1"
    service.process.send_signal(signal.SIGHUP)
    assert manager.recv(100).startswith(b"RELOADING=1")
    assert manager.recv(100) == b"READY=1"
    assert "ZeroDivisionError: ours" in service.wait_for_event("reload.failed")["exception"]
    assert get(http_port(service), "/livez") == (200, "alive\n")
    assert service.stop() == 0


def test_the_watchdog_is_fed_until_the_service_stops(start_service: StartService, manager: socket.socket) -> None:
    service = start_service(env=watched(manager, 0.2))
    assert [manager.recv(100) for _ in range(5)] == [b"READY=1"] + [b"WATCHDOG=1"] * 4
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_event("service.draining")
        association.release()
    assert service.process.wait(20) == 0
    heard = told(manager)
    # systemd stops watching when it is told of the end.
    assert heard[-1] == b"STOPPING=1"
    assert set(heard[:-1]) <= {b"WATCHDOG=1"}


def test_the_watchdog_is_not_fed_while_something_is_dead(start_broken: StartBroken, manager: socket.socket) -> None:
    service = start_broken(PUBLISHER_ENDS, **watched(manager, 0.1))
    service.wait_for_event("service.dead")
    assert service.stop() == 0
    assert told(manager) == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("env", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_for_us_is_not_fed(
    start_service: StartService, manager: socket.socket, env: dict[str, str]
) -> None:
    service = start_service(env=watched(manager, 0.1, **env))
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        association.release()
    assert service.stop() == 0
    assert told(manager) == [b"READY=1", b"STOPPING=1"]
