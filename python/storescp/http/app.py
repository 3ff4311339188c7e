"""The endpoints: probes, metrics, and the status page with what it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from storescp import _core
from storescp.http.health import Probe, ServiceCollector
from storescp.http.status import Status
from storescp.http.storage import Storage, notes
from storescp.http.thumbnails import NoPicture, Thumbnails
from storescp.settings import Http

_SECOND = 1.0
_LOOK_SECONDS = 0.25
_MOST_WATCHERS = 20
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_SAFE = {
    "Cache-Control": "no-store",
    # The page has no part from elsewhere, runs nothing that is written into it, and goes into no frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Endpoint = Callable[[Request], Awaitable[Response]]


class _Guard:
    """Who may see what.

    With a token, whoever has it. Without one, whoever can connect; but then a page elsewhere must not be able to make
    somebody's browser read this one under another name (DNS rebinding), so the name it was asked by is looked at.
    """

    def __init__(self, settings: Http) -> None:
        self._token = None if settings.token is None else settings.token.get_secret_value()
        self._names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self._names |= {name.lower() for name in settings.allowed_hosts}

    def token(self, endpoint: Endpoint) -> Endpoint:
        """Asks for the token where there is one."""

        async def guarded(request: Request) -> Response:
            if self._token is not None and not self._has_token(request):
                return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": "Bearer"} | _SAFE)
            return await endpoint(request)

        return guarded

    def page(self, endpoint: Endpoint) -> Endpoint:
        """Asks for the token where there is one, else for a name of ours."""

        async def guarded(request: Request) -> Response:
            if self._token is None and not self._is_our_name(request):
                text = "not a name of this service; see http.allowed_hosts\n"
                return PlainTextResponse(text, 421, _SAFE)
            return await endpoint(request)

        return self.token(guarded)

    def _has_token(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return self._token is not None and hmac.compare_digest(given, b"Bearer " + self._token.encode())

    def _is_our_name(self, request: Request) -> bool:
        host = request.headers.get("host", "").lower()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.rpartition(":")[0] or host
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def make_app(probe: Probe, settings: Http, is_stopping: Callable[[], bool]) -> Starlette:
    """The application."""
    storage = Storage(probe)
    status = Status(probe, storage)
    guard = _Guard(settings)
    if isinstance(probe.engine, _core.Engine):
        probe.engine.watch_instances()

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async def sample() -> None:
            while True:
                await asyncio.sleep(_SECOND)
                status.sample()

        sampling = asyncio.create_task(sample())
        yield
        sampling.cancel()

    routes = [
        Route("/livez", _livez(probe)),
        Route("/readyz", _readyz(probe, storage)),
        Route("/metrics", guard.token(_metrics(probe, storage))),
        Route("/status", guard.page(_status(status))),
        Route("/events", guard.page(_events(status, is_stopping))),
        Route("/thumbnails/{number:int}", guard.page(_thumbnails(probe, settings))),
        # What the page is made of has no data in it; it asks for the token itself.
        *(Route(path, _file(name, media_type)) for path, (name, media_type) in _PAGE.items()),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _livez(probe: Probe) -> Endpoint:
    async def livez(_request: Request) -> Response:
        dead = probe.dead()
        return PlainTextResponse(f"dead: {', '.join(dead)}\n" if dead else "alive\n", 503 if dead else 200)

    return livez


def _readyz(probe: Probe, storage: Storage) -> Endpoint:
    async def readyz(_request: Request) -> Response:
        await storage.disk.ask()
        reasons = [*probe.not_ready(), *storage.reasons()]
        # What should be known although it is ready.
        told = [*reasons, *notes(probe, storage), *probe.licence.notes()]
        return JSONResponse({"ready": not reasons, "reasons": told}, 503 if reasons else 200)

    return readyz


def _metrics(probe: Probe, storage: Storage) -> Endpoint:
    registry = CollectorRegistry()
    registry.register(ServiceCollector(probe, storage))
    writing: dict[str, asyncio.Task[bytes]] = {}

    async def write(media_type: str) -> bytes:
        await storage.refresh()
        return await to_thread.run_sync(openmetrics if media_type == OPENMETRICS else generate_latest, registry)

    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)

    async def metrics(request: Request) -> Response:
        is_open = "application/openmetrics-text" in request.headers.get("accept", "")
        media_type = OPENMETRICS if is_open else CONTENT_TYPE_LATEST
        # However many ask at once, it is written once.
        if media_type not in writing or writing[media_type].done():
            writing[media_type] = asyncio.create_task(write(media_type))
        return Response(await asyncio.shield(writing[media_type]), media_type=media_type)

    return metrics


def _status(status: Status) -> Endpoint:
    async def one(_request: Request) -> Response:
        return JSONResponse(await status.snapshot(), headers=_SAFE)

    return one


def _events(status: Status, is_stopping: Callable[[], bool]) -> Endpoint:
    """Server-sent events: `history` once, then `status` each second."""
    watchers = 0

    async def stream() -> AsyncIterator[str]:
        nonlocal watchers
        watchers += 1
        try:
            yield _event("history", status.history())
            while not is_stopping():
                yield _event("status", await status.snapshot())
                for _ in range(int(_SECOND / _LOOK_SECONDS)):
                    if not is_stopping():
                        await asyncio.sleep(_LOOK_SECONDS)
        finally:
            watchers -= 1

    async def events(_request: Request) -> Response:
        if watchers >= _MOST_WATCHERS:
            return PlainTextResponse("too many watch already\n", 503, {"Retry-After": "10"} | _SAFE)
        return StreamingResponse(stream(), media_type="text/event-stream", headers=_SAFE)

    return events


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def _thumbnails(probe: Probe, settings: Http) -> Endpoint:
    one_at_a_time = CapacityLimiter(1)
    thumbnails = Thumbnails(probe.engine) if isinstance(probe.engine, _core.Engine) else None

    async def thumbnail(request: Request) -> Response:
        if thumbnails is None or not settings.show_patient_data:
            return PlainTextResponse("pictures are patient data: see http.show_patient_data\n", 403, _SAFE)
        try:
            number = request.path_params["number"]
            picture = await to_thread.run_sync(thumbnails.get, number, limiter=one_at_a_time)
        except NoPicture as error:
            return PlainTextResponse(f"no picture: {error}\n", 404, _SAFE)
        return Response(picture, media_type="image/png", headers=_SAFE)

    return thumbnail


def _file(name: str, media_type: str) -> Endpoint:
    content = resources.files("storescp.http").joinpath("page", name).read_bytes()

    async def file(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_SAFE)

    return file
