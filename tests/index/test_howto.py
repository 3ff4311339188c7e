"""The queries of the how-to, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storescp.index.database import Database
from support.databases import described, engine_of, messages
from support.pages import Written, steps

_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "worklist.md"
QUERIES = {step.name: step.text for step in steps(_PAGE) if isinstance(step, Written) and step.name.endswith(".sql")}
STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
# Name of a query to what it finds: the value of this attribute of `dicom`, or the whole row.
FOUND: dict[str, tuple[str | None, list[Any]]] = {
    "patient-id.sql": ("0020000D", [STUDY]),
    "patient-name.sql": ("0020000D", [STUDY]),
    "date-and-modality.sql": ("0020000D", [STUDY]),
    "accession-number.sql": ("0020000D", [STUDY]),
    "series.sql": ("0020000E", ["1.1", "1.2"]),
    "instances.sql": ("00080018", ["1.1.1.1", "1.1.1.2"]),
    "worklist.sql": (
        None,
        [("2026-01-01T00:00:02.000000Z", "CompressedSamples^CT1", None, "A1", "CT\\SR", "Head", 2),
         ("2026-01-01T00:00:00.000000Z", "Other^Person", None, None, "MR", None, 1)],
    ),
    "files.sql": (None, [("node-1", "/data/1.dcm", None), ("node-1", "/data/2.dcm", None)]),
    "conflicts.sql": (None, [("1234567890", STUDY, "", "study_description", "Neck", "Head")]),
}  # fmt: skip


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_of_the_howto_finds_what_it_says(database: Database, url: str, name: str) -> None:
    mine: dict[str, Any] = {
        "tenant_id": "1234567890", "study_uid": STUDY, "patient_id": "1CT1", "study_date": "2004-01-19",
        "accession_number": "A1",
    }  # fmt: skip
    person = ("PN", {"Alphabetic": "CompressedSamples^CT1"})
    ct = {"00100010": person, "00080060": ("CS", "CT"), "00081030": ("LO", "Neck"), "00200011": ("IS", 1)}
    sr = {"00080060": ("CS", "SR"), "00081030": ("LO", "Head"), "00200011": ("IS", 2)}
    other = {"00100010": ("PN", {"Alphabetic": "Other^Person"}), "00080060": ("CS", "MR")}
    sent = [
        described(3, 0, said=other, tenant_id="1234567890", study_uid="1.9", series_uid="1.9.1", study_date=None),
        described(1, 1, said=ct | {"00200013": ("IS", 1)}, series_uid="1.1", **mine),
        described(2, 2, said=sr | {"00200013": ("IS", 2)}, series_uid="1.2", **mine),
        described(4, 3, said=ct, **{**mine, "tenant_id": "elsewhere"}),
    ]
    database.apply("main", {0: messages(*sent)})
    with engine_of(url) as engine, engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.text(QUERIES[name]))]
    tag, expected = FOUND[name]
    if tag is not None:
        texts = [one[0] if isinstance(one[0], dict) else json.loads(one[0]) for one in found]
        found = [one[tag]["Value"][0] for one in texts]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert found == expected or name in {"files.sql", "conflicts.sql"}


def test_every_query_is_checked() -> None:
    assert QUERIES.keys() == FOUND.keys()
