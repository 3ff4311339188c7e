"""The endpoints and the status page, served by uvicorn in a thread of its own."""

from __future__ import annotations

import threading

import uvicorn

from storescp.http.app import make_app
from storescp.http.connections import Connection, Server
from storescp.http.health import Probe
from storescp.network.listener import BACKLOG, HTTP_PORT, bind
from storescp.settings import Http

_STOP_SECONDS = 5.0


class HttpServer:
    """Listens from its making on; `start` and `stop`."""

    def __init__(self, settings: Http, probe: Probe) -> None:
        """Binds.

        Raises:
            BindError: the address is taken or not ours.
        """
        self._socket = bind(settings.host, settings.port, HTTP_PORT)
        self._stopping = threading.Event()
        config = uvicorn.Config(
            make_app(probe, settings, self._stopping.is_set),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            # Not what happens to be installed beside it.
            loop="asyncio",
            http=Connection,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = Server(config, BACKLOG)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="storescp-http", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread that answers is alive."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends once the requests under way are answered."""
        self._stopping.set()
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._socket.close()
