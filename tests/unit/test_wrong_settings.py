"""Settings that a person gets wrong: the key, where it is, what is expected; never a secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storescp.config import load
from storescp.errors import ConfigError
from storescp.licence import issue_licence
from support.certificates import Pki
from support.command import Done, run_in_process
from support.settings import REQUIRED, Key, all_keys, as_toml

CANARY = "hunter2-canary"
KEYS = all_keys()
SECRETS = [key for key in KEYS if key.is_secret]
# Storage roots are made, and have tests of their own.
FILES = [key for key in KEYS if key.is_path and "root" not in key.name]
Check = Callable[[str], Done]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STORESCP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "storescp.toml"


@pytest.fixture
def check(file: Path) -> Check:
    """Runs `check-config` on a text."""

    def check_text(text: str) -> Done:
        file.write_text(text, encoding="utf-8")
        return run_in_process("check-config", "-c", file, env=os.environ)

    return check_text


def line_about(place: str, done: Done) -> str:
    """The one line that names a key."""
    lines = [line.removeprefix("storescp: configuration: ") for line in done.stderr.splitlines()]
    [found] = [line for line in lines if line.startswith((f"{place}:", f"{place} ="))]
    return found


def each(keys: list[Key]) -> Any:
    return pytest.mark.parametrize("key", keys, ids=str)


def test_the_model_has_the_keys_that_are_looked_at() -> None:
    assert len(KEYS) > 100
    assert {"kafka.sasl_password", "http.token", "index.database"} < {str(key) for key in SECRETS}
    assert {"tls.crl", "kafka.ssl_cafile", "audit.client_certificate"} < {str(key) for key in FILES}


@each(KEYS)
def test_a_value_of_the_wrong_type(key: Key, check: Check, file: Path) -> None:
    done = check(key.toml(key.name, {"inner": CANARY}))
    said = line_about(key.place, done)
    assert done.returncode == 78
    assert ": expected " in said
    assert f"(from {file})" in said
    assert CANARY not in done.stdout + done.stderr


@each(KEYS)
def test_a_name_that_is_not_known(key: Key, check: Check, file: Path) -> None:
    done = check(key.toml(f"{key.name}x", CANARY))
    assert done.returncode == 78
    place, meant = key.place_named(f"{key.name}x"), key.name if key.in_list else key.place
    assert line_about(place, done) == f"{place}: expected a known key; did you mean {meant}? (from {file})"
    assert CANARY not in done.stdout + done.stderr


def out_of_range() -> Iterator[tuple[Key, Any]]:
    for key in KEYS:
        schema = key.schema
        if "minimum" in schema:
            yield key, schema["minimum"] - 1
        if "exclusiveMinimum" in schema:
            yield key, schema["exclusiveMinimum"]
        if "maximum" in schema:
            yield key, schema["maximum"] + 1
        if "enum" in schema or "pattern" in schema:
            yield key, "no such choice"
        if "minItems" in schema:
            yield key, []


@pytest.mark.parametrize(
    ("key", "value"), list(out_of_range()), ids=lambda part: part if isinstance(part, str) else str(part)
)
def test_a_value_out_of_range(key: Key, value: Any, check: Check, file: Path) -> None:
    done = check(key.toml(key.name, value))
    said = line_about(key.place, done)
    assert done.returncode == 78
    assert value == [] or json.dumps(value) in said
    assert ": expected " in said
    assert f"(from {file})" in said


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dicom_store_scp.ae_title", "seventeen letters", "1 to 16 printable ASCII characters"),
        ("transcoding.target", "1.2.840.10008.1.2.4.50", "a lossless transfer syntax"),
        ("dicom_license_server.hash_code_oid", "0.40", "an object identifier"),
        ("storage.root", "x" * 200, "at most 200 bytes"),
        ("storage.root", "a\0b", "without a NUL"),
        ("tls.certificate", "~no-such-user/server.pem", "a user who has a home folder"),
        ("kafka.brokers", "a:70000", "host:port"),
        ("tenants.default", "../x", "a tenant id"),
        ("audit.destination", "tcp://h:99999", "port 1 to 65535"),
        ("audit.destination", "tcp://h:0", "port 1 to 65535"),
        ("audit.destination", "udp://h:514", "tls://HOST:PORT"),
        ("audit.destination", "file:", "file:PATH"),
    ],
)
def test_a_text_that_is_none_of_those_expected(key: str, value: str, expected: str, check: Check) -> None:
    section, name = key.split(".")
    done = check(as_toml({section: REQUIRED.get(section, {}) | {name: value}}))
    assert done.returncode == 78
    assert expected in line_about(key, done)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A configuration in which every key that names a file names one that is there."""
    folder = tmp_path_factory.mktemp("files")
    pki = Pki.make(folder / "pki")
    issued = issue_licence("hospital", 30, folder / "licence")
    users = folder / "users"
    users.write_text("")
    server, device, authority = str(pki.server), str(pki.device), str(pki.authority.file)
    return {
        "dicom_license_server": {
            "client_id": "hospital",
            "license_key": issued.license_key,
            "client_certificate": str(issued.client_certificate),
            "ca_certificate": str(issued.ca_certificate),
        },
        "kafka": {
            "brokers": "broker:9092",
            "security_protocol": "SSL",
            "ssl_cafile": authority,
            "ssl_certfile": device,
            "ssl_keyfile": device,
        },
        "tls": {
            "certificate": server,
            "private_key": server,
            "client_ca": authority,
            "crl": str(pki.authority.revoke(pki.device)),
        },
        "user_identity": {"users": str(users)},
        "audit": {"destination": "tls://h:6514", "ca_certificate": authority, "client_certificate": device},
    }


def test_the_files_are_all_in_order(check: Check, files: dict[str, dict[str, Any]]) -> None:
    done = check(as_toml(files))
    assert (done.returncode, done.stderr) == (0, "")
    assert {str(key) for key in FILES} == {
        f"{section}.{name}"
        for section, table in files.items()
        for name in table
        if Path(str(table[name])).is_absolute()
    }


@pytest.mark.parametrize("kind", ["absent", "a folder", "empty"])
@each(FILES)
def test_a_file_that_cannot_be_used(
    key: Key, kind: str, check: Check, file: Path, files: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    if kind == "a folder":
        wrong.mkdir()
    elif kind == "empty":
        wrong.touch()
    done = check(as_toml(files | {key.table: files[key.table] | {key.name: str(wrong)}}))
    if key.table == "dicom_license_server":
        assert done.returncode == 77
        assert str(wrong) in done.stderr
    elif kind == "empty":
        assert done.returncode == (0 if key.name == "users" else 78)
        assert done.returncode == 0 or key.table in done.stderr
    else:
        assert done.returncode == 78
        said = line_about(str(key), done)
        assert f"= {wrong}: expected a file that can be read" in said
        assert f"(from {file})" in said


@pytest.mark.parametrize(
    "value",
    [
        "987654321",
        f'["{CANARY}"]',
        f'{{ x = "{CANARY}" }}',
        f'[{{ {CANARY} = "{CANARY}" }}]',
        "2026-11-30",
        "987654321.5",
    ],
)
@each(SECRETS)
def test_a_secret_of_the_wrong_type_is_not_shown(key: Key, value: str, check: Check) -> None:
    done = check(key.toml_text(key.name, value))
    assert done.returncode == 78
    assert f"{key}" in done.stderr
    assert not [part for part in (CANARY, "987654321", "2026-11-30", "2026, 11") if part in done.stdout + done.stderr]


@pytest.mark.parametrize("suffix", ["toml", "json"])
@each(SECRETS)
def test_a_secret_behind_a_misspelt_name_is_not_shown(key: Key, suffix: str, tmp_path: Path) -> None:
    section = REQUIRED.get(key.table, {})
    misspelt = {
        key.table: section | {key.name[:-1]: CANARY},
        f"{key.table}_": {key.name: CANARY, "more": [CANARY], "inner": {key.name: CANARY}},
    }
    inside = {key.table: section | {"brokers": [{"sasl_password": CANARY}], "host": {"token": CANARY}}}
    for document in (misspelt, inside, {key.table: CANARY}, {"tenants": {"rules": [{key.name: CANARY}]}}):
        file = tmp_path / f"wrong.{suffix}"
        file.write_text(json.dumps(document) if suffix == "json" else json_as_toml(document))
        done = run_in_process("check-config", "-c", file, env=os.environ)
        assert CANARY not in done.stdout + done.stderr
        # What a shared application.json holds for others is left alone, and named.
        assert done.returncode in ({77, 78} if suffix == "json" else {78})


def json_as_toml(document: dict[str, Any]) -> str:
    """Sections that are no tables go first."""
    plain = {name: table for name, table in document.items() if not isinstance(table, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    return "\n".join([*lines, as_toml({name: table for name, table in document.items() if name not in plain})])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", f"[kafka]\nbrokers = 'b:1'\nsasl_password = {CANARY}\n"),
        ("a.toml", f"[kafka]\nsasl_password = '{CANARY}\n"),
        ("a.toml", f"[kafka]\nsasl_password '{CANARY}'\n"),
        ("a.toml", f"[kafka]\nsasl_password = '{CANARY}'\nsasl_password = '{CANARY}'\n"),
        ("a.toml", f"[http]\ntoken = '{CANARY}' '{CANARY}'\n"),
        ("a.toml", f"[http]\ntoken = {'1' * 5000}\n"),
        ("a.toml", f"[http]\ntoken = {'[' * 5000}\n"),
        ("a.json", f'{{"kafka": {{"sasl_password": "{CANARY}",}}}}'),
        ("a.json", f'{{"kafka": {{"sasl_password": {CANARY}}}}}'),
        ("a.json", f'{{"kafka": {{"sasl_password": "{CANARY}'),
        ("a.json", '{"http": {"token": ' + "1" * 5000 + "}}"),
        ("a.json", "[" * 100000),
    ],
)
def test_a_file_that_is_broken_is_named_and_not_quoted(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = run_in_process("check-config", "-c", tmp_path / name, env=os.environ)
    assert done.returncode == 78
    [line] = done.stderr.splitlines()
    assert f"--config = {tmp_path / name}: expected valid {'JSON' if name.endswith('json') else 'TOML'}" in line
    assert CANARY not in line
    assert "1111" not in line


@each(KEYS)
def test_the_environment_shows_no_value_either(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    section, _, inner = key.table.partition(".")
    document = key.document(key.name, {"inner": CANARY})[section]
    variable = f"STORESCP_{section}__{inner}" if inner else f"STORESCP_{section}"
    value = json.dumps(document[inner] if inner else document)
    for text in (value, value[:-1], f"{CANARY} {value}"):
        monkeypatch.setenv(variable.upper(), text)
        with pytest.raises(ConfigError) as error:
            load({}, None)
        assert section in str(error.value)
        assert "environment" in str(error.value)
        assert CANARY not in str(error.value)


@each([key for key in KEYS if key.default is not None])
def test_every_default_is_accepted_when_it_is_written(key: Key, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def value_in(document: Any) -> Any:
        found = document
        for part in key.table.split("."):
            found = getattr(found, part)
        return getattr(found[0] if key.in_list else found, key.name)

    file.write_text(key.toml(key.name, key.default))
    written = value_in(load({}, file).settings)
    expected = file.parent / key.default if key.is_path else key.info.default
    if key.name != "database":
        assert written == expected
    if not key.in_list:
        for name, value in REQUIRED.get(key.table, {}).items():
            monkeypatch.setenv(f"STORESCP_{key.table.upper()}__{name.upper()}", str(value))
        default = key.default
        text = default if isinstance(default, str) else json.dumps(default)
        monkeypatch.setenv(f"STORESCP_{key.table.upper()}__{key.name.upper()}", text)
        written = value_in(load({}, None).settings)
        assert str(written) == str(key.info.default) or written == Path.cwd() / key.default


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STORESCP_PORT", "STORESCP_DICOM_STORE_SCP__PORT or STORESCP_TLS__PORT or STORESCP_HTTP__PORT"),
        ("STORESCP_KAFKA_BROKERS", "STORESCP_KAFKA__BROKERS"),
        ("STORESCP_KAFKAS__BROKERS", "STORESCP_KAFKA__BROKERS"),
        ("STORESCP_LOCAL_STORAGE_DICM_STORE_PATH", "STORESCP_STORAGE__ROOT"),
        ("STORESCP_STORAGE_ROOT", "STORESCP_STORAGE__ROOT"),
        ("STORESCP_ZZZZZZ", None),
    ],
)
def test_a_variable_that_is_not_known_is_a_warning_that_names_what_was_meant(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, CANARY)
    [warning] = load({}, None).warnings
    ending = f"; did you mean {meant}?" if meant else ""
    assert warning == f"environment variable {name} is not known and is ignored{ending}"


def test_what_kubernetes_sets_beside_a_service_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STORESCP_PORT": "tcp://10.96.0.7:11111",
        "STORESCP_SERVICE_HOST": "10.96.0.7",
        "STORESCP_SERVICE_PORT": "11111",
        "STORESCP_SERVICE_PORT_DICOM": "11111",
        "STORESCP_PORT_11111_TCP": "tcp://10.96.0.7:11111",
        "STORESCP_PORT_11111_TCP_PROTO": "tcp",
        "STORESCP_PORT_11111_TCP_PORT": "11111",
        "STORESCP_PORT_11111_TCP_ADDR": "10.96.0.7",
        "STORESCP_KAFKA_PORT": "tcp://10.96.0.8:9092",
        "STORESCP_KAFKA_SERVICE_HOST": "10.96.0.8",
    }.items():
        monkeypatch.setenv(name, value)
    configuration = load({}, None)
    assert configuration.warnings == ()
    assert configuration.settings.dicom_store_scp.port == 11111


def test_both_names_of_a_key_are_one_too_many_in_a_file_and_no_matter_in_two_places(
    check: Check, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    done = check("[message_queue]\ntopic_log = 'a'\ntopic_dicom_receive = 'b'\n")
    assert done.returncode == 78
    assert "not both" in line_about("message_queue.topic_dicom_receive", done)
    file.write_text("[message_queue]\ntopic_log = 'a'\n")
    monkeypatch.setenv("STORESCP_MESSAGE_QUEUE__TOPIC_DICOM_RECEIVE", "b")
    assert load({}, file).settings.message_queue.topic_dicom_receive == "b"


@pytest.mark.parametrize(
    ("other", "first", "value"),
    [
        ("local_storage.dicm_store_path", "storage.root", "/srv/images"),
        ("local_storage.durability", "storage.durability", "data"),
        ("dicom_store_scp.unsupported_ts_change_to", "transcoding.target", "1.2.840.10008.1.2"),
        (
            "dicom_store_scp.cornerstonejs_supported_transfer_syntax",
            "transcoding.viewer_transfer_syntaxes",
            ["1.2.840.10008.1.2.1"],
        ),
        ("message_queue.topic_log", "message_queue.topic_dicom_receive", "log"),
    ],
)
def test_each_other_name_of_a_key_is_as_good_as_the_first_and_both_are_one_too_many(
    other: str, first: str, value: Any, check: Check, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def table(name: str) -> dict[str, Any]:
        section, key = name.split(".")
        return {section: {key: value}}

    def rows(path: Path | None) -> dict[str, tuple[str, str]]:
        return {key: (shown, source) for key, shown, source in load({}, path).rows()}

    file.write_text(as_toml(table(other)))
    (tmp_path / "application.json").write_text(json.dumps(table(other)))
    shown = rows(file)[first][0]
    assert json.loads(shown) == value
    assert rows(file)[first] == (shown, f"{file}, as {other}")
    assert rows(tmp_path / "application.json")[first] == (shown, f"{tmp_path / 'application.json'}, as {other}")
    file.write_text(as_toml(table(first)))
    assert rows(file)[first] == (shown, str(file))
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv(f"STORESCP_{other.replace('.', '__').upper()}", text)
    assert rows(None)[first] == (shown, f"environment, as {other}")
    monkeypatch.delenv(f"STORESCP_{other.replace('.', '__').upper()}")
    both = table(other)
    for section, inner in table(first).items():
        both[section] = both.get(section, {}) | inner
    done = check(as_toml(both))
    assert done.returncode == 78
    assert "one of the two names" in line_about(first, done)
    assert other in line_about(first, done)


def test_a_wrong_value_is_told_with_the_name_that_was_written(check: Check, file: Path) -> None:
    done = check("[local_storage]\ndurability = 'maybe'\n")
    assert done.returncode == 78
    assert line_about("storage.durability", done).endswith(f"(from {file}, as local_storage.durability)")
    misspelt = check("[local_storage]\ndicm_store_pth = 'x'\n")
    assert "did you mean storage.root?" in line_about("storage.dicm_store_pth", misspelt)
    section = check("[local_storge]\nroot = 'x'\n")
    assert "did you mean storage?" in line_about("local_storge", section)


@each([key for key in KEYS if key.schema.get("type") == "array"])
def test_what_must_be_a_list_is_told_with_an_example_that_is_accepted(key: Key, check: Check, file: Path) -> None:
    said = line_about(key.place, check(key.toml(key.name, "CT1")))
    if "$ref" in key.schema["items"]:
        assert "expected a list of tables (from" in said
        return
    example = re.search(r'expected a list, for example (\["[^"]+"\]) \(from', said)
    assert example is not None, said
    file.write_text(key.toml_text(key.name, example[1]))
    load({}, file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dicom_store_scp]\nport = '104x'", 'dicom_store_scp.port = "104x": expected a whole number, for example 11111'),
        ("[dicom_store_scp]\nport = 1.5", "dicom_store_scp.port = 1.5: expected a whole number, for example 11111"),
        ("[dicom_store_scp]\nstrict = 'maybe'", 'dicom_store_scp.strict = "maybe": expected true or false'),
        ("[dicom_store_scp]\nstrict = 2", "dicom_store_scp.strict = 2: expected true or false"),
        ("[dicom_store_scp]\nae_title = ['A']", 'dicom_store_scp.ae_title = ["A"]: expected text, for example "STORE-SCP"'),
        ("[dicom_store_scp]\nallowed_calling_ae_titles = ['A', 7]",
         'entry 2 of dicom_store_scp.allowed_calling_ae_titles = 7: expected text, for example "CT1"'),
        ("[transcoding]\nviewer_transfer_syntaxes = ['ExplicitVR']",
         ('entry 1 of transcoding.viewer_transfer_syntaxes = "ExplicitVR": expected a UID: digits and dots, at most 64 '
         "characters; did you mean 1.2.840.10008.1.2.1 (Explicit VR Little Endian)?")),
        ("[transcoding]\nviewer_transfer_syntaxes = ['???']", "expected a UID: digits and dots, at most 64 characters"),
        ("[[tls.clients]]\nsubject = 'CN=a'\ncalling_ae_titles = ['A', 7]",
         'entry 2 of calling_ae_titles in entry 1 of tls.clients = 7: expected text, for example "CT1"'),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_in_words(text: str, said: str, check: Check, file: Path) -> None:
    done = check(f"{text}\n")
    assert done.returncode == 78
    assert f"{said} (from {file})" in done.stderr


def test_a_target_that_is_a_name_is_told_with_its_uid(check: Check) -> None:
    line = line_about("transcoding.target", check("[transcoding]\ntarget = 'JPEG 2000'\n"))
    assert "did you mean 1.2.840.10008.1.2.4.90 (JPEG 2000 Image Compression (Lossless Only))?" in line


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("STORESCP_DICOM_STORE_SCP__PORT", "x", 'dicom_store_scp.port = "x"'),
        ("STORESCP_LOCAL_STORAGE__DURABILITY", "x", 'storage.durability = "x"'),
        ("STORESCP_TENANTS__KNOWN", "a", 'tenants.known = "a"'),
        ("STORESCP_TENANTS", '{"known": 7}', "tenants.known = 7"),
        ("STORESCP_KAFKA__BROKERS", "a:70000", 'kafka.brokers = "a:70000"'),
    ],
)
def test_a_wrong_variable_is_told_with_its_name_and_value(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as error:
        load({}, None)
    assert str(error.value).startswith(f"{said}: expected ")
    assert str(error.value).endswith(f"(from environment variable {variable})")


def test_each_entry_of_a_list_is_told_with_the_file_that_it_comes_from(check: Check, file: Path) -> None:
    entry = "[[tenants.rules]]\ntenant_id = '../x'\n"
    done = check(entry + entry)
    assert done.returncode == 78
    for number in range(2):
        assert f"(from {file})" in line_about(f"tenant_id in entry {number + 1} of tenants.rules", done)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql:u:{CANARY}@h/d", "********"),
        (f"postgresql://u:{CANARY}/@h/d", "postgresql://u:********@h/d"),
        (f"postgresql://h/d;password={CANARY}", "********"),
        (f"{CANARY}", "********"),
        ("index.sqlite", "index.sqlite"),
        ("sqlite:/index.sqlite", "sqlite:/index.sqlite"),
        (f"mysql://u:{CANARY}@h/d", "mysql://u:********@h/d"),
        (f"postgresql://u:{CANARY}@h:port/d", "postgresql://u:********@h:port/d"),
    ],
)
def test_a_database_url_is_shown_only_as_far_as_it_is_understood(url: str, shown: str, file: Path) -> None:
    file.write_text(f"[index]\ndatabase = '{url}'\n")
    rows = {key: value for key, value, _ in load({}, file).rows()}
    assert shown in rows["index.database"]
    assert CANARY not in rows["index.database"]
