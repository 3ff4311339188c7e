"""What tenants have of their own, and that none reaches another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import StartService
from support.instances import Instance, ct_slice, dataset_of, explicit, text
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

RULES = json.dumps([{"tenant_id": "a", "calling_ae": "A"}, {"tenant_id": "b", "calling_ae": "B"}])


def environment(*settings: dict[str, object], **more: str) -> dict[str, str]:
    return {"STORESCP_TENANTS__RULES": RULES, "STORESCP_TENANTS__SETTINGS": json.dumps(settings), **more}


def store(service: ServiceProcess, one: Instance, calling: bytes, **extra: bytes) -> tuple[int, str]:
    with RawAssociation(service.port, [(1, one.sop_class, [EXPLICIT])], calling=calling) as association:
        response = association.store(1, one.sop_class, one.sop_instance, one.dataset, **extra)
        association.release()
        return response.status, response.comment


def small(number: int, **options: object) -> Instance:
    return ct_slice(number, rows=16, **options)  # type: ignore[arg-type]


def test_a_quota_counts_what_is_stored_now_and_before(start_service: StartService, tmp_path: Path) -> None:
    size = len(small(1).dataset)
    # Two files with their headers, and not three.
    env = environment({"tenant_id": "a", "quota_bytes": 3 * size})
    service = start_service(env=env)
    assert [store(service, small(number), b"A")[0] for number in (1, 2)] == [0, 0]
    # A replacement takes the place of what it replaces, a duplicate takes none.
    changed = small(2, changes={0x00080050: explicit(0x00080050, b"SH", text("ACC2"))})
    assert [store(service, one, b"A")[0] for one in (changed, changed, small(1))] == [0, 0, 0]
    status, comment = store(service, small(3), b"A")
    assert (status, comment) == (0xA700, "tenant quota reached")
    assert store(service, small(3), b"B")[0] == 0
    service.stop()
    service = start_service(env=env)
    assert store(service, small(4), b"A")[0] == 0xA700
    for file in (service.root / "a").rglob("*.dcm"):
        file.unlink()
    service.stop()
    service = start_service(env=env)
    assert store(service, small(4), b"A")[0] == 0
    assert service.temporary_files() == []


def test_instances_in_flight_are_bounded_for_a_tenant(start_service: StartService) -> None:
    service = start_service(env=environment({"tenant_id": "a", "max_in_flight": 1}))
    one = small(1)
    with RawAssociation(service.port, [(1, one.sop_class, [EXPLICIT])], calling=b"A") as association:
        association.send_store(1, one.sop_class, one.sop_instance, one.dataset[:500])
        # The last fragment of the data set was sent, so this one ends; the next is begun and left there.
        assert association.read_response().status == 0xC000
        begin_store(association, one)
        status, comment = wait_until_busy(service)
        assert (status, comment) == (0xA700, "too many instances of this tenant at once")
        assert store(service, small(3), b"B")[0] == 0
        association.abort()
    service.wait_for_event("association.aborted_by_peer")
    assert store(service, small(2), b"A")[0] == 0


def begin_store(association: RawAssociation, one: Instance) -> None:
    from support.scu import fragments, pdata, pdv, store_rq

    association.send(fragments(1, True, store_rq(one.sop_class, one.sop_instance, 9), association.max_pdu))
    association.send(pdata(pdv(1, 0, one.dataset[:500])))


def wait_until_busy(service: ServiceProcess) -> tuple[int, str]:
    """The first instance has begun once another one is refused; each attempt is a whole store."""
    for _ in range(1000):
        answer = store(service, small(2), b"A")
        if answer[0]:
            return answer
    raise AssertionError("never busy")


def test_a_tenant_can_have_its_own_root_and_attributes(start_service: StartService, tmp_path: Path) -> None:
    own = tmp_path / "own"
    service = start_service(
        env=environment(
            {"tenant_id": "a", "storage_root": str(own), "required_attributes": ["AccessionNumber"]},
            STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES='["PatientID"]',
        )
    )
    without = {"PatientID": 0x00100020, "AccessionNumber": 0x00080050}
    for calling, missing, status in (
        (b"A", "PatientID", 0),
        (b"A", "AccessionNumber", 0xA900),
        (b"B", "PatientID", 0xA900),
        (b"B", "AccessionNumber", 0),
    ):
        assert store(service, small(1, changes={without[missing]: None}), calling)[0] == status, (calling, missing)
    (file,) = own.rglob("*.dcm")
    assert file.relative_to(own).parts[0] == "a"
    assert {path.relative_to(service.root).parts[0] for path in service.files()} == {"b"}
    records = {record["tenant_id"]: record for record in service.records(count=2)}
    assert records["a"]["file_path"] == str(file)
    assert sorted(path.name for path in own.iterdir()) == [".incoming", ".outbox", "a"]


def test_a_tenant_that_only_the_data_set_names_is_stored_in_its_root(
    start_service: StartService, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    service = start_service(
        env={
            "STORESCP_TENANTS__SETTINGS": json.dumps(
                [{"tenant_id": "a", "storage_root": str(own), "quota_bytes": 2_000_000}]
            ),
            "STORESCP_TENANTS__FROM_PRIVATE_ELEMENT": "true",
            "STORESCP_TENANTS__KNOWN": '["a"]',
        }
    )
    private = {0x12110010: explicit(0x12110010, b"LO", text("X")), 0x12111217: explicit(0x12111217, b"LO", text("a"))}
    # In memory, and spilled to a temporary file of the common root.
    for number, rows, status in ((1, 16, 0), (2, 900, 0), (3, 900, 0xA700)):
        one = ct_slice(number, rows=rows, changes=private)
        assert store(service, one, b"X")[0] == status
        if status == 0:
            (file,) = own.rglob(f"{one.sop_instance}.dcm")
            assert dataset_of(file) == one.dataset
    assert service.files() == []
    assert service.temporary_files() == list((own / ".incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ([{"tenant_id": "a", "storage_root": "DATA/sub"}], "within another storage root"),
        ([{"tenant_id": "a"}, {"tenant_id": "a"}], "each tenant_id once"),
        ([{"tenant_id": "../a"}], "tenant id"),
        ([{"tenant_id": "a", "required_attributes": ["Nonsense"]}], "keyword"),
    ],
)
def test_wrong_settings_are_a_configuration_error(tmp_path: Path, settings: list[dict[str, object]], word: str) -> None:
    env = environment(*json.loads(json.dumps(settings).replace("DATA", str(tmp_path / "data"))))
    with pytest.raises(AssertionError, match=word):
        ServiceProcess(tmp_path / "data", env=env)
