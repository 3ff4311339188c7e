"""What becomes of the attributes of records: rows of patients, studies, series and instances, counts, conflicts."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

from storescp.index import tables
from storescp.index.database import Database
from storescp.index.incoming import folded
from support.databases import apply_in_parts, described, drop_everything, messages, rows

NAME, BIRTH, SEX = "00100010", "00100030", "00100040"
MODALITY, STUDY_TIME, DESCRIPTION = "00080060", "00080030", "00081030"
SERIES_NUMBER, INSTANCE_NUMBER = "00200011", "00200013"


def person(alphabetic: str, ideographic: str = "") -> tuple[str, dict[str, str]]:
    groups = {"Alphabetic": alphabetic} | ({"Ideographic": ideographic} if ideographic else {})
    return "PN", groups


def test_attributes_of_a_record_are_columns_of_its_levels(database: Database, url: str) -> None:
    said = {
        NAME: person("Müller^Jørg", "山田^太郎"),
        BIRTH: ("DA", "19700131"),
        SEX: ("CS", "M"),
        STUDY_TIME: ("TM", "101530.25"),
        "00200010": ("SH", "S1"),
        DESCRIPTION: ("LO", "Thorax"),
        "00080090": person("House^Gregory"),
        "00080201": ("SH", "+0100"),
        MODALITY: ("CS", "CT"),
        SERIES_NUMBER: ("IS", 7),
        "0008103E": ("LO", "Axial"),
        "00180015": ("CS", "CHEST"),
        "00400244": ("DA", "2024.02.29"),
        "00400245": ("TM", "10"),
        "00400275": ("SQ", {"00400009": {"vr": "SH", "Value": ["STEP"]}}),
        INSTANCE_NUMBER: ("IS", 12),
        "00280010": ("US", 512),
        "00280011": ("US", 256),
        "00280100": ("US", 16),
    }
    database.apply("main", {0: messages(described(1, 5, said=said, accession_number="A1", number_of_frames=3))})
    [patient] = rows(url, tables.patient)
    assert patient | {"updated": ""} == {
        "tenant_id": "t", "patient_id": "p1", "patient_name": "Müller^Jørg=山田^太郎",
        "patient_name_search": "muller jorg=山田 太郎", "patient_birth_date": "1970-01-31", "patient_sex": "M",
        "updated": "",
    }  # fmt: skip
    [study] = rows(url, tables.study)
    moment = "2026-01-01T00:00:05.000000Z"
    assert study == {
        "tenant_id": "t", "study_uid": "1.1", "patient_id": "p1", "study_date": "2024-02-29", "accession_number": "A1",
        "updated": moment, "study_time": "10:15:30.25", "study_id": "S1", "study_description": "Thorax",
        "referring_physician_name": "House^Gregory", "timezone_offset_from_utc": "+0100", "modalities": "CT",
        "series_count": 1, "instance_count": 1, "bytes": 101, "first_received": moment, "last_received": moment,
    }  # fmt: skip
    [series] = rows(url, tables.series)
    assert series == {
        "tenant_id": "t", "study_uid": "1.1", "series_uid": "1.1.1", "updated": moment, "modality": "CT",
        "series_number": 7, "series_description": "Axial", "body_part_examined": "CHEST",
        "performed_procedure_step_start_date": "2024-02-29", "performed_procedure_step_start_time": "10",
        "request_attributes_sequence": '[{"00400009":{"Value":["STEP"],"vr":"SH"}}]', "instance_count": 1, "bytes": 101,
    }  # fmt: skip
    [instance] = rows(url, tables.instance)
    numbers = ("instance_number", "rows", "columns", "bits_allocated", "number_of_frames")
    assert [instance[name] for name in numbers] == [12, 512, 256, 16, 3]
    [place] = rows(url, tables.location)
    assert (place["node_id"], place["file_path"], place["file_url"]) == ("node-1", "/data/1.dcm", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MÜLLER^Jörg", "muller jorg"),
        ("Straße^Øyvind", "strasse oyvind"),
        ("Łukasz^Æsir^^Dr.", "lukasz aesir dr."),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "yamada tarou=山田 太郎=やまた たろう"),
        ("Иванов^Иван", "иванов иван"),
        ("  ^^ ", ""),
        ("x" * 300, "x" * 200),
    ],
)
def test_names_are_searched_for_without_accents(name: str, expected: str) -> None:
    assert folded(name) == expected


def test_counts_and_sums_follow_replacements_and_late_instances(database: Database, url: str) -> None:
    ct, sr = {MODALITY: ("CS", "CT")}, {MODALITY: ("CS", "SR")}
    first = [described(1, 1, said=ct), described(2, 2, said=ct), described(3, 3, said=sr, series_uid="1.1.2")]
    database.apply("main", {0: messages(*first)})
    replaced = described(1, 4, said=ct, file_size=1000)
    database.apply("main", {0: messages(replaced, replaced, first[0], begin=3)})
    [study] = rows(url, tables.study)
    assert (study["modalities"], study["series_count"], study["instance_count"]) == ("CT\\SR", 2, 3)
    assert study["bytes"] == 1000 + 102 + 103
    assert (study["first_received"][-10:], study["last_received"][-10:]) == ("01.000000Z", "04.000000Z")
    late = described(9, 0, said={MODALITY: ("CS", "PT")}, series_uid="1.1.3")
    database.apply("main", {0: messages(late, begin=6)})
    [study] = rows(url, tables.study)
    assert (study["modalities"], study["series_count"], study["first_received"][-10:]) == (
        "CT\\PT\\SR",
        3,
        "00.000000Z",
    )


def test_the_newest_value_counts_and_the_others_are_conflicts(database: Database, url: str) -> None:
    old = described(1, 1, said={DESCRIPTION: ("LO", "Head"), NAME: person("A^B")})
    new = described(2, 2, said={DESCRIPTION: ("LO", "Neck"), NAME: person("A^C")})
    silent = described(3, 3, said={})
    late = described(4, 0, said={DESCRIPTION: ("LO", "Foot")})
    database.apply("main", {0: messages(new, silent, old, late)})
    [study], [patient] = rows(url, tables.study), rows(url, tables.patient)
    assert (study["study_description"], patient["patient_name"]) == ("Neck", "A^C")
    found = {(one["attribute"], one["value"], one["newest"]) for one in rows(url, "conflict")}
    assert found == {
        ("study_description", "Head", "Neck"),
        ("study_description", "Foot", "Neck"),
        ("patient_name", "A^B", "A^C"),
    }
    corrected = [
        described(int(one["sop_uid"].rpartition(".")[2]), 10, said={DESCRIPTION: ("LO", "Neck"), NAME: person("A^C")})
        for one in (old, late)
    ]
    database.apply("main", {0: messages(*corrected, begin=4)})
    assert rows(url, "conflict") == []


def test_a_patient_has_what_its_studies_say(database: Database, url: str) -> None:
    mine = described(1, 1, said={NAME: person("Right")})
    wrong = described(2, 2, said={NAME: person("Wrong")}, study_uid="1.2", series_uid="1.2.1")
    database.apply("main", {0: messages(mine, wrong)})
    moved = described(2, 3, said={NAME: person("Other")}, study_uid="1.2", series_uid="1.2.1", patient_id="p2")
    database.apply("main", {0: messages(moved, begin=2)})
    assert {(one["patient_id"], one["patient_name"]) for one in rows(url, tables.patient)} == {
        ("p1", "Right"), ("p2", "Other"),
    }  # fmt: skip


def test_instances_without_patient_id_are_not_one_patient(database: Database, url: str) -> None:
    database.apply("main", {0: messages(described(1, 1, said={NAME: person("A")}, patient_id=""))})
    [patient] = rows(url, tables.patient)
    assert (patient["patient_id"], patient["patient_name"]) == ("", None)


def test_an_instance_on_two_nodes_is_one_with_two_places(database: Database, url: str) -> None:
    second = described(1, 2, worker_node_id="node-2", file_path="/other/1.dcm", file_url="s3://images/1")
    database.apply("main", {0: messages(described(1, 1), second)})
    assert {(one["node_id"], one["file_path"], one["file_url"]) for one in rows(url, tables.location)} == {
        ("node-1", "/data/1.dcm", None), ("node-2", "/other/1.dcm", "s3://images/1"),
    }  # fmt: skip
    assert len(rows(url, tables.instance)) == 1


def test_what_another_node_received_before_is_late_and_changes_only_its_place(database: Database, url: str) -> None:
    newer = described(1, 9, said={DESCRIPTION: ("LO", "Right")}, worker_node_id="node-2", file_path="/b/1.dcm")
    older = described(1, 1, said={DESCRIPTION: ("LO", "Wrong")}, file_size=7)
    database.apply("main", {0: messages(newer)})
    database.apply("main", {1: messages(older)})
    [study], [instance] = rows(url, tables.study), rows(url, tables.instance)
    assert (study["study_description"], study["bytes"]) == ("Right", 101)
    assert (instance["file_path"], instance["trace_id"]) == ("/b/1.dcm", newer["trace_id"])
    assert {one["node_id"] for one in rows(url, tables.location)} == {"node-1", "node-2"}
    # Of one node the order counts, whatever its clock says.
    database.apply("main", {0: messages(described(1, 3, worker_node_id="node-2", file_size=8), begin=1)})
    assert [one["bytes"] for one in rows(url, tables.study)] == [8]


def test_absurd_sizes_refuse_no_later_record(database: Database, url: str) -> None:
    largest = (1 << 63) - 1
    applied = database.apply("main", {0: messages(*(described(number, file_size=largest) for number in range(3)))})
    assert (applied.records, applied.unreadable) == (3, 0)
    database.apply("main", {0: messages(described(4), begin=3)})
    assert [one["bytes"] for one in rows(url, tables.study)] == [largest]


def test_a_partition_whose_progress_went_back_is_not_passed_over(database: Database) -> None:
    """As after the recovery of an older state of the database, or a database that is new to the group."""
    database.apply("main", {0: messages(described(1))})
    ahead = database.apply("main", {0: messages(described(2), begin=5)}, None, {0: 4})
    assert (ahead.ahead, ahead.records, ahead.gone) == ([0], 0, {})
    assert database.progress("main", [0])[0].next_offset == 1
    read_again = database.apply("main", {0: messages(described(2), begin=5)}, None, {0: 1})
    assert (read_again.ahead, read_again.records, read_again.gone) == ([], 1, {0: 4})


ODD: list[Any] = [
    None, 1, "text", [], {}, {"vr": "PN"}, {"Value": None}, {"Value": []}, {"Value": [None]}, {"Value": {}},
    {"Value": [[]]}, {"Value": [True]}, {"Value": [1 << 80]}, {"Value": [-(1 << 31) - 1]}, {"Value": [1.5]},
    {"Value": ["\0\x01\x1f"]}, {"Value": ["x" * 100_000]}, {"Value": ["\\", "\\"]}, {"Value": ["=" * 50]},
    {"Value": [{"Alphabetic": 1}]}, {"Value": [{"Alphabetic": "A\0"}]}, {"Value": [{"Phonetic": "x" * 5000}]},
    {"Value": ["20240230"]}, {"Value": ["99:99"]}, {"Value": ["2024"]}, {"Value": ["\U0001f9e0" * 300]},
    {"Value": [{"00400009": {"vr": "SH", "Value": ["\0"]}, "\0": 1}]}, {"Value": [{"a": [[[[{"b": "'"}]]]]}]},
]  # fmt: skip


def test_odd_attributes_leave_columns_empty_and_refuse_nothing(database: Database, url: str) -> None:
    tags = (NAME, BIRTH, SEX, STUDY_TIME, DESCRIPTION, MODALITY, SERIES_NUMBER, INSTANCE_NUMBER, "00400275", "00280010")
    sent = [
        described(number, number, study_uid=f"1.{number}", patient_id=f"p{number}")
        | {"dicom": dict.fromkeys(tags, odd)}
        for number, odd in enumerate(ODD)
    ]
    sent = [one | {"dicom": one["dicom"] | {"\0": 1, "FFFFFFFF": {}}} for one in sent]
    applied = database.apply("main", {0: messages(*sent)})
    assert (applied.records, applied.unreadable) == (len(ODD), 0)
    for view in ("qido_study", "qido_series", "qido_instance"):
        assert len(rows(url, view)) == len(ODD)


# Of random records: what they may say of each level.
_SAYS = {
    NAME: [None, ("PN", {"Alphabetic": "A"}), ("PN", {"Alphabetic": "B"})],
    SEX: [None, ("CS", "M"), ("CS", "F")],
    DESCRIPTION: [None, ("LO", "x"), ("LO", "y")],
    MODALITY: [None, ("CS", "CT"), ("CS", "SR")],
    SERIES_NUMBER: [None, ("IS", 1), ("IS", 2)],
}
_COLUMNS = {NAME: "patient_name", SEX: "patient_sex", DESCRIPTION: "study_description", MODALITY: "modality"}
_COLUMNS[SERIES_NUMBER] = "series_number"


def random_records(source: random.Random, count: int) -> list[dict[str, Any]]:
    found = []
    for moment in range(count):
        study, series = source.randrange(3), source.randrange(2)
        said = {tag: value for tag, values in _SAYS.items() if (value := source.choice(values)) is not None}
        found.append(
            described(
                source.randrange(4), moment, said=said, study_uid=f"1.{study}", series_uid=f"1.{study}.{series}",
                patient_id=source.choice(["", "p1", "p2"]), file_size=source.randrange(1000),
                study_date=source.choice([None, "2024-01-01", "2024-01-02"]),
                worker_node_id=source.choice(["node-1", "node-2"]),
            )
        )  # fmt: skip
    return found


def expected(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the tables must hold: made from the last record of each file, in another way than they are."""
    files = {}
    for one in records:
        key = (one["study_uid"], one["series_uid"], one["sop_uid"], one["study_date"] or "")
        files[key] = one

    def newest(of: list[dict[str, Any]], tag: str) -> Any:
        said = [one["dicom"][tag]["Value"][0] for one in of if tag in one["dicom"]]
        return (said[-1].get("Alphabetic") if isinstance(said[-1], dict) else said[-1]) if said else None

    last = sorted(files.values(), key=lambda one: one["received_at"])
    studies: dict[str, list[dict[str, Any]]] = defaultdict(list)
    serieses: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    of_patient: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in last:
        studies[one["study_uid"]].append(one)
        serieses[one["study_uid"], one["series_uid"]].append(one)
        of_patient[one["patient_id"]].append(one)
    return {
        "study": {
            uid: (
                of[-1]["patient_id"], newest(of, DESCRIPTION), len({one["series_uid"] for one in of}), len(of),
                sum(one["file_size"] for one in of),
                "\\".join(sorted({one["dicom"][MODALITY]["Value"][0] for one in of if MODALITY in one["dicom"]})),
                next((one["study_date"] for one in reversed(of) if one["study_date"]), None),
            )
            for uid, of in studies.items()
        },
        "series": {
            key: (newest(of, MODALITY), newest(of, SERIES_NUMBER), len(of), sum(one["file_size"] for one in of))
            for key, of in serieses.items()
        },
        "patient": {
            patient: (newest(of_patient[patient], NAME), newest(of_patient[patient], SEX)) if patient else (None, None)
            for patient in of_patient
        },
        "instance": {key: one["trace_id"] for key, one in files.items()},
    }  # fmt: skip


def actual(url: str) -> dict[str, Any]:
    return {
        "study": {
            one["study_uid"]: (
                one["patient_id"], one["study_description"], one["series_count"], one["instance_count"], one["bytes"],
                one["modalities"], one["study_date"],
            )
            for one in rows(url, tables.study)
        },
        "series": {
            (one["study_uid"], one["series_uid"]): (
                one["modality"], one["series_number"], one["instance_count"], one["bytes"]
            )
            for one in rows(url, tables.series)
        },
        "patient": {
            one["patient_id"]: (one["patient_name"], one["patient_sex"]) for one in rows(url, tables.patient)
        },
        "instance": {
            (one["study_uid"], one["series_uid"], one["sop_uid"], one["study_date"]): one["trace_id"]
            for one in rows(url, tables.instance)
        },
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 60])
def test_random_records_give_what_the_last_of_each_file_says(url: str, size: int) -> None:
    for number in range(5):
        sent = random_records(random.Random(f"{random.random()} {number}"), 60)
        name = url.replace("index.sqlite", f"{number}.sqlite")
        database = Database(name)
        database.create()
        apply_in_parts(database, sent, size)
        database.close()
        assert actual(name) == expected(sent)
        if name == url:
            drop_everything(url)
