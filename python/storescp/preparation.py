"""What a service stands on: checked and opened before anything listens.

Nothing here needs pydicom or pynetdicom: they take long to load, which is done while storage opens.
"""

from __future__ import annotations

import contextlib
import functools
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from storescp import _core
from storescp.audit.trail import Trail
from storescp.audit.transport import check_destination
from storescp.config import Configuration
from storescp.engine import Engine, engine_config
from storescp.errors import (
    ConfigError,
    ConfigProblem,
    CoreError,
    LicenceError,
    StartError,
    StorescpError,
    TemporaryFailure,
)
from storescp.files import check_readable
from storescp.kafka.options import connection_options
from storescp.licence import Licence
from storescp.licensing import LicenceWatch, configured_licence, evaluation_licence
from storescp.network.identity import Users
from storescp.network.tls import load_tls
from storescp.roots import IN_USE, check_root, make_root, storage_roots
from storescp.settings import Settings

if TYPE_CHECKING:
    from storescp.publish.kafka import KafkaSink

T = TypeVar("T")
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
            TemporaryFailure: the storage root cannot be used now.
        """
        try:
            return self.opening.result()
        except ConfigError as error:
            raise _with_sources(error, self.configuration) from None


@dataclass
class Checked:
    """What the checks of a start have read. `licence` is None in evaluation mode, which makes its own."""

    licence: Licence | None = None
    users: Users | None = None
    tls: _core.Tls | None = None


def check(configuration: Configuration, engine_name: str) -> Checked:
    """Looks for everything that refuses a start, and leaves no trace. Sections that have a problem are passed over.

    Only a start finds out whether an address can be bound, and whether another process serves the storage root.

    Raises:
        StartError: with everything that was found.
    """
    settings, checked = configuration.settings, Checked()
    errors: list[StorescpError] = [ConfigError(*configuration.problems)] if configuration.problems else []

    def attempt(check_one: Callable[[], T], *sections: str) -> T | None:
        if not configuration.is_sound(*sections):
            return None
        try:
            return check_one()
        except ConfigError as error:
            errors.append(_with_sources(error, configuration))
        except (TemporaryFailure, LicenceError) as error:
            errors.append(error)
        return None

    attempt(lambda: _refuse_unavailable(settings, engine_name), "tls", "audit", "tenants")
    for key, root in storage_roots(settings):
        check_one = functools.partial(check_root, key, root, create=settings.storage.create)
        attempt(check_one, "storage", key.partition(".")[0])
    checked.tls = attempt(lambda: None if settings.tls is None else load_tls(settings.tls), "tls")
    checked.users = attempt(lambda: load_users(settings), "user_identity")
    attempt(lambda: None if settings.audit is None else check_destination(settings.audit), "audit")
    attempt(lambda: None if settings.kafka is None else connection_options(settings.kafka), "kafka")
    if not configuration.evaluation:
        checked.licence = attempt(lambda: configured_licence(settings), "dicom_license_server")
    if errors:
        raise StartError(*errors)
    return checked


def _with_sources(error: ConfigError, configuration: Configuration) -> ConfigError:
    """The same problems, with the place where each value comes from."""
    return ConfigError(*(replace(one, source=configuration.source_of(one.key)) for one in error.problems))


@contextlib.contextmanager
def prepare(configuration: Configuration, engine_name: str) -> Iterator[Prepared]:
    """Checks what can refuse a start, and begins to open storage, which is closed at the end.

    Raises:
        StartError, ConfigError, LicenceError, TemporaryFailure: it cannot start.
    """
    settings = configuration.settings
    checked = check(configuration, engine_name)
    _raise_descriptor_limit()
    try:
        licence = checked.licence or evaluation_licence(settings)
    except ConfigError as error:
        raise _with_sources(error, configuration) from None
    watch = LicenceWatch(licence, configuration)
    kafka = _kafka_sink(settings)
    trail = Trail(settings)
    with ThreadPoolExecutor(1, "storescp-open") as beside:
        opening = beside.submit(_open_engine, settings, engine_name)
        if engine_name == "python":
            # It imports pydicom, and two threads that do so at once see half of it.
            opening.exception()
        try:
            yield Prepared(configuration, engine_name, watch, trail, opening, kafka, checked.users, checked.tls)
        finally:
            if opening.exception() is None:
                opening.result().close()


def load_users(settings: Settings) -> Users | None:
    """The file of users, where one is configured.

    Raises:
        ConfigError: it cannot be used.
        TemporaryFailure: it cannot be read now.
    """
    if settings.user_identity is None:
        return None
    key, path = "user_identity.users", settings.user_identity.users
    check_readable(key, path)
    try:
        return Users.load(path)
    except (OSError, ValueError) as error:
        problem = ConfigProblem(key, str(path), f"a file of users ({error})", "configuration")
        raise ConfigError(problem) from None


def _refuse_unavailable(settings: Settings, engine: str) -> None:
    """What is configured and not part of the Python engine must not be ignored in silence."""
    if engine != "python":
        return
    limited = [entry.tenant_id for entry in settings.tenants.settings]
    configured = {"tls": settings.tls, "audit": settings.audit, "tenants.settings": limited}
    expected = "nothing with --engine python, which is for comparison"
    problems = [ConfigProblem(key, None, expected, "configuration") for key, value in configured.items() if value]
    if problems:
        raise ConfigError(*problems)


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
    """Storage and outbox.

    Raises:
        ConfigError: the storage root cannot be used.
        TemporaryFailure: the storage root cannot be used now.
    """
    key, root = "storage.root", settings.storage.root
    make_root(settings)
    try:
        if engine == "python":
            from storescp.pure.engine import PureEngine  # noqa: PLC0415 - only where it is asked for

            return PureEngine(settings)
        return _core.Engine(engine_config(settings))
    except TemporaryFailure as error:
        if str(error).endswith(IN_USE):
            raise TemporaryFailure(f"{error}: stop it, or give this one another storage.root (-o)") from None
        raise
    except CoreError as error:
        problem = ConfigProblem(key, str(root), f"a usable storage root ({error})", "configuration")
        raise ConfigError(problem) from None
