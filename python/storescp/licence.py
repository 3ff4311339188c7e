"""The licence: an X.509 client certificate (wado-storescp's `validate_client_certificate`)."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, replace
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
_COMPARE = "Compare with 'storescpd license show'"
_CORRECT_PATH = "Correct the path"


@dataclass(frozen=True)
class Licence:
    """What a client certificate says. A checked one is valid while every certificate of its chain is."""

    client_id: str
    hash_code: str
    not_before: datetime
    not_after: datetime
    issuer: str
    file: Path

    def days_left(self, now: datetime) -> int:
        """Whole days until it ends, negative afterwards."""
        return (self.not_after - now).days

    def has_ended(self, now: datetime) -> bool:
        """Whether `now` is after its end."""
        return now > self.not_after

    def ends_soon(self, now: datetime) -> bool:
        """Whether fewer than 30 days are left, or it has ended."""
        return self.not_after - now < WARN_BEFORE

    def describe_end(self, now: datetime) -> str:
        """Its file and the date of its end, as messages name them."""
        return f"the licence {self.file} {'ended' if self.has_ended(now) else 'ends'} on {shown(self.not_after)}"


def shown(moment: datetime) -> str:
    """A moment as messages name it."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def read_certificates(file: Path, what: str) -> list[x509.Certificate]:
    """The PEM certificates of a file.

    Raises:
        LicenceError: the file cannot be read or holds none.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LicenceError(
            f"{what} {file} cannot be read: {error.strerror}. {_CORRECT_PATH}, or its permissions"
        ) from None
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise LicenceError(f"{what} {file} holds no PEM certificate. {_CORRECT_PATH}") from None


def read_licence(client_certificate: Path, hash_code_oid: str) -> tuple[Licence, list[x509.Certificate]]:
    """What the client certificate says, unchecked, and the certificates of its file.

    Raises:
        LicenceError: it cannot be read, or lacks the common name or the hash code.
    """
    certificates = read_certificates(client_certificate, "the client certificate")
    called = f"the client certificate {client_certificate}"
    leaf = certificates[0]
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise LicenceError(f"{called} has no single common name (the client id)")
    try:
        extension = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(hash_code_oid))
    except x509.ExtensionNotFound:
        reason = f"{called} has no extension {hash_code_oid} (the hash code)"
        raise LicenceError(f"{reason}. {_CORRECT_PATH} or hash_code_oid") from None
    except ValueError:
        raise LicenceError(f"the extensions of {called} cannot be read") from None
    if not isinstance(extension.value, x509.UnrecognizedExtension):
        raise LicenceError(f"the extension {hash_code_oid} of {called} is no hash code")
    try:
        hash_code = _utf8_string(extension.value.value)
    except UnicodeDecodeError:
        raise LicenceError(f"the hash code of {called} is not text") from None
    licence = Licence(
        client_id=str(names[0].value),
        hash_code=hash_code,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        issuer=leaf.issuer.rfc4514_string(),
        file=client_certificate,
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
    """Checks chain, begin, client id and hash code, the last two in constant time.

    Whether the licence has ended is not an error here: the caller decides what that means (`Licence.has_ended`).

    Raises:
        LicenceError: with one clear line that never shows a hash code.
    """
    now = now or datetime.now(UTC)
    licence, certificates = read_licence(client_certificate, hash_code_oid)
    called = f"the client certificate {client_certificate}"
    _check_purpose(certificates[0], called)
    anchors = read_certificates(ca_certificate, "the CA certificate")
    authorities = _chain(certificates, anchors)
    if authorities is None:
        raise LicenceError(f"{called} was not issued by the configured CA {ca_certificate}: {_names(licence, anchors)}")
    begin = max(licence.not_before, *(authority.not_valid_before_utc for authority in authorities))
    end = min(licence.not_after, *(authority.not_valid_after_utc for authority in authorities))
    if begin > end:
        raise LicenceError(f"{called} and the certificates of its CA {ca_certificate} are never valid together")
    if now < begin:
        reason = f"the licence {client_certificate} is not valid before {shown(begin)}"
        raise LicenceError(f"{reason}. Look at the clock: it is {shown(now)}")
    same_client = hmac.compare_digest(licence.client_id.encode(), client_id.encode())
    same_hash = hmac.compare_digest(licence.hash_code.encode(), license_key.encode())
    if not same_client:
        found = f"the common name {licence.client_id!r} of {called}"
        raise LicenceError(f"{found} is not the configured client_id {client_id!r}. {_COMPARE}")
    if not same_hash:
        raise LicenceError(f"the hash code of {called} is not the configured license_key. {_COMPARE}")
    return replace(licence, not_before=begin, not_after=end)


def _names(licence: Licence, anchors: list[x509.Certificate]) -> str:
    """Who issued a client certificate and who was configured, for an error."""
    configured = " and ".join(dict.fromkeys(anchor.subject.rfc4514_string() for anchor in anchors))
    if licence.issuer == configured:
        return f"both are named {configured}, with different keys. {_CORRECT_PATH}"
    return f"its issuer is {licence.issuer}, and the configured CA is {configured}. {_CORRECT_PATH}"


def _chain(certificates: list[x509.Certificate], anchors: list[x509.Certificate]) -> list[x509.Certificate] | None:
    """The authorities above the first certificate, the last of them an anchor; None where there is no way to one."""
    current, *intermediates = certificates
    authorities: list[x509.Certificate] = []
    for _ in range(_LONGEST_CHAIN):
        # A renewed authority may stand beside the old one, with the same key.
        issuing = [anchor for anchor in anchors if _issued_by(current, anchor)]
        if issuing:
            return [*authorities, max(issuing, key=lambda anchor: anchor.not_valid_after_utc)]
        issuer = next((authority for authority in intermediates if _issued_by(current, authority)), None)
        if issuer is None:
            return None
        authorities.append(issuer)
        current = issuer
    return None


def _check_purpose(leaf: x509.Certificate, called: str) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage):
        raise LicenceError(f"{called} is not meant for client authentication")


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
    return _der_content(value).decode("utf-8")


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
    """Makes a CA and a client certificate: ca.pem, ca.key, client.pem, client.key.

    The service reads the two certificates. Everybody may read them, in folders that this makes too; the keys are for
    the owner alone.

    Raises:
        LicenceError: a file exists already, or the client id cannot be a common name.
        OSError: a folder or a file cannot be written.
    """
    if not 1 <= len(client_id) <= _COMMON_NAME_CHARACTERS or not client_id.isprintable():
        raise LicenceError("a client id has 1 to 64 printable characters (it becomes the common name)")
    names = ("ca.pem", "ca.key", "client.pem", "client.key")
    existing = [name for name in names if (directory / name).exists()]
    if existing:
        raise LicenceError(
            f"{directory} holds {', '.join(existing)} already; a licence is never overwritten. Choose another folder"
        )
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
    _make_folders(directory)
    for name, content in zip(names, contents, strict=True):
        write_new(directory / name, content, 0o600 if name.endswith(".key") else 0o644)
    sync_folder(directory)
    return IssuedLicence(client_id, hash_code, directory / "client.pem", directory / "ca.pem")


def _make_folders(directory: Path) -> None:
    """Makes a folder and those above it, for everybody to enter, whatever the umask says."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)
        sync_folder(folder.parent)


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
