"""`echo` and `send` over TLS and with a user: what is believed, what is shown, what is said where it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydicom.data import get_testdata_file

from conftest import StartService
from storescp import _core
from storescp.cli.link_options import PASSWORD_VARIABLE
from storescp.errors import CoreError
from storescp.network.identity import entry
from support.certificates import Authority, Pki
from support.command import Done, run_in_process
from support.peers import answering
from support.service import ServiceProcess

CT_FILE = Path(str(get_testdata_file("CT_small.dcm")))
PASSCODE = "correct CANARY horse"


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def both(start_service: StartService, pki: Pki) -> ServiceProcess:
    """A clear port and one with TLS that asks for certificates."""
    return start_service(env=pki.environment(port="0"), listeners=2)


def start_with(start_service: StartService, pki: Pki, certificate: Path, **more: str) -> ServiceProcess:
    """A port with TLS that shows a certificate and asks for none."""
    settings = {"certificate": str(certificate), "private_key": str(certificate), "client_auth": "none"} | more
    return start_service(env=pki.environment(**settings))


def believing(pki: Pki) -> list[str]:
    return ["--tls", "--tls-ca", str(pki.authority.file)]


def showing(pki: Pki) -> list[str]:
    return [*believing(pki), "--tls-certificate", str(pki.device)]


def echo(port: int, *options: str) -> Done:
    return run_in_process("echo", "127.0.0.1", str(port), *options)


def test_an_echo_over_tls_is_answered(both: ServiceProcess, pki: Pki, tmp_path: Path) -> None:
    assert echo(both.tls_port, *showing(pki)).returncode == 0
    whole = pki.device.read_text()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_text(whole[: whole.index("-----BEGIN CERTIFICATE")])
    certificate.write_text(whole[whole.index("-----BEGIN CERTIFICATE") :])
    apart = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    done = echo(both.tls_port, *believing(pki), *apart)
    assert (done.returncode, done.stderr) == (0, "")
    assert both.stop() == 0
    assert [line["tls_subject"] for line in both.events("association.released")] == ["CN=ct1.hospital-a"] * 2


def test_files_are_sent_over_several_associations_with_tls(both: ServiceProcess, pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(12):
        shutil.copy(CT_FILE, tmp_path / "files" / f"{number}.dcm")
    command = ["send", "127.0.0.1", str(both.tls_port), *showing(pki), "--associations", "3", str(tmp_path / "files")]
    done = run_in_process(*command)
    assert (done.returncode, done.stderr, done.stdout.split(",")[0]) == (0, "", "12 of 12 stored")
    assert both.stop() == 0
    lines = both.events("association.released")
    assert [line["tls"] for line in lines] == ["TLSv1_3"] * 3
    assert sum(line["instances"] for line in lines) == 12


def test_a_large_file_arrives_whole_over_tls(both: ServiceProcess, pki: Pki, tmp_path: Path) -> None:
    size = 5_000_001
    large = tmp_path / "large.dcm"
    # A private element behind the others, with a value of more than what a system call takes along.
    large.write_bytes(
        CT_FILE.read_bytes() + b"\xfd\xff\x10\x10OB\0\0" + (size + 1).to_bytes(4, "little") + bytes(size + 1)
    )
    done = run_in_process("send", "127.0.0.1", str(both.tls_port), *showing(pki), str(large))
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "1 of 1 stored"), done.stderr
    [stored] = both.files()
    assert stored.read_bytes().endswith(bytes(size + 1))


def failure(done: Done) -> str:
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line.removeprefix("storescp: ")


def test_who_shows_no_certificate_is_told_that_one_is_asked_for(both: ServiceProcess, pki: Pki) -> None:
    said = failure(echo(both.tls_port, *believing(pki)))
    assert said == (
        f"TLS with 127.0.0.1:{both.tls_port} failed: it does not accept our certificate, or asks for one "
        "(CertificateRequired); --tls-certificate is the one that is shown"
    )


def test_a_certificate_that_the_peer_does_not_believe_is_told(both: ServiceProcess, pki: Pki, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path / "strangers", "Strangers").issue("stranger")
    said = failure(echo(both.tls_port, *believing(pki), "--tls-certificate", str(stranger)))
    assert "it does not accept our certificate, or asks for one (UnknownCA)" in said


def test_an_authority_that_is_not_known_is_told(both: ServiceProcess, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "strangers", "Strangers").file
    said = failure(echo(both.tls_port, "--tls", "--tls-ca", str(other)))
    assert "failed: its certificate is of an unknown authority; --tls-ca has" in said


def test_a_wrong_name_is_told_and_can_be_given(start_service: StartService, pki: Pki) -> None:
    other = pki.authority.issue("other", host="192.0.2.9", purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    service = start_with(start_service, pki, other)
    said = failure(echo(service.tls_port, *believing(pki)))
    assert "failed: its certificate is for 192.0.2.9; --tls-name is the name" in said
    assert echo(service.tls_port, *believing(pki), "--tls-name", "192.0.2.9").returncode == 0


def test_an_authority_in_place_of_a_service_is_told(start_service: StartService, pki: Pki, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "own", "Own")
    own = tmp_path / "own.pem"
    key = authority.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    own.write_bytes(key + authority.file.read_bytes())
    service = start_with(start_service, pki, own)
    said = failure(echo(service.tls_port, "--tls", "--tls-ca", str(authority.file)))
    assert "it is that of an authority (CA:TRUE), not of a service" in said


def test_without_verification_only_with_a_warning(both: ServiceProcess, pki: Pki, tmp_path: Path) -> None:
    done = echo(both.tls_port, "--tls", "--tls-insecure", "--tls-name", "x", "--tls-certificate", str(pki.device))
    assert done.returncode == 0
    assert done.stderr == "warning: with --tls-insecure every certificate is believed: anybody may be the peer\n"


@pytest.mark.parametrize("command", ["echo", "send"])
def test_a_port_of_the_other_kind_is_told(both: ServiceProcess, pki: Pki, command: str) -> None:
    files = [str(CT_FILE)] if command == "send" else []
    said = failure(run_in_process(command, "127.0.0.1", str(both.tls_port), *files))
    assert said == f"127.0.0.1:{both.tls_port} expects TLS (--tls)"
    said = failure(run_in_process(command, "127.0.0.1", str(both.port), *showing(pki), *files))
    assert said == f"TLS with 127.0.0.1:{both.port} failed: it does not speak TLS; without --tls it may answer"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak TLS"),
        (b"", "it closed the connection during the handshake"),
    ],
    ids=["http", "nothing"],
)
def test_a_peer_without_tls_is_told(pki: Pki, answer: bytes, said: str) -> None:
    with answering(answer) as port:
        assert f"failed: {said}; without --tls it may answer" in failure(echo(port, *believing(pki)))


def test_a_peer_that_closes_a_clear_connection_may_expect_tls() -> None:
    with answering(b"") as port:
        assert failure(echo(port)).endswith("(the peer closed the connection); it may expect TLS (--tls)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls"], "--tls needs either --tls-ca FILE or --tls-insecure"),
        (["--tls", "--tls-insecure", "--tls-ca", "FILE"], "--tls needs either --tls-ca FILE or --tls-insecure"),
        (["--tls-ca", "FILE"], "--tls-ca needs --tls"),
        (["--tls-name", "pacs"], "--tls-name needs --tls"),
        (["--tls-insecure"], "--tls-insecure needs --tls"),
        (["--tls", "--tls-ca", "FILE", "--tls-key", "FILE"], "--tls-key needs --tls-certificate"),
        (["--tls", "--tls-ca", "EMPTY"], "--tls-ca: EMPTY: nothing of the kind in it"),
        (["--tls", "--tls-ca", "FILE", "--tls-certificate", "EMPTY"], "--tls-certificate: EMPTY: nothing of the kind in it"),
        (["--tls", "--tls-ca", "FILE", "--tls-certificate", "FILE"], "--tls-key: FILE: no private key in it that is not"),
        (["--tls", "--tls-ca", "FILE", "--tls-certificate", "LOCKED"], "--tls-key: LOCKED: no private key in it that is not"),
        (["--tls", "--tls-ca", "FILE", "--tls-name", "a b"], "--tls-name: a b is no host name and no address"),
        (["--password-file", "FILE"], "--password-file needs --user"),
        (["--user", "ct1", "--password-file", "EMPTY"], "the passcode is not 1 to 1024 characters"),
        (["--user", ""], "1 to 1024 characters"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_usage_errors(
    pki: Pki, tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "empty").touch()
    locked = pki.authority.issue("locked", password="x")
    files = {"FILE": pki.authority.file, "EMPTY": tmp_path / "empty", "LOCKED": locked}
    done = echo(104, *(str(files.get(option, option)) for option in options))
    assert done.returncode == 2
    for name, path in files.items():
        said = said.replace(f": {name}", f": {path}")
    assert said in " ".join(done.stderr.split())


@pytest.fixture
def asking(start_service: StartService, pki: Pki, tmp_path: Path) -> ServiceProcess:
    """A port with TLS that asks for a user."""
    users = tmp_path / "users"
    users.write_text(entry("ct1", PASSCODE) + "\n")
    env = pki.environment(client_auth="none") | {"STORESCP_USER_IDENTITY__USERS": str(users)}
    return start_service(env=env)


def test_a_user_comes_in_with_the_passcode_of_a_file_or_the_environment(
    asking: ServiceProcess, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{PASSCODE}\nsecond line\n")
    wrong.write_text("CANARY")
    known = [*believing(pki), "--user", "ct1"]
    in_file = echo(asking.tls_port, *known, "--password-file", str(right))
    assert (in_file.returncode, in_file.stderr) == (0, "")
    for options in (known, [*known, "--password-file", str(wrong)]):
        done = echo(asking.tls_port, *options)
        assert failure(done).endswith("(1/1/1): it gives no reason; it may not accept the user")
        assert "CANARY" not in done.stderr
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSCODE)
    sent = run_in_process("send", "127.0.0.1", str(asking.tls_port), *known, str(CT_FILE))
    assert (sent.returncode, sent.stderr) == (0, "")
    # A file beats the environment.
    assert echo(asking.tls_port, *known, "--password-file", str(wrong)).returncode == 1
    said = failure(echo(asking.tls_port, *believing(pki)))
    assert said.endswith("(1/1/1): it gives no reason; it may ask for a user (--user)")


def test_a_peer_that_does_not_look_at_users_is_named(scp: ServiceProcess) -> None:
    done = echo(scp.port, "--user", "ct1")
    assert done.returncode == 0
    assert done.stderr == f"note: 127.0.0.1:{scp.port} does not confirm the user: it may not look at users at all\n"


def test_a_passcode_in_the_clear_is_warned_of(scp: ServiceProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSCODE)
    done = echo(scp.port, "--user", "ct1")
    assert done.stderr.startswith("warning: without --tls everybody on the network can read the passcode\n")
    assert "CANARY" not in done.stderr


def test_an_association_that_is_over_says_so(scp: ServiceProcess) -> None:
    association = _core.Sender("127.0.0.1", scp.port, "A", "B", [_core.Sender.echo_context()], 10)
    assert association.echo()[0] == 0
    association.release()
    with pytest.raises(CoreError, match="the association is over"):
        association.echo()
