"""What a sender is told and what lies on disk afterwards."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

import storescp
from support import scu
from support.instances import CT, SR, Instance, ct_slice, dataset_of, explicit, text
from support.scu import BIG, EXPLICIT, IMPLICIT, VERIFICATION, Aborted, RawAssociation
from support.service import ServiceProcess

CONTEXTS = [(1, CT, [EXPLICIT]), (3, VERIFICATION, [IMPLICIT])]
StartService = Callable[..., ServiceProcess]


def send(service: ServiceProcess, instance: Instance, **options: object) -> scu.Response:
    with RawAssociation(service.port, [(1, CT, [instance.transfer_syntax])], **options) as association:
        response = association.store(1, instance.sop_class, instance.sop_instance, instance.dataset)
        association.release()
    return response


@pytest.fixture(params=["rust", "python"])
def either(request: pytest.FixtureRequest, start_service: StartService) -> ServiceProcess:
    """The service with each engine."""
    return start_service(engine=request.param)


@pytest.fixture(scope="module", params=["rust", "python"])
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The service with each engine, one for all the tests that leave its storage root empty. It requires what wado-storescp does."""
    required = {"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": '["PatientID", "StudyDate"]'}
    service = ServiceProcess(tmp_path_factory.mktemp("empty") / "data", engine=request.param, env=required)
    yield service
    assert service.stop() == 0
    assert service.files() == []
    assert service.records() == []


EMPTY_RUST = pytest.mark.parametrize("empty", ["rust"], indirect=True)


def test_an_instance_is_stored_as_received_and_recorded_in_both_topics(either: ServiceProcess) -> None:
    instance = ct_slice(1)
    response = send(either, instance, calling=b"CT1", called=b"ARCHIVE")
    assert (response.field, response.message_id, response.status) == (0x8001, 1, 0)
    [file] = either.files()
    expected = (
        f"1234567890/20260102/1.2.826.0.1.3680043.10.9999.1/1.2.826.0.1.3680043.10.9999.1.1/{instance.sop_instance}.dcm"
    )
    assert str(file.relative_to(either.root)) == expected
    assert dataset_of(file) == instance.dataset
    [record] = either.records(count=1)
    assert either.records("log_queue", count=1) == [record]
    jsonschema.validate(record, json.loads((Path(storescp.__file__).parent / "record-2.schema.json").read_text()))
    assert record["file_path"] == str(file)
    assert record["file_size"] == file.stat().st_size
    assert record["source_ae"] == "CT1"
    assert record["called_ae"] == "ARCHIVE"
    assert record["study_date"] == "2026-01-02"
    assert record["accession_number"] == "ACC1"
    assert record["transfer_status"] == "NoNeedTransfer"


def test_echo_answers_with_its_own_message_id(empty: ServiceProcess) -> None:
    with RawAssociation(empty.port, CONTEXTS) as association:
        for message_id in (1, 4711, 65535):
            response = association.echo(3, message_id)
            assert (response.field, response.message_id, response.status) == (0x8030, message_id, 0)
        association.release()


@EMPTY_RUST
@pytest.mark.parametrize("max_pdu", [0, 128, 16384, None])
def test_the_peers_maximum_pdu_length_is_respected(empty: ServiceProcess, max_pdu: int | None) -> None:
    with RawAssociation(empty.port, CONTEXTS, max_pdu=max_pdu) as association:
        association.send(scu.fragments(1, True, scu.store_rq(CT, "1.2..3", 1), 16384))
        association.send(scu.fragments(1, False, ct_slice(1, rows=4).dataset, 16384))
        length = struct.unpack(">L", association.socket.recv(6, 0x2 | 0x100)[2:6])[0]
        assert not max_pdu or length <= max_pdu
        response = association.read_response()
        assert (response.status, response.comment) == (0x0117, "AffectedSOPInstanceUID breaks the UID grammar")
        association.release()


BAD_UIDS: list[bytes] = [
    b".", b"..", b"1..2", b".1", b"1.", b"../../../../x", b"/etc/x", b"1\0.2", b"1\r\n2", b"\x1b[2J",
    b"1" * 65, b"1." * 1000 + b"1", b"1.2\\1.3", b"\xef\xbc\x91.\xef\xbc\x92", b"%2e%2e%2f", b"*",
]  # fmt: skip


@EMPTY_RUST
def test_hostile_uids_are_refused_with_a_response_and_leave_nothing(empty: ServiceProcess) -> None:
    with RawAssociation(empty.port, CONTEXTS) as association:
        for bad in [*BAD_UIDS, b""]:
            response = association.store(1, CT, bad, ct_slice(1, rows=4).dataset)
            assert response.status == 0x0117, bad
        for tag in (0x00080018, 0x0020000D, 0x0020000E, 0x00080016):
            for bad in BAD_UIDS:
                instance = ct_slice(1, rows=4, changes={tag: explicit(tag, b"UI", text(bad, b"\0"))})
                assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0xC000, (tag, bad)
        association.release()
    assert empty.files() == []
    assert empty.temporary_files() == []
    assert empty.records() == []


def test_identity_and_required_attributes(empty: ServiceProcess) -> None:
    wrong_class = explicit(0x00080016, b"UI", text(SR, b"\0"))
    cases: list[tuple[dict[int, bytes | None], int, str]] = [
        ({0x00080016: wrong_class}, 0xA900, "SOPClassUID of the data set differs from the command"),
        ({0x00080018: None}, 0xA900, "SOPInstanceUID is absent or empty"),
        ({0x0020000D: explicit(0x0020000D, b"UI", b"")}, 0xA900, "StudyInstanceUID is absent or empty"),
        ({0x00100020: None}, 0xA900, "PatientID is absent or empty"),
        ({0x00100020: explicit(0x00100020, b"LO", text("ü" * 65))}, 0xA900, "PatientID is invalid"),
        ({0x00080020: explicit(0x00080020, b"DA", b"20260230")}, 0xA900, "StudyDate is invalid"),
        ({0x7FE00010: explicit(0x7FE00010, b"OW", b"\0" * 8, 10_000)}, 0xC000, "data set ends inside an element or sequence"),
        ({0x00000010: explicit(0x00000010, b"UI", b"1.2\0")}, 0xC000, "element of a group not allowed in a data set"),
    ]  # fmt: skip
    with RawAssociation(empty.port, CONTEXTS) as association:
        for changes, status, comment in cases:
            instance = ct_slice(1, rows=4, changes=changes)
            response = association.store(1, CT, ct_slice(1, rows=4).sop_instance, instance.dataset)
            assert (response.status, response.comment) == (status, comment)
        other = ct_slice(1, rows=4)
        response = association.store(1, CT, "1.2.3.4", other.dataset)
        assert (response.status, response.comment) == (
            0xA900,
            "SOPInstanceUID of the data set differs from the command",
        )
        association.release()
    assert empty.files() == []
    assert empty.temporary_files() == []
    assert empty.records() == []


def test_the_class_must_be_that_of_the_context(empty: ServiceProcess) -> None:
    instance = ct_slice(1, rows=4)
    with RawAssociation(empty.port, [(1, SR, [EXPLICIT])]) as association:
        assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0x0122
        association.release()
    assert empty.files() == []


def test_what_is_not_required_has_its_defaults(start_service: StartService, tmp_path: Path) -> None:
    config = tmp_path / "storescp.toml"
    issued = _licence(tmp_path)
    config.write_text(issued + "[dicom_store_scp]\nrequired_attributes = []\nhost = '127.0.0.1'\n")
    scp = start_service("-c", str(config))
    long_id = "ü" * 70
    instance = ct_slice(
        1,
        rows=4,
        changes={
            0x00080020: explicit(0x00080020, b"DA", b"2026.01.02"),
            0x00100020: explicit(0x00100020, b"LO", text(long_id)),
            0x00080050: explicit(0x00080050, b"SH", text("12345678901234567")),
        },
    )
    bare = ct_slice(2, rows=4, changes={0x00080020: None, 0x00100020: None, 0x00080050: None})
    assert send(scp, instance).status == send(scp, bare).status == 0
    first, second = scp.records(count=2)
    assert (first["study_date"], first["patient_id"], first["accession_number"]) == ("2026-01-02", "ü" * 64, None)
    assert (second["study_date"], second["patient_id"], second["accession_number"]) == (None, "", None)
    assert "/00000000/" in second["file_path"]


def _licence(folder: Path) -> str:
    from storescp.licence import issue_licence

    issued = issue_licence("test", 30, folder / "licence")
    return (
        f"[dicom_license_server]\nclient_id = 'test'\nlicense_key = '{issued.license_key}'\n"
        f"client_certificate = '{issued.client_certificate}'\nca_certificate = '{issued.ca_certificate}'\n"
    )


@pytest.mark.parametrize(("engine", "durability"), [("rust", "full"), ("rust", "none"), ("python", "full")])
@pytest.mark.parametrize("policy", ["replace", "keep", "reject"])
def test_duplicates(start_service: StartService, engine: str, durability: str, policy: str) -> None:
    env = {"STORESCP_LOCAL_STORAGE__DUPLICATES": policy, "STORESCP_LOCAL_STORAGE__DURABILITY": durability}
    scp = start_service(env=env, engine=engine)
    first = ct_slice(1, rows=4)
    other = ct_slice(1, rows=4, changes={0x00080060: explicit(0x00080060, b"CS", b"MR")})
    assert send(scp, first).status == 0
    assert send(scp, first, calling=b"OTHER").status == 0
    [file] = scp.files()
    inode = file.stat().st_ino
    assert len(scp.records(count=1)) == 1
    response = send(scp, other)
    assert response.status == (0xA900 if policy == "reject" else 0)
    assert dataset_of(file) == (other if policy == "replace" else first).dataset
    assert (file.stat().st_ino == inode) == (policy != "replace")
    assert send(scp, ct_slice(2, rows=4)).status == 0
    records = scp.records(count=3 if policy == "replace" else 2)
    assert len(records) == (3 if policy == "replace" else 2)
    assert len({record["trace_id"] for record in records}) == len(records)
    assert scp.temporary_files() == []


def test_an_identical_instance_whose_row_is_gone_gets_a_record_again(
    start_service: StartService, tmp_path: Path
) -> None:
    instance = ct_slice(1, rows=4)
    scp = start_service()
    assert send(scp, instance).status == 0
    assert len(scp.records(count=1)) == 1
    scp.stop()
    for file in (scp.root / ".outbox").glob("outbox.sqlite*"):
        file.unlink()
    again = start_service(root=scp.root)
    assert send(again, instance).status == 0
    assert len(again.records(count=2)) == 2
    assert send(again, instance).status == 0
    assert send(again, ct_slice(2, rows=4)).status == 0
    assert len(again.records(count=3)) == 3


def test_tenants_by_rule_and_default(start_service: StartService) -> None:
    rules = [
        {"tenant_id": "hospital-a", "called_ae": "HOSP_A", "calling_ae": "CT1"},
        {"tenant_id": "hospital-b", "called_ae": "HOSP_B", "source": "127.0.0.0/8"},
        {"tenant_id": "nobody", "source": "10.0.0.0/8"},
    ]
    scp = start_service(env={"STORESCP_TENANTS__RULES": json.dumps(rules), "STORESCP_TENANTS__DEFAULT": ""})
    for number, (called, calling, status) in enumerate(
        [(b"HOSP_A", b"CT1", 0), (b"HOSP_A", b"CT2", 0x0124), (b"HOSP_B", b"CT2", 0), (b"X", b"CT1", 0x0124)]
    ):
        assert send(scp, ct_slice(number, rows=4), called=called, calling=calling).status == status
    assert {file.relative_to(scp.root).parts[0] for file in scp.files()} == {"hospital-a", "hospital-b"}


def test_tenant_of_the_private_element(start_service: StartService) -> None:
    scp = start_service(
        env={"STORESCP_TENANTS__FROM_PRIVATE_ELEMENT": "true", "STORESCP_TENANTS__KNOWN": '["clinic-1", "clinic-2"]'}
    )
    tenant = 0x12111217
    inside = ct_slice(1, rows=4, changes={tenant: explicit(tenant, b"LO", b"clinic-1")})
    unknown = ct_slice(2, rows=4, changes={tenant: explicit(tenant, b"LO", b"clinic-9")})
    with RawAssociation(scp.port, CONTEXTS) as association:
        assert association.store(1, CT, inside.sop_instance, inside.dataset).status == 0
        assert association.store(1, CT, unknown.sop_instance, unknown.dataset).status == 0x0124
        third = ct_slice(3, rows=4)
        named = {"12111217": b"clinic-2"}
        assert association.store(1, CT, third.sop_instance, third.dataset, **named).status == 0
        fourth = ct_slice(4, rows=4)
        assert (
            association.store(1, CT, fourth.sop_instance, fourth.dataset, **{"12111217": b"../../x "}).status == 0x0124
        )
        fifth = ct_slice(5, rows=4)
        assert association.store(1, CT, fifth.sop_instance, fifth.dataset).status == 0
        association.release()
    tenants = sorted((file.name[-5], file.relative_to(scp.root).parts[0]) for file in scp.files())
    assert tenants == [("1", "clinic-1"), ("3", "clinic-2"), ("5", "1234567890")]


def test_what_negotiation_takes(start_service: StartService) -> None:
    hanging_protocol, private, deflated = "1.2.840.10008.5.1.4.38.1", "1.2.276.0.99.1", "1.2.840.10008.1.2.1.99"
    proposal = [
        (1, CT, [deflated, IMPLICIT, EXPLICIT]),
        (3, CT, [IMPLICIT]),
        (5, private, [EXPLICIT]),
        (7, hanging_protocol, [EXPLICIT]),
        (9, CT, ["1.2.840.10008.1.2.6.1"]),
        (11, VERIFICATION, [IMPLICIT]),
    ]

    def results(*options: str) -> dict[int, tuple[int, str]]:
        service = start_service(*options)
        with RawAssociation(service.port, proposal) as association:
            accepted = association.accepted
            association.release()
        service.stop()
        return accepted

    plain = results()
    assert plain[1] == (0, deflated)
    assert plain[3] == (0, IMPLICIT)
    assert [plain[number][0] for number in (5, 7, 9, 11)] == [3, 3, 4, 0]
    assert results("--uncompressed-only")[1] == (0, IMPLICIT)
    promiscuous = results("--promiscuous")
    assert [promiscuous[number][0] for number in (5, 7)] == [0, 3]


def test_strict_aborts_a_long_pdu_and_the_default_takes_it_with_a_warning(start_service: StartService) -> None:
    instance = ct_slice(1, rows=128)
    strict = start_service("--strict")
    with RawAssociation(strict.port, CONTEXTS) as association:
        association.max_pdu = 30_000
        with pytest.raises(Aborted) as aborted:
            association.store(1, CT, instance.sop_instance, instance.dataset)
        assert aborted.value.code == (2, 6)
    assert strict.files() == []
    strict.stop()
    lenient = start_service()
    with RawAssociation(lenient.port, CONTEXTS) as association:
        association.max_pdu = 30_000
        assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
        association.release()
    assert lenient.wait_for_event("association.released")["oversized_pdus"] == 1


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_blocking_serves_one_while_the_others_wait(start_service: StartService, engine: str) -> None:
    scp = start_service("--blocking", engine=engine)
    first = RawAssociation(scp.port, CONTEXTS)
    waiting = scu.socket.create_connection(("127.0.0.1", scp.port), 20)
    waiting.sendall(scu.associate_rq(CONTEXTS))
    waiting.settimeout(0.5)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    assert first.echo(3).status == 0
    first.release()
    waiting.settimeout(20)
    assert waiting.recv(1) == b"\x02"
    waiting.close()


def test_non_blocking_serves_many_at_once(scp: ServiceProcess) -> None:
    associations = [RawAssociation(scp.port, CONTEXTS, calling=f"CT{number}".encode()) for number in range(20)]
    for number, association in enumerate(associations):
        instance = ct_slice(number, rows=4)
        association.send_store(1, CT, instance.sop_instance, instance.dataset)
    assert [association.read_response().status for association in associations] == [0] * 20
    for association in associations:
        association.release()
    assert len(scp.files()) == 20


def test_association_limit(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_DICOM_STORE_SCP__MAX_ASSOCIATIONS": "2"})
    held = [RawAssociation(scp.port, CONTEXTS) for _ in range(2)]
    with pytest.raises(scu.Rejected) as rejected:
        RawAssociation(scp.port, CONTEXTS)
    assert rejected.value.code == (2, 3, 2)
    assert held[0].echo(3).status == 0
    held[0].release()
    scp.wait_for_event("association.released")
    RawAssociation(scp.port, CONTEXTS).release()
    held[1].release()


def test_titles_and_peers(start_service: StartService) -> None:
    section = "STORESCP_DICOM_STORE_SCP__ALLOWED"
    scp = start_service(env={f"{section}_CALLED_AE_TITLES": '["ARCHIVE"]', f"{section}_CALLING_AE_TITLES": '["CT1"]'})
    for called, calling, code in [(b"OTHER", b"CT1", (1, 1, 7)), (b"ARCHIVE", b"CT2", (1, 1, 3)), (b"   ", b"CT1", (1, 1, 7)),
                                  (b"ARCHIVE", b"\x07CT1", (1, 1, 3))]:  # fmt: skip
        with pytest.raises(scu.Rejected) as rejected:
            RawAssociation(scp.port, CONTEXTS, called=called, calling=calling)
        assert rejected.value.code == code
    RawAssociation(scp.port, CONTEXTS, called=b"ARCHIVE", calling=b"CT1").release()
    RawAssociation(scp.port, CONTEXTS, called=b"STORE-SCP", calling=b"CT1").release()
    closed = start_service(env={f"{section}_PEERS": '["10.0.0.0/8"]'}, root=scp.root.parent / "other")
    with pytest.raises(scu.Rejected) as rejected:
        RawAssociation(closed.port, CONTEXTS)
    assert rejected.value.code == (1, 1, 1)


@EMPTY_RUST
def test_breaches_of_the_protocol_are_aborted(empty: ServiceProcess) -> None:
    store = scu.store_rq(CT, "1.2.3", 1)
    breaches: list[tuple[bytes, tuple[int, int]]] = [
        (struct.pack(">BBL", 4, 0, 0xFFFFFFFF), (2, 6)),
        (struct.pack(">BBL", 4, 0, 300 << 20), (2, 6)),
        (struct.pack(">BBL", 9, 0, 4), (2, 1)),
        (scu.associate_rq(CONTEXTS), (2, 2)),
        (scu.pdata(scu.pdv(1, 2, b"data before command")), (2, 2)),
        (scu.pdata(scu.pdv(2, 3, store)), (2, 6)),
        (scu.pdata(scu.pdv(99, 3, store)), (2, 6)),
        (scu.pdata(scu.pdv(1, 3, b"\xff" * 40)), (2, 6)),
        (scu.pdata(struct.pack(">L", 0)), (2, 6)),
        (scu.pdata(struct.pack(">LBB", 0, 1, 3)), (2, 6)),
        (scu.pdata(struct.pack(">LBB", 1, 1, 3)), (2, 6)),
        (scu.pdata(struct.pack(">LBB", 5000, 1, 3)), (2, 6)),
    ]
    threads, descriptors = empty.threads(), empty.descriptors()
    for breach, code in breaches:
        with RawAssociation(empty.port, CONTEXTS) as association:
            association.send(breach)
            with pytest.raises(Aborted) as aborted:
                association.read_pdu()
            assert aborted.value.code == code, breach[:20]
    assert empty.threads() <= threads + len(breaches)
    assert empty.descriptors() <= descriptors + 3
    RawAssociation(empty.port, CONTEXTS).release()


@EMPTY_RUST
def test_unknown_operations_are_answered(empty: ServiceProcess) -> None:
    find = scu.command({0x2: scu.even(CT), 0x100: scu.us(0x0020), 0x110: scu.us(5), 0x800: scu.us(1)})
    no_dataset = scu.command(
        {0x2: scu.even(CT), 0x100: scu.us(1), 0x110: scu.us(6), 0x800: scu.us(0x0101), 0x1000: scu.even("1.2.3")}
    )
    with RawAssociation(empty.port, CONTEXTS) as association:
        association.send(scu.fragments(1, True, find, 16384) + scu.fragments(1, False, b"\0" * 20, 16384))
        response = association.read_response()
        assert (response.field, response.message_id, response.status) == (0x8020, 5, 0x0211)
        association.send(scu.fragments(1, True, no_dataset, 16384))
        response = association.read_response()
        assert (response.field, response.message_id, response.status) == (0x8001, 6, 0x0212)
        association.release()


def test_size_limit(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_INSTANCE_BYTES": "100000"})
    response = send(scp, ct_slice(1))
    assert (response.status, response.comment) == (0xA700, "instance exceeds the size limit of 100000 bytes")
    assert send(scp, ct_slice(1, rows=4)).status == 0
    assert scp.temporary_files() == []


def test_low_space_refuses_and_says_why(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": str(1 << 60)})
    with pytest.raises(scu.Rejected) as rejected:
        RawAssociation(scp.port, CONTEXTS)
    assert rejected.value.code == (2, 3, 1)
    assert scp.wait_for_event("association.rejected")["cause"] == "storage: less free space than configured"


@pytest.mark.parametrize("durability", ["full", "data", "none"])
def test_every_durability_stores(start_service: StartService, durability: str) -> None:
    scp = start_service(env={"STORESCP_LOCAL_STORAGE__DURABILITY": durability})
    assert send(scp, ct_slice(1, rows=4)).status == 0
    assert len(scp.records(count=1)) == 1


def test_links_in_place_of_folders_are_not_followed(scp: ServiceProcess, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (scp.root / "1234567890").mkdir()
    (scp.root / "1234567890" / "20260102").symlink_to(outside)
    assert send(scp, ct_slice(1, rows=4)).status == 0xA700
    assert list(outside.iterdir()) == []
    assert scp.temporary_files() == []


def test_big_endian_and_implicit_are_scanned(scp: ServiceProcess) -> None:
    def encode(big: bool) -> bytes:
        order = ">" if big else "<"
        out = b""
        for tag, vr, value in [
            (0x00080016, b"UI", text(CT, b"\0")),
            (0x00080018, b"UI", text("1.2.3.4", b"\0")),
            (0x00080020, b"DA", b"20260102"),
            (0x00100020, b"LO", b"P1"),
            (0x0020000D, b"UI", text("1.2.3", b"\0")),
            (0x0020000E, b"UI", text("1.2.3.9", b"\0")),
        ]:
            out += struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
            out += (vr + struct.pack(f"{order}H", len(value)) if big else struct.pack("<L", len(value))) + value
        return out

    for syntax in (BIG, IMPLICIT):
        instance = Instance(CT, "1.2.3.4", syntax, encode(syntax == BIG))
        assert send(scp, instance).status == 0
    assert [record["transfer_syntax_uid"] for record in scp.records(count=2)] == [BIG, IMPLICIT]
