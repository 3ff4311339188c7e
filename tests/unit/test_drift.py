"""A SIGHUP says what it reads again, and which changed keys wait for a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from storescp.config import load
from storescp.drift import changed_keys, reload_text

USERS = "[user_identity]\nusers = 'users'\n[tls]\ncertificate = 'a'\nprivate_key = 'b'\n"


def test_changed_keys_are_named_without_their_values(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[storage]\nduplicates = 'keep'\n[http]\ntoken = 'CANARY-1'\n")
    running = load({("dicom_store_scp", "port"): 104}, file)
    text, changed = reload_text(running)
    assert changed == []
    assert text == "read again: the licence; nothing else of the configuration has changed"
    file.write_text("[storage]\nduplicates = 'reject'\n[http]\ntoken = 'CANARY-2'\n[dicom_store_scp]\nport = 105\n")
    text, changed = reload_text(running)
    assert changed == ["http.token", "storage.duplicates"], "the option beats the port of the file"
    assert text.endswith("not read again, a restart is needed for: http.token, storage.duplicates")
    assert "CANARY" not in text


def test_a_section_that_came_or_went_and_a_wrong_value_are_named(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[kafka]\nbrokers = 'a:1'\n")
    running = load({}, file)
    file.write_text("[storage]\nduplicates = 'maybe'\n")
    assert {"kafka.brokers", "storage.duplicates"} <= set(changed_keys(running))


@pytest.mark.parametrize("text", ["[", None])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "c.toml"
    file.write_text(USERS)
    running = load({}, file)
    file.unlink()
    if text is not None:
        file.write_text(text)
    said, changed = reload_text(running)
    assert changed == []
    assert said.startswith(
        "read again: the licence, the certificates and revocation lists of [tls], the users; the conf"
    )
    assert "cannot be compared" in said
