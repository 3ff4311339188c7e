"""Where an instance comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Who sends, and for which tenant."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    tenant: str | None
    tenant_by_rule: bool = False
    command_tenant: bytes | None = None
    message_id: int | None = None
