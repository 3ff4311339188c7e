"""Receivers to compare with: each a process that stores into a folder, with its defaults but for what is named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from support.compressed import ONLY_EXPLICIT

_TICKS = os.sysconf("SC_CLK_TCK")
_WITHOUT_OURS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CARGO_TARGET = Path(__file__).parents[1] / "target" / "release"


class Receiver(ABC):
    """A receiver and its folder. `label` is what tables call it."""

    label = ""
    #: Whether it syncs what it stores before it answers.
    syncs = "no"
    #: Whether a round of it takes seconds.
    is_slow = False
    #: Whether it is known to answer out of resources (A7xx) at times.
    may_refuse = False

    def __init__(self, folder: Path, max_pdu: int = 16384) -> None:
        self.folder = folder
        self.port = 0
        self.max_pdu = max_pdu
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        return True

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments."""

    def environment(self) -> dict[str, str]:
        return {}

    def visible(self) -> Iterator[Path]:
        """Files that a reader of the folder would take for instances."""
        yield from (file for file in self.folder.rglob("*") if file.is_file())

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder.mkdir(exist_ok=True)
        ours = {key: value for key, value in os.environ.items() if not key.startswith("STORESCP_")}
        self._process = subprocess.Popen(
            self.command(),
            env=ours | self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, f"{self.label} does not listen"
            assert self._process.poll() is None, f"{self.label} ended with {self._process.returncode}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def kill(self) -> None:
        """With all processes that it started."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def cpu_seconds(self) -> float:
        """User and system time, of processes that have ended too."""
        assert self._process is not None
        pid = self._process.pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended_children = sum(int(field) for field in fields[13:15]) / _TICKS
        # Its own in nanoseconds: clock_getcpuclockid(3), which Python does not have.
        return time.clock_gettime((~pid << 3) | 2) + ended_children

    def rss_kib(self, kind: str) -> int:
        """Resident memory now (VmRSS) or at its peak (VmHWM) of the main process."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{kind}:\s+(\d+)", status)
        assert found
        return int(found[1])


class Ours(Receiver):
    """This service; `durability` is that of the class."""

    label = "storescp"
    durability = "full"
    syncs = "file, record, names"

    def command(self) -> list[str]:
        options = ["-p", str(self.port), "-o", str(self.folder), "-m", str(self.max_pdu)]
        return [sys.executable, "-m", "storescp", *options]

    def environment(self) -> dict[str, str]:
        section = "STORESCP_LOCAL_STORAGE__"
        return {f"{section}DURABILITY": self.durability, f"{section}MIN_FREE_BYTES": "0"}

    def visible(self) -> Iterator[Path]:
        yield from self.folder.glob("[!.]*/**/*.dcm")


class OursUnsynced(Ours):
    label = "storescp, durability none"
    durability = "none"
    syncs = "no"


class OursInPython(OursUnsynced):
    """The same listener with the pure-Python engine."""

    label = "storescp --engine python, durability none"
    is_slow = True

    def command(self) -> list[str]:
        return [*super().command(), "--engine", "python"]


class OursTranscoding(OursUnsynced):
    """Nothing compressed is in the list of what viewers read, so all of it is decoded."""

    label = "storescp, durability none, transcoding"

    def environment(self) -> dict[str, str]:
        return super().environment() | ONLY_EXPLICIT


class Sink(Receiver):
    """The least that a receiver can do."""

    label = "sink: write"
    mode = "write"

    def command(self) -> list[str]:
        options = [str(self.port), str(self.folder), self.mode, str(self.max_pdu)]
        return [str(_CARGO_TARGET / "storescp-sink"), *options]


class DurableSink(Sink):
    label = "sink: write, fdatasync, rename, directory sync"
    mode = "durable"
    syncs = "file, names"


# DCMTK, Orthanc on top of it: without this, delayed acknowledgements hold them at some 25 instances a second.
NO_DELAY = {"TCP_NODELAY": "1"}


class Dcmtk(Receiver):
    """With its defaults, one association at a time."""

    label = "DCMTK storescp"
    options: tuple[str, ...] = ()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("storescp", path=_WITHOUT_OURS) is not None

    def command(self) -> list[str]:
        program = str(shutil.which("storescp", path=_WITHOUT_OURS))
        return [program, *self.options, "-pdu", str(self.max_pdu), "-od", str(self.folder), str(self.port)]

    def environment(self) -> dict[str, str]:
        return NO_DELAY


class DcmtkForking(Dcmtk):
    label = "DCMTK storescp --fork"
    options = ("--fork",)


class DcmtkAsReceived(Dcmtk):
    label = "DCMTK storescp +B --fork"
    options = ("+B", "--fork")


class DcmtkAnySyntax(Dcmtk):
    label = "DCMTK storescp +xa +B --fork"
    options = ("+xa", "+B", "--fork")


class Pynetdicom(Receiver):
    label = "pynetdicom storescp"
    is_slow = True

    def command(self) -> list[str]:
        options = [str(self.port), "-od", str(self.folder), "--max-pdu", str(self.max_pdu)]
        return [sys.executable, "-m", "pynetdicom", "storescp", *options]


class DicomRs(Receiver):
    label = "dicom-rs storescp"

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("dicom-storescp") is not None

    def command(self) -> list[str]:
        options = ["-p", str(self.port), "-o", str(self.folder), "--max-pdu-length", str(self.max_pdu)]
        return ["dicom-storescp", "--non-blocking", *options]


class Orthanc(Receiver):
    label = "Orthanc"
    syncs = "file"
    is_slow = True
    may_refuse = True

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("Orthanc") is not None

    def command(self) -> list[str]:
        config = self.folder / "orthanc.json"
        settings = {
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "index"),
            "DicomPort": self.port,
            "HttpServerEnabled": False,
            "Plugins": [],
        }
        config.write_text(json.dumps(settings))
        return ["Orthanc", str(config)]

    def environment(self) -> dict[str, str]:
        return NO_DELAY

    def visible(self) -> Iterator[Path]:
        for file in (self.folder / "storage").rglob("*"):
            if file.is_file():
                # The other attachments are summaries in JSON.
                with file.open("rb") as content:
                    if content.read(132)[128:] == b"DICM" or file.stat().st_size == 0:
                        yield file
