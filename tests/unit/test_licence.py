"""The licence: what passes, what does not, and what is never shown."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storescp.audit.trail import Trail
from storescp.config import load
from storescp.errors import LicenceError
from storescp.licence import HASH_CODE_OID, IssuedLicence, Licence, issue_licence, validate_client_certificate
from storescp.licensing import LicenceWatch, evaluation_licence
from storescp.logs import Warnings
from storescp.network.admission import Admission, congestion
from storescp.network.negotiation import Rejection
from storescp.preparation import Prepared
from storescp.service import Service
from storescp.settings import Settings

OTHER_OID = "1.3.6.1.4.1.99999.1"


@pytest.fixture
def issued(tmp_path: Path) -> IssuedLicence:
    return issue_licence("hospital-a", 30, tmp_path / "licence")


def validate(issued: IssuedLicence, **changes: object) -> Licence:
    arguments = {
        "client_certificate": issued.client_certificate,
        "ca_certificate": issued.ca_certificate,
        "client_id": issued.client_id,
        "license_key": issued.license_key,
    }
    return validate_client_certificate(**(arguments | changes))  # type: ignore[arg-type]


def refused(issued: IssuedLicence, **changes: object) -> str:
    with pytest.raises(LicenceError) as error:
        validate(issued, **changes)
    assert issued.license_key not in str(error.value)
    assert issued.client_id not in str(error.value)
    return str(error.value)


def test_an_issued_licence_is_valid_and_its_keys_are_private(issued: IssuedLicence) -> None:
    licence = validate(issued)
    assert (licence.client_id, licence.hash_code) == ("hospital-a", issued.license_key)
    assert 28 <= licence.days_left(datetime.now(UTC)) <= 30
    folder = issued.client_certificate.parent
    for name in ("ca.key", "client.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_licence_is_never_overwritten(issued: IssuedLicence) -> None:
    with pytest.raises(LicenceError, match="never overwritten"):
        issue_licence("other", 30, issued.client_certificate.parent)


def test_wrong_values_are_refused_without_showing_the_right_ones(issued: IssuedLicence, tmp_path: Path) -> None:
    assert "client_id" in refused(issued, client_id="hospital-b")
    assert "license_key" in refused(issued, license_key="0" * 64)
    assert "license_key" in refused(issued, license_key="ü")
    now = datetime.now(UTC)
    assert "expired" in refused(issued, now=now + timedelta(days=30, hours=12))
    assert "CA certificate of the chain" in refused(issued, now=now - timedelta(days=1))
    other = issue_licence("hospital-a", 30, tmp_path / "other")
    assert "not issued by the configured CA" in refused(issued, ca_certificate=other.ca_certificate)
    assert "not issued by the configured CA" in refused(issued, ca_certificate=issued.client_certificate)
    assert "cannot be read" in refused(issued, client_certificate=tmp_path / "absent.pem")
    (tmp_path / "junk.pem").write_text("junk")
    assert "no PEM certificate" in refused(issued, ca_certificate=tmp_path / "junk.pem")
    assert "no extension" in refused(issued, hash_code_oid=OTHER_OID)


Sign = Callable[..., Path]


@pytest.fixture
def sign(tmp_path: Path) -> Sign:
    """Makes a client certificate with a CA of its own; both in one folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    now = datetime.now(UTC)

    def build(subject: x509.Name) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=10))
        )

    def certificate(
        extension: bytes, *, names: tuple[str, ...] = ("c",), usage: object = None, ca: bool = True
    ) -> Path:
        authority = build(ca_name).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        (tmp_path / "ca.pem").write_bytes(authority.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        client = build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
        client = client.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(HASH_CODE_OID), extension), critical=False
        )
        if usage is not None:
            client = client.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)  # type: ignore[list-item]
        (tmp_path / "client.pem").write_bytes(
            client.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return tmp_path

    return certificate


def check(folder: Path, license_key: str) -> Licence:
    return validate_client_certificate(
        client_certificate=folder / "client.pem",
        ca_certificate=folder / "ca.pem",
        client_id="c",
        license_key=license_key,
    )


def test_the_hash_code_is_a_der_utf8_string_or_raw_utf8(sign: Sign) -> None:
    text = "käse"
    raw = text.encode()
    assert check(sign(raw), text).hash_code == text
    assert check(sign(bytes([0x0C, len(raw)]) + raw), text).hash_code == text
    long = "x" * 300
    assert check(sign(b"\x0c\x82\x01\x2c" + long.encode()), long).hash_code == long
    with pytest.raises(LicenceError, match="not text"):
        check(sign(b"\xff\xfe"), "x")


def test_chain_and_purpose(sign: Sign) -> None:
    with pytest.raises(LicenceError, match="not issued by"):
        check(sign(b"x", ca=False), "x")
    with pytest.raises(LicenceError, match="client authentication"):
        check(sign(b"x", usage=ExtendedKeyUsageOID.SERVER_AUTH), "x")
    assert check(sign(b"x", usage=ExtendedKeyUsageOID.CLIENT_AUTH), "x")
    with pytest.raises(LicenceError, match="single common name"):
        check(sign(b"x", names=("c", "d")), "x")


def test_a_licence_that_ended_lets_nobody_in(issued: IssuedLicence) -> None:
    configuration = load({}, None)
    licence = LicenceWatch(validate(issued))
    service = Service(Prepared(configuration, "rust", licence, Trail(configuration.settings), Future()), Warnings())
    admission = service._admission = Admission(Settings(), lambda: None)
    end = licence.licence.not_after
    service._check_licence(end - timedelta(seconds=1))
    assert not isinstance(admission.enter("10.0.0.1"), Rejection)
    service._check_licence(end + timedelta(seconds=1))
    rejection = admission.enter("10.0.0.1")
    assert rejection == congestion("licence_expired")
    assert (rejection.result, rejection.source, rejection.reason) == (2, 3, 1)


@pytest.mark.parametrize("most_syncs", range(8))
def test_a_power_cut_in_a_first_start_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_syncs: int
) -> None:
    """What was not synced is empty then, as XFS leaves it."""
    settings = Settings(local_storage={"dicm_store_path": tmp_path / "data"})  # type: ignore[arg-type]
    folder = tmp_path / "data" / ".outbox" / "evaluation"
    synced: list[int] = []
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if len(synced) == most_syncs:
            raise KeyboardInterrupt
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with contextlib.suppress(KeyboardInterrupt):
            evaluation_licence(settings)
    for file in folder.iterdir():
        if file.stat().st_ino not in synced:
            os.truncate(file, 0)
    licence = evaluation_licence(settings)
    assert evaluation_licence(settings) == licence
    assert most_syncs == 7 or len(synced) == most_syncs
