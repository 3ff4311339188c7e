"""Which licence the service starts with, and a look at it now and then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import structlog

from storescp.durable import sync_folder, write_new
from storescp.errors import LicenceError
from storescp.licence import WARN_BEFORE, Licence, issue_licence, validate_client_certificate
from storescp.roots import make_root, root_failure
from storescp.settings import Settings

log = structlog.get_logger("storescp.service")
_EVALUATION_DAYS = 90


@dataclass
class LicenceWatch:
    """The licence, looked at now and then while the service runs."""

    licence: Licence
    was_valid: bool = True

    def check(self, now: datetime) -> None:
        """Warns from 30 days before the end."""
        self.was_valid = self.licence.is_valid_at(now)
        if not self.was_valid:
            log.error("licence.expired", not_after=self.licence.not_after.isoformat())
        elif self.licence.not_after - now < WARN_BEFORE:
            log.warning("licence.expires_soon", days=self.licence.days_left(now))


def evaluation_licence(settings: Settings) -> Licence:
    """The licence of evaluation mode: made on the spot, reused, checked like any other.

    Raises:
        LicenceError: it cannot be made or has expired.
        ConfigError: the storage root cannot be used.
        TemporaryFailure: the storage root cannot be used now.
    """
    root = settings.local_storage.dicm_store_path
    folder = root / ".outbox" / "evaluation"
    make_root(settings)
    try:
        (root / ".outbox").mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        client_id, key_file = "evaluation", folder / "license_key"
        if not key_file.exists():
            unnamed = folder / "license_key.new"
            for name in ("ca.pem", "ca.key", "client.pem", "client.key", unnamed.name):
                (folder / name).unlink(missing_ok=True)
            issued = issue_licence(client_id, _EVALUATION_DAYS, folder)
            # It is the last to come: where it is, all the others are whole.
            write_new(unnamed, issued.license_key.encode("ascii"), 0o600)
            unnamed.rename(key_file)
            sync_folder(folder)
        license_key = key_file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise root_failure("local_storage.dicm_store_path", root, error) from None
    try:
        return validate_client_certificate(
            client_certificate=folder / "client.pem",
            ca_certificate=folder / "ca.pem",
            client_id=client_id,
            license_key=license_key,
        )
    except LicenceError as error:
        raise LicenceError(f"evaluation: {error}; remove {folder} to make a new one") from None


def configured_licence(settings: Settings) -> Licence:
    """The licence of the configuration.

    Raises:
        LicenceError: it does not allow to serve.
    """
    section = settings.dicom_license_server
    if section is None:
        raise LicenceError(
            "the configuration has no [dicom_license_server] section. Make a licence and add what is printed:\n"
            "  python -m storescp license issue --client-id ID DIRECTORY\n"
            "  python -m storescp license verify -c CONFIG"
        )
    return validate_client_certificate(
        client_certificate=section.client_certificate,
        ca_certificate=section.ca_certificate,
        client_id=section.client_id,
        license_key=section.license_key.get_secret_value(),
        hash_code_oid=section.hash_code_oid,
    )
