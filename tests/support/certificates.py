"""Certificates for tests."""

from __future__ import annotations

import ipaddress
import json
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder: `ca.pem`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, key)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, key, certificate)

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(
        self,
        name: str,
        *,
        host: str = "127.0.0.1",
        password: str | None = None,
        purpose: x509.ObjectIdentifier | None = None,
        days: tuple[int, int] = (-1, 30),
        rsa_key: bool = False,
    ) -> Path:
        """A PEM file with key (PKCS #8) and certificate, valid from and to so many days from now."""
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
            rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
        )
        builder = (
            _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, days)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
            # RFC 5280 wants it, and Python's contexts do from 3.13 on.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password.encode())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        file = self.folder / f"{name}.pem"
        file.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def revoke(self, *files: Path) -> Path:
        """A revocation list with the certificates of these files."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(days=1))
            .next_update(now + timedelta(days=30))
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for file in files:
            serial = x509.load_pem_x509_certificate(file.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        path = self.folder / "crl.pem"
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path


@dataclass(frozen=True)
class Pki:
    """A hospital's authority, its server's certificate, and one device's."""

    authority: Authority
    server: Path
    device: Path

    @classmethod
    def make(cls, folder: Path) -> Pki:
        authority = Authority.make(folder, "Hospital CA")
        server = authority.issue("server", purpose=ExtendedKeyUsageOID.SERVER_AUTH)
        device = authority.issue("ct1.hospital-a", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
        return cls(authority, server, device)

    def environment(self, **more: object) -> dict[str, str]:
        section = {"certificate": self.server, "private_key": self.server, "client_ca": self.authority.file, **more}
        return {
            f"STORESCP_TLS__{key.upper()}": value
            if isinstance(value, str)
            else json.dumps(value, default=str).strip('"')
            for key, value in section.items()
        }

    def context(self, certificate: Path | None = None, **options: object) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.check_hostname = False
        if certificate is not None:
            context.load_cert_chain(certificate)
        for name, value in options.items():
            setattr(context, name, value)
        return context


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, days: tuple[int, int] = (-1, 30)
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
