"""Starting, stopping and being told no: the process as an administrator sees it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import socket
import threading
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from storescp import _core, machine
from storescp.licence import issue_licence
from support.command import run_in_process, storescp
from support.instances import CT, ct_slice, dataset_of, from_file
from support.licences import licence_issued, section
from support.memory import arenas
from support.scu import EXPLICIT, Aborted, Closed, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
CONTEXTS = [(1, CT, [EXPLICIT])]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a licence, beside its certificates."""
    issued = issue_licence("hospital", 365, tmp_path / "etc")
    file = tmp_path / "etc" / "storescp.toml"
    file.write_text(
        f"[dicom_license_server]\nclient_id = 'hospital'\nlicense_key = '{issued.license_key}'\n"
        "[dicom_store_scp]\nhost = '127.0.0.1'\n"
    )
    return file


def test_it_serves_with_a_configuration_and_its_licence(start_service: StartService, config: Path) -> None:
    scp = start_service("-c", str(config), "--ae-title", "ARCHIVE")
    assert scp.line == f"listening on 127.0.0.1:{scp.port} as ARCHIVE"
    RawAssociation(scp.port, CONTEXTS).release()
    assert scp.stop() == 0
    assert scp.events("service.started")[0]["client_id"] == "hospital"
    assert not scp.events("evaluation.mode")


def test_evaluation_mode_says_so_and_reuses_its_licence(start_service: StartService) -> None:
    first = start_service()
    assert first.events("evaluation.mode")
    evaluation = first.root / ".outbox" / "evaluation"
    assert evaluation.stat().st_mode & 0o777 == 0o700
    certificate = (evaluation / "client.pem").read_bytes()
    assert first.stop() == 0
    second = start_service(root=first.root)
    assert (evaluation / "client.pem").read_bytes() == certificate
    assert second.line.startswith("listening on 127.0.0.1:")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("client_id = 'hospital'", "client_id = 'other'"), "is not the configured client_id"),
        (("license_key = '", "license_key = '0"), "is not the configured license_key"),
    ],
)
def test_a_wrong_licence_is_exit_77_with_one_line(
    config: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    key = config.read_text().split("license_key = '")[1].split("'")[0]
    config.write_text(config.read_text().replace(*change))
    result = storescp("-c", str(config), "-p", "0", "-o", str(tmp_path / "data"))
    assert result.returncode == 77
    [line] = result.stderr.splitlines()
    assert said in line
    assert key not in result.stderr
    assert result.stdout == ""


def test_a_missing_licence_section_names_the_commands_that_make_one(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[dicom_store_scp]\nport = 0\n")
    result = storescp("-c", str(tmp_path / "c.toml"), "-o", str(tmp_path / "data"))
    assert result.returncode == 77
    assert "license issue --client-id" in result.stderr
    assert "license verify" in result.stderr


def storing(port: int, number: int) -> int:
    """The status that an instance gets."""
    one = ct_slice(number, rows=4)
    with RawAssociation(port, CONTEXTS) as association:
        status = association.store(1, CT, one.sop_instance, one.dataset).status
        association.release()
    return status


def clock_of(file: Path) -> dict[str, str]:
    """The environment of a process whose clock is off by what a file says, now and whenever the file changes."""
    if not FAKETIME.exists():
        pytest.skip("needs faketime")
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_licence_that_has_ended_stops_neither_reception_nor_a_start(
    start_service: StartService, tmp_path: Path, engine: str
) -> None:
    """Its CA has ended, too."""
    issued = licence_issued(timedelta(days=10), 5, tmp_path / "licence")
    file = tmp_path / "storescp.toml"
    file.write_text(f"{section(issued)}[dicom_store_scp]\nhost = '127.0.0.1'\n[http]\nport = 0\n")
    refused = storescp("-c", str(file), "-p", "0", "-o", str(tmp_path / "data"))
    assert refused.returncode == 77
    [line] = refused.stderr.splitlines()
    end = datetime.now(UTC) - timedelta(days=5)
    for part in (
        str(issued.client_certificate),
        f"ended on {end:%Y-%m-%d}",
        "storescpd license issue --client-id ID DIR",
    ):
        assert part in line
    reason = f"the licence ended on {end:%Y-%m-%d}; reception goes on"
    ready = json.dumps({"ready": True, "reasons": [reason]}, separators=(",", ":"))
    clock = tmp_path / "clock"
    clock.write_text("-7d")
    first = start_service("-c", str(file), engine=engine, env=clock_of(clock))
    port = http_port(first)
    assert get(port, "/readyz") == (200, '{"ready":true,"reasons":[]}')
    clock.write_text("+0")
    assert get(port, "/readyz") == (200, ready)
    # The timers of pynetdicom, which serves the pure-Python engine, follow the clock.
    if engine == "rust":
        assert storing(first.port, 1) == 0
    assert first.stop() == 0
    second = start_service("-c", str(file), engine=engine, root=first.root)
    port = http_port(second)
    assert storing(second.port, 2) == 0
    [told] = second.events("licence.expired")
    assert str(issued.client_certificate) in told["text"]
    assert get(port, "/readyz") == (200, ready)
    shown = json.loads(get(port, "/status")[1])
    assert (shown["ready"], shown["reasons"], shown["licence"]["state"]) == (True, [reason], "ended")
    assert run_in_process("license", "verify", "-c", str(file)).returncode == 77
    other = licence_issued(timedelta(days=10), 5, tmp_path / "other", "clinic")
    file.write_text(f"{section(other)}[dicom_store_scp]\nhost = '127.0.0.1'\n")
    assert second.stop() == 0
    assert storescp("-c", str(file), "-p", "0", "-o", str(first.root)).returncode == 77


def test_sighup_reads_a_renewed_licence_and_keeps_the_old_one_where_the_new_one_is_bad(
    start_service: StartService, tmp_path: Path
) -> None:
    issued = licence_issued(timedelta(days=10), 30, tmp_path / "licence")
    file = tmp_path / "storescp.toml"
    rest = "[dicom_store_scp]\nhost = '127.0.0.1'\n[http]\nport = 0\n"
    file.write_text(section(issued) + rest)
    scp = start_service("-c", str(file))
    port = http_port(scp)
    assert scp.events("licence.expires_soon")

    def days() -> int:
        return int(json.loads(get(port, "/status")[1])["licence"]["days"])

    def signalled(name: str) -> dict[str, Any]:
        before = len(scp.events(name))
        scp.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(scp.events(name)) > before, 10, f"no {name}")
        return scp.events(name)[-1]

    ended = licence_issued(timedelta(days=10), 5, tmp_path / "ended")
    wrong_key = section(issued).replace("license_key = '", "license_key = '0")
    for bad, reason in (
        (section(ended), f"{ended.client_certificate} ended on"),
        (wrong_key, "is not the configured license_key"),
        ("", "no [dicom_license_server] section"),
        ("[dicom_license_server\n", "valid TOML"),
    ):
        file.write_text(bad + rest)
        failed = signalled("reload.failed")
        assert failed["text"] == "the licence before stays in force"
        assert reason in failed["reason"]
        assert days() == 19
    renewed = issue_licence("hospital", 365, tmp_path / "renewed")
    file.write_text(section(renewed) + rest)
    assert signalled("reload.done")["licence_days_left"] == 364
    wait_until(lambda: days() == 364)
    assert json.loads((scp.root / ".outbox" / "licensed").read_text())["not_after"].startswith(
        f"{datetime.now(UTC) + timedelta(days=365):%Y-%m}"
    )
    assert storing(scp.port, 1) == 0


def test_exit_codes_of_wrong_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[dicom_store_scp]\nport = 'x'\n")
    result = storescp("-c", str(bad))
    assert result.returncode == 78
    assert "dicom_store_scp.port" in result.stderr
    assert storescp("-c", str(tmp_path / "absent.toml")).returncode == 78
    assert storescp("-m", "1000").returncode == 2
    assert storescp("--no-such-option").returncode == 2
    (tmp_path / "file").write_text("")
    result = storescp("-p", "0", "-o", str(tmp_path / "file" / "root"))
    assert result.returncode == 78
    assert "storage.root" in result.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = storescp("-p", str(port), "-o", str(tmp_path / "data"))
        assert result.returncode == 69
        assert f"127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    "section",
    [
        "[tls]\ncertificate = 'a'\nprivate_key = 'b'\n",
        "[audit]\ndestination = 'file:a'\n",
        "[[tenants.settings]]\ntenant_id = 'a'\n",
    ],
)
def test_what_the_python_engine_does_not_have_is_refused_and_not_ignored(
    config: Path, tmp_path: Path, section: str
) -> None:
    config.write_text(config.read_text() + section)
    result = storescp("-c", str(config), "-p", "0", "-o", str(tmp_path / "data"), "--engine", "python")
    assert result.returncode == 78
    assert "--engine python" in result.stderr


def test_a_passcode_becomes_a_line_that_knows_it() -> None:
    result = run_in_process("passcode", "ct1", "--passcode", "geheim")
    assert result.returncode == 0
    username, salt, key = result.stdout.strip().split(":")
    assert (username, len(salt), len(key)) == ("ct1", 32, 64)
    assert "geheim" not in result.stdout
    assert run_in_process("passcode", "#ct1", "--passcode", "x").returncode == 2


def test_check_config_prints_values_sources_and_no_secrets(config: Path) -> None:
    result = run_in_process("check-config", "-c", str(config), env={"STORESCP_LIMITS__NESTING": "100"})
    assert result.returncode == 0
    rows = {line.split(" = ")[0].strip(): line for line in result.stdout.splitlines()}
    assert rows["limits.nesting"].endswith("= 100  # environment")
    assert rows["dicom_store_scp.host"].endswith(f'"127.0.0.1"  # {config}')
    assert rows["dicom_store_scp.port"].endswith("11111  # default")
    assert "********" in rows["dicom_license_server.license_key"]
    before = run_in_process("-c", str(config), "check-config")
    assert before.stdout == run_in_process("check-config", "-c", str(config)).stdout


def test_license_commands(tmp_path: Path) -> None:
    issued = run_in_process("license", "issue", "--client-id", "clinic", "--days", "10", str(tmp_path / "licence"))
    assert issued.returncode == 0
    (tmp_path / "storescp.toml").write_text(issued.stdout)
    verified = run_in_process("license", "verify", "-c", str(tmp_path / "storescp.toml"))
    assert (verified.returncode, verified.stdout) == (0, "valid for clinic, 9 days left\n")
    shown = run_in_process("license", "show", str(tmp_path / "licence" / "client.pem"))
    assert "client id   clinic" in shown.stdout
    assert run_in_process("license", "issue", "--client-id", "clinic", str(tmp_path / "licence")).returncode == 77


def test_a_licence_is_issued_as_the_section_of_an_application_json(tmp_path: Path) -> None:
    issued = run_in_process("license", "issue", "--json", "--client-id", 'the "clinic"', str(tmp_path / "licence"))
    assert issued.returncode == 0, issued.stderr
    document = json.loads(issued.stdout)
    assert list(document) == ["dicom_license_server"]
    config = tmp_path / "application.json"
    config.write_text(json.dumps({"redis": {"url": "redis://127.0.0.1"}, **document}))
    verified = run_in_process("license", "verify", "-c", str(config))
    assert (verified.returncode, verified.stdout) == (0, 'valid for the "clinic", 364 days left\n'), verified.stderr
    # The two forms of the section say the same.
    toml = run_in_process("license", "issue", "--client-id", 'the "clinic"', str(tmp_path / "other"))
    assert tomllib.loads(toml.stdout)["dicom_license_server"].keys() == document["dicom_license_server"].keys()


def test_version_and_help() -> None:
    version = run_in_process("--version")
    assert version.returncode == 0
    assert "storescp 0.1" in version.stdout
    help_text = run_in_process("-h").stdout
    for option in ("--config", "--verbose", "--ae-title", "--strict", "--uncompressed-only",
                   "--promiscuous", "--max-pdu-length", "--port", "--host", "--non-blocking / --blocking",
                   "--output-directory", "--engine", "--version"):  # fmt: skip
        assert option in help_text
    assert "--calling-ae-title" not in help_text


@pytest.mark.parametrize("option", ["--ae-title", "--calling-ae-title"])
def test_either_name_of_the_option_sets_the_ae_title(option: str) -> None:
    result = run_in_process(option, "ARCHIVE", "check-config")
    assert result.returncode == 0
    assert re.search(r'^dicom_store_scp\.ae_title +=? *= "ARCHIVE"  # option$', result.stdout, re.MULTILINE)


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_start_without_space_or_tenants_says_so_once(start_service: StartService, engine: str) -> None:
    full = start_service(env={"STORESCP_STORAGE__MIN_FREE_BYTES": "1000000 TiB"}, engine=engine)
    assert full.stop() == 0
    [line] = full.events("storage.low_space")
    assert (line["level"], line["storage"]) == ("warning", str(full.root))
    assert 0 < line["free_bytes"] < line["min_free_bytes"] == 1000000 << 40
    [tenant] = full.events("tenants.default")
    assert (tenant["level"], tenant["tenant"]) == ("info", "1234567890")


@pytest.mark.parametrize(
    "given",
    [
        {"DEFAULT": "1234567890"},
        {"RULES": '[{"tenant_id": "a", "called_ae": "A"}]'},
        {"FROM_PRIVATE_ELEMENT": "true", "KNOWN": '["a"]'},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_start_says_nothing_of_tenants_that_are_configured_nor_of_a_disk_with_space(
    start_service: StartService, given: dict[str, str]
) -> None:
    env = {f"STORESCP_TENANTS__{name}": value for name, value in given.items()}
    scp = start_service(env=env | {"STORESCP_STORAGE__MIN_FREE_BYTES": "1 B"})
    assert scp.stop() == 0
    assert scp.events("tenants.default") == []
    assert scp.events("storage.low_space") == []
    assert len(scp.events("service.started")) == 1


def test_outbox_status_works_while_the_service_runs(scp: ServiceProcess) -> None:
    instance = ct_slice(1, rows=4)
    with RawAssociation(scp.port, CONTEXTS) as association:
        assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
        association.release()
    scp.records(count=1)

    def shows_one() -> bool:
        result = run_in_process("-o", str(scp.root), "outbox", "status")
        assert result.returncode == 0
        return "instances 1\n" in result.stdout

    # Its record is published out of memory, a moment before its row is in the database.
    wait_until(shows_one)
    assert run_in_process("-o", str(scp.root / "nothing"), "outbox", "status").returncode == 1


def test_echo_send_inspect_and_verify(scp: ServiceProcess, tmp_path: Path) -> None:
    port = str(scp.port)
    assert run_in_process("echo", "127.0.0.1", port).stdout.startswith(f"127.0.0.1:{port} answered in")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = str(unused.getsockname()[1])
    assert run_in_process("echo", "127.0.0.1", dead).returncode == 1
    files = [get_testdata_file("CT_small.dcm"), get_testdata_file("MR_small_RLE.dcm")]
    sent = run_in_process("send", "127.0.0.1", port, *files)
    assert (sent.returncode, sent.stdout.split(",")[0]) == (0, "2 of 2 stored")
    originals = [from_file(Path(file)) for file in files]
    assert {dataset_of(file) for file in scp.files()} == {one.dataset for one in originals if one}
    (tmp_path / "junk.dcm").write_bytes(b"junk")
    refused = run_in_process("send", "127.0.0.1", port, str(tmp_path / "junk.dcm"), files[0])
    assert (refused.returncode, refused.stdout.split(",")[0]) == (1, "1 of 1 stored")
    inspected = run_in_process("inspect", files[0])
    assert inspected.returncode == 0
    [stored] = [file for file in scp.files() if file.stem.endswith("20040119072730.12322")]
    assert f"would be stored at  {stored.relative_to(scp.root)}" in inspected.stdout
    assert run_in_process("-o", str(scp.root), "verify").returncode == 0
    with stored.open("r+b") as damaged:
        damaged.seek(-1, os.SEEK_END)
        damaged.write(b"X")
    (stored.parent / "foreign.dcm").write_bytes(b"x")
    next(file for file in scp.files() if file not in (stored, stored.parent / "foreign.dcm")).unlink()
    verified = run_in_process("-o", str(scp.root), "verify")
    assert verified.returncode == 1
    assert sorted(line.split()[0] for line in verified.stdout.splitlines()) == ["changed", "foreign", "missing"]


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_sigterm_lets_running_associations_finish(start_service: StartService, engine: str) -> None:
    scp = start_service(engine=engine)
    association = RawAssociation(scp.port, CONTEXTS)
    scp.process.send_signal(signal.SIGTERM)
    scp.wait_for_event("service.draining")
    instance = ct_slice(1)
    assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
    association.release()
    assert scp.process.wait(20) == 0
    assert len(scp.records()) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", scp.port), 5)


def test_systemd_is_told_how_it_is(start_service: StartService, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        scp = start_service(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
        scp.process.send_signal(signal.SIGHUP)
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(100) == b"READY=1"
        association = RawAssociation(scp.port, CONTEXTS)
        scp.process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        # It is said before the last association has ended.
        instance = ct_slice(1)
        assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
        association.release()
        assert scp.process.wait(20) == 0


@pytest.mark.parametrize("mode", ["--non-blocking", "--blocking"])
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_drain_ends_at_its_deadline_with_an_abort(start_service: StartService, engine: str, mode: str) -> None:
    scp = start_service(mode, engine=engine, env={"STORESCP_SERVICE__DRAIN_TIMEOUT": "0.5"})
    association = RawAssociation(scp.port, CONTEXTS)
    scp.process.send_signal(signal.SIGTERM)
    with pytest.raises((Aborted, Closed)):
        association.read_pdu()
    association.socket.close()
    assert scp.process.wait(20) == 0
    assert scp.events("service.aborting_associations")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_at_once(start_service: StartService, number: int, code: int) -> None:
    scp = start_service()
    association = RawAssociation(scp.port, CONTEXTS)
    scp.process.send_signal(number)
    scp.wait_for_event("service.draining")
    scp.process.send_signal(number)
    assert scp.process.wait(2) == code
    association.socket.close()


def test_logs_are_json_without_patient_data(start_service: StartService) -> None:
    scp = start_service("-v")
    canary = {
        0x00100010: b"\x10\x00\x10\x00PN\x0a\x00CanaryName",
        0x00100020: b"\x10\x00\x20\x00LO\x08\x00CanaryId",
        0x00080050: b"\x08\x00\x50\x00SH\x08\x00CanaryAc",
        0x00080020: b"\x08\x00\x20\x00DA\x08\x0019771123",
    }
    good = ct_slice(1, rows=4, changes=canary)
    bad = ct_slice(2, rows=4, changes=canary | {0x0020000D: None})
    with RawAssociation(scp.port, CONTEXTS, calling=b"EVIL {}") as association:
        for one in (good, bad):
            association.store(1, CT, one.sop_instance, one.dataset)
        association.release()
    assert scp.stop() == 0
    log = scp.log()
    assert all(json.loads(line) for line in log.splitlines())
    assert not [word for word in ("CanaryName", "CanaryId", "CanaryAc", "19771123") if word in log]
    [summary] = scp.events("association.released")
    assert summary["statuses"] == {"0000": 1, "A900": 1}
    assert len(scp.events("instance.stored")) == len(scp.events("instance.refused")) == 1
    told = [*scp.events("instance.stored"), *scp.events("instance.refused")]
    assert sorted((line["association"], line["message_id"]) for line in told) == [(1, 1), (1, 2)]


def test_idle_and_slow_peers_do_not_hold_up_the_others(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": "600"})
    idle = [socket.create_connection(("127.0.0.1", scp.port)) for _ in range(500)]
    for slow in idle[:50]:
        slow.send(b"\x01\x00\x00")
    done = threading.Event()

    def store() -> None:
        instance = ct_slice(1)
        with RawAssociation(scp.port, CONTEXTS, timeout=1.0) as association:
            assert association.store(1, CT, instance.sop_instance, instance.dataset).status == 0
            association.release()
        done.set()

    sender = threading.Thread(target=store)
    sender.start()
    assert done.wait(5)
    sender.join()
    assert scp.threads() < 30
    for connection in idle:
        connection.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_many_associations_share_a_few_arenas(start_service: StartService) -> None:
    """What one needed at its worst moment is there for the next, instead of being kept as often as there are threads."""
    most = max(2, machine.processors())

    def arenas_of(service: ServiceProcess) -> int:
        with contextlib.ExitStack() as running:
            for number in range(most + 8):
                association = _core.Sender("127.0.0.1", service.port, "CT", "ANY-SCP", [(CT, EXPLICIT)], 30)
                running.callback(association.release)
                one = ct_slice(number, rows=64)
                [(status, _)] = association.store_many(CT, EXPLICIT, [(one.sop_instance, one.dataset)])
                assert status == 0
            return arenas(service.process.pid)

    service = start_service()
    assert arenas_of(service) < most
    service.stop(10)
    # Who has set it has a reason.
    assert arenas_of(start_service(env={"MALLOC_ARENA_MAX": str(most + 3)})) == most + 2
