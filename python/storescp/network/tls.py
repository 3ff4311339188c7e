"""The files of `[tls]`, read at start and on SIGHUP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509

from storescp import _core
from storescp.errors import ConfigError, ConfigProblem, CoreError
from storescp.files import check_readable
from storescp.settings import Tls

log = structlog.get_logger("storescp.network")
_WARN_BEFORE = timedelta(days=30)


def load_tls(section: Tls) -> _core.Tls:
    """Reads and checks the files.

    Raises:
        ConfigError: one of them cannot be used.
        TemporaryFailure: one of them cannot be read now.
    """
    for key in ("certificate", "private_key", "client_ca", "crl"):
        path = getattr(section, key)
        if path is not None:
            check_readable(f"tls.{key}", path)
    try:
        setup = _core.Tls(section.certificate, section.private_key, section.client_ca, section.client_auth, section.crl)
        _check_dates(section)
    except (CoreError, ValueError, OSError) as error:
        raise ConfigError(ConfigProblem("tls", None, f"usable files ({error})", "configuration")) from None
    return setup


def _check_dates(section: Tls) -> None:
    now = datetime.now(UTC)
    ours = x509.load_pem_x509_certificates(section.certificate.read_bytes())[0]
    if not ours.not_valid_before_utc <= now <= ours.not_valid_after_utc:
        raise ValueError(f"certificate: valid from {ours.not_valid_before_utc} to {ours.not_valid_after_utc}")
    if ours.not_valid_after_utc - now < _WARN_BEFORE:
        log.warning("tls.certificate_expires_soon", not_after=ours.not_valid_after_utc.isoformat())
    for crl in _revocation_lists(section.crl):
        if crl.next_update_utc is not None and crl.next_update_utc < now:
            log.warning(
                "tls.revocation_list_is_old",
                issuer=crl.issuer.rfc4514_string(),
                next_update=crl.next_update_utc.isoformat(),
            )


def _revocation_lists(path: Path | None) -> list[x509.CertificateRevocationList]:
    if path is None:
        return []
    end = b"-----END X509 CRL-----"
    parts = path.read_bytes().split(end)[:-1]
    return [x509.load_pem_x509_crl(part[part.index(b"-----BEGIN X509 CRL") :] + end) for part in parts]
