"""The conformance statement: each claim in it is proved here, under its key, against a running service."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.filereader import dcmread

from conftest import StartService
from storescp import _core
from storescp.conformance import Statement
from storescp.network.contexts import Offer
from storescp.settings import DicomStoreScp, Settings
from support import scu
from support.compressed import ONLY_EXPLICIT, RLE, compressed_ct, encapsulated
from support.instances import CT, Instance, ct_slice, dataset_of, explicit, text
from support.proofs import ELSEWHERE
from support.scu import BIG, EXPLICIT, IMPLICIT, VERIFICATION, Aborted, Closed, RawAssociation, Rejected, Response
from support.service import ServiceProcess
from support.texts import OTHER_TERMS, TEXTS

_TESTS = Path(__file__).parents[1]
CONTEXTS = [(1, CT, [EXPLICIT])]
PRIVATE_CLASS = "1.2.276.0.99.1"
HANGING_PROTOCOL = "1.2.840.10008.5.1.4.38.1"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One with the defaults."""
    started = ServiceProcess(tmp_path_factory.mktemp("statement") / "data")
    yield started
    started.stop()


def small(number: int, **options: object) -> Instance:
    return ct_slice(number, rows=4, **options)  # type: ignore[arg-type]


def send(service: ServiceProcess, one: Instance) -> Response:
    with RawAssociation(service.port, [(1, one.sop_class, [one.transfer_syntax])]) as association:
        response = association.store(1, one.sop_class, one.sop_instance, one.dataset)
        association.release()
    return response


def rejection(service: ServiceProcess, **options: object) -> tuple[int, int, int]:
    with pytest.raises(Rejected) as rejected:
        RawAssociation(service.port, CONTEXTS, **options)  # type: ignore[arg-type]
    return rejected.value.code


def held(service: ServiceProcess) -> AbstractContextManager[RawAssociation]:
    return RawAssociation(service.port, CONTEXTS)


def test_every_claim_has_a_proof_and_every_proof_a_claim() -> None:
    claims = Statement(Settings()).claims
    assert len(claims) == len(set(claims))
    here = [
        key
        for proof in list(globals().values())
        for mark in getattr(proof, "pytestmark", ())
        if mark.name == "proves"
        for key in mark.args
    ]
    assert len(here) == len(set(here))
    assert {*here, *ELSEWHERE} == set(claims)
    for proof in (proof for proofs in ELSEWHERE.values() for proof in proofs):
        file, _, name = proof.partition("::")
        assert re.search(rf"^def {name}\(", (_TESTS / file).read_text(), re.MULTILINE), proof


def test_the_statement_is_that_of_the_configuration() -> None:
    settings = Settings(dicom_store_scp=DicomStoreScp(uncompressed_only=True, promiscuous=True, max_associations=7))
    statement = Statement(settings).markdown
    assert "At most 7 associations" in statement
    assert "1.2.840.10008.1.2.4.90 |" not in statement
    assert "B007 is never sent" in statement
    assert "| B007 |" not in statement
    keeping = Statement(Settings(dicom_store_scp=DicomStoreScp(malformed="quarantine"))).markdown
    assert "| B007 | Warning: Data Set Does Not Match SOP Class | in quarantine: " in keeping
    assert "must not take B007 for delivered" in keeping
    assert "1.2.840.10008.1.2.2 |" in statement
    for number in (
        "## 1 ",
        "## 3 ",
        "## 4 ",
        "### 4.1 ",
        "### 4.2 ",
        "### 4.3 ",
        "### 4.4 ",
        "## 5 ",
        "## 6 ",
        "## 7 ",
        "## 8 ",
    ):
        assert f"\n{number}" in statement


@pytest.mark.proves("parameters")
def test_each_oddity_of_a_request_is_in_the_table() -> None:
    statement = Statement(Settings()).markdown
    for code in _core.request_oddities():
        assert f"\n| {code} | " in statement, code


def test_the_parameters_are_those_in_force() -> None:
    environment = {"STORESCP_DICOM_STORE_SCP__AE_TITLE": "OTHER", "STORESCP_LIMITS__IDLE_TIMEOUT": "17"}

    def printed(command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "storescp", command],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=60,
        )
        return done.stdout

    values = dict(re.findall(r"^(\S+) += (.*?)  # ", printed("check-config"), re.MULTILINE))
    rows = re.findall(r"^\| (\w+\.\w+) \| (\S+)(?: s)? \|$", printed("conformance"), re.MULTILINE)
    assert len(rows) >= 7
    for key, value in rows:
        expected = json.loads(values[key])
        assert value == (f"{expected:g}" if isinstance(expected, float) else str(expected)), key
    assert ("dicom_store_scp.ae_title", "OTHER") in rows
    assert ("limits.idle_timeout", "17") in rows


@pytest.mark.proves("failure-leaves-nothing")
def test_a_failure_leaves_no_file_and_no_record(start_service: StartService) -> None:
    scp = start_service()
    assert send(scp, small(1, changes={0x0020000D: None})).status == 0xA900
    assert send(scp, small(2)).status == 0
    assert [record["sop_uid"] for record in scp.records(count=1)] == [small(2).sop_instance]
    assert [file.stem for file in scp.files()] == [small(2).sop_instance]
    assert scp.temporary_files() == []


@pytest.mark.proves("sop-classes")
def test_every_class_of_the_table_is_accepted(service: ServiceProcess) -> None:
    listed = re.findall(r"^\| [^|]* \| (1[0-9.]+[.][0-9.]+) \|$", Statement(Settings()).markdown, re.MULTILINE)
    assert set(listed) == Offer.from_settings(Settings()).storage_sop_classes | {VERIFICATION}
    for first in range(0, len(listed), 128):
        proposal = [(2 * at + 1, uid, [IMPLICIT]) for at, uid in enumerate(listed[first : first + 128])]
        with RawAssociation(service.port, proposal) as association:
            assert {result for result, _ in association.accepted.values()} == {0}
            assert len(association.accepted) == len(proposal)
            association.release()


@pytest.mark.proves("application-context", "implementation", "no-asynchronous-operations", "no-extended-negotiation")
def test_what_an_accept_says(service: ServiceProcess) -> None:
    role = scu.item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\1\1")
    extended = scu.item(0x56, struct.pack(">H", len(CT)) + CT.encode() + b"\2\0\0\0\0\0")
    asynchronous = scu.item(0x53, struct.pack(">HH", 5, 5))
    for kind in range(1, 6):
        # Nobody is asked for: who they say they are is not even answered.
        identity = scu.item(0x58, bytes([kind, 1]) + b"\0\3who" + b"\0\0")
        items = role + extended + asynchronous + identity
        with RawAssociation(service.port, CONTEXTS, extra_items=items) as association:
            user = association.user_information
            association.release()
        assert set(user) == {0x51, 0x52, 0x55}
    assert user[0x52].decode() == _core.IMPLEMENTATION_CLASS_UID
    assert user[0x55].decode() == _core.IMPLEMENTATION_VERSION_NAME
    statement = Statement(Settings()).markdown
    assert user[0x52].decode() in statement
    assert rejection(service, application_context=b"1.2.3") == (1, 1, 2)


@pytest.mark.proves("no-initiation")
def test_it_connects_to_nobody(start_service: StartService, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    scp = start_service(wrapper=("strace", "-D", "-f", "-qq", "-e", "trace=connect", "-o", str(trace)))
    assert send(scp, small(1)).status == 0
    scp.records(count=1)
    scp.stop()
    assert "AF_INET" not in trace.read_text()


@pytest.mark.proves("max-pdu-length")
def test_longer_pdus_are_taken_or_aborted_as_it_says(service: ServiceProcess, start_service: StartService) -> None:
    one = ct_slice(901, rows=128)

    def store(scp: ServiceProcess) -> int:
        with held(scp) as association:
            assert association.max_pdu == 16384
            association.max_pdu = len(one.dataset)
            return association.store(1, CT, one.sop_instance, one.dataset).status

    assert store(service) == 0
    with pytest.raises(Aborted):
        store(start_service("--strict"))


@pytest.mark.proves("peer-max-pdu-length")
def test_responses_fit_the_peer(service: ServiceProcess) -> None:
    with RawAssociation(service.port, CONTEXTS, max_pdu=128) as association:
        association.send_store(1, CT, "1.2.3", small(1).dataset)
        pieces = []
        while not pieces or not pieces[-1][5] & 2:
            kind, body = association.read_pdu()
            assert kind == 4
            assert len(body) <= 128
            pieces.append(body)
    assert len(pieces) > 1


@pytest.mark.proves("association-limit")
def test_associations_beyond_the_limit_are_transient(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_DICOM_STORE_SCP__MAX_ASSOCIATIONS": "2"})
    with held(scp), held(scp):
        assert rejection(scp) == (2, 3, 2)


@pytest.mark.proves("transfer-syntaxes", "transcoding")
def test_every_transfer_syntax_of_the_table_is_accepted_and_images_are_stored_as_it_says(
    service: ServiceProcess, start_service: StartService
) -> None:
    rows = re.findall(r"^\| [^|]* \| ([0-9.]+) \| (as [^|]*) \|$", Statement(Settings()).markdown, re.MULTILINE)
    assert {uid for uid, _ in rows} == Offer.from_settings(Settings()).transfer_syntaxes
    proposal = [(2 * at + 1, CT, [uid]) for at, (uid, _) in enumerate(rows)]
    with RawAssociation(service.port, proposal) as association:
        assert [association.accepted[number] for number, *_ in proposal] == [(0, uid) for uid, _ in rows]
        association.release()
    scp = start_service(env=ONLY_EXPLICIT)
    good = compressed_ct(1, RLE)
    # The second frame says it has 3 segments; pixels of 16 bits have 2.
    bad = encapsulated(compressed_ct(2, RLE), b"", struct.pack("<L", 3) + bytes(60))
    for one in (good, bad):
        assert send(scp, one).status == 0
    stored = {record["sop_uid"]: record for record in scp.records(count=2)}
    assert (stored[good.sop_instance]["target_ts"], stored[good.sop_instance]["transfer_status"]) == (
        EXPLICIT,
        "Success",
    )
    assert (stored[bad.sop_instance]["target_ts"], stored[bad.sop_instance]["transfer_status"]) == (RLE, "Failed")
    file = next(file for file in scp.files() if file.stem == bad.sop_instance)
    assert dataset_of(file) == bad.dataset
    restored = dcmread(next(file for file in scp.files() if file.stem == good.sop_instance))
    assert restored.PixelData == ct_slice(1, rows=64).dataset[-64 * 64 * 2 :]


@pytest.mark.proves("first-choice", "unknown-classes", "unknown-transfer-syntaxes")
def test_what_is_chosen_and_what_is_not_known(service: ServiceProcess, start_service: StartService) -> None:
    proposal = [
        (1, CT, ["1.2.3.4", BIG, EXPLICIT]),
        (3, CT, [RLE, EXPLICIT]),
        (5, PRIVATE_CLASS, [EXPLICIT]),
        (7, HANGING_PROTOCOL, [EXPLICIT]),
        (9, CT, ["1.2.3.4"]),
    ]

    def results(scp: ServiceProcess) -> list[tuple[int, str]]:
        with RawAssociation(scp.port, proposal) as association:
            association.release()
            return [association.accepted[number] for number, *_ in proposal]

    plain = results(service)
    assert plain[:2] == [(0, BIG), (0, RLE)]
    assert [result for result, _ in plain[2:]] == [3, 3, 4]
    assert [result for result, _ in results(start_service("--promiscuous"))[2:]] == [0, 3, 4]


@pytest.mark.proves("rejections")
def test_each_rejection_of_the_table(service: ServiceProcess, start_service: StartService) -> None:
    listed = re.findall(r"^\| (\d) / (\d) / (\d) \|", Statement(Settings()).markdown, re.MULTILINE)
    seen = {
        rejection(service, max_pdu=100),
        rejection(service, application_context=b"1.2.3"),
        rejection(service, version=2),
        rejection(service, called=b"   "),
        rejection(service, calling=b"A\\B"),
    }
    scp = start_service(env={"STORESCP_DICOM_STORE_SCP__ALLOWED_PEERS": '["10.0.0.0/8"]'})
    assert rejection(scp) == (1, 1, 1)
    scp.stop()
    scp = start_service(root=scp.root, env={"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": str(1 << 60)})
    seen.add(rejection(scp))
    scp.stop()
    scp = start_service(root=scp.root, env={"STORESCP_DICOM_STORE_SCP__MAX_ASSOCIATIONS": "1"})
    with held(scp):
        seen.add(rejection(scp))
    assert seen == {(int(a), int(b), int(c)) for a, b, c in listed}


@pytest.mark.proves("abort")
def test_what_is_no_pdu_is_aborted(service: ServiceProcess) -> None:
    for breach in (struct.pack(">BBL", 9, 0, 4) + bytes(4), scu.pdata(scu.pdv(99, 3, b"")), scu.associate_rq(CONTEXTS)):
        with held(service) as association:
            association.send(breach)
            with pytest.raises(Aborted) as aborted:
                association.read_pdu()
            assert aborted.value.code[0] == 2


@pytest.mark.proves("request-timeout", "idle-timeout")
def test_silence_ends_connections_and_associations(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__REQUEST_TIMEOUT": "0.5", "STORESCP_LIMITS__IDLE_TIMEOUT": "0.5"})
    with socket.create_connection(("127.0.0.1", scp.port), 10) as silent, held(scp) as association:
        with pytest.raises((Aborted, Closed)):
            association.read_pdu()
        assert silent.recv(100)[:1] in (b"", b"\x07")


@pytest.mark.proves("echo")
def test_echo_is_answered_when_nothing_can_be_stored(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_INSTANCE_BYTES": "100"})
    contexts = [*CONTEXTS, (3, VERIFICATION, [IMPLICIT])]
    with RawAssociation(scp.port, contexts) as association:
        assert association.echo(3).status == 0
        association.release()
    with RawAssociation(scp.port, contexts) as association:
        assert association.store(1, CT, small(1).sop_instance, small(1).dataset).status == 0xA700


@pytest.mark.proves("level-2", "files")
def test_bytes_are_stored_as_received_in_a_file_of_ours(start_service: StartService) -> None:
    scp = start_service()
    private = {
        0x00090010: explicit(0x00090010, b"LO", text("ACME 1.0")),
        0x00091001: explicit(0x00091001, b"UN", b"\1\2\3\4"),
        # Standard extended: an attribute of another IOD, with trailing blanks that a rewrite would lose.
        0x00181030: explicit(0x00181030, b"LO", b"PROTOCOL    "),
    }
    one = small(1, changes=private)
    assert send(scp, one).status == 0
    (file,) = scp.files()
    assert dataset_of(file) == one.dataset
    content = file.read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    meta = dcmread(file).file_meta
    assert meta.ImplementationClassUID == _core.IMPLEMENTATION_CLASS_UID
    assert (meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (one.sop_instance, EXPLICIT)
    study, series = "1.2.826.0.1.3680043.10.9999.1", "1.2.826.0.1.3680043.10.9999.1.1"
    assert file.relative_to(scp.root).parts == ("1234567890", "20260102", study, series, f"{one.sop_instance}.dcm")


@pytest.mark.proves("no-coercion", "statuses", "other-operations")
def test_each_status_of_the_table(start_service: StartService, fail_points: dict[str, str]) -> None:
    statement = Statement(Settings()).markdown
    listed = {int(status, 16) for status in re.findall(r"^\| ([0-9A-F]{4}) \| [A-Z]", statement, re.MULTILINE)}
    assert not [status for status in listed if status >> 12 == 0xB]
    scp = start_service(env={"STORESCP_LIMITS__MAX_INSTANCE_BYTES": "100000"})
    one = small(1)
    wrong = b"1.2.3/4"
    seen: dict[int, str] = {}

    def note(response: Response) -> None:
        seen[response.status] = response.comment

    with held(scp) as association:
        note(association.store(1, CT, one.sop_instance, one.dataset))
        note(association.store(1, CT, small(2).sop_instance, one.dataset))
        note(association.store(1, CT, one.sop_instance, one.dataset[:-9]))
        note(association.store(1, CT, wrong, one.dataset))
        note(association.store(1, "1.2.840.10008.5.1.4.1.1.4", one.sop_instance, one.dataset))
        find = scu.command({0x2: scu.even(CT), 0x100: scu.us(0x0020), 0x110: scu.us(5), 0x800: scu.us(0x0101)})
        association.send(scu.fragments(1, True, find, 16384))
        note(association.read_response())
        without = scu.command(
            {0x2: scu.even(CT), 0x100: scu.us(1), 0x110: scu.us(6), 0x800: scu.us(0x0101), 0x1000: scu.even("1.2.3")}
        )
        association.send(scu.fragments(1, True, without, 16384))
        note(association.read_response())
        association.release()
    with held(scp) as association:
        note(association.store(1, CT, one.sop_instance, ct_slice(1, rows=256).dataset))
    scp.stop()
    environment = fail_points | {"STORESCP_TENANTS__DEFAULT": "", "STORESCP_FAIL_POINT": "data_written:0:panic"}
    rules = {"STORESCP_TENANTS__RULES": '[{"tenant_id": "a", "calling_ae": "A"}]'}
    scp = start_service(root=scp.root, env=environment | rules)
    note(send(scp, one))
    with RawAssociation(scp.port, CONTEXTS, calling=b"A") as association:
        note(association.store(1, CT, one.sop_instance, one.dataset))
        # It costs one instance, and nothing is left of it.
        assert association.store(1, CT, small(3).sop_instance, small(3).dataset).status == 0
        association.release()
    assert [file.stem for file in scp.files() if file.parts[-5] == "a"] == [small(3).sop_instance]
    assert set(seen) == listed
    assert [status for status, comment in seen.items() if not comment] == [0]


@pytest.mark.proves("anomalies")
def test_what_other_readers_follow_is_stored(service: ServiceProcess) -> None:
    meta = {0x00020010: explicit(0x00020010, b"UI", text(EXPLICIT, b"\0"))}
    odd = {
        0x00050010: explicit(0x00050010, b"LO", b"AB"),
        0x001021B0: b"\x10\0\xb0\x21--\x02\0AB",
        0x00081140: explicit(0x00081140, b"SQ", b"\xfe\xff\xdd\xe0" + bytes(4), 8),
    }
    stored = small(22, changes=odd)
    stored = replace(stored, dataset=stored.dataset + bytes(8))
    sent = replace(stored, dataset=meta[0x00020010] + stored.dataset)
    assert send(service, sent).status == 0
    (file,) = (file for file in service.files() if file.stem == sent.sop_instance)
    assert dataset_of(file) == stored.dataset


@pytest.mark.proves("required-attributes")
def test_what_is_required(service: ServiceProcess) -> None:
    statement = Statement(Settings()).markdown
    assert "the four UIDs: nothing." in statement
    for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E):
        assert send(service, small(21, changes={tag: None})).status == 0xA900
    assert (
        send(
            service, small(21, changes=dict.fromkeys((0x00080050, 0x00100010, 0x00100020, 0x00080020, 0x00080060)))
        ).status
        == 0
    )


@pytest.mark.proves("duplicates")
def test_duplicates(start_service: StartService, tmp_path: Path) -> None:
    other = small(1, changes={0x00100010: explicit(0x00100010, b"PN", text("Roe^John"))})
    expected = {"replace": (0, other), "keep": (0, small(1)), "reject": (0xA900, small(1))}
    for policy, (status, stays) in expected.items():
        scp = start_service(root=tmp_path / policy, env={"STORESCP_LOCAL_STORAGE__DUPLICATES": policy})
        assert [send(scp, one).status for one in (small(1), small(1), other)] == [0, 0, status]
        (file,) = scp.files()
        assert dataset_of(file) == stays.dataset
        scp.stop()


@pytest.mark.proves("ipv6")
def test_both_families(service: ServiceProcess, start_service: StartService) -> None:
    assert send(service, small(31)).status == 0
    scp = start_service("--host", "::1")
    with RawAssociation(scp.port, CONTEXTS, host="::1") as association:
        assert association.store(1, CT, small(1).sop_instance, small(1).dataset).status == 0
        association.release()
    assert scp.records(count=1)[0]["source_ip"] == "::1"


# Specific Character Set by number: Python's codec, a text, and what designates the set (PS3.3 Table C.12-4).
SAMPLES = {
    "6": ("ascii", "plain", b""),
    "100": ("latin_1", "é", b""),
    "101": ("iso8859_2", "ł", b""),
    "109": ("iso8859_3", "ħ", b""),
    "110": ("iso8859_4", "ģ", b""),
    "144": ("iso8859_5", "Ж", b""),
    "127": ("iso8859_6", "ع", b""),
    "126": ("iso8859_7", "λ", b""),
    "138": ("iso8859_8", "ש", b""),
    "148": ("iso8859_9", "ş", b""),
    "203": ("iso8859_15", "€", b""),
    "13": ("shift_jis", "ﾔﾏﾀﾞ", b""),
    "166": ("tis_620", "กข", b""),
    "87": ("iso2022_jp", "山田", b""),
    "159": ("iso2022_jp_2", "丂", b""),
    "149": ("euc_kr", "김", b"\x1b$)C"),
    "58": ("gb2312", "王", b"\x1b$)A"),
    "192": ("utf_8", "山ł", b""),
    "GB18030": ("gb18030", "王", b""),
    "GBK": ("gbk", "王", b""),
}


@pytest.mark.proves("character-sets")
@pytest.mark.parametrize("term", _core.character_sets())
def test_character_sets(service: ServiceProcess, term: str) -> None:
    number = term.rsplit(maxsplit=1)[-1]
    codec, sample, designation = SAMPLES[number]
    # With code extensions the first term is the set to begin with, and may be empty.
    is_extension = number in ("87", "159", "149", "58")
    changes = {
        0x00080005: explicit(0x00080005, b"CS", text(f"\\{term}" if is_extension else term)),
        0x00100020: explicit(0x00100020, b"LO", text(designation + sample.encode(codec))),
    }
    one = small(100 + _core.character_sets().index(term), changes=changes)
    assert send(service, one).status == 0
    records = service.records(count=len(service.files()))
    assert [record["patient_id"] for record in records if record["sop_uid"] == one.sop_instance] == [sample]
    assert term in Statement(Settings()).markdown


@pytest.mark.proves("character-set-spellings")
def test_spellings_of_character_sets(service: ServiceProcess) -> None:
    expected = {}
    terms = [
        (term, codec) for listed, codec in OTHER_TERMS.items() for term in (listed, listed.lower().replace(" ", "_"))
    ]
    terms += [
        ("iso_ir 192", "utf_8"),
        ("ISO-IR 144", "iso8859_5"),
        ("gb18030", "gb18030"),
        ("ISO 2022 IR 192", "utf_8"),
    ]
    for number, (term, codec) in enumerate(terms):
        sample = TEXTS[codec][0]
        expected |= {send_text(service, 200 + number, term, sample.encode(codec)): sample}
    assert set(_core.other_character_sets()) == set(OTHER_TERMS)
    assert all(term in Statement(Settings()).markdown for term in OTHER_TERMS)
    assert patient_ids(service).items() >= expected.items()


@pytest.mark.proves("character-sets-without-escapes")
def test_character_sets_without_escapes(service: ServiceProcess) -> None:
    gb, ks, kanji = "王小东".encode("gbk"), "홍길동".encode("euc_kr"), "山田".encode("shift_jis")
    cases = [
        ("\\ISO_IR 192", "王小东".encode(), "王小东"),
        ("\\GB18030", gb, "王小东"),
        ("ISO 2022 IR 6\\ISO 2022 IR 58", gb, "王小东"),
        ("ISO 2022 IR 149", ks, "홍길동"),
        ("ISO 2022 IR 6\\ISO 2022 IR 144", "Люк".encode("iso8859_5"), "Люк"),
        ("ISO_IR 100\\ISO_IR 192", "王小东".encode(), "王小东"),
        ("ISO_IR 100\\ISO_IR 192", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 13", kanji, "山田"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", kanji, "山田"),
        ("ISO_IR 100", b"\x1b$)A" + gb, "王小东"),
    ]
    expected = {
        send_text(service, 400 + number, term, value): right for number, (term, value, right) in enumerate(cases)
    }
    assert patient_ids(service).items() >= expected.items()


def send_text(service: ServiceProcess, number: int, term: str, value: bytes) -> str:
    """Sends an instance with this Patient ID; returns its SOP Instance UID."""
    changes = {
        0x00080005: explicit(0x00080005, b"CS", text(term)),
        0x00100020: explicit(0x00100020, b"LO", text(value)),
    }
    one = small(number, changes=changes)
    assert send(service, one).status == 0
    return one.sop_instance


def patient_ids(service: ServiceProcess) -> dict[str, str]:
    return {record["sop_uid"]: record["patient_id"] for record in service.records(count=len(service.files()))}
