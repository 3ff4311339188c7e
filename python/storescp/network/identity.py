"""Who a peer is, as far as TLS and user identity negotiation can tell."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

# scrypt: about 20 ms and 8 MiB for each attempt; one at a time, so that guessing costs the service one core at most.
_COST, _BLOCK, _PARALLEL = 1 << 13, 8, 1
_SALT_BYTES, _KEY_BYTES = 16, 32


@dataclass(frozen=True)
class Peer:
    """The other side of a connection."""

    address: str
    port: int
    tls_version: str | None = None
    subject: x509.Name | None = None
    proxy_address: str | None = None  # of the load balancer, where the connection began with a PROXY header

    @property
    def subject_text(self) -> str | None:
        """The subject of its certificate as RFC 4514 writes it."""
        return None if self.subject is None else self.subject.rfc4514_string()

    @classmethod
    def of(cls, peer: tuple[str, int], tls: tuple[str, bytes | None] | None, proxy_address: str | None = None) -> Peer:
        """From what the core knows of a connection."""
        version, certificate = tls or (None, None)
        subject = None if certificate is None else x509.load_der_x509_certificate(certificate).subject
        return cls(*peer, version, subject, proxy_address)


@dataclass(frozen=True)
class SubjectPattern:
    """Attributes that a subject must have, for instance `CN=ct1.hospital-a` or `OU=Radiology,O=Hospital A`."""

    attributes: frozenset[tuple[str, str]]

    @classmethod
    def parse(cls, text: str) -> SubjectPattern:
        """From RFC 4514 text.

        Raises:
            ValueError: it is none, or has no attribute.
        """
        expected = "attributes of a certificate's subject like CN=ct1.hospital-a,O=Hospital A"
        try:
            attributes = _attributes(x509.Name.from_rfc4514_string(text))
        except ValueError:
            raise ValueError(expected) from None
        if not attributes:
            raise ValueError(expected)
        return cls(attributes)

    def matches(self, subject: x509.Name | None) -> bool:
        """Whether a subject has all of them with exactly these values."""
        return subject is not None and self.attributes <= _attributes(subject)


def _attributes(name: x509.Name) -> frozenset[tuple[str, str]]:
    return frozenset(
        (attribute.oid.dotted_string, attribute.value) for attribute in name if isinstance(attribute.value, str)
    )


@dataclass(frozen=True)
class UserIdentity:
    """What a requestor says of its user (PS3.7 D.3.3.7): type 1 has a username, type 2 a passcode too."""

    kind: int
    username: bytes
    passcode: bytes

    def __repr__(self) -> str:
        return f"UserIdentity(kind={self.kind})"


class Users:
    """Usernames and what is left of their passcodes."""

    def __init__(self, entries: Mapping[str, tuple[bytes, bytes]]) -> None:
        self._entries = dict(entries)
        self._nobody = (os.urandom(_SALT_BYTES), b"")
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> Users:
        """Reads lines as `entry` makes them; empty ones and those that begin with `#` do not count.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line is not one of those; the number is told.
        """
        entries = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            try:
                username, salt, key = text.rsplit(":", 2)
                entries[username] = (bytes.fromhex(salt), bytes.fromhex(key))
            except ValueError:
                raise ValueError(f"line {number} is not USERNAME:SALT:KEY as `storescpd passcode` prints it") from None
        return cls(entries)

    def knows(self, identity: UserIdentity | None) -> bool:
        """Whether username and passcode belong together. A username alone proves nothing."""
        if identity is None or identity.kind != 2:  # noqa: PLR2004 - username and passcode
            return False
        username = identity.username.decode("utf-8", "replace")
        # An unknown username takes as long as a wrong passcode.
        salt, key = self._entries.get(username, self._nobody)
        with self._one_at_a_time:
            return hmac.compare_digest(_derive(identity.passcode, salt), key)


def entry(username: str, passcode: str) -> str:
    """A line of the file of users.

    Raises:
        ValueError: the username cannot be in such a file, or the passcode is no text; the text says what is expected.
    """
    if not username or username != username.strip() or username.startswith("#") or not username.isprintable():
        raise ValueError("a username of printable characters that does not begin with '#'")
    try:
        encoded = passcode.encode()
    except UnicodeEncodeError:
        raise ValueError("a passcode in UTF-8") from None
    salt = os.urandom(_SALT_BYTES)
    return f"{username}:{salt.hex()}:{_derive(encoded, salt).hex()}"


def _derive(passcode: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(passcode, salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, dklen=_KEY_BYTES)
