"""The endpoints, served by uvicorn in a thread of its own."""

from __future__ import annotations

import hmac
import threading

import uvicorn
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from storescp.http.health import Probe, ServiceCollector
from storescp.network.listener import bind
from storescp.settings import Http

_STOP_SECONDS = 5.0
_MOST_CONNECTIONS = 100


def make_app(probe: Probe, token: str | None) -> Starlette:
    """The application. With a token, everything but the probes asks for it."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(probe))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_request: Request) -> Response:
        reasons = await run_in_threadpool(probe.not_ready)
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def metrics(request: Request) -> Response:
        if token is not None and not _has_token(request, token):
            return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": "Bearer"})
        # Reading the outbox takes a moment.
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            return Response(await run_in_threadpool(openmetrics, registry), media_type=OPENMETRICS)
        return Response(await run_in_threadpool(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


def _has_token(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(given, b"Bearer " + token.encode())


class HttpServer:
    """Listens from its making on; `start` and `stop`."""

    def __init__(self, settings: Http, probe: Probe) -> None:
        """Binds.

        Raises:
            BindError: the address is taken or not ours.
        """
        self._socket = bind(settings.host, settings.port)
        token = None if settings.token is None else settings.token.get_secret_value()
        config = uvicorn.Config(
            make_app(probe, token),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
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

    def stop(self) -> None:
        """Ends once the requests under way are answered."""
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._socket.close()
