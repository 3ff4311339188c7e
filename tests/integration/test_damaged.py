"""Damaged data sets are kept instead of being refused, where the configuration says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import xxhash
from pydicom.filereader import read_file_meta_info

from support.damage import (
    CANNOT_UNDERSTAND,
    KEEPS,
    QUARANTINED,
    contradictory,
    deflated_cut_short,
    entries,
    nested,
    opened_keeping,
    send,
    truncated,
    with_wrong_uid,
)
from support.engines import ENGINES, TENANT, opened, take
from support.instances import CT, Instance, ct_slice, dataset_of, explicit
from support.mounts import tmpfs
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
KINDS = {
    "data set ends inside an element or sequence": truncated(),
    "an identifying attribute occurs twice": contradictory(),
    "SeriesInstanceUID breaks the UID grammar": with_wrong_uid(),
}
BLOCK = 4096


def storescpd(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("STORESCP_")}
    return subprocess.run(
        [sys.executable, "-m", "storescp", "-o", str(root), *arguments],
        env=plain | KEEPS | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def weight(*files: Path) -> int:
    return sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in files)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_kind_of_damage_is_kept_as_received_with_its_note(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=KEEPS)
    sent = [*KINDS.values(), deflated_cut_short()]
    answers = send(service, *sent)
    assert [answer.status for answer in answers] == [QUARANTINED] * len(sent)
    for reason, answer in zip(KINDS, answers, strict=False):
        assert answer.comment == f"in quarantine: {reason}"[:64]
    assert service.stop() == 0
    assert service.files() == []
    assert service.records() == []
    assert service.temporary_files() == []
    kept = entries(service.root)
    assert len(kept) == len(sent)
    for message_id, (one, (file, note)) in enumerate(zip(sent, kept, strict=True), 1):
        assert dataset_of(file) == one.dataset
        assert read_file_meta_info(file).TransferSyntaxUID == one.transfer_syntax
        assert note["received_at"].endswith("Z")
        assert note | {"received_at": ""} == {
            "received_at": "",
            "reason": note["reason"],
            "status": "C000",
            "calling_ae_title": "CT1",
            "called_ae_title": "STORE-SCP",
            "address": "127.0.0.1",
            "tenant": "1234567890",
            "tenant_from": "default",
            "private_tenant": None,
            "affected_sop_class_uid": CT,
            "affected_sop_instance_uid": one.sop_instance,
            "transfer_syntax_uid": one.transfer_syntax,
            "message_id": message_id,
            "size": file.stat().st_size,
            "digest": xxhash.xxh3_128_hexdigest(file.read_bytes()),
        }
    assert [note["reason"] for _, note in kept][: len(KINDS)] == list(KINDS)
    events = service.events("instance.quarantined")
    assert [(event["status"], event["sop_instance_uid"]) for event in events] == [
        ("B007", one.sop_instance) for one in sent
    ]


def test_the_line_of_the_association_names_the_instances(start_service: StartService) -> None:
    service = start_service(env=KEEPS)
    send(service, truncated(), ct_slice(7, rows=16))
    line = service.wait_for_event("association.released")
    assert line["quarantined"] == [truncated().sop_instance]
    assert line["statuses"] == {"B007": 1, "0000": 1}


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_refused_unless_configured(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine)
    assert [answer.status for answer in send(service, *KINDS.values())] == [CANNOT_UNDERSTAND] * len(KINDS)
    assert entries(service.root) == []
    assert not (service.root / ".quarantine").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_other_refusals_stay_refusals(start_service: StartService, engine: str) -> None:
    limit = {"STORESCP_LIMITS__MAX_INSTANCE_BYTES": "20000"}
    required = {"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": '["PatientName"]'}
    service = start_service(engine=engine, env=KEEPS | limit | required)
    broken = truncated(rows=16).dataset[:300] + b"\xff" * 30_000
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        store = association.store
        assert store(1, CT, "1.2.3", ct_slice(1, rows=16).dataset).status == 0xA900
        unnamed = ct_slice(1, rows=16, changes={0x00100010: None})
        assert store(1, CT, unnamed.sop_instance, unnamed.dataset).status == 0xA900
        assert store(1, CT, "1.2.3", broken).status == 0xA700, "damaged, and then beyond the size limit"
        assert store(1, CT, b"1.2.3/4", truncated().dataset).status == 0x0117
        association.release()
    assert entries(service.root) == []
    assert service.temporary_files() == []


@pytest.mark.parametrize("durability", ["full", "none"])
def test_damage_early_in_a_large_data_set_loses_none_of_its_bytes(start_service: StartService, durability: str) -> None:
    service = start_service(env=KEEPS | {"STORESCP_STORAGE__DURABILITY": durability})
    one = contradictory()
    large = Instance(CT, one.sop_instance, EXPLICIT, one.dataset + os.urandom(9 << 20))
    cut = ct_slice(5, rows=2048)
    cut = Instance(CT, cut.sop_instance, EXPLICIT, cut.dataset[: 5 << 20])
    assert [answer.status for answer in send(service, large, cut)] == [QUARANTINED] * 2
    kept = entries(service.root)
    assert [dataset_of(file) for file, _ in kept] == [large.dataset, cut.dataset]
    for file, note in kept:
        assert note["digest"] == xxhash.xxh3_128_hexdigest(file.read_bytes())
        assert file.stat().st_blocks * 512 < file.stat().st_size + (1 << 16), "what was reserved is given back"
    assert service.temporary_files() == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_also_after_a_restart_and_operators_make_room(
    start_service: StartService, tmp_path: Path, engine: str
) -> None:
    bound = {"STORESCP_STORAGE__QUARANTINE_MAX_BYTES": str(2 * 2 * BLOCK)}
    service = start_service(engine=engine, env=KEEPS | bound)
    small = [truncated(number) for number in range(4)]
    statuses = [answer.status for answer in send(service, *small[:3])]
    assert statuses == [QUARANTINED, QUARANTINED, CANNOT_UNDERSTAND]
    assert service.stop() == 0
    service = start_service(engine=engine, root=service.root, env=KEEPS | bound)
    [answer] = send(service, small[3])
    assert answer.status == CANNOT_UNDERSTAND
    assert answer.comment.startswith("quarantine is full: ")
    assert service.temporary_files() == []
    assert len(entries(service.root)) == 2
    first = entries(service.root)[0][0].stem
    assert storescpd(service.root, "quarantine", "forget", "--yes", first).returncode == 0
    # The names are counted again within a second.
    wait_until(lambda: send(service, small[3])[0].status == QUARANTINED)
    assert len(entries(service.root)) == 2


def test_what_finds_no_room_is_not_written_to_its_end(start_service: StartService) -> None:
    service = start_service(env=KEEPS | {"STORESCP_STORAGE__QUARANTINE_MAX_BYTES": str(1 << 20)})
    one = contradictory()
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        pdus = association.store_pdus(1, CT, one.sop_instance, one.dataset + bytes(64 << 20))
        association.send(pdus[: 32 << 20])
        association.send(pdus[32 << 20 :])
        assert association.read_response().status == CANNOT_UNDERSTAND
        assert service.nameless_bytes() < 4 << 20
        association.release()
    assert entries(service.root) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_disk_is_transient_and_leaves_nothing(start_service: StartService, tmp_path: Path, engine: str) -> None:
    with tmpfs(tmp_path / "small", "size=24m") as root:
        service = start_service(root=root, engine=engine, env=KEEPS)
        large = Instance(CT, "1.2.3", EXPLICIT, contradictory().dataset + bytes(30 << 20))
        assert send(service, large)[0].status == 0xA700
        assert entries(root) == []
        assert list(root.glob(".quarantine/*")) == []
        assert service.temporary_files() == []
        assert send(service, truncated())[0].status == QUARANTINED
        assert service.stop() == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_quarantine_that_cannot_be_written_is_a_storage_error(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=KEEPS)
    (service.root / ".quarantine").write_text("in the way")
    [answer] = send(service, truncated())
    assert answer.status == 0xA700
    assert service.temporary_files() == []
    (service.root / ".quarantine").unlink()
    assert send(service, truncated())[0].status == QUARANTINED


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interruption_leaves_no_part_of_an_entry(tmp_path: Path, engine: str) -> None:
    with opened_keeping(engine, tmp_path) as one:
        assert take(one, truncated())[0] == QUARANTINED
        state = one.storage_state()
    [(file, _)] = entries(tmp_path)
    orphan = file.with_name("damaged-01890a5d-ac96-774b-bcce-b302099a8057.json")
    orphan.write_text("{}")
    (tmp_path / ".incoming" / f"{orphan.name}.part").write_text("{}")
    assert storescpd(tmp_path, "quarantine", "list").stdout.count("\n") == 1
    with opened_keeping(engine, tmp_path) as one:
        assert one.start_up().temporary_files == 2
        assert one.storage_state().damaged_bytes == weight(file, file.with_suffix(".json")) == state.damaged_bytes
        assert one.storage_state().damaged == 1
        assert one.storage_state().quarantined == 0
    assert not orphan.exists()
    assert list((tmp_path / ".incoming").iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_tenant_is_noted_as_far_as_it_is_known(tmp_path: Path, engine: str) -> None:
    tenants = {"from_private_element": True, "known": ["hospital-1", "hospital-10"]}

    def with_element(value: bytes, cut: int = 9) -> Instance:
        one = ct_slice(1, rows=16, changes={0x12111217: explicit(0x12111217, b"LO", value)})
        return Instance(CT, one.sop_instance, EXPLICIT, one.dataset[:-cut])

    pixels = 16 * 16 * 2 + 12
    sent = [
        (with_element(b"hospital-1"), ("hospital-1", "data set", None)),
        (with_element(b"elsewhere "), (None, None, "elsewhere")),
        (truncated(), (TENANT, "default", None)),
        # The value itself is cut: what is left of it is the name of another tenant.
        (with_element(b"hospital-10 ", pixels + 2), (TENANT, "default", None)),
    ]
    with opened_keeping(engine, tmp_path, tenants=tenants) as one:
        for instance, _ in sent:
            assert take(one, instance)[0] == QUARANTINED
    found = [(note["tenant"], note["tenant_from"], note["private_tenant"]) for _, note in entries(tmp_path)]
    assert found == [expected for _, expected in sent]


@pytest.mark.parametrize("engine", ENGINES)
def test_retry_beside_the_service_stores_what_can_be_read_now(start_service: StartService, engine: str) -> None:
    strict = {"STORESCP_LIMITS__NESTING": "4"}
    service = start_service(engine=engine, env=KEEPS | strict)
    deep = nested(1, 8)
    assert [answer.status for answer in send(service, deep, truncated(2))] == [QUARANTINED] * 2
    tried = storescpd(service.root, "quarantine", "retry", "--all")
    assert tried.returncode == 1
    assert "C000 sequences are nested too deep" in tried.stdout
    assert len(entries(service.root)) == 2
    assert service.stop() == 0
    # The rule has changed.
    service = start_service(engine=engine, root=service.root, env=KEEPS)
    (first, _), (second, _) = entries(service.root)
    tried = storescpd(service.root, "quarantine", "retry", first.stem)
    assert (tried.returncode, tried.stdout) == (0, f"{first.stem}  {deep.sop_instance}  stored\n")
    assert [file for file, _ in entries(service.root)] == [second]
    [stored] = service.files()
    assert dataset_of(stored) == deep.dataset
    [record] = service.records(count=1)
    assert (record["sop_uid"], record["source_ae"], record["called_ae"]) == (deep.sop_instance, "CT1", "STORE-SCP")
    assert (record["source_ip"], record["tenant_id"]) == ("127.0.0.1", "1234567890")
    tried = storescpd(service.root, "quarantine", "retry", "--all")
    assert tried.returncode == 1
    assert f"{second.stem}  {truncated(2).sop_instance}  stays   C000 data set ends inside" in tried.stdout
    assert "0 stored, 1 stay in quarantine" in tried.stderr
    assert storescpd(service.root, "quarantine", "retry", "damaged-elsewhere").returncode == 1
    service.wait_for_event("quarantine.stored")


@pytest.mark.parametrize("engine", ENGINES)
def test_retry_without_a_service_does_the_same(tmp_path: Path, engine: str) -> None:
    with opened_keeping(engine, tmp_path, limits={"nesting": 4}) as one:
        assert take(one, nested(1, 8))[0] == QUARANTINED
        assert take(one, truncated(2))[0] == QUARANTINED
    (first, note), (second, _) = entries(tmp_path)
    tried = storescpd(tmp_path, "--engine", engine, "quarantine", "retry", "--all")
    assert tried.returncode == 1
    assert f"{first.stem}  {note['affected_sop_instance_uid']}  stored" in tried.stdout
    assert [file for file, _ in entries(tmp_path)] == [second]
    [stored] = tmp_path.glob(f"{TENANT}/**/*.dcm")
    assert dataset_of(stored) == nested(1, 8).dataset
    with opened(engine, tmp_path) as one:
        rows = [json.loads(row.payload) for row in one.outbox_claim(0, 0, 10)]
        assert [row["sop_uid"] for row in rows] == [nested(1, 8).sop_instance]
        assert one.storage_state().damaged == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_not_what_its_note_says_stays(tmp_path: Path, engine: str) -> None:
    with opened_keeping(engine, tmp_path, limits={"nesting": 4}) as one:
        assert take(one, nested(1, 8))[0] == QUARANTINED
    [(file, _)] = entries(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with opened(engine, tmp_path) as one:
        assert one.retry(tmp_path, file.stem, None, False) == "the file is not what its note says"
        file.with_suffix(".json").write_text("[]")
        assert one.retry(tmp_path, file.stem, None, False) == "its note cannot be read"
        for absent in ("../outbox", "damaged-", f"{file.stem}x"):
            assert one.retry(tmp_path, absent, None, False) == "it is not in quarantine"
        assert one.retry(tmp_path / "other", file.stem, None, False) == "it is not in quarantine"
        assert one.storage_state().damaged == 1
    assert not list(tmp_path.glob(f"{TENANT}/**/*.dcm"))


@pytest.mark.parametrize("engine", ENGINES)
def test_where_no_tenant_was_known_the_rules_of_today_count(start_service: StartService, engine: str) -> None:
    nobody = {"STORESCP_TENANTS__DEFAULT": "", "STORESCP_LIMITS__NESTING": "4"}
    service = start_service(engine=engine, env=KEEPS | nobody)
    deep = nested(1, 8)
    assert send(service, deep)[0].status == QUARANTINED
    assert service.stop() == 0
    [(_, note)] = entries(service.root)
    assert (note["tenant"], note["tenant_from"]) == (None, None)
    command = ("--engine", engine, "quarantine", "retry", "--all")
    tried = storescpd(service.root, *command, STORESCP_TENANTS__DEFAULT="")
    assert "0124 tenant not authorised" in tried.stdout
    rule = '[{"tenant_id": "radiology", "calling_ae": "CT1"}]'
    tried = storescpd(service.root, *command, STORESCP_TENANTS__DEFAULT="", STORESCP_TENANTS__RULES=rule)
    assert tried.returncode == 0, tried.stdout
    assert [file.relative_to(service.root).parts[0] for file in service.files()] == ["radiology"]


def test_a_tenant_with_a_root_of_its_own_has_its_quarantine_there(start_service: StartService, tmp_path: Path) -> None:
    own = tmp_path / "own"
    tenants = {
        "STORESCP_TENANTS__SETTINGS": json.dumps([{"tenant_id": "a", "storage_root": str(own)}]),
        "STORESCP_TENANTS__RULES": '[{"tenant_id": "a", "calling_ae": "CT1"}]',
    }
    service = start_service(env=KEEPS | tenants | {"STORESCP_LIMITS__NESTING": "4"})
    assert send(service, nested(1, 8))[0].status == QUARANTINED
    assert entries(service.root) == []
    [(file, note)] = entries(own)
    assert (note["tenant"], note["tenant_from"]) == ("a", "rule")
    assert "nested too deep" in storescpd(service.root, "quarantine", "retry", file.stem, **tenants).stdout
    service.stop()
    assert storescpd(service.root, "quarantine", "retry", file.stem, **tenants).returncode == 0
    assert len(list(own.glob("a/**/*.dcm"))) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_list_show_and_forget_work_with_both_kinds(tmp_path: Path, engine: str) -> None:
    with opened_keeping(engine, tmp_path) as one:
        assert take(one, truncated())[0] == QUARANTINED
    [(file, _)] = entries(tmp_path)
    aside = file.with_name("01890a5d-ac96-774b-bcce-b302099a8057.dcm")
    aside.write_bytes(b"put aside")
    listed = json.loads(storescpd(tmp_path, "quarantine", "list", "--json").stdout)
    assert [(entry["name"], entry["kind"]) for entry in listed] == [
        (aside.stem, "file put aside"),
        (file.stem, "damaged data set"),
    ]
    assert listed[1]["sop_instance_uid"] == truncated().sop_instance
    assert listed[1]["quarantined_at"].startswith("20")
    lines = storescpd(tmp_path, "quarantine", "list").stdout.splitlines()
    assert lines[1].endswith(f"  {truncated().sop_instance}  data set ends inside an element or sequence")
    shown = storescpd(tmp_path, "quarantine", "show", file.stem).stdout
    assert "now       unreadable: the data set: data set ends inside an element or sequence" in shown
    assert '"affected_sop_instance_uid"' in shown
    refused = storescpd(tmp_path, "quarantine", "retry", aside.stem)
    assert refused.returncode == 1
    assert "no damaged data set" in refused.stderr
    inspected = storescpd(tmp_path, "inspect", str(file))
    assert inspected.returncode == 1
    assert "data set ends inside" in inspected.stdout
    assert storescpd(tmp_path, "verify").stdout.count("quarantined  ") == 2
    assert storescpd(tmp_path, "quarantine", "forget", "--all", "--yes").returncode == 0
    assert list((tmp_path / ".quarantine").iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_and_status_say_how_many_wait_and_since_when(start_service: StartService, engine: str) -> None:
    service = start_service(engine=engine, env=KEEPS | {"STORESCP_HTTP__PORT": "0"})
    port = http_port(service)
    before = json.loads(get(port, "/status")[1])["storage"]
    assert (before["damaged"], before["damaged_since"]) == (0, None)
    assert "storescp_quarantined_oldest_timestamp_seconds " not in get(port, "/metrics")[1]
    send(service, truncated(), contradictory())
    (first, note), (second, _) = entries(service.root)
    metrics = dict(
        line.rsplit(" ", 1) for line in get(port, "/metrics")[1].splitlines() if line.startswith("storescp_quarantined")
    )
    held = weight(first, second, first.with_suffix(".json"), second.with_suffix(".json"))
    assert float(metrics["storescp_quarantined_data_sets"]) == 2
    assert float(metrics["storescp_quarantined_bytes"]) == held
    assert float(metrics["storescp_quarantined_limit_bytes"]) == 10 << 30
    since = float(metrics["storescp_quarantined_oldest_timestamp_seconds"])
    assert abs(since - datetime.fromisoformat(note["received_at"]).timestamp()) < 5


def test_our_own_sender_does_not_take_b007_for_delivered(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(env=KEEPS)
    send(service, truncated())
    [(file, _)] = entries(service.root)
    sent = subprocess.run(
        [sys.executable, "-m", "storescp", "send", "127.0.0.1", str(service.port), str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sent.returncode == 1
    assert "B007" in sent.stdout + sent.stderr


def test_dcmtk_reads_what_is_there(tmp_path: Path) -> None:
    if shutil.which("dcmdump") is None:
        pytest.skip("needs dcmtk")
    with opened_keeping("rust", tmp_path) as one:
        assert take(one, contradictory())[0] == QUARANTINED
    [(file, _)] = entries(tmp_path)
    dumped = subprocess.run(["dcmdump", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert dumped.returncode == 0
    assert "=LittleEndianExplicit" in dumped.stdout
