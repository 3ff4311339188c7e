"""Licences of another time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from storescp import licence
from storescp.licence import IssuedLicence, issue_licence


def licence_issued(ago: timedelta, days: int, directory: Path, client_id: str = "hospital") -> IssuedLicence:
    """A licence that was issued some time ago for some days."""
    with mock.patch.object(licence, "datetime", wraps=datetime) as clock:
        clock.now.side_effect = lambda zone: datetime.now(UTC).astimezone(zone) - ago
        return issue_licence(client_id, days, directory)


def section(issued: IssuedLicence) -> str:
    """The section of a configuration for it."""
    return (
        f"[dicom_license_server]\nclient_id = '{issued.client_id}'\nlicense_key = '{issued.license_key}'\n"
        f"client_certificate = '{issued.client_certificate}'\nca_certificate = '{issued.ca_certificate}'\n"
    )
