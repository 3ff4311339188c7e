"""Where values come from, and what is said when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storescp.config import load
from storescp.errors import ConfigError
from storescp.settings import VIEWER_TRANSFER_SYNTAXES, Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("STORESCP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(folder: Path, text: str, name: str = "storescp.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def problem(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load({}, write(folder, text))
    return str(error.value)


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load({}, None).settings
    scp = settings.dicom_store_scp
    assert (scp.port, scp.ae_title, scp.max_pdu_length, scp.max_associations) == (11111, "STORE-SCP", 16384, 100)
    assert settings.transcoding.viewer_transfer_syntaxes == VIEWER_TRANSFER_SYNTAXES
    assert len(VIEWER_TRANSFER_SYNTAXES) == 17
    assert scp.required_attributes == ()
    assert (settings.storage.durability, settings.storage.duplicates) == ("full", "replace")
    assert settings.storage.min_free_bytes == 1073741824
    assert settings.tenants.default == "1234567890"
    assert settings.message_queue.topic_dicom_receive == "log_queue"
    limits = settings.limits
    assert (limits.max_decoded_bytes, limits.nesting, limits.max_pdu_tolerated) == (2147483648, 64, 1048576)
    assert (limits.request_timeout, limits.handshake_timeout, limits.idle_timeout) == (10, 5, 60)


def test_option_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "[dicom_store_scp]\nport = 1\nae_title = 'FILE'\nmax_pdu_length = 5000\n")
    monkeypatch.setenv("STORESCP_DICOM_STORE_SCP__PORT", "2")
    monkeypatch.setenv("STORESCP_DICOM_STORE_SCP__AE_TITLE", "ENV")
    configuration = load({("dicom_store_scp", "port"): 3}, file)
    scp = configuration.settings.dicom_store_scp
    assert (scp.port, scp.ae_title, scp.max_pdu_length, scp.strict) == (3, "ENV", 5000, False)
    sources = {key: source for key, _, source in configuration.rows()}
    assert sources["dicom_store_scp.port"] == "option"
    assert sources["dicom_store_scp.ae_title"] == "environment"
    assert sources["dicom_store_scp.max_pdu_length"] == str(file)
    assert sources["dicom_store_scp.strict"] == "default"


def test_environment_lists_and_tables_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORESCP_DICOM_STORE_SCP__ALLOWED_PEERS", '["10.0.0.0/8"]')
    monkeypatch.setenv("STORESCP_TENANTS__RULES", '[{"tenant_id": "a", "called_ae": "A"}]')
    monkeypatch.setenv("STORESCP_LIMITS__NESTING", "100")
    settings = load({}, None).settings
    assert settings.dicom_store_scp.allowed_peers == ("10.0.0.0/8",)
    assert settings.tenants.rules[0].tenant_id == "a"
    assert settings.limits.nesting == 100
    monkeypatch.setenv("STORESCP_TENANTS__RULES", "[{")
    with pytest.raises(ConfigError):
        load({}, None)


def test_evaluation_mode_is_no_file_and_no_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}, None).evaluation
    assert load({}, None).host == "127.0.0.1"
    assert load({("dicom_store_scp", "host"): "0.0.0.0"}, None).host == "0.0.0.0"
    with_file = load({}, write(tmp_path, ""))
    assert not with_file.evaluation
    assert with_file.host == "0.0.0.0"
    monkeypatch.setenv("STORESCP_DICOM_LICENSE_SERVER__CLIENT_ID", "x")
    monkeypatch.setenv("STORESCP_DICOM_LICENSE_SERVER__LICENSE_KEY", "y")
    assert not load({}, None).evaluation


def test_paths_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    text = "[local_storage]\ndicm_store_path = 'data'\n[dicom_license_server]\nclient_id = 'a'\nlicense_key = 'b'\n"
    settings = load({}, write(folder, text)).settings
    assert settings.storage.root == folder / "data"
    assert settings.dicom_license_server is not None
    assert settings.dicom_license_server.client_certificate == folder / "client.pem"
    assert load({("storage", "root"): "x"}, None).settings.storage.root == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[dicom_store_scp]\nport = 99999", ["dicom_store_scp.port", "99999", "65535", "storescp.toml"]),
        ("[dicom_store_scp]\nprot = 1", ["dicom_store_scp.prot", "a known key; did you mean dicom_store_scp.port?"]),
        ("[dicom_storescp]\nport = 1", ["dicom_storescp", "a known key; did you mean dicom_store_scp?"]),
        ("[dicom_store_scp]\nae_title = 'SEVENTEEN-LETTERS'", ["ae_title", "1 to 16 printable"]),
        ("[dicom_store_scp]\nunsupported_ts_change_to = '1.2.840.10008.1.2.4.50'", ["unsupported_ts_change_to", "lossless"]),
        ("[dicom_store_scp]\nrequired_attributes = ['PatientName2']", ["required_attributes", "keyword"]),
        ("[dicom_store_scp]\nallowed_peers = ['10.0.0.0/33']", ["allowed_peers", "10.0.0.0/33"]),
        ("[local_storage]\ndurability = 'maybe'", ["storage.durability", "maybe", "'full', 'data' or 'none'"]),
        ("[tenants]\ndefault = '../x'", ["tenants.default", "../x", "tenant id"]),
        ("[limits]\nnesting = 257", ["limits.nesting", "257", "256"]),
        ("[dicom_license_server]\nclient_id = 'a'", ["dicom_license_server.license_key", "missing"]),
        ("port = ", ["--config", "TOML"]),
        (f"[local_storage]\ndicm_store_path = '/{'x' * 200}'", ["dicm_store_path", "200 bytes"]),
    ],
)  # fmt: skip
def test_a_problem_names_key_value_and_what_was_expected(tmp_path: Path, text: str, parts: list[str]) -> None:
    said = problem(text, tmp_path)
    assert all(part in said for part in parts), said


def test_secrets_are_masked_everywhere(tmp_path: Path) -> None:
    text = "[dicom_license_server]\nclient_id = 'a'\nlicense_key = 'SECRET-1'\n[kafka]\nbrokers = 'b'\nsasl_password = 'SECRET-2'\n"
    shown = "\n".join(" ".join(row) for row in load({}, write(tmp_path, text)).rows())
    assert "SECRET" not in shown
    assert shown.count("********") == 2
    assert "SECRET" not in problem(text.replace("'SECRET-2'", "['SECRET-2']"), tmp_path)
    assert "SECRET" not in problem(text + "[kafka.sasl_passwords]\na = 'x'\n", tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///index.sqlite", "sqlite:///index.sqlite"),
        ("postgresql://u:SEC@RET@h/d", "postgresql://u:********@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d?password=SECRET", "********"),
    ],
)
def test_a_database_url_is_shown_without_its_password(url: str, shown: str) -> None:
    rows = {key: value for key, value, _ in load({("index", "database"): url}, None).rows()}
    assert shown in rows["index.database"]
    assert "SEC" not in rows["index.database"]


def test_application_json_of_wado_storescp(tmp_path: Path) -> None:
    document = {
        "redis": {"url": "redis://127.0.0.1"},
        "dicom_store_scp": {
            "port": 11112,
            "ae_title": "STORE-SCP",
            "cornerstonejs_supported_transfer_syntax": ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2"],
            "unsupported_ts_change_to": "1.2.840.10008.1.2.1",
            "tenant_group": "0x1211",
            "tenant_element": "0x1217",
        },
        "local_storage": {"dicm_store_path": "/data", "json_store_path": "/json"},
        "message_queue": {"topic_main": "storage_queue", "topic_log": "log_queue_1", "consumer_group_id": "g"},
        "kafka": {
            "brokers": ["127.0.0.1:9092", "127.0.0.1:9093"],
            "queue_buffering_max_ms": 10,
            "batch_num_messages": 500,
            "message.timeout.ms": 60000,
            "compression.type": "lz4",
            "security.protocol": "sasl_ssl",
            "sasl.mechanisms": "scram-sha-512",
            "sasl.username": "storescp",
            "sasl.password": "secret",
            "ssl.ca.location": "ca.pem",
            "acks": "1",
            "queue_buffering_max_messages": 100000,
            "statistics.interval.ms": 0,
        },
        "dicom_license_server": {"client_id": "a", "license_key": "b", "url": "http://x"},
    }
    configuration = load({}, write(tmp_path, json.dumps(document), "application.json"))
    settings = configuration.settings
    assert settings.transcoding.viewer_transfer_syntaxes == (
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2",
    )
    assert settings.message_queue.topic_dicom_receive == "log_queue_1"
    assert settings.kafka is not None
    kafka = settings.kafka
    assert kafka.brokers == "127.0.0.1:9092,127.0.0.1:9093"
    assert (kafka.linger_ms, kafka.batch_num_messages, kafka.delivery_timeout) == (10, 500, 60.0)
    assert (kafka.compression_codec, kafka.security_protocol) == ("lz4", "SASL_SSL")
    assert (kafka.sasl_mechanism, kafka.ssl_cafile) == ("SCRAM-SHA-512", tmp_path / "ca.pem")
    assert settings.tenants.from_private_element
    assert (settings.tenants.private_group, settings.tenants.private_element) == (0x1211, 0x1217)
    acks, queue, warning, known = configuration.warnings
    assert acks == "kafka.acks has no effect: always all"
    assert queue == "kafka.queue_buffering_max_messages has no effect: the outbox is the queue: [outbox] max_rows"
    assert "tenants.known is empty" in known
    for name in ("redis", "local_storage.json_store_path", "message_queue.consumer_group_id",
                 "kafka.statistics_interval_ms", "dicom_license_server.url"):  # fmt: skip
        assert name in warning
    sources = {key: source for key, _, source in configuration.rows()}
    assert sources["message_queue.topic_dicom_receive"].endswith("application.json, as message_queue.topic_log")


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.dicom_store_scp.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("brokers = 'a b:1'", ["kafka.brokers", "host:port"]),
        ("brokers = 'a:70000'", ["kafka.brokers", "host:port"]),
        ("brokers = 'a:1,'", ["kafka.brokers", "host:port"]),
        (
            "brokers = 'a:1'\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'",
            ["kafka.sasl_username", "SASL_SSL"],
        ),
        ("brokers = 'a:1'\n[message_queue]\ntopic_main = 'x'\ntopic_log = 'x'", ["message_queue", "another topic"]),
    ],
)
def test_kafka_is_checked_before_anything_starts(tmp_path: Path, text: str, parts: list[str]) -> None:
    said = problem("[kafka]\n" + text, tmp_path)
    assert all(part in said for part in parts), said


def test_brokers_have_kafka_s_port_unless_they_name_one(tmp_path: Path) -> None:
    kafka = load({}, write(tmp_path, "[kafka]\nbrokers = 'one, two:19092, [::1]'")).settings.kafka
    assert kafka is not None
    assert kafka.brokers == "one:9092,two:19092,[::1]:9092"


def test_the_environment_knows_every_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it did not know would be ignored in silence."""
    monkeypatch.setenv("STORESCP_NO_SUCH_SECTION__KEY", "1")
    assert any("NO_SUCH_SECTION" in warning for warning in load({}, None).warnings)
    for section in Settings.model_fields:
        monkeypatch.setenv(f"STORESCP_{section.upper()}__NO_SUCH_KEY", "1")
        with pytest.raises(ConfigError) as error:
            load({}, None)
        assert f"{section}.no_such_key" in str(error.value)
        monkeypatch.delenv(f"STORESCP_{section.upper()}__NO_SUCH_KEY")


def test_paths_of_tls_users_and_audit_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    text = (
        "[tls]\ncertificate = 's.pem'\nprivate_key = 's.key'\ncrl = 'crl.pem'\n[user_identity]\nusers = 'users'\n"
        "[audit]\ndestination = 'file:audit.log'\nca_certificate = 'ca.pem'\n"
        "[dicom_license_server]\nclient_id = 'x'\nlicense_key = 'y'\n"
    )
    settings = load({}, write(tmp_path / "etc", text)).settings
    assert settings.tls is not None
    assert settings.user_identity is not None
    assert settings.audit is not None
    assert settings.tls.crl == tmp_path / "etc" / "crl.pem"
    assert settings.user_identity.users == tmp_path / "etc" / "users"
    assert settings.audit.destination == f"file:{tmp_path / 'etc' / 'audit.log'}"
    assert "[tls]" in problem("[user_identity]\nusers = 'u'\n", tmp_path)
    assert "subject" in problem("[[tenants.rules]]\ntenant_id = 'a'\ntls_subject = 'nonsense'\n", tmp_path)
    assert "destination" in problem("[audit]\ndestination = 'udp://host:514'\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[dicom_store_scp]\nport = [1, 2]", "dicom_store_scp.port = [1, 2]: expected"),
        ("tenants = 'x'", 'tenants = "x": expected a table'),
        ("[tenants]\nrules = 'x'", 'tenants.rules = "x": expected a list of tables'),
        ("[tenants]\nknown = 7", 'tenants.known = 7: expected a list, for example ["hospital-a"]'),
        (f"[log]\nlevel = '{'x' * 1000}'", f'log.level = "{"x" * 199}...: expected'),
        ("kafka = 'CANARY'", "kafka: expected a table"),
        ("[dicom_store_scp]\nport = {password = 'CANARY'}", "dicom_store_scp.port: expected"),
        (
            "[[tenants.rules]]\ntenant_id = ['a', {password = 'CANARY'}]",
            "tenant_id in entry 1 of tenants.rules: expected",
        ),
        ("[http]\ntoken = ['CANARY']", "http.token = ********: expected"),
    ],
)
def test_a_wrong_value_is_shown_unless_a_secret_may_be_in_it(tmp_path: Path, text: str, shown: str) -> None:
    said = problem(text, tmp_path)
    assert shown in said
    assert "CANARY" not in said


def test_a_misspelt_key_of_ours_in_application_json_is_told_by_itself(tmp_path: Path) -> None:
    document = {
        "redis": {},
        "server": {"port": 1},
        "storge": {},
        "storage": {"duplicate": "keep"},
        "local_storage": {"dicm_store_path": "/data", "json_store_path": "/json"},
        "dicom_store_scp": {"malformd": "quarantine", "aaa": 1},
        "message_queue": {"topic_dicom_image": "x", "topic_dicom_recieve": "y"},
    }
    warnings = load({}, write(tmp_path, json.dumps(document), "application.json")).warnings
    for given, meant in (
        ("storage.duplicate", "storage.duplicates"),
        ("dicom_store_scp.malformd", "dicom_store_scp.malformed"),
        ("message_queue.topic_dicom_recieve", "message_queue.topic_dicom_receive"),
        ("storge", "storage"),
    ):
        assert f"{given} in the configuration file is not known and is ignored; did you mean {meant}?" in warnings
    assert (
        "ignored in the configuration file: redis, server, local_storage.json_store_path, dicom_store_scp.aaa, "
        "message_queue.topic_dicom_image" in warnings
    )


def test_what_the_original_does_by_itself_is_not_attributed_to_the_file(tmp_path: Path) -> None:
    scp = {"tenant_group": "0x1211", "tenant_element": "0x1217"}
    found = load({}, write(tmp_path, json.dumps({"dicom_store_scp": scp}), "application.json"))
    rows = {key: (value, source) for key, value, source in found.rows()}
    assert rows["tenants.private_group"] == ("0x1211", str(found.file))
    assert rows["tenants.private_element"] == ("0x1217", str(found.file))
    for key in (
        "dicom_store_scp.required_attributes",
        "message_queue.created_time",
        "tenants.from_private_element",
    ):
        assert rows[key][1] == "default (as wado-storescp)"
    given = {"dicom_store_scp": {"required_attributes": ["PatientID"]}}
    found = load({}, write(tmp_path, json.dumps(given), "application.json"))
    assert found.source_of("dicom_store_scp.required_attributes") == str(found.file)
    assert found.settings.dicom_store_scp.required_attributes == ("PatientID",)


@pytest.mark.parametrize(
    ("text", "number", "is_warned"), [("1211", 1211, True), ("0x1211", 0x1211, False), (" 4625 ", 4625, True)]
)
def test_numbers_of_an_element_in_text_are_decimal_without_0x(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, number: int, is_warned: bool
) -> None:
    document = json.dumps({"dicom_store_scp": {"tenant_group": text}})
    from_file = load({}, write(tmp_path, document, "application.json"))
    monkeypatch.setenv("STORESCP_TENANTS__PRIVATE_GROUP", text)
    for found in (from_file, load({}, None)):
        assert found.settings.tenants.private_group == number
        expected = f"read as decimal {number} = 0x{number:04X}; write 0x{text.strip()} for hexadecimal"
        assert any(expected in warning for warning in found.warnings) == is_warned


def test_a_time_for_a_frame_beyond_that_of_the_instance_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORESCP_TRANSCODING__TIMEOUT", "600")
    [warning] = load({}, None).warnings
    assert warning == (
        "transcoding.timeout (600 s for one frame) has no effect: transcoding.instance_timeout (300 s for all frames) is shorter"
    )
    monkeypatch.setenv("STORESCP_TRANSCODING__INSTANCE_TIMEOUT", "600")
    assert load({}, None).warnings == ()
