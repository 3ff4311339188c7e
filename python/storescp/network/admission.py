"""Who may come in, decided anew for every association."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from storescp.network.identity import Peer, SubjectPattern, UserIdentity, Users
from storescp.network.negotiation import BAD_CALLED_AE_TITLE, BAD_CALLING_AE_TITLE, Rejection
from storescp.settings import Settings

# PS3.8 Table 9-21: rejected-transient, service provider (presentation).
LOCAL_LIMIT = Rejection(2, 3, 2, "association_limit")
PEER_NOT_ALLOWED = Rejection(1, 1, 1, "peer_address")
# PS3.7 D.3.3.7: no reason of its own.
USER_NOT_KNOWN = Rejection(1, 1, 1, "user_identity")


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
        scp = settings.dicom_store_scp
        self._max_associations = scp.max_associations
        self._per_address = settings.limits.max_associations_per_address
        self._per_calling_ae = settings.limits.max_associations_per_calling_ae
        self._peers = [ipaddress.ip_network(peer, strict=False) for peer in scp.allowed_peers]
        rules_called = {rule.called_ae for rule in settings.tenants.rules if rule.called_ae}
        self._called = (
            {*scp.allowed_called_ae_titles, scp.ae_title, *rules_called} if scp.allowed_called_ae_titles else None
        )
        self._calling = set(scp.allowed_calling_ae_titles) or None
        self._clients = [
            (SubjectPattern.parse(client.subject), set(client.calling_ae_titles))
            for client in (settings.tls.clients if settings.tls else ())
        ]
        self._rules = [
            (
                rule,
                ipaddress.ip_network(rule.source, strict=False) if rule.source else None,
                SubjectPattern.parse(rule.tls_subject) if rule.tls_subject else None,
            )
            for rule in settings.tenants.rules
        ]
        self.users: Users | None = None
        self._default_tenant = settings.tenants.default or None
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._active = 0
        self._active_by_address: Counter[str] = Counter()
        self._active_by_calling: Counter[str] = Counter()
        self._total = 0
        self._refused: Counter[str] = Counter()

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """Associations now, associations that were let in since the start, and those rejected by cause."""
        with self._lock:
            return self._active, self._total, dict(self._refused)

    def note_refusal(self, cause: str) -> None:
        """Counts an association that was rejected."""
        with self._lock:
            self._refused[cause] += 1

    def enter(self, address: str) -> Rejection | None:
        """Takes a place, before the request is looked at. `leave` gives it back."""
        if self._peers and not self._is_allowed(address):
            return PEER_NOT_ALLOWED
        cause = self._unavailable()
        if cause:
            return congestion(cause)
        with self._lock:
            if self._active >= self._max_associations:
                return LOCAL_LIMIT
            if self._per_address is not None and self._active_by_address[address] >= self._per_address:
                return LOCAL_LIMIT
            self._active += 1
            self._total += 1
            self._active_by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Gives the place back."""
        with self._lock:
            self._active -= 1
            _count_down(self._active_by_address, address)

    def check_titles(self, called: str, calling: str) -> Rejection | None:
        """The called and calling AE title."""
        if self._called is not None and called not in self._called:
            return BAD_CALLED_AE_TITLE
        if self._calling is not None and calling not in self._calling:
            return BAD_CALLING_AE_TITLE
        return None

    def check_identity(self, peer: Peer, calling: str, user: UserIdentity | None) -> Rejection | None:
        """What the certificate says of the calling AE title, and the user where users are configured."""
        if self._clients and peer.tls_version is not None:
            titles = [titles for pattern, titles in self._clients if pattern.matches(peer.subject)]
            if not any(calling in allowed for allowed in titles):
                return BAD_CALLING_AE_TITLE
        # Over a clear connection nobody is a known user, and the passcode is not even looked at.
        if self.users is not None and (peer.tls_version is None or not self.users.knows(user)):
            return USER_NOT_KNOWN
        return None

    def enter_calling(self, calling: str) -> Rejection | None:
        """Takes one of the places of a calling AE title. `leave_calling` gives it back."""
        with self._lock:
            if self._per_calling_ae is not None and self._active_by_calling[calling] >= self._per_calling_ae:
                return LOCAL_LIMIT
            self._active_by_calling[calling] += 1
        return None

    def leave_calling(self, calling: str) -> None:
        """Gives the place of a calling AE title back."""
        with self._lock:
            _count_down(self._active_by_calling, calling)

    def tenancy(self, called: str, calling: str, peer: Peer) -> Tenancy:
        """The tenant by the first rule that matches, else the default."""
        for rule, network, subject in self._rules:
            matches = (
                (rule.called_ae is None or rule.called_ae == called)
                and (rule.calling_ae is None or rule.calling_ae == calling)
                and (network is None or ipaddress.ip_address(peer.address) in network)
                and (subject is None or subject.matches(peer.subject))
            )
            if matches:
                return Tenancy(rule.tenant_id, by_rule=True)
        return Tenancy(self._default_tenant, by_rule=False)

    def _is_allowed(self, address: str) -> bool:
        peer = ipaddress.ip_address(address)
        return any(peer in network for network in self._peers)


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
