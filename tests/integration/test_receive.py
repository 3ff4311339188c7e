"""Instances on their way: how they come, how they are cut off, and what there is of them meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from storescp import _core
from support import scu
from support.compressed import JPEG_LS, ONLY_EXPLICIT, compressed_ct
from support.instances import CT, ct_slice, dataset_of, explicit, text
from support.scu import EXPLICIT, Aborted, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

CONTEXTS = [(1, CT, [EXPLICIT])]
StartService = Callable[..., ServiceProcess]


def test_fragments_of_any_size_in_any_grouping(scp: ServiceProcess) -> None:
    instance = ct_slice(2, rows=16)
    command = scu.store_rq(CT, instance.sop_instance, 9)
    with RawAssociation(scp.port, CONTEXTS) as association:
        # The command set over PDVs of one byte, three of them in a PDU.
        pdvs = [scu.pdv(1, 1, command[at : at + 1]) for at in range(len(command) - 1)]
        pdvs.append(scu.pdv(1, 3, command[-1:]))
        for at in range(0, len(pdvs), 3):
            association.send(scu.pdata(*pdvs[at : at + 3]))
        # The data set in odd pieces, an empty one among them, the last flag on an empty fragment.
        pieces = [instance.dataset[at : at + 7] for at in range(0, len(instance.dataset), 7)]
        association.send(b"".join(scu.pdata(scu.pdv(1, 0, piece), scu.pdv(1, 0, b"")) for piece in pieces))
        association.send(scu.pdata(scu.pdv(1, 2, b"")))
        assert association.read_response().status == 0
        # Command and data set in one PDU.
        second = ct_slice(3, rows=16)
        association.send(
            scu.pdata(scu.pdv(1, 3, scu.store_rq(CT, second.sop_instance, 10)), scu.pdv(1, 2, second.dataset))
        )
        response = association.read_response()
        assert (response.status, response.message_id) == (0, 10)
        association.release()
    assert sorted(dataset_of(file) for file in scp.files()) == sorted([instance.dataset, second.dataset])


@pytest.mark.parametrize("spool_memory", [4096, 100_000, 1 << 20])
@pytest.mark.parametrize("durability", ["full", "none"])
def test_instances_that_do_not_wait_for_answers_are_whole(
    start_service: StartService, durability: str, spool_memory: int
) -> None:
    env = {
        "STORESCP_LOCAL_STORAGE__DURABILITY": durability,
        "STORESCP_LOCAL_STORAGE__SPOOL_MEMORY_BYTES": str(spool_memory),
    }
    scp = start_service("-m", "131072", env=env)
    instances = [ct_slice(number, rows=rows) for number, rows in enumerate((4, 512, 64, 1, 700, 4, 4, 300, 2), 1)]
    for max_pdu in (150, 16384, 131072):
        with RawAssociation(scp.port, CONTEXTS) as association:
            association.max_pdu = max_pdu
            pdus = [association.store_pdus(1, CT, one.sop_instance, one.dataset) for one in instances]
            sender = threading.Thread(target=association.send, args=(b"".join(pdus),))
            sender.start()
            assert [association.read_response().status for _ in instances] == [0] * len(instances)
            sender.join()
            association.release()
        assert sorted(dataset_of(file) for file in scp.files()) == sorted(one.dataset for one in instances)
        for file in scp.files():
            file.unlink()
    assert scp.temporary_files() == []


@pytest.mark.parametrize("durability", ["full", "none"])
def test_nothing_is_left_of_an_instance_that_was_cut_off(start_service: StartService, durability: str) -> None:
    env = {
        "STORESCP_LOCAL_STORAGE__SPOOL_MEMORY_BYTES": "4096",
        "STORESCP_LOCAL_STORAGE__DURABILITY": durability,
    }
    scp = start_service(env=env)
    instance = ct_slice(1)
    for end in ("abort", "close"):
        association = RawAssociation(scp.port, CONTEXTS)
        association.send(scu.fragments(1, True, scu.store_rq(CT, instance.sop_instance, 1), 16384))
        association.send(scu.pdata(scu.pdv(1, 0, instance.dataset[:16000])))
        assert association is not None
        if end == "abort":
            association.abort()
        else:
            association.socket.close()
        scp.wait_for_event("association.aborted_by_peer" if end == "abort" else "association.connection_lost")
    assert scp.temporary_files() == []
    assert scp.files() == []


def test_what_is_not_synced_has_no_name_until_it_is_complete(start_service: StartService) -> None:
    env = {"STORESCP_LOCAL_STORAGE__SPOOL_MEMORY_BYTES": "4096", "STORESCP_LOCAL_STORAGE__DURABILITY": "none"}
    scp = start_service(env=env)
    instance = ct_slice(1)
    associations = [RawAssociation(scp.port, CONTEXTS) for _ in range(8)]
    for association in associations:
        association.send(association.store_pdus(1, CT, instance.sop_instance, instance.dataset)[:-20_000])
    wait_until(lambda: scp.nameless_files() == len(associations), 5)
    assert scp.temporary_files() == scp.files() == []
    for association in associations:
        association.socket.close()
    wait_until(lambda: scp.nameless_files() == 0, 5)
    with RawAssociation(scp.port, CONTEXTS) as association:
        for number in range(20):
            one = ct_slice(number, rows=4)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    # The next instances find a few files ready.
    assert 1 <= scp.nameless_files() <= 4
    scp.kill()
    assert scp.temporary_files() == []
    assert len(scp.files()) == 20


@pytest.mark.parametrize(
    ("durability", "transfer_syntax", "is_written"),
    [("none", EXPLICIT, True), ("none", JPEG_LS, False), ("full", EXPLICIT, False)],
)
def test_only_what_stays_as_it_is_unsynced_is_written_as_it_comes(
    start_service: StartService, durability: str, transfer_syntax: str, is_written: bool
) -> None:
    scp = start_service(env={"STORESCP_LOCAL_STORAGE__DURABILITY": durability} | ONLY_EXPLICIT)
    one = compressed_ct(1, transfer_syntax, rows=512)
    with RawAssociation(scp.port, [(1, CT, [transfer_syntax])]) as association:
        pdus = association.store_pdus(1, CT, one.sop_instance, one.dataset)
        association.send(pdus[:300_000])
        if is_written:
            wait_until(lambda: scp.nameless_bytes() > 200_000, 5)
        else:
            wait_until(lambda: scp.has_taken_all(association.socket.getsockname()[1]), 5)
            assert scp.nameless_bytes() == 0
            assert scp.temporary_files() == []
        association.send(pdus[300_000:])
        assert association.read_response().status == 0
        association.release()
    [file] = scp.files()
    native = one.dataset if transfer_syntax == EXPLICIT else _core.transcode(one.dataset, JPEG_LS, EXPLICIT, 1 << 30)
    assert dataset_of(file) == native


def test_a_data_set_without_end_is_cut_off(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_INSTANCE_BYTES": "100000"})
    endless = scu.pdata(scu.pdv(1, 0, bytes(16000)))
    with RawAssociation(scp.port, CONTEXTS) as association:
        association.send(scu.fragments(1, True, scu.store_rq(CT, "1.2.3", 1), 16384))
        with pytest.raises((Aborted, scu.Closed, ConnectionError)):  # noqa: PT012 - whichever comes first
            for _ in range(10_000):
                association.send(endless)
            association.read_pdu()
    assert scp.wait_for_event("association.protocol_error")["reason"] == "a data set far beyond the size limit"
    assert scp.temporary_files() == []


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_dates_and_names_of_devices_are_in_folder_and_record(start_service: StartService, engine: str) -> None:
    scp = start_service(engine=engine)
    written = [
        (b"2026-01-02", "gb18030", "王小东".encode("gb18030"), "王小东"),
        (b"20260102120000", "UTF-8", "王小东".encode(), "王小东"),
        (b"2026.01.02 12:00:00.5", "\\ISO 2022 IR 58", "王小东".encode("gb2312"), "王小东"),
        (b"2026/01/02", "ISO_IR 13", "山田".encode("shift_jis"), "山田"),
        (b"20260102", "ISO_IR 192", "王".encode("gbk"), "\ufffd\ufffd"),
    ]
    expected = {}
    with RawAssociation(scp.port, CONTEXTS) as association:
        for number, (day, term, value, name) in enumerate(written, 1):
            changes = {
                0x00080005: explicit(0x00080005, b"CS", text(term)),
                0x00080020: explicit(0x00080020, b"DA", text(day)),
                0x00100020: explicit(0x00100020, b"LO", text(value)),
            }
            one = ct_slice(number, rows=4, changes=changes)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
            expected[one.sop_instance] = ("2026-01-02", name)
        association.release()
    records = scp.records(count=len(written))
    assert {one["sop_uid"]: (one["study_date"], one["patient_id"]) for one in records} == expected
    assert {file.relative_to(scp.root).parts[1] for file in scp.files()} == {"20260102"}
