"""What the log says of single instances: those that were refused, and at debug level all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from storescp import _core, advice

log = structlog.get_logger("storescp.network")
# B007: a damaged data set that is kept.
_EVENTS = {0x0000: "instance.stored", 0xB007: "instance.quarantined"}


class Fact(Protocol):
    """A C-STORE that was answered."""

    @property
    def association(self) -> int:
        """Number of the association in this process."""

    @property
    def message_id(self) -> int:
        """Message ID of the request."""

    @property
    def status(self) -> int:
        """Status answered."""

    @property
    def comment(self) -> str:
        """Error Comment, empty for success."""

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID of the command, empty where it is none."""

    @property
    def bytes(self) -> int:
        """Bytes of the data set."""

    @property
    def commit_seconds(self) -> float:
        """From the last byte received to the decision."""

    @property
    def is_named(self) -> bool:
        """Whether it was refused, and is one of the first of its association."""

    @property
    def address(self) -> str:
        """Address of the peer."""

    @property
    def calling_ae_title(self) -> str:
        """AE title of the peer."""

    @property
    def tenant_value(self) -> str | None:
        """The tenant that it asked for and nobody knows."""

    @property
    def tenant(self) -> str | None:
        """Whose it is, where that is known."""

    @property
    def outcome(self) -> str:
        """How it was stored: `new`, `replaced`, `identical` or `kept`; empty where it was refused."""


@dataclass(frozen=True)
class PureFact:
    """A `Fact` of the pure engine."""

    association: int
    message_id: int
    status: int
    comment: str
    sop_instance_uid: str
    bytes: int
    commit_seconds: float
    is_named: bool
    address: str
    calling_ae_title: str
    tenant_value: str | None
    tenant: str | None
    outcome: str


def tell(fact: Fact, *, explains: bool) -> None:
    """The line of an instance; `explains` adds what the refusal means and what to do."""
    level = log.info if fact.is_named else log.debug
    details: dict[str, object] = {}
    if fact.tenant_value is not None:
        details["tenant_value"] = fact.tenant_value
    if explains and fact.status:
        details["text"] = advice.of_refusal(fact.comment, fact.status, fact.tenant_value).text()
    level(
        _EVENTS.get(fact.status, "instance.refused"),
        association=fact.association,
        peer=fact.address,
        calling_ae=fact.calling_ae_title,
        message_id=fact.message_id,
        status=f"{fact.status:04X}",
        comment=fact.comment or None,
        outcome=fact.outcome or None,
        tenant=fact.tenant,
        sop_instance_uid=fact.sop_instance_uid or None,
        bytes=fact.bytes,
        commit_ms=round(fact.commit_seconds * 1000, 3),
        **details,
    )


def tell_of_more(refused: int, association: int, address: str, calling: str) -> None:
    """At the end of an association: how many refused instances were not named."""
    more = refused - _core.MOST_NAMED_REFUSALS
    if more > 0:
        log.info("instance.refused_more", association=association, peer=address, calling_ae=calling, count=more)
