"""The consumer of wado-storescp reads every record."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from storescp import _core
from storescp.engine import engine_config
from storescp.settings import Settings
from support.engines import publish, take
from support.instances import from_file

# The first of them may have to build the consumer.
pytestmark = [pytest.mark.curated, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::UserWarning")]

CHECKOUT = Path(__file__).parents[2]
# Has the types of that consumer.
READ = ("cargo", "run", "--release", "--locked", "--quiet", "-p", "storescp-core", "--example", "original_consumer")


@pytest.mark.parametrize("zone", ["local", "utc"])
def test_every_record_of_the_curated_files_is_read(curated: Path, tmp_path: Path, zone: str) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    settings = Settings.model_validate(
        {
            "storage": {"root": tmp_path, "durability": "none"},
            "message_queue": {"created_time": zone, "missing_study_date": "1900-01-01"},
        }
    )
    engine = _core.Engine(engine_config(settings))
    for path in sorted(curated.glob("*.dcm")):
        one = from_file(path)
        if one is not None:
            take(engine, one)
    payloads = publish(engine)
    engine.close()
    assert len(payloads) > 100
    done = subprocess.run(READ, cwd=CHECKOUT, input=b"\n".join(payloads), capture_output=True, timeout=500, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    understood = [json.loads(line) for line in done.stdout.splitlines()]
    for payload, theirs in zip(payloads, understood, strict=True):
        ours = json.loads(payload)
        # chrono writes no zeros at the end of a second.
        written = datetime.fromisoformat(theirs.pop("created_time"))
        assert written == datetime.fromisoformat(ours["created_time"])
        assert len(theirs) == 19
        assert theirs == {name: ours[name] for name in theirs}


def test_a_time_with_a_zone_is_not_read() -> None:
    """What the consumer does with records of version 1: the check can fail."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    record = json.dumps({"created_time": "2026-11-30T14:07:26.230303Z"})
    done = subprocess.run(READ, cwd=CHECKOUT, input=record, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1
    assert "trailing input" in done.stderr
