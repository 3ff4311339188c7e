"""A proxy between producer and broker that knows where Kafka's messages begin."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from aiokafka.protocol.api import RequestHeader_v1
from aiokafka.protocol.produce import ProduceRequest_v7

_PRODUCE = 0
_NOT_LEADER = 6


class KafkaProxy:
    """Forwards 127.0.0.1:`port` to `target`. Advertise `port` as the broker's own.

    `drop_answers(n)` lets the next n produce requests through and drops their answers with the connection;
    `delay` is waited before each answer. `refuse(topic, batch)` gives the error code with which the proxy answers a
    batch in the broker's place, or 0.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        self.delay = 0.0
        self.dropped = 0
        self.refuse: Callable[[str, bytes], int] | None = None
        self._to_drop = 0
        self._drop_every = 0
        self._answers = itertools.count(1)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="kafka-proxy")
        self._acceptor.start()

    def drop_answers(self, count: int, *, every: int = 1) -> None:
        """Drops `count` answers, one of `every`."""
        with self._lock:
            self._to_drop, self._drop_every = count, every

    @property
    def is_done(self) -> bool:
        return self._to_drop == 0

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.disconnect()
        for thread in self._threads:
            thread.join(10)

    def disconnect(self) -> None:
        """Breaks every connection."""
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", self.target), 2)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(client, broker), name="kafka-proxy-link")
            with self._lock:
                self._open |= {client, broker}
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, broker: socket.socket) -> None:
        produces: set[int] = set()
        upstream = threading.Thread(target=self._requests, args=(client, broker, produces), name="kafka-proxy-up")
        upstream.start()
        try:
            while (answer := _message(broker)) is not None:
                (correlation,) = struct.unpack_from(">i", answer, 4)
                if correlation in produces:
                    produces.discard(correlation)
                    if self._drops():
                        break
                    if self.delay:
                        self._over.wait(self.delay)
                client.sendall(answer)
        except OSError:
            pass
        for end in (client, broker):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        upstream.join()
        with self._lock:
            self._open -= {client, broker}
        client.close()
        broker.close()

    def _requests(self, client: socket.socket, broker: socket.socket, produces: set[int]) -> None:
        try:
            while (request := _message(client)) is not None:
                kind, _, correlation = struct.unpack_from(">hhi", request, 4)
                if kind == _PRODUCE:
                    if (answer := self._refusal(request)) is not None:
                        # In one piece, and the producer waits for it: no other answer is on its way.
                        client.sendall(answer)
                        continue
                    produces.add(correlation)
                broker.sendall(request)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            broker.shutdown(socket.SHUT_WR)

    def _refusal(self, request: bytes) -> bytes | None:
        """The answer to a produce request with a batch that is refused; its other batches are to be sent again."""
        if self.refuse is None:
            return None
        body = io.BytesIO(request[4:])
        header = RequestHeader_v1.SCHEMA.decode(body)
        version = ProduceRequest_v7
        assert header[1] == version.API_VERSION, f"Produce version {header[1]}"
        topics: Any = version.decode(body).topics
        codes = [
            (topic, [(partition, self.refuse(topic, batch)) for partition, batch in partitions])
            for topic, partitions in topics
        ]
        if not any(code for _, partitions in codes for _, code in partitions):
            return None
        answers = [
            (topic, [(partition, code or _NOT_LEADER, -1, -1, -1) for partition, code in partitions])
            for topic, partitions in codes
        ]
        answer = struct.pack(">i", header[2]) + version.RESPONSE_TYPE(answers, 0).encode()
        return struct.pack(">i", len(answer)) + answer

    def _drops(self) -> bool:
        with self._lock:
            if self._to_drop == 0 or next(self._answers) % self._drop_every:
                return False
            self._to_drop -= 1
            self.dropped += 1
            return True


def _message(source: socket.socket) -> bytes | None:
    length = _exactly(source, 4)
    if length is None:
        return None
    body = _exactly(source, struct.unpack(">i", length)[0])
    return None if body is None else length + body


def _exactly(source: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        part = source.recv(min(count, 1 << 18))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
