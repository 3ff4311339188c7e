"""The service: start order, signals, the drain ladder."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import pydicom
import structlog

from storescp import _core
from storescp.audit.trail import Trail
from storescp.engine import Engine
from storescp.errors import ConfigError, CoreError, TemporaryFailure
from storescp.logs import Warnings
from storescp.network.admission import Admission
from storescp.network.contexts import Offer
from storescp.network.listener import Address, Listener, is_loopback
from storescp.network.negotiation import Negotiator
from storescp.network.tls import load_tls
from storescp.notify import notify, notify_reloading
from storescp.preparation import Prepared, load_users
from storescp.publish.jsonl import JsonLinesSink
from storescp.publish.publisher import Publisher
from storescp.signals import listening

if TYPE_CHECKING:
    from storescp.http.server import HttpServer

log = structlog.get_logger("storescp.service")
EXIT_OK = 0
_HOURLY_SECONDS = 3600.0
_EVENT_WAIT_SECONDS = 0.5
_LOOK_SECONDS = 1.0


class Server(Protocol):
    """A listener of either engine."""

    @property
    def addresses(self) -> list[Address]:
        """What is listened on, the clear port first."""

    def start(self) -> None:
        """Begins to accept."""

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
        self._measuring: threading.Thread | None = None
        self._events_over = threading.Event()
        self._is_listening = False

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
            self._check_licence(datetime.now(UTC))
            server = self._make_server(engine)
            running.enter_context(listening((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._hear))
            if self._early_hangups:
                self._hear(signal.SIGHUP)
            self._announce_start(engine)
            publisher = self._make_publisher(engine)
            publisher.start()
            running.callback(self._stop_publishing, publisher)
            self._start_events(engine, running)
            trail.started()
            running.callback(trail.stopped, settings.service.publish_timeout)
            http = self._start_http(engine, server, publisher, running)
            server.start()
            self._is_listening = True
            running.callback(self._drain, server, engine)
            self._start_recovery(engine, running)
            for address in server.addresses:
                shown = f"[{address.host}]" if ":" in address.host else address.host
                line = f"listening on {shown}:{address.port} as {settings.dicom_store_scp.ae_title}"
                _print(f"{line} (TLS)" if address.tls else line)
            if http is not None:
                host, port = http.address
                _print(f"http on {f'[{host}]' if ':' in host else host}:{port}")
            notify("READY=1")
            self._wait(server, engine, trail)
        log.info("service.stopped")
        return EXIT_OK

    def _make_server(self, engine: Engine) -> Server:
        settings, admission = self._settings, self._admission
        tls, trail = self._prepared.tls, self._prepared.trail
        scp = settings.dicom_store_scp
        offer = Offer.from_settings(scp)
        if isinstance(engine, _core.Engine):
            negotiator = Negotiator(offer, scp.max_pdu_length, answers_users=admission.users is not None)
            return Listener(settings, self._configuration.host, engine, admission, negotiator, tls, trail)
        from storescp.network.pure_listener import PureListener  # noqa: PLC0415 - only where it is asked for
        from storescp.pure.engine import PureEngine  # noqa: PLC0415

        assert isinstance(engine, PureEngine)  # noqa: S101 - there are two engines
        return PureListener(settings, self._configuration.host, engine, admission, offer)

    def _check_licence(self, now: datetime) -> None:
        """One that has ended lets nobody in any more."""
        self._licence.check(now)
        self._admission.close(None if self._licence.was_valid else "licence_expired")

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
            licence=lambda: self._licence.licence,
            refused_connections=lambda: server.refused_connections() if isinstance(server, Listener) else {},
            not_ready=lambda: self._reasons_not_ready(engine),
        )
        if not is_loopback(settings.http.host) and settings.http.token is None:
            log.warning("http.exposed", text="the status page is reachable from other machines without a token")
        http = HttpServer(settings.http, probe)
        http.start()
        running.callback(http.stop)
        return http

    def _reasons_not_ready(self, engine: Engine) -> list[str]:
        reasons = []
        if not self._is_listening:
            reasons.append("not listening yet")
        if self._stop_requested.is_set():
            reasons.append("draining")
        if not self._licence.was_valid:
            reasons.append("licence expired")
        try:
            unavailable = engine.unavailable()
        except CoreError as error:
            unavailable = str(error)
        return [*reasons, unavailable] if unavailable else reasons

    def _make_publisher(self, engine: Engine) -> Publisher:
        settings = self._settings
        topics = (settings.message_queue.topic_main, settings.message_queue.topic_dicom_receive)
        keep = settings.outbox.keep_delivered
        if self._prepared.kafka is not None:
            assert settings.kafka is not None  # noqa: S101 - the sink was made from it
            gather = settings.kafka.linger_ms / 1000
            return Publisher(engine, self._prepared.kafka, topics, gather_seconds=(gather, gather), keep_delivered=keep)
        folder = settings.local_storage.dicm_store_path / ".outbox" / "events"
        sink = JsonLinesSink(folder, topics, sync=settings.local_storage.durability != "none")
        return Publisher(engine, sink, topics, keep_delivered=keep)

    def _announce_start(self, engine: Engine) -> None:
        settings, configuration = self._settings, self._configuration
        for warning in configuration.warnings:
            log.warning("configuration.warning", text=warning)
        if configuration.evaluation:
            log.warning(
                "evaluation.mode",
                text="no configuration file: evaluation licence, records go to "
                f"{'Kafka' if settings.kafka else 'JSON lines'}, reachable on {configuration.host} only",
                storage=str(settings.local_storage.dicm_store_path),
            )
            if not is_loopback(configuration.host):
                log.warning(
                    "evaluation.exposed",
                    text="evaluation mode is reachable from other machines",
                    host=configuration.host,
                )
        if self._prepared.engine_name == "python":
            log.warning(
                "engine.python",
                text="the pure-Python engine is for comparison: it transcodes what pydicom and its plugins can decode, "
                "and only to Explicit VR Little Endian; the rest is stored as received and recorded as Failed",
            )
        kept, dropped, temporary = engine.start_up()
        if kept or dropped or temporary:
            log.warning("start_up.recovered", rows_kept=kept, rows_dropped=dropped, temporary_files=temporary)
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
            storage=str(settings.local_storage.dicm_store_path),
            durability=settings.local_storage.durability,
            client_id=self._licence.licence.client_id,
            licence_days_left=self._licence.licence.days_left(datetime.now(UTC)),
        )

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_requested = True
        elif self._stop_requested.is_set():
            # The second signal means now: nothing acknowledged can be lost, everything is durable already.
            os._exit(128 + number)
        else:
            self._stop_requested.set()
        self._woken.set()

    def _wait(self, server: Server, engine: Engine, trail: Trail) -> None:
        checked = time.monotonic()
        while not self._stop_requested.is_set():
            self._woken.wait(_LOOK_SECONDS)
            self._woken.clear()
            if self._reload_requested:
                self._reload_requested = False
                notify_reloading()
                trail.reloaded(succeeded=self._reload(server))
                notify("READY=1")
            if time.monotonic() - checked >= _HOURLY_SECONDS:
                checked = time.monotonic()
                self._check_licence(datetime.now(UTC))
                self._measure_tenants(engine)

    def _measure_tenants(self, engine: Engine) -> None:
        """What was deleted beneath a tenant gives its quota back. Beside the rest: it looks at every file."""
        if not isinstance(engine, _core.Engine) or not self._settings.tenants.settings:
            return

        def measure() -> None:
            try:
                engine.measure_tenants()
            except CoreError as error:
                log.warning("tenants.not_measured", reason=str(error))

        if self._measuring is None or not self._measuring.is_alive():
            self._measuring = threading.Thread(target=measure, name="storescp-measure", daemon=True)
            self._measuring.start()

    def _reload(self, server: Server) -> bool:
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
        log.info("reload.done", tls=tls is not None, users=users is not None)
        return True

    def _start_events(self, engine: Engine, running: contextlib.ExitStack) -> None:
        """At debug level one line for each instance."""
        if self._settings.log.level != "debug" or not isinstance(engine, _core.Engine):
            return
        engine.enable_events(enabled=True)

        def follow() -> None:
            while True:
                over = self._events_over.is_set()
                facts, dropped = engine.events(0.0 if over else _EVENT_WAIT_SECONDS)
                for fact in facts:
                    log.debug(
                        "instance.stored" if fact.status == 0 else "instance.refused",
                        association=fact.association,
                        message_id=fact.message_id,
                        status=f"{fact.status:04X}",
                        comment=fact.comment or None,
                        sop_instance_uid=fact.sop_instance_uid,
                        bytes=fact.bytes,
                        commit_ms=round(fact.commit_seconds * 1000, 3),
                    )
                if dropped:
                    log.debug("instance.log_lines_dropped", count=dropped)
                if over:
                    return

        thread = threading.Thread(target=follow, name="storescp-events")
        thread.start()
        running.callback(thread.join)
        running.callback(self._events_over.set)

    def _start_recovery(self, engine: Engine, running: contextlib.ExitStack) -> None:
        """Records files that an interrupted predecessor may have left without a record, beside reception."""
        if not isinstance(engine, _core.Engine):
            return

        def recover() -> None:
            try:
                found = engine.recover()
            except CoreError as error:
                log.warning("recovery.not_finished", text="the next start begins it again", reason=str(error))
                return
            if found is None:
                return
            files, recorded, left, missing = found
            tell = log.warning if recorded or left or missing else log.info
            tell(
                "recovery.finished",
                files=files,
                recorded=recorded,
                left_without_record=left,
                records_without_file=missing,
                text="storescpd verify shows each" if left or missing else None,
            )

        thread = threading.Thread(target=recover, name="storescp-recovery")
        thread.start()
        running.callback(thread.join)
        running.callback(engine.stop_recovery)

    def _drain(self, server: Server, engine: Engine) -> None:
        timeouts = self._settings.service
        notify("STOPPING=1")
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
