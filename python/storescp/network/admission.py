"""Who may come in, decided anew for every association."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from storescp.network.negotiation import BAD_CALLED_AE_TITLE, BAD_CALLING_AE_TITLE, Rejection
from storescp.settings import Settings

# PS3.8 Table 9-21: rejected-transient, service provider (presentation).
LOCAL_LIMIT = Rejection(2, 3, 2, "association_limit")
PEER_NOT_ALLOWED = Rejection(1, 1, 1, "peer_address")


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
        self._per_calling_ae = settings.limits.max_associations_per_calling_ae
        self._peers = [ipaddress.ip_network(peer, strict=False) for peer in scp.allowed_peers]
        rules_called = {rule.called_ae for rule in settings.tenants.rules if rule.called_ae}
        self._called = (
            {*scp.allowed_called_ae_titles, scp.ae_title, *rules_called} if scp.allowed_called_ae_titles else None
        )
        self._calling = set(scp.allowed_calling_ae_titles) or None
        self._rules = [
            (rule, ipaddress.ip_network(rule.source, strict=False) if rule.source else None)
            for rule in settings.tenants.rules
        ]
        self._default_tenant = settings.tenants.default or None
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._active = 0
        self._active_by_calling: Counter[str] = Counter()

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
            self._active += 1
        return None

    def leave(self) -> None:
        """Gives the place back."""
        with self._lock:
            self._active -= 1

    def check_titles(self, called: str, calling: str) -> Rejection | None:
        """The called and calling AE title."""
        if self._called is not None and called not in self._called:
            return BAD_CALLED_AE_TITLE
        if self._calling is not None and calling not in self._calling:
            return BAD_CALLING_AE_TITLE
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
            self._active_by_calling[calling] -= 1
            if self._active_by_calling[calling] <= 0:
                del self._active_by_calling[calling]

    def tenancy(self, called: str, calling: str, address: str) -> Tenancy:
        """The tenant by the first rule that matches, else the default."""
        source = ipaddress.ip_address(address)
        for rule, network in self._rules:
            matches = (
                (rule.called_ae is None or rule.called_ae == called)
                and (rule.calling_ae is None or rule.calling_ae == calling)
                and (network is None or source in network)
                and rule.tls_subject is None
            )
            if matches:
                return Tenancy(rule.tenant_id, by_rule=True)
        return Tenancy(self._default_tenant, by_rule=False)

    def _is_allowed(self, address: str) -> bool:
        peer = ipaddress.ip_address(address)
        return any(peer in network for network in self._peers)
