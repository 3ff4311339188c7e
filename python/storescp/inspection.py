"""What would become of a data set, without a service: its tenant, and the answer."""

from __future__ import annotations

from dataclasses import dataclass

from storescp import _core
from storescp.errors import CoreError
from storescp.pure.refusal import tenant_refusal
from storescp.settings import Settings

_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_UNKNOWN_TENANT = tenant_refusal(None)
# The statuses of a damaged data set, which `dicom_store_scp.malformed` may keep (PS3.4 Table B.2-1: Cannot understand).
_DAMAGED = "C000 "


@dataclass(frozen=True)
class Whose:
    """The tenant of a data set as far as a file alone says: `name` is None where the sender decides, or nobody."""

    name: str | None
    text: str
    is_refused: bool = False


@dataclass(frozen=True)
class Inspected:
    """What is known of a data set. `refusal` is status and Error Comment, `found` what was read where there is none."""

    sop_class_uid: str
    sop_instance_uid: str
    whose: Whose
    found: _core.ScanResult | None
    refusal: str | None
    is_kept: bool  # in quarantine


def inspect(settings: Settings, dataset: bytes, transfer_syntax: str) -> Inspected:
    """Reads a data set as the service does, in its order: the data set, the required attributes, the tenant."""
    tenants = settings.tenants
    private_tag = tenants.private_group << 16 | tenants.private_element
    wanted = [_SOP_CLASS_UID, _SOP_INSTANCE_UID, private_tag]
    sop_class, sop_instance, private = _core.readable_values(dataset, transfer_syntax, wanted)
    whose = _whose(settings, private)
    found, refusal = None, None
    try:
        found = _core.scan(dataset, transfer_syntax, list(_required(settings, whose)))
    except CoreError as error:
        refusal = str(error)
    if refusal is None and whose.is_refused:
        refusal = f"{_UNKNOWN_TENANT.status:04X} {_UNKNOWN_TENANT.comment}"
    may_be_kept = settings.dicom_store_scp.malformed == "quarantine"
    is_kept = may_be_kept and refusal is not None and refusal.startswith(_DAMAGED)
    return Inspected(_uid(sop_class), _uid(sop_instance), whose, found, refusal, is_kept)


def _required(settings: Settings, whose: Whose) -> tuple[str, ...]:
    for entry in settings.tenants.settings:
        if entry.tenant_id == whose.name and entry.required_attributes is not None:
            return entry.required_attributes
    return settings.dicom_store_scp.required_attributes


def _whose(settings: Settings, private: bytes | None) -> Whose:
    """A rule counts before the private element, and the private element before the default."""
    tenants = settings.tenants
    without_rule = _by_private_element(settings, private) if tenants.from_private_element else None
    if without_rule is None:
        default = tenants.default
        without_rule = Whose(default, f"{default} by tenants.default") if default else Whose(None, "none", True)
    if not tenants.rules:
        return without_rule
    return Whose(None, f"by the rules for its sender; where none matches: {without_rule.text}")


def _by_private_element(settings: Settings, private: bytes | None) -> Whose | None:
    if private is None:
        return None
    tenants = settings.tenants
    element = f"private element ({tenants.private_group:04X},{tenants.private_element:04X})"
    name = private.rstrip(b"\0 ").decode("utf-8", "replace")
    if name in tenants.known:
        return Whose(name, f"{name} by the {element}")
    shown = tenant_refusal(private.rstrip(b"\0 ")).tenant_value
    return Whose(None, f"none: tenants.known has no '{shown}', which the {element} names", is_refused=True)


def _uid(value: bytes | None) -> str:
    """Nothing that a terminal would not show as it is."""
    text = (value or b"").rstrip(b"\0 ").decode("ascii", "replace")
    return text if text.isprintable() else ""
