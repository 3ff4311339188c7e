"""Who may come in, decided anew for every association.

The rules and the places are in the core, which also serves known requests; what certificates and users prove is found
out here.
"""

from __future__ import annotations

import ipaddress
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from storescp import _core
from storescp.network.identity import Peer, SubjectPattern, UserIdentity, Users
from storescp.network.negotiation import BAD_CALLED_AE_TITLE, BAD_CALLING_AE_TITLE, Rejection
from storescp.settings import Settings

# PS3.8 Table 9-21: rejected-transient, service provider (presentation).
LOCAL_LIMIT = Rejection(2, 3, 2, "association_limit")
PEER_NOT_ALLOWED = Rejection(1, 1, 1, "peer_address")
# PS3.7 D.3.3.7: the type of user identities with a username and a passcode.
_USERNAME_AND_PASSCODE = 2
# PS3.7 D.3.3.7: no reason of its own.
USER_NOT_KNOWN = Rejection(1, 1, 1, "user_identity")
_DENIED = {
    rejection.cause: rejection
    for rejection in (LOCAL_LIMIT, PEER_NOT_ALLOWED, BAD_CALLED_AE_TITLE, BAD_CALLING_AE_TITLE)
}


def congestion(cause: str) -> Rejection:
    """Try again later: 2/3/1 with its cause."""
    return Rejection(2, 3, 1, cause)


@dataclass(frozen=True)
class Tenancy:
    """Whose instances these are; `tenant` is None where only a private element can tell."""

    tenant: str | None
    by_rule: bool


class Admission:
    """The rules of a configuration and the places that are taken."""

    def __init__(self, settings: Settings, unavailable: Callable[[], str | None]) -> None:
        self.core = _core.Admission(rules_json(settings))
        self._clients = [
            (SubjectPattern.parse(client.subject), set(client.calling_ae_titles))
            for client in (settings.tls.clients if settings.tls else ())
        ]
        self._subjects = [
            (number, SubjectPattern.parse(rule.tls_subject))
            for number, rule in enumerate(settings.tenants.rules)
            if rule.tls_subject
        ]
        self.users: Users | None = None
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """Associations now, associations that were let in since the start, and those rejected by cause."""
        with self._lock:
            return *self.core.counts(), dict(self._refused)

    def largest(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """The address and the calling AE title that hold most associations now, and how many each."""
        return self.core.largest()

    def note_refusal(self, cause: str) -> None:
        """Counts an association that was rejected."""
        with self._lock:
            self._refused[cause] += 1

    def close(self, cause: str | None) -> None:
        """From now on nobody is let in, for a reason in a word; None: again by the rules."""
        self.core.close(cause)

    def enter(self, address: str) -> _core.Place | Rejection:
        """A place, before the request is looked at."""
        if not self.core.allows(address):
            return PEER_NOT_ALLOWED
        cause = self._unavailable()
        if cause:
            return congestion(cause)
        place, denied = self.core.enter(address)
        return place or _rejection(denied or "")

    def check_titles(self, called: str, calling: str) -> Rejection | None:
        """The called and calling AE title."""
        denied = self.core.check_titles(called, calling)
        return None if denied is None else _rejection(denied)

    def check_identity(self, peer: Peer, calling: str, user: UserIdentity | None) -> Rejection | None:
        """What the certificate says of the calling AE title, and the user where users are configured."""
        if self._clients and peer.tls_version is not None:
            titles = [titles for pattern, titles in self._clients if pattern.matches(peer.subject)]
            if not any(calling in allowed for allowed in titles):
                return BAD_CALLING_AE_TITLE
        problem = None if self.users is None else _user_problem(self.users, peer, user)
        return None if problem is None else replace(USER_NOT_KNOWN, detail=problem)

    @staticmethod
    def enter_calling(place: _core.Place, calling: str) -> Rejection | None:
        """Takes one of the places of a calling AE title, too."""
        denied = place.enter_calling(calling)
        return None if denied is None else _rejection(denied)

    def tenancy(self, called: str, calling: str, peer: Peer) -> Tenancy:
        """The tenant by the first rule that matches, else the default."""
        with_subject = [number for number, pattern in self._subjects if pattern.matches(peer.subject)]
        return Tenancy(*self.core.tenancy(called, calling, peer.address, with_subject))


def _user_problem(users: Users, peer: Peer, user: UserIdentity | None) -> str | None:
    """Why the user may not come in. Whether username or passcode is wrong is not told: it would help guessing."""
    # Over a clear connection nobody is a known user, and the passcode is not even looked at.
    if peer.tls_version is None:
        return "the connection is not over TLS"
    if user is None:
        return "the request names no user"
    if users.knows(user):
        return None
    if user.kind != _USERNAME_AND_PASSCODE:
        return "the user identity is not of type 2 (username and passcode)"
    return "username or passcode is wrong"


def rules_json(settings: Settings) -> str:
    """The rules as the core reads them, JSON."""
    scp, limits, tenants = settings.dicom_store_scp, settings.limits, settings.tenants
    called = None
    if scp.allowed_called_ae_titles:
        of_rules = [rule.called_ae for rule in tenants.rules if rule.called_ae]
        called = [*scp.allowed_called_ae_titles, scp.ae_title, *of_rules]
    return json.dumps(
        {
            "max_associations": scp.max_associations,
            "max_per_address": limits.max_associations_per_address,
            "max_per_calling_ae": limits.max_associations_per_calling_ae,
            "peers": [network_of(peer) for peer in scp.allowed_peers],
            "called_ae_titles": called,
            "calling_ae_titles": scp.allowed_calling_ae_titles or None,
            "tenants": [
                {
                    "tenant": rule.tenant_id,
                    "called_ae_title": rule.called_ae,
                    "calling_ae_title": rule.calling_ae,
                    "source": rule.source and network_of(rule.source),
                    "by_certificate": rule.tls_subject is not None,
                }
                for rule in tenants.rules
            ],
            "default_tenant": tenants.default or None,
        }
    )


def network_of(text: str) -> tuple[str, int]:
    """A network of the configuration as the core takes it: address and prefix length."""
    network = ipaddress.ip_network(text, strict=False)
    address, _, _ = str(network.network_address).partition("%")
    return address, network.prefixlen


def _rejection(denied: str) -> Rejection:
    # What is none of the rules is a reason why nobody is let in.
    return _DENIED.get(denied) or congestion(denied)
