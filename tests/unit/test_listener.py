"""The listener's workers, with real sockets and broken surroundings."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storescp import _core
from storescp.audit.trail import Trail
from storescp.engine import engine_config
from storescp.errors import BindError
from storescp.network.admission import Admission
from storescp.network.contexts import VERIFICATION, Offer
from storescp.network.listener import CLEAR_PORT, HTTP_PORT, TLS_PORT, Listener, bind, bind_error
from storescp.network.negotiation import Negotiator
from storescp.settings import Settings
from support import scu

CONTEXTS = [(1, VERIFICATION, [scu.IMPLICIT])]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    settings = Settings.model_validate(
        {
            "dicom_store_scp": {"port": 0, "max_associations": 2},
            "storage": {"root": tmp_path, "durability": "none", "min_free_bytes": 0},
        }
    )
    engine = _core.Engine(engine_config(settings))
    negotiator = Negotiator(Offer.from_settings(settings), 16384)
    admission = Admission(settings, engine.unavailable)
    made = Listener(settings, "127.0.0.1", engine, admission, negotiator, None, Trail(settings))
    made.start()
    yield made
    made.stop_accepting()
    assert made.join(10)
    engine.close()


def echo(listener: Listener) -> None:
    with scu.RawAssociation(listener.addresses[0].port, CONTEXTS) as association:
        assert association.echo(1).status == 0
        association.release()


class Fault(Exception):
    """Of what a worker depends on."""


@pytest.mark.parametrize("setting", [CLEAR_PORT, TLS_PORT, HTTP_PORT])
def test_a_port_that_is_taken_is_told_with_its_setting(setting: str) -> None:
    with bind("127.0.0.1", 0, setting) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError) as error:
            bind("127.0.0.1", port, setting)
    assert str(error.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what listens there, or set another port "
        f"({setting})"
    )


def test_a_port_that_needs_a_privilege_says_so() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    said = str(bind_error("0.0.0.0", 104, CLEAR_PORT, refused))
    assert "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)" in said
    assert "(dicom_store_scp.port or -p)" in said
    assert "privilege" not in str(bind_error("0.0.0.0", 1024, CLEAR_PORT, refused))


def test_no_fault_ends_a_worker(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Fault

    echo(listener)
    with monkeypatch.context() as patched:
        patched.setattr(type(listener._report), "over", fail)
        patched.setattr(type(listener._report), "rejected", fail)
        for _ in range(3):
            echo(listener)
        listener._admission.close("draining")
        for _ in range(3):
            with pytest.raises((scu.Closed, ConnectionError)):
                echo(listener)
    listener._admission.close(None)
    for _ in range(3):
        echo(listener)


def test_threads_that_cannot_be_started_cost_nobody(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(3):
            echo(listener)
    for _ in range(3):
        echo(listener)
