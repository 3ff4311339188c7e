"""What the log says became of an instance, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.instances import CT, Instance, ct_slice, explicit, text
from support.load import CONTEXTS
from support.scu import RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
TENANT = 0x12111217
PRIVATE = {"STORESCP_TENANTS__FROM_PRIVATE_ELEMENT": "true", "STORESCP_TENANTS__KNOWN": '["a", "b"]'}


def version(number: int) -> Instance:
    """One of several instances of the same UIDs."""
    return ct_slice(1, rows=4, changes={0x00100010: explicit(0x00100010, b"PN", text(f"Version^{number}"))})


def of_tenant(name: bytes, number: int, rows: int = 4) -> Instance:
    return ct_slice(number, rows=rows, changes={TENANT: explicit(TENANT, b"LO", text(name))})


def send(service: ServiceProcess, *some: Instance) -> list[int]:
    with RawAssociation(service.port, CONTEXTS) as association:
        statuses = [association.store(1, CT, one.sop_instance, one.dataset).status for one in some]
        association.release()
    return statuses


def lines_of(service: ServiceProcess, name: str) -> list[dict[str, Any]]:
    assert service.stop() == 0
    return service.events(name)


@pytest.mark.parametrize("engine", ["rust", "python"])
@pytest.mark.parametrize(("policy", "second"), [("replace", "replaced"), ("keep", "kept")])
def test_each_outcome_is_in_the_log(start_service: StartService, engine: str, policy: str, second: str) -> None:
    service = start_service("-v", engine=engine, env={"STORESCP_STORAGE__DUPLICATES": policy})
    assert send(service, version(1), version(1), version(2)) == [0, 0, 0]
    stored = lines_of(service, "instance.stored")
    assert [line["outcome"] for line in stored] == ["new", "identical", second]
    assert {line["tenant"] for line in stored} == {"1234567890"}
    if engine == "rust":
        [line] = service.events("association.released")
        counts = {"identical": 1, "kept": 0, "replaced": 0} | {second: 1}
        assert {key: line[key] for key in counts} == counts


def test_new_instances_alone_are_not_counted_as_duplicates(start_service: StartService) -> None:
    service = start_service()
    assert send(service, version(1)) == [0]
    [line] = lines_of(service, "association.released")
    assert {"identical", "kept", "replaced", "tenants"}.isdisjoint(line)
    assert line["tenant"] == "1234567890"


@pytest.mark.parametrize(
    ("names", "tenant", "tenants"), [((b"a", b"a"), "a", None), ((b"b", b"a"), None, ["a", "b"]), ((), None, None)]
)
def test_an_association_names_the_tenants_of_its_instances(
    start_service: StartService, names: tuple[bytes, ...], tenant: str | None, tenants: list[str] | None
) -> None:
    service = start_service(env=PRIVATE)
    assert send(service, *(of_tenant(name, number) for number, name in enumerate(names))) == [0] * len(names)
    [line] = lines_of(service, "association.released")
    assert (line["tenant"], line.get("tenants")) == (tenant, tenants)


@pytest.mark.parametrize("by_private_element", [True, False])
def test_a_reached_quota_names_its_tenant(start_service: StartService, by_private_element: bool) -> None:
    owner = "a" if by_private_element else "1234567890"
    limits = {"STORESCP_TENANTS__SETTINGS": json.dumps([{"tenant_id": owner, "quota_bytes": 1000}])}
    service = start_service(env=limits | (PRIVATE if by_private_element else {}))
    assert send(service, of_tenant(b"a", 1, rows=64)) == [0xA700]
    [line] = lines_of(service, "instance.refused")
    assert (line["comment"], line["tenant"]) == ("tenant quota reached", owner)
