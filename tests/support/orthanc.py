"""Orthanc as a receiver and sender, on loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.waiting import wait_until


@dataclass(frozen=True)
class Orthanc:
    """One that runs: its DICOM port, and the address of its REST interface."""

    port: int
    rest: str


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path, **settings: object) -> Iterator[Orthanc]:
    """Starts Orthanc with its database in a folder; ends it."""
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed")
    http, dicom = _free_port(), _free_port()
    config = folder / "orthanc.json"
    config.write_text(
        json.dumps(
            {
                "HttpPort": http,
                "DicomPort": dicom,
                "StorageDirectory": str(folder / "orthanc"),
                "IndexDirectory": str(folder / "orthanc"),
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomScuTimeout": 20,
                "Plugins": [],
                **settings,
            }
        )
    )
    # A file, and not a pipe that would be full after a while.
    log = folder / "orthanc.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(["Orthanc", str(config)], stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_until(lambda: b"Orthanc has started" in log.read_bytes() or process.poll() is not None, seconds=60)
        assert process.poll() is None, log.read_text()
        yield Orthanc(dicom, f"http://127.0.0.1:{http}")
    finally:
        process.terminate()
        process.wait(timeout=30)
