"""Where audit messages go: syslog over TLS (RFC 5425) or TCP (RFC 6587), or a file."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from storescp.durable import leads_to
from storescp.errors import ConfigError, ConfigProblem, TemporaryFailure, start_failure
from storescp.files import check_readable, check_writable
from storescp.settings import Audit

log = structlog.get_logger("storescp.audit")
# RFC 5424 6.2.1: facility 10 (security and authorisation), severity 5 (notice).
_PRIORITY = 10 * 8 + 5
_MESSAGE_ID = "DICOM+RFC3881"  # PS3.15 A.6.1
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 2.0
_LAST_RETRY_SECONDS = 0.2


class Destination(Protocol):
    """Takes whole syslog messages."""

    def send(self, text: bytes) -> None:
        """Raises OSError when it did not arrive."""

    def close(self) -> None:
        """No more."""


class FileDestination:
    """One message a line, flushed to the operating system.

    The file may be renamed or removed at any time: the next message goes to a new file of that name. A line that was
    interrupted (no space, a power cut) stays as it is; the next message has a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._is_torn = _open_for_appending(path)

    def send(self, text: bytes) -> None:
        """Appends it."""
        if not leads_to(self._path, self._file):
            before = self._file
            self._file, self._is_torn = _open_for_appending(self._path)
            os.close(before)
        line = (b"\n" if self._is_torn else b"") + text.replace(b"\n", b" ") + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
            self._is_torn = bool(line)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def _open_for_appending(path: Path) -> tuple[int, bool]:
    """The file, and whether it ends within a line."""
    is_torn = _ends_within_a_line(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), is_torn


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        return file.read() not in {b"", b"\n"}


class SyslogDestination:
    """Octet counting over a connection that is made anew when it breaks."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._address = (host, port)
        self._context = context
        self._socket: socket.socket | None = None

    def send(self, text: bytes) -> None:
        """Sends it, over a new connection where there is none."""
        try:
            if self._socket is None or self._is_closed(self._socket):
                self._connect()
            assert self._socket is not None  # noqa: S101 - just connected
            self._socket.sendall(b"%d " % len(text) + text)
        except OSError:
            self.close()
            raise

    def _connect(self) -> None:
        self.close()
        connection = socket.create_connection(self._address, _CONNECT_SECONDS)
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_hostname=self._address[0])
        self._socket = connection

    @staticmethod
    def _is_closed(connection: socket.socket) -> bool:
        """A receiver says nothing, so what can be read is the end; what is sent after it is lost without an error."""
        connection.setblocking(False)
        try:
            return not connection.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(_CONNECT_SECONDS)

    def close(self) -> None:
        """Closes the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def check_destination(section: Audit) -> None:
    """Whether a destination can be opened, as far as that leaves no trace.

    Raises:
        ConfigError: a file or certificate cannot be used.
        TemporaryFailure: one cannot be used now.
    """
    if (path := _file_of(section)) is not None:
        try:
            check_writable(path)
        except OSError as error:
            raise _file_failure(path, error) from None
    else:
        _tls_context(section)


def open_destination(section: Audit) -> Destination:
    """Where a configuration sends them. The connection is made with the first message.

    Raises:
        ConfigError: a file or certificate cannot be used.
        TemporaryFailure: one cannot be used now.
    """
    if (path := _file_of(section)) is not None:
        try:
            return FileDestination(path)
        except OSError as error:
            raise _file_failure(path, error) from None
    parts = urlsplit(section.destination)
    return SyslogDestination(str(parts.hostname), int(parts.port or 0), _tls_context(section))


def _file_of(section: Audit) -> Path | None:
    scheme, _, rest = section.destination.partition(":")
    return Path(rest.removeprefix("//")) if scheme == "file" else None


def _file_failure(path: Path, error: OSError) -> ConfigError | TemporaryFailure:
    return start_failure("audit.destination", path, "a file that can be written", error)


def _tls_context(section: Audit) -> ssl.SSLContext | None:
    if not section.destination.startswith("tls:"):
        return None
    key, path = "audit.ca_certificate", section.ca_certificate
    try:
        if path is not None:
            check_readable(key, path)
        context = ssl.create_default_context(cafile=path)
        key, path = "audit.client_certificate", section.client_certificate
        if path is not None:
            check_readable(key, path)
            # Without a password the library would ask for one at the terminal.
            context.load_cert_chain(path, password=lambda: "")
    except ssl.SSLError as error:
        expected = f"a file of PEM certificates, and the key of a client certificate ({error.reason or error})"
        raise ConfigError(ConfigProblem(key, str(path), expected, "configuration")) from None
    return context


class Transport:
    """A thread that delivers in order; messages wait while the destination is unreachable, up to a number."""

    def __init__(self, destination: Destination, most: int) -> None:
        self._destination = destination
        self._most = most
        self._host = socket.gethostname() or "-"
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._lost = 0
        self._thread = threading.Thread(target=self._deliver, name="storescp-audit")

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread is."""
        return self._thread.is_alive()

    def put(self, at: datetime, text: str) -> None:
        """Queues a message; the newest are lost where too many wait, which is counted and logged."""
        time, process = at.isoformat(timespec="milliseconds"), os.getpid()
        header = f"<{_PRIORITY}>1 {time} {self._host} storescp {process} {_MESSAGE_ID} - "
        # RFC 5424 6.4: the byte order mark says that it is UTF-8.
        framed = header.encode() + b"\xef\xbb\xbf" + text.encode()
        with self._changed:
            if len(self._waiting) >= self._most:
                self._lost += 1
                if self._lost & (self._lost - 1) == 0:
                    log.error(
                        "audit.lost", count=self._lost, text="the destination is unreachable, and the queue is full"
                    )
                return
            self._waiting.append(framed)
            self._changed.notify()

    def stop(self, timeout: float) -> None:
        """Delivers what waits, for so many seconds at most."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            if self._waiting:
                log.error("audit.lost", count=len(self._waiting) + self._lost, text="not delivered before the end")
                self._waiting.clear()
        self._thread.join(_CONNECT_SECONDS)
        self._destination.close()

    def _deliver(self) -> None:
        failed = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                message = self._waiting[0]
            try:
                self._destination.send(message)
            except OSError as error:
                if not failed:
                    log.error("audit.unreachable", reason=str(error))  # noqa: TRY400 - an operator's matter
                failed = True
                with self._changed:
                    if self._stopping:
                        self._changed.wait(_LAST_RETRY_SECONDS)
                    else:
                        self._changed.wait_for(lambda: self._stopping, _RETRY_SECONDS)
                    if self._stopping and not self._waiting:
                        return
                continue
            if failed:
                log.info("audit.reachable")
            failed = False
            with self._changed:
                if self._waiting:
                    self._waiting.popleft()
