"""Records a second into the tables, of this build and of another one: `make bench-index OLD=REVISION`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from support.databases import described, drop_everything
from support.postgres import Postgres, programs

ROUNDS = int(os.environ.get("STORESCP_PAIR_ROUNDS", "7"))
RECORDS = int(os.environ.get("STORESCP_INDEX_RECORDS", "20000"))
OTHER_PYTHON = os.environ.get("STORESCP_PAIR_PYTHON", "")
pytestmark = pytest.mark.skipif(not OTHER_PYTHON, reason="needs another build (make bench-index OLD=REVISION)")
SERIES, INSTANCES = 3, 50


def records(path: Path) -> None:
    """Studies of 3 series of 50 instances, as a CT sends them; with the attributes that records have by default."""
    with path.open("w") as file:
        for number in range(RECORDS):
            series = number // INSTANCES
            study = series // SERIES
            said = {
                "00080030": ("TM", "101530"), "00080060": ("CS", "CT"), "00080090": ("PN", {"Alphabetic": "House^G"}),
                "00081030": ("LO", "Thorax/Abdomen"), "0008103E": ("LO", "AXIAL 1.0 B30f"),
                "00100010": ("PN", {"Alphabetic": f"Patient^{study}"}), "00100030": ("DA", "19700131"),
                "00100040": ("CS", "M"), "00180015": ("CS", "CHEST"), "00200010": ("SH", str(study)),
                "00200011": ("IS", series % SERIES), "00200013": ("IS", number), "00280010": ("US", 512),
                "00280011": ("US", 512), "00280100": ("US", 16),
            }  # fmt: skip
            one = described(
                number, number % 80_000, said=said, study_uid=f"1.2.826.{study}",
                series_uid=f"1.2.826.{study}.{series}", patient_id=f"P{study}", accession_number=f"A{study}",
            )  # fmt: skip
            file.write(json.dumps(one, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_records_a_second(tmp_path: Path, kind: str) -> None:
    if kind == "postgresql" and programs() is None:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres() if kind == "postgresql" else None
    records(tmp_path / "records.jsonl")
    rates: dict[str, list[float]] = {sys.executable: [], OTHER_PYTHON: []}
    try:
        for number in range(ROUNDS):
            for python in sorted(rates, reverse=number % 2 == 1):
                url = f"sqlite:///{tmp_path}/index.sqlite" if server is None else server.url
                script = Path(__file__).with_name("index_load.py")
                done = subprocess.run(
                    [python, str(script), url, str(tmp_path / "records.jsonl")],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                rates[python].append(RECORDS / float(done.stdout))
                drop_everything(url)
    finally:
        if server is not None:
            server.close()
    ours, theirs = rates[sys.executable], rates[OTHER_PYTHON]
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    spread = f"{min(each):.2f} to {max(each):.2f}"
    print(f"\n| {kind} | {statistics.median(ours):,.0f} records/s | {ratio:.2f} of the other ({spread}) |")
