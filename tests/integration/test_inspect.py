"""`storescpd inspect` says what the service would do, with its tenants and its quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest

from storescp import _core
from storescp.pure.store import file_meta
from support.command import run_in_process
from support.damage import contradictory, truncated
from support.instances import CT, EXPLICIT, Instance, ct_slice, explicit

TENANT = 0x12111217
PRIVATE = '[tenants]\nfrom_private_element = true\nknown = ["clinic-1"]\n'
OWN_LIST = '[[tenants.settings]]\ntenant_id = "clinic-1"\nrequired_attributes = ["BodyPartExamined"]\n'
RULE = '[[tenants.rules]]\ntenant_id = "a"\ncalled_ae = "A"\n'
QUARANTINE = '[dicom_store_scp]\nmalformed = "quarantine"\n'


def inspected(folder: Path, one: Instance, config: str) -> tuple[int, str]:
    path, settings = folder / "x.dcm", folder / "c.toml"
    path.write_bytes(file_meta(one.sop_class, one.sop_instance, EXPLICIT, "CT1") + one.dataset)
    settings.write_text(config)
    result = run_in_process("-c", settings, "inspect", path)
    return result.returncode, result.stdout


def of_tenant(name: bytes) -> Instance:
    return ct_slice(1, rows=4, changes={TENANT: explicit(TENANT, b"LO", name)})


def test_the_private_element_says_whose_it_is(tmp_path: Path) -> None:
    code, text = inspected(tmp_path, of_tenant(b"clinic-1"), PRIVATE)
    assert code == 0
    assert "tenant              clinic-1 by the private element (1211,1217)\n" in text
    assert "would be stored at  clinic-1/" in text
    assert inspected(tmp_path, of_tenant(b"clinic-1"), PRIVATE + OWN_LIST)[1].endswith(
        "would be refused    A900 BodyPartExamined is absent or empty\n"
    )


def test_an_unknown_tenant_would_be_refused(tmp_path: Path) -> None:
    code, text = inspected(tmp_path, of_tenant(b"clinic-9"), PRIVATE)
    assert code == 1
    assert "SOP instance        " in text
    assert "tenants.known has no 'clinic-9', which the private element (1211,1217) names\n" in text
    assert text.endswith("would be refused    0124 tenant not authorised\n")
    assert inspected(tmp_path, of_tenant(b"clinic-9"), "")[0] == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", (0, "1234567890 by tenants.default")),
        (PRIVATE, (0, "1234567890 by tenants.default")),
        ('[tenants]\ndefault = ""\n' + RULE, (0, "by the rules for its sender; where none matches: none")),
        (RULE, (0, "by the rules for its sender; where none matches: 1234567890 by tenants.default")),
        ('[tenants]\ndefault = ""\nfrom_private_element = true\nknown = ["a"]\n', (1, "none")),
    ],
)
def test_without_a_value_rules_or_default_decide(tmp_path: Path, config: str, expected: tuple[int, str]) -> None:
    code, text = inspected(tmp_path, ct_slice(1, rows=4), config)
    assert (code, f"tenant              {expected[1]}\n" in text) == (expected[0], True), text


@pytest.mark.parametrize("one", [truncated(), contradictory()])
def test_a_damaged_data_set_is_named_and_kept_as_configured(tmp_path: Path, one: Instance) -> None:
    for config, answer in (
        ("", "would be refused    C000 "),
        (QUARANTINE, "would be kept in quarantine, answered B007: "),
    ):
        code, text = inspected(tmp_path, one, config)
        assert code == 1
        assert f"SOP class           {CT} " in text
        assert f"SOP instance        {one.sop_instance}\n" in text
        assert answer in text


def test_what_is_only_incomplete_is_refused_and_not_kept(tmp_path: Path) -> None:
    code, text = inspected(
        tmp_path, ct_slice(1, rows=4, changes={0x00100020: None}), QUARANTINE + 'required_attributes = ["PatientID"]\n'
    )
    assert code == 1
    assert "would be refused    A900 PatientID is absent or empty" in text


def test_values_are_read_up_to_the_damage() -> None:
    one = truncated()
    values = _core.readable_values(one.dataset, EXPLICIT, [0x00080018, 0x7FE00010])
    assert values[0] is not None
    assert values == [one.sop_instance.encode() + b"\0" * (len(one.sop_instance) % 2), None]
