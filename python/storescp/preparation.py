"""What a service stands on: checked and opened before anything listens.

Nothing here needs pydicom or pynetdicom: they take long to load, which is done while storage opens.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storescp import _core
from storescp.audit.trail import Trail
from storescp.config import Configuration
from storescp.engine import Engine, engine_config
from storescp.errors import ConfigError, ConfigProblem, CoreError, TemporaryFailure
from storescp.licensing import LicenceWatch, configured_licence, evaluation_licence
from storescp.network.identity import Users
from storescp.network.tls import load_tls
from storescp.roots import make_root
from storescp.settings import Settings

if TYPE_CHECKING:
    from storescp.publish.kafka import KafkaSink

_DESCRIPTORS = 65536


@dataclass
class Prepared:
    """What was found in order. Storage may still be opening."""

    configuration: Configuration
    engine_name: str
    licence: LicenceWatch
    trail: Trail
    opening: Future[Engine]
    kafka: KafkaSink | None = None
    users: Users | None = None
    tls: _core.Tls | None = None

    def engine(self) -> Engine:
        """Waits for storage and outbox.

        Raises:
            ConfigError: the storage root cannot be used.
        """
        return self.opening.result()


@contextlib.contextmanager
def prepare(configuration: Configuration, engine_name: str) -> Iterator[Prepared]:
    """Checks what can refuse a start, and begins to open storage, which is closed at the end.

    Raises:
        ConfigError, LicenceError: it cannot start.
    """
    settings = configuration.settings
    _refuse_unavailable(settings, engine_name)
    _raise_descriptor_limit()
    licence = evaluation_licence(settings) if configuration.evaluation else configured_licence(settings)
    watch = LicenceWatch(licence, configuration)
    kafka = _kafka_sink(settings)
    trail = Trail(settings)
    users = load_users(settings)
    tls = None if settings.tls is None else load_tls(settings.tls)
    with ThreadPoolExecutor(1, "storescp-open") as beside:
        opening = beside.submit(_open_engine, settings, engine_name)
        if engine_name == "python":
            # It imports pydicom, and two threads that do so at once see half of it.
            opening.exception()
        try:
            yield Prepared(configuration, engine_name, watch, trail, opening, kafka, users, tls)
        finally:
            if opening.exception() is None:
                opening.result().close()


def load_users(settings: Settings) -> Users | None:
    """The file of users, where one is configured.

    Raises:
        ConfigError: it cannot be used.
    """
    if settings.user_identity is None:
        return None
    path = settings.user_identity.users
    try:
        return Users.load(path)
    except (OSError, ValueError) as error:
        problem = ConfigProblem("user_identity.users", str(path), f"a file of users ({error})", "configuration")
        raise ConfigError(problem) from None


def _refuse_unavailable(settings: Settings, engine: str) -> None:
    """What is configured and not part of this version must not be ignored in silence."""
    if settings.tls is not None and engine == "python":
        expected = "no [tls] with --engine python, which is for comparison"
        raise ConfigError(ConfigProblem("tls", "(section)", expected, "configuration"))
    if settings.audit is not None and engine == "python":
        expected = "no [audit] with --engine python, which is for comparison"
        raise ConfigError(ConfigProblem("audit", "(section)", expected, "configuration"))
    limited = [entry.tenant_id for entry in settings.tenants.settings]
    if limited and engine == "python":
        expected = "no tenant settings with --engine python, which is for comparison"
        raise ConfigError(ConfigProblem("tenants.settings", str(limited), expected, "configuration"))


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have: each connection needs one, each association a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, _DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _kafka_sink(settings: Settings) -> KafkaSink | None:
    """Made before anything starts, so that a certificate file that cannot be used is a configuration error."""
    if settings.kafka is None:
        return None
    from storescp.publish.kafka import KafkaSink  # noqa: PLC0415 - only where it is configured

    return KafkaSink(settings.kafka)


def _open_engine(settings: Settings, engine: str) -> Engine:
    """Storage and outbox; a ConfigError where the storage root cannot be used."""
    root = settings.local_storage.dicm_store_path
    make_root(settings)
    try:
        if engine == "python":
            from storescp.pure.engine import PureEngine  # noqa: PLC0415 - only where it is asked for

            return PureEngine(settings)
        return _core.Engine(engine_config(settings))
    except TemporaryFailure:
        raise
    except CoreError as error:
        raise ConfigError(
            ConfigProblem(
                "local_storage.dicm_store_path",
                str(root),
                f"a usable storage root ({error})",
                "configuration",
            )
        ) from None
