"""Which licence the service starts with, and what becomes of it while the service runs.

A licence that ends never stops reception. Whether a start may go on with a licence that has ended depends on the
storage root: it must have served under a valid licence of the same client, which a file in it says.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog

from storescp.config import Configuration, load
from storescp.durable import sync_folder, write_new
from storescp.errors import LicenceError, StorescpError
from storescp.licence import Licence, issue_licence, validate_client_certificate
from storescp.roots import check_root, make_root, root_failure, storage_roots
from storescp.settings import Settings

log = structlog.get_logger("storescp.service")
_EVALUATION_CLIENT, _EVALUATION_DAYS = "evaluation", 90
_MARK = "licensed"
_RENEW = "For a new one run 'storescpd license issue --client-id ID DIR', put what it prints into the configuration"
RENEW_AND_START = f"{_RENEW}, and start again"
RENEW_AND_SIGNAL = f"{_RENEW}, and send the service a SIGHUP"


class LicenceWatch:
    """The licence in force: looked at when the service starts and every hour, and read again by SIGHUP."""

    def __init__(self, licence: Licence, configuration: Configuration) -> None:
        self.licence = licence
        self._noted: Licence | None = None
        self._configuration = configuration
        self._settings = configuration.settings

    def check(self, now: datetime) -> None:
        """Warns from 30 days before the end; the licence of evaluation mode is made anew instead."""
        if self._configuration.evaluation:
            self._renew_evaluation(now)
        elif self.licence.has_ended(now):
            text = f"{self.licence.describe_end(now)}; reception goes on. {RENEW_AND_SIGNAL}"
            log.error("licence.expired", text=text, not_after=self.licence.not_after.isoformat())
        elif self.licence.ends_soon(now):
            text = f"{self.licence.describe_end(now)}. {RENEW_AND_SIGNAL}"
            log.warning("licence.expires_soon", text=text, days=self.licence.days_left(now))

    def read_again(self, now: datetime) -> None:
        """Puts the licence in force that the configuration names now.

        Raises:
            ConfigError, LicenceError, TemporaryFailure: it is no better; the one before stays in force.
        """
        if self._configuration.evaluation:
            self._renew_evaluation(now)
            return
        licence = configured_licence(self._settings_read_again(), now)
        if licence.has_ended(now) and not self.licence.has_ended(now):
            raise LicenceError(f"{licence.describe_end(now)}. {RENEW_AND_SIGNAL}")
        self.licence = licence
        self.check(now)
        self.mark_root(now)

    def mark_root(self, now: datetime) -> None:
        """Notes in the storage root that it serves under a valid licence, if it does."""
        if self._configuration.evaluation or self.licence.has_ended(now) or self.licence == self._noted:
            return
        root = self._settings.storage.root
        try:
            _write_mark(root / ".outbox" / _MARK, self.licence)
        except OSError as error:
            log.warning(
                "licence.not_noted",
                text=f"{error.filename}: {error.strerror}. It is tried again every hour; "
                "without the note a start after the end of the licence is refused",
            )
            return
        self._noted = self.licence

    def state(self, now: datetime) -> Literal["valid", "ends soon", "ended"]:
        """How it is; the licence of evaluation mode is always valid to whoever looks."""
        if self._configuration.evaluation or not self.licence.ends_soon(now):
            return "valid"
        return "ended" if self.licence.has_ended(now) else "ends soon"

    def notes(self) -> list[str]:
        """What `/readyz` says about it, although the service is ready."""
        if self.state(datetime.now(UTC)) != "ended":
            return []
        return [f"the licence ended on {self.licence.not_after:%Y-%m-%d}; reception goes on"]

    def _renew_evaluation(self, now: datetime) -> None:
        if not self.licence.ends_soon(now):
            return
        try:
            self.licence = evaluation_licence(self._settings, now)
        except StorescpError as error:
            log.warning("licence.not_renewed", text=f"the licence of evaluation mode stays as it is: {error}")

    def _settings_read_again(self) -> Settings:
        """The settings of this run, but for the section of the licence."""
        given = next((one.table for one in self._configuration.layers if one.name == "option"), {})
        options = {(section, key): value for section, table in given.items() for key, value in table.items()}
        section = load(options, self._configuration.file).settings.dicom_license_server
        return self._settings.model_copy(update={"dicom_license_server": section})


def evaluation_licence(settings: Settings, now: datetime | None = None) -> Licence:
    """The licence of evaluation mode: made on the spot, reused, and made anew 30 days before its end.

    Raises:
        ConfigError: the storage root cannot be used.
        TemporaryFailure: the storage root cannot be used now.
    """
    now = now or datetime.now(UTC)
    root = settings.storage.root
    folder = root / ".outbox" / "evaluation"
    make_root(settings)
    try:
        found = _read_evaluation_licence(folder)
    except LicenceError:
        # There is none yet, or it is damaged: it proves nothing, so another one is as good.
        found = None
    if found is not None and not found.ends_soon(now):
        return found
    try:
        _make_evaluation_licence(folder)
    except OSError as error:
        if found is None:
            raise root_failure("storage.root", root, error) from None
        log.warning("licence.not_renewed", text=f"{error.filename}: {error.strerror}. It is tried again")
        return found
    return _read_evaluation_licence(folder)


def _read_evaluation_licence(folder: Path) -> Licence:
    key_file = folder / "license_key"
    try:
        license_key = key_file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise LicenceError(f"{key_file} cannot be read: {error.strerror}") from None
    return validate_client_certificate(
        client_certificate=folder / "client.pem",
        ca_certificate=folder / "ca.pem",
        client_id=_EVALUATION_CLIENT,
        license_key=license_key,
    )


def _make_evaluation_licence(folder: Path) -> None:
    """Makes it beside the old one, which goes when the new one is whole on the disk.

    Where this is interrupted between the two names, there is none, and the next start makes one.
    """
    new, old = folder.with_name("evaluation.new"), folder.with_name("evaluation.old")
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)
    new.mkdir(mode=0o700)
    issued = issue_licence(_EVALUATION_CLIENT, _EVALUATION_DAYS, new)
    write_new(new / "license_key", issued.license_key.encode("ascii"), 0o600)
    sync_folder(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def checked_licence(settings: Settings) -> Licence:
    """The licence of the configuration, which may have ended.

    Raises:
        LicenceError: there is none, it cannot be read, or it is for another client, or of another issuer or key.
    """
    section = settings.dicom_license_server
    if section is None:
        raise LicenceError(
            "the configuration has no [dicom_license_server] section. Make a licence and add what is printed:\n"
            "  storescpd license issue --client-id ID DIRECTORY\n"
            "  storescpd license verify -c CONFIG"
        )
    return validate_client_certificate(
        client_certificate=section.client_certificate,
        ca_certificate=section.ca_certificate,
        client_id=section.client_id,
        license_key=section.license_key.get_secret_value(),
        hash_code_oid=section.hash_code_oid,
    )


def configured_licence(settings: Settings, now: datetime | None = None) -> Licence:
    """The licence of the configuration, with which a start may go on.

    Raises:
        LicenceError: it does not allow to serve: it is not in order, or has ended in a storage root that has not
            served under a valid licence of the same client.
        ConfigError, TemporaryFailure: it has ended, and the storage root cannot be looked at.
    """
    now = now or datetime.now(UTC)
    licence = checked_licence(settings)
    root = settings.storage.root
    if licence.has_ended(now) and not _has_served_under(root / ".outbox" / _MARK, licence.client_id):
        # Where the root itself may be absent for now, so may its mark.
        key, _ = next(storage_roots(settings))
        check_root(key, root, create=settings.storage.create)
        raise LicenceError(
            f"{licence.describe_end(now)}, and the storage root {root} has not served under a valid one of its client. "
            f"{RENEW_AND_START}"
        )
    return licence


def _write_mark(mark: Path, licence: Licence) -> None:
    content = {
        "client_id": licence.client_id,
        "issuer": licence.issuer,
        "not_after": licence.not_after.isoformat(),
    }
    unnamed = mark.with_name(f"{mark.name}.new")
    unnamed.unlink(missing_ok=True)
    write_new(unnamed, f"{json.dumps(content)}\n".encode(), 0o600)
    unnamed.rename(mark)
    sync_folder(mark.parent)


def _has_served_under(mark: Path, client_id: str) -> bool:
    try:
        content = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("client_id") == client_id
