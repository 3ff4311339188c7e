"""The same input to both engines: same status, same file, same record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.pure.engine import PureEngine
from storescp.settings import Settings
from support.instances import from_file

pytestmark = [pytest.mark.curated, pytest.mark.filterwarnings("ignore::UserWarning")]


def drain(engine: Engine) -> list[dict[str, object]]:
    records = []
    while engine.outbox_backlog()[0]:
        assert engine.outbox_wait(0, 5)
        rows = engine.outbox_claim(0, 0, 1000)
        records += [json.loads(row.payload) for row in rows]
        for topic in (0, 1):
            engine.outbox_done(topic, [row.id for row in rows])
        engine.outbox_flush()
    return records


@pytest.mark.parametrize("required", [[], ["PatientID", "StudyDate"]], ids=["uids only", "default"])
def test_both_engines_do_the_same_with_every_curated_file(curated: Path, tmp_path: Path, required: list[str]) -> None:
    def settings(name: str) -> Settings:
        return Settings.model_validate(
            {
                "local_storage": {"dicm_store_path": tmp_path / name, "durability": "none"},
                "dicom_store_scp": {"required_attributes": required},
            }
        )

    engines: dict[str, Engine] = {
        "rust": _core.Engine(engine_config(settings("rust"))),
        "python": PureEngine(settings("python")),
    }
    compared = 0
    for path in sorted(curated.glob("*.dcm")):
        one = from_file(path)
        if one is None:
            continue
        results = {}
        for name, engine in engines.items():
            status = engine.ingest(
                one.dataset, one.sop_class, one.sop_instance, one.transfer_syntax, "CT1", "ARCHIVE", "127.0.0.1", "t"
            )
            records = drain(engine)
            for record in records:
                file = Path(str(record.pop("file_path")))
                record["path"] = str(file.relative_to(tmp_path / name))
                record["content"] = file.read_bytes()
                del record["trace_id"], record["created_time"]
            results[name] = (status, records)
        assert results["rust"] == results["python"], path.name
        compared += 1
    assert compared > 180
    for engine in engines.values():
        engine.close()
