"""The service: start order, signals, the drain ladder."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import pydicom
import structlog

from storescp import _core
from storescp.audit.trail import Trail
from storescp.drift import reload_text
from storescp.engine import Engine
from storescp.errors import ConfigError, StorescpError, TemporaryFailure
from storescp.liveness import Liveness
from storescp.logs import Warnings
from storescp.network import instances
from storescp.network.admission import Admission
from storescp.network.contexts import Offer
from storescp.network.listener import Address, Listener, is_loopback
from storescp.network.negotiation import Negotiator
from storescp.network.occupancy import OccupancyWatch
from storescp.network.tls import load_tls
from storescp.notify import Watchdog, notify, notify_reloading
from storescp.preparation import Prepared, load_users
from storescp.publish.jsonl import JsonLinesSink
from storescp.publish.publisher import Publisher
from storescp.settings import Settings
from storescp.signals import listening
from storescp.space import SpaceWatch, roots_of
from storescp.upkeep import Upkeep, announce
from storescp.workers import plan_workers

if TYPE_CHECKING:
    from storescp.http.server import HttpServer

log = structlog.get_logger("storescp.service")
EXIT_OK = 0
_EVENT_WAIT_SECONDS = 0.5
_LOOK_SECONDS = 1.0


class Server(Protocol):
    """A listener of either engine."""

    @property
    def addresses(self) -> list[Address]:
        """What is listened on, the clear port first."""

    def refused_connections(self) -> dict[str, int]:
        """Connections turned away before they were associations, by reason."""

    def start(self) -> None:
        """Begins to accept."""

    def is_alive(self) -> bool:
        """Whether the threads that accept and serve are alive; always before the start and after the end."""

    def stop_accepting(self) -> None:
        """Refuses new associations; those that run go on."""

    def join(self, timeout: float) -> bool:
        """Waits for the associations; whether all are over."""


def _print(line: str) -> None:
    """To standard output. That nobody reads it, or that its disk is full, does not end a service."""
    try:
        print(line, flush=True)  # noqa: T201
    except OSError as error:
        log.warning("stdout.not_written", line=line, reason=error.strerror)


def _records_to(settings: Settings) -> str:
    """Where records go, by name."""
    queue = settings.message_queue
    topics = f"{queue.topic_main} and {queue.topic_dicom_receive}"
    if settings.kafka is not None:
        return f"Kafka at {settings.kafka.brokers}, topics {topics}"
    return f"JSON lines, files {topics}"


class Service:
    """Everything that runs, from start to drain."""

    def __init__(self, prepared: Prepared, warned: Warnings, early_hangups: Sequence[int] = ()) -> None:
        """`early_hangups` grows with each SIGHUP that comes before the service hears signals."""
        self._warned = warned
        self._early_hangups = early_hangups
        self._prepared = prepared
        self._configuration = prepared.configuration
        self._settings = prepared.configuration.settings
        self._licence = prepared.licence
        self._stop_requested = threading.Event()
        self._reload_requested = False
        self._woken = threading.Event()
        self._reloading: threading.Thread | None = None
        self._liveness = Liveness()
        self._watchdog = Watchdog()
        self._dead: list[str] = []
        self._events_over = threading.Event()
        self._is_listening = False
        self._space = SpaceWatch(roots_of(self._settings), self._settings.storage.min_free_bytes)

    def run(self) -> int:
        """Serves until a signal; returns the exit code.

        Raises:
            ConfigError, TemporaryFailure, BindError: it cannot start.
        """
        settings, trail = self._settings, self._prepared.trail
        # To look for UIDs worth a warning, which nobody would hear, takes two fifths of a negotiation.
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        with contextlib.ExitStack() as running:
            engine = self._prepared.engine()
            self._admission = Admission(settings, engine.unavailable)
            self._admission.users = self._prepared.users
            server = self._make_server(engine)
            hears = running.enter_context(listening((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._hear))
            if self._early_hangups:
                self._hear(signal.SIGHUP)
            self._announce_start(engine)
            publisher = self._make_publisher(engine)
            publisher.start()
            running.callback(self._stop_publishing, publisher)
            self._start_events(engine, running)
            trail.started()
            for name, is_alive in (
                ("signals", hears),
                ("publisher", publisher.is_running),
                ("outbox", engine.outbox_is_alive),
                ("audit trail", trail.is_alive),
                ("listener", server.is_alive),
            ):
                self._liveness.watch(name, is_alive)
            running.callback(trail.stopped, settings.service.publish_timeout)
            http = self._start_http(engine, server, publisher, running)
            server.start()
            self._is_listening = True
            running.callback(self._drain, server, engine)
            upkeep = Upkeep(engine, self._licence)
            upkeep.start()
            running.callback(upkeep.stop)
            occupancy = OccupancyWatch(self._admission, settings.dicom_store_scp.max_associations)
            occupancy.start()
            running.callback(occupancy.stop)
            self._space.start()
            running.callback(self._space.stop)
            for address in server.addresses:
                shown = f"[{address.host}]" if ":" in address.host else address.host
                line = f"listening on {shown}:{address.port} as {settings.dicom_store_scp.ae_title}"
                _print(f"{line} (TLS)" if address.tls else line)
            if http is not None:
                host, port = http.address
                _print(f"http on {f'[{host}]' if ':' in host else host}:{port}")
            notify("READY=1")
            self._wait(server, trail, publisher)
        log.info("service.stopped")
        return EXIT_OK

    def _make_server(self, engine: Engine) -> Server:
        settings, admission = self._settings, self._admission
        tls, trail = self._prepared.tls, self._prepared.trail
        scp = settings.dicom_store_scp
        offer = Offer.from_settings(settings)
        if isinstance(engine, _core.Engine):
            negotiator = Negotiator(offer, scp.max_pdu_length, answers_users=admission.users is not None)
            return Listener(settings, self._configuration.host, engine, admission, negotiator, tls, trail)
        from storescp.network.pure_listener import PureListener  # noqa: PLC0415 - only where it is asked for
        from storescp.pure.engine import PureEngine  # noqa: PLC0415

        assert isinstance(engine, PureEngine)  # noqa: S101 - there are two engines
        return PureListener(settings, self._configuration.host, engine, admission, offer)

    def _start_http(
        self, engine: Engine, server: Server, publisher: Publisher, running: contextlib.ExitStack
    ) -> HttpServer | None:
        """Before associations are let in, and until the last is over: probes see both."""
        settings = self._settings
        if settings.http is None:
            return None
        from storescp.http.health import Probe  # noqa: PLC0415 - only where it is configured
        from storescp.http.server import HttpServer  # noqa: PLC0415

        probe = Probe(
            settings=settings,
            host=self._configuration.host,
            warned=self._warned,
            engine=engine,
            admission=self._admission,
            publisher=publisher,
            licence=self._licence,
            refused_connections=server.refused_connections,
            not_ready=self._reasons_not_ready,
            dead=self._liveness.dead,
        )
        if not is_loopback(settings.http.host) and settings.http.token is None:
            log.warning("http.exposed", text="the status page is reachable from other machines without a token")
        http = HttpServer(settings.http, probe)
        http.start()
        running.callback(http.stop)
        self._liveness.watch("http", http.is_alive)
        return http

    def _reasons_not_ready(self) -> list[str]:
        """Those that are in memory."""
        reasons = []
        if not self._is_listening:
            reasons.append("not listening yet")
        if self._stop_requested.is_set():
            reasons.append("draining")
        return reasons

    def _make_publisher(self, engine: Engine) -> Publisher:
        settings = self._settings
        topics = (settings.message_queue.topic_main, settings.message_queue.topic_dicom_receive)
        keep = settings.outbox.keep_delivered
        if self._prepared.kafka is not None:
            assert settings.kafka is not None  # noqa: S101 - the sink was made from it
            gather = settings.kafka.linger_ms / 1000
            return Publisher(engine, self._prepared.kafka, topics, gather_seconds=(gather, gather), keep_delivered=keep)
        folder = settings.storage.root / ".outbox" / "events"
        sync, max_bytes = settings.storage.durability != "none", settings.json_lines.max_bytes
        sink = JsonLinesSink(folder, topics, sync=sync, max_bytes=max_bytes)
        return Publisher(engine, sink, topics, keep_delivered=keep)

    def _announce_start(self, engine: Engine) -> None:
        settings, configuration = self._settings, self._configuration
        for warning in configuration.warnings:
            log.warning("configuration.warning", text=warning)
        if configuration.evaluation:
            log.warning(
                "evaluation.mode",
                text="no configuration file: evaluation licence, records go to "
                f"{_records_to(settings)}, reachable on {configuration.host} only",
                storage=str(settings.storage.root),
            )
            if not is_loopback(configuration.host):
                log.warning(
                    "evaluation.exposed",
                    text="evaluation mode is reachable from other machines",
                    host=configuration.host,
                )
        self._announce_storage()
        self._announce_workers()
        if self._prepared.engine_name == "python":
            log.warning(
                "engine.python",
                text="the pure-Python engine is for comparison: it transcodes what pydicom and its plugins can decode, "
                "and only to Explicit VR Little Endian; the rest is stored as received and recorded as Failed",
            )
        announce(engine.start_up())
        damage = engine.damage() if isinstance(engine, _core.Engine) else None
        if damage is not None:
            log.error(
                "outbox.damaged",
                text="the outbox was damaged: it is kept aside, what could be read of it is in a new one, "
                "and files that lost their record get one",
                kept_as=damage[0],
                reason=damage[1],
                rows_salvaged=damage[2],
            )
        log.info(
            "service.started",
            version=_core.__version__,
            engine=self._prepared.engine_name,
            storage=str(settings.storage.root),
            durability=settings.storage.durability,
            records=_records_to(settings),
            client_id=self._licence.licence.client_id,
            licence_days_left=self._licence.licence.days_left(datetime.now(UTC)),
        )

    def _announce_workers(self) -> None:
        """How many processes transcode, where that is not what the configuration asks for."""
        # The pure-Python engine transcodes in the process of the service.
        if self._prepared.engine_name == "python":
            return
        plan = plan_workers(self._settings.transcoding)
        if plan.remark is not None:
            log.warning(
                "transcoding.workers_limited",
                text=plan.remark,
                workers=plan.processes,
                worker_memory_bytes=plan.memory_bytes,
            )

    def _announce_storage(self) -> None:
        """Whose the instances are where nothing says so, and that no instance can be taken for want of space."""
        tenants = self._settings.tenants
        is_given = self._configuration.source_of("tenants.default") != "default"
        if not (is_given or tenants.rules or tenants.from_private_element):
            log.info(
                "tenants.default",
                text="no tenants are configured: every instance belongs to the default tenant of wado-storescp; "
                "set tenants.default or [[tenants.rules]]",
                tenant=tenants.default,
            )
        self._space.look()

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_requested = True
        elif self._stop_requested.is_set():
            # The second signal means now: nothing acknowledged can be lost, everything is durable already.
            os._exit(128 + number)
        else:
            self._stop_requested.set()
        self._woken.set()

    def _wait(self, server: Server, trail: Trail, publisher: Publisher) -> None:
        """The main loop, until the service is told to stop. What may wait for a disk is done beside it."""
        while not self._stop_requested.is_set():
            self._show_life()
            self._woken.wait(min(_LOOK_SECONDS, self._watchdog.interval or _LOOK_SECONDS))
            self._woken.clear()
            if self._reload_requested and (self._reloading is None or not self._reloading.is_alive()):
                self._reload_requested = False
                publisher.reopen()
                self._reloading = threading.Thread(
                    target=self._reload_and_tell, args=(server, trail), name="storescp-reload", daemon=True
                )
                self._reloading.start()
        self._liveness.rest()
        # From here on, systemd expects no pings.
        notify("STOPPING=1")

    def _show_life(self) -> None:
        """The heartbeat of the main thread, and the pings of systemd's watchdog while all live that must."""
        self._liveness.beat()
        dead = self._liveness.dead()
        if dead != self._dead:
            self._dead = dead
            if dead:
                log.error("service.dead", text="threads that must live have ended: restart the service", threads=dead)
        if not dead:
            self._watchdog.ping()

    def _reload_and_tell(self, server: Server, trail: Trail) -> None:
        notify_reloading()
        try:
            succeeded = self._reload(server)
        except Exception:
            # systemd waits for the end of it.
            log.exception("reload.failed", text="what was loaded before stays in force")
            succeeded = False
        trail.reloaded(succeeded=succeeded)
        if not self._stop_requested.is_set():
            notify("READY=1")

    def _reload(self, server: Server) -> bool:
        """Reads the licence again, and what decides who may come in; whether both are in order."""
        # Each by itself: a licence that is not in order must not keep a revocation list from being read.
        licence_is_read, access_is_read = self._reload_licence(), self._reload_access(server)
        if licence_is_read and access_is_read:
            licence = self._licence.licence
            text, needs_restart = reload_text(self._configuration)
            log.info(
                "reload.done",
                text=text,
                needs_restart=needs_restart or None,
                tls=self._settings.tls is not None,
                users=self._settings.user_identity is not None,
                client_id=licence.client_id,
                licence_days_left=licence.days_left(datetime.now(UTC)),
            )
        return licence_is_read and access_is_read

    def _reload_licence(self) -> bool:
        try:
            self._licence.read_again(datetime.now(UTC))
        except StorescpError as error:
            log.error("reload.failed", text="the licence before stays in force", reason=str(error))  # noqa: TRY400
            return False
        return True

    def _reload_access(self, server: Server) -> bool:
        """Certificates, authorities, revocation lists and users; whether. What is bad leaves the old ones in force."""
        settings = self._settings
        try:
            users = load_users(settings)
            tls = None if settings.tls is None else load_tls(settings.tls)
        except (ConfigError, TemporaryFailure) as error:
            log.error("reload.failed", text="what was loaded before stays in force", reason=str(error))  # noqa: TRY400
            return False
        self._admission.users = users
        if tls is not None and isinstance(server, Listener):
            server.set_tls(tls)
        return True

    def _start_events(self, engine: Engine, running: contextlib.ExitStack) -> None:
        """Lines for refused instances, and at debug level for each instance."""
        level = self._settings.log.level
        if level not in {"debug", "info"} or not isinstance(engine, _core.Engine):
            return
        engine.enable_events(of_all=level == "debug")

        def follow() -> None:
            while True:
                over = self._events_over.is_set()
                facts, dropped = engine.events(0.0 if over else _EVENT_WAIT_SECONDS)
                for fact in facts:
                    instances.tell(fact, explains=level == "debug")
                if dropped:
                    log.info("instance.log_lines_dropped", count=dropped)
                if over:
                    return

        thread = threading.Thread(target=follow, name="storescp-events")
        thread.start()
        running.callback(thread.join)
        running.callback(self._events_over.set)
        self._liveness.watch("event log", thread.is_alive)

    def _drain(self, server: Server, engine: Engine) -> None:
        timeouts = self._settings.service
        log.info("service.draining", drain_timeout=timeouts.drain_timeout)
        server.stop_accepting()
        finished = server.join(timeouts.drain_timeout)
        if not finished:
            log.warning("service.aborting_associations")
            abort_all = getattr(engine, "abort_all", None) or getattr(server, "abort_all", None)
            if abort_all is not None:
                abort_all()
            server.join(timeouts.drain_timeout)

    def _stop_publishing(self, publisher: Publisher) -> None:
        emptied = publisher.stop(self._settings.service.publish_timeout)
        if not emptied:
            log.warning("outbox.not_empty", text="records that are left are published after the next start")
