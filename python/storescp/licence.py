"""The licence: an X.509 client certificate (wado-storescp's `validate_client_certificate`)."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from storescp.durable import sync_folder, write_new
from storescp.errors import LicenceError

HASH_CODE_OID = "1.3.6.1.4.15967132172.1"
WARN_BEFORE = timedelta(days=30)
_LONGEST_CHAIN = 5
_DER_UTF8_STRING = 0x0C
_COMMON_NAME_CHARACTERS = 64  # RFC 5280 A.1, ub-common-name


@dataclass(frozen=True)
class Licence:
    """What a client certificate says."""

    client_id: str
    hash_code: str
    not_before: datetime
    not_after: datetime
    issuer: str

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires, negative afterwards."""
        return (self.not_after - now).days

    def is_valid_at(self, now: datetime) -> bool:
        """Whether `now` is in its validity."""
        return self.not_before <= now <= self.not_after


def read_certificates(file: Path, what: str) -> list[x509.Certificate]:
    """The PEM certificates of a file.

    Raises:
        LicenceError: the file cannot be read or holds none.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LicenceError(f"{what} {file} cannot be read: {error.strerror}") from None
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise LicenceError(f"{what} {file} holds no PEM certificate") from None


def read_licence(client_certificate: Path, hash_code_oid: str) -> tuple[Licence, list[x509.Certificate]]:
    """What the client certificate says, unchecked, and the certificates of its file.

    Raises:
        LicenceError: it cannot be read, or lacks the common name or the hash code.
    """
    certificates = read_certificates(client_certificate, "the client certificate")
    leaf = certificates[0]
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise LicenceError("the client certificate has no single common name (the client id)")
    try:
        extension = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(hash_code_oid))
    except x509.ExtensionNotFound:
        raise LicenceError(f"the client certificate has no extension {hash_code_oid} (the hash code)") from None
    except ValueError:
        raise LicenceError("the extensions of the client certificate cannot be read") from None
    if not isinstance(extension.value, x509.UnrecognizedExtension):
        raise LicenceError(f"the extension {hash_code_oid} is no hash code")
    licence = Licence(
        client_id=str(names[0].value),
        hash_code=_utf8_string(extension.value.value),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        issuer=leaf.issuer.rfc4514_string(),
    )
    return licence, certificates


def validate_client_certificate(
    *,
    client_certificate: Path,
    ca_certificate: Path,
    client_id: str,
    license_key: str,
    hash_code_oid: str = HASH_CODE_OID,
    now: datetime | None = None,
) -> Licence:
    """Checks chain, validity, client id and hash code, the last two in constant time.

    Raises:
        LicenceError: with one clear line that never shows the expected values.
    """
    now = now or datetime.now(UTC)
    licence, certificates = read_licence(client_certificate, hash_code_oid)
    anchors = read_certificates(ca_certificate, "the CA certificate")
    _check_chain(certificates, anchors, now)
    if now < licence.not_before:
        raise LicenceError(f"the client certificate is not valid before {licence.not_before:%Y-%m-%d %H:%M} UTC")
    if now > licence.not_after:
        raise LicenceError(f"the client certificate expired on {licence.not_after:%Y-%m-%d %H:%M} UTC")
    same_client = hmac.compare_digest(licence.client_id.encode(), client_id.encode())
    same_hash = hmac.compare_digest(licence.hash_code.encode(), license_key.encode())
    if not same_client:
        raise LicenceError("the common name of the client certificate is not the configured client_id")
    if not same_hash:
        raise LicenceError("the hash code of the client certificate is not the configured license_key")
    return licence


def _check_chain(certificates: list[x509.Certificate], anchors: list[x509.Certificate], now: datetime) -> None:
    leaf, *intermediates = certificates
    _check_purpose(leaf)
    current = leaf
    for _ in range(_LONGEST_CHAIN):
        anchor = next((ca for ca in anchors if _issued_by(current, ca)), None)
        if anchor is not None:
            _check_validity(anchor, now)
            return
        issuer = next((ca for ca in intermediates if _issued_by(current, ca)), None)
        if issuer is None:
            break
        _check_validity(issuer, now)
        current = issuer
    raise LicenceError("the client certificate was not issued by the configured CA")


def _check_validity(ca: x509.Certificate, now: datetime) -> None:
    if not ca.not_valid_before_utc <= now <= ca.not_valid_after_utc:
        raise LicenceError("a CA certificate of the chain is expired or not yet valid")


def _check_purpose(leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage):
        raise LicenceError("the certificate is not meant for client authentication")


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    if not constraints.ca:
        return False
    try:
        usage = ca.extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).value
    except x509.ExtensionNotFound:
        return True
    return isinstance(usage, x509.KeyUsage) and usage.key_cert_sign


def _utf8_string(value: bytes) -> str:
    """The text of an extension: a DER UTF8String, or raw UTF-8."""
    try:
        return _der_content(value).decode("utf-8")
    except UnicodeDecodeError:
        raise LicenceError("the hash code of the client certificate is not text") from None


def _der_content(value: bytes) -> bytes:
    if not value.startswith(bytes([_DER_UTF8_STRING])) or len(value) == 1:
        return value
    length, offset = value[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, offset = int.from_bytes(value[2 : 2 + count], "big"), 2 + count
    return value[offset:] if offset + length == len(value) else value


@dataclass(frozen=True)
class IssuedLicence:
    """A licence made by `issue_licence`."""

    client_id: str
    license_key: str
    client_certificate: Path
    ca_certificate: Path


def issue_licence(client_id: str, days: int, directory: Path) -> IssuedLicence:
    """Makes a CA and a client certificate: ca.pem, ca.key, client.pem, client.key; keys readable by the owner only.

    Raises:
        LicenceError: a file exists already, or the client id cannot be a common name.
        OSError: a file cannot be written.
    """
    if not 1 <= len(client_id) <= _COMMON_NAME_CHARACTERS or not client_id.isprintable():
        raise LicenceError("a client id has 1 to 64 printable characters (it becomes the common name)")
    names = ("ca.pem", "ca.key", "client.pem", "client.key")
    existing = [name for name in names if (directory / name).exists()]
    if existing:
        raise LicenceError(f"{directory} holds {', '.join(existing)} already; a licence is never overwritten")
    now = datetime.now(UTC)
    begin, end = now - timedelta(minutes=5), now + timedelta(days=days)
    ca_key, client_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storescp licence CA")])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), begin, end + timedelta(days=1))
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_key_usage(sign_certificates=True), critical=True)
    ca_certificate = ca.sign(ca_key, hashes.SHA256())
    hash_code = secrets.token_hex(32)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, client_id)])
    client = _certificate(subject, ca_name, client_key.public_key(), begin, end)
    encoded = bytes([_DER_UTF8_STRING, len(hash_code)]) + hash_code.encode()
    oid = x509.ObjectIdentifier(HASH_CODE_OID)
    client = client.add_extension(x509.UnrecognizedExtension(oid, encoded), critical=False)
    client = client.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    client = client.add_extension(_key_usage(sign_certificates=False), critical=True)
    client = client.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    client_certificate = client.sign(ca_key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    contents = (
        ca_certificate.public_bytes(pem),
        _private_pem(ca_key),
        client_certificate.public_bytes(pem),
        _private_pem(client_key),
    )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in zip(names, contents, strict=True):
        write_new(directory / name, content, 0o600 if name.endswith(".key") else 0o644)
    sync_folder(directory)
    return IssuedLicence(client_id, hash_code, directory / "client.pem", directory / "ca.pem")


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
