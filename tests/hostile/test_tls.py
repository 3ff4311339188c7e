"""TLS: who gets in, who does not, and that a bad peer ends quickly."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydicom.data import get_testdata_file
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from conftest import StartService
from storescp import _core
from storescp.network.identity import entry
from support.certificates import Authority, Pki
from support.instances import Instance, ct_slice, dataset_of
from support.scu import EXPLICIT, VERIFICATION, Closed, RawAssociation, Rejected, associate_rq, item
from support.service import ServiceProcess

ECHO = [(1, VERIFICATION, [EXPLICIT])]


def ct(number: int) -> Instance:
    return ct_slice(number, rows=16)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def both(start_service: StartService, pki: Pki) -> ServiceProcess:
    """A clear port and one with TLS."""
    return start_service(env=pki.environment(port="0"), listeners=2)


def echo(port: int, tls: ssl.SSLContext | None) -> int:
    with RawAssociation(port, ECHO, tls=tls, timeout=8) as association:
        status = association.echo(1).status
        association.release()
        return status


def is_refused(port: int, tls: ssl.SSLContext) -> bool:
    """In TLS 1.3 a client learns of it only when it reads."""
    began = time.monotonic()
    with pytest.raises((ssl.SSLError, Closed, ConnectionError)):
        echo(port, tls)
    return time.monotonic() - began < 5


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_instances_come_in_by_tls_as_they_do_in_the_clear(
    both: ServiceProcess, pki: Pki, version: ssl.TLSVersion
) -> None:
    context = pki.context(pki.device, minimum_version=version, maximum_version=version)
    one = ct(1)
    with RawAssociation(both.tls_port, [(1, one.sop_class, [EXPLICIT])], tls=context) as association:
        assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()
    assert dataset_of(both.files()[0]) == one.dataset
    released = both.wait_for_event("association.released")
    assert released["tls"] == version.name
    assert released["tls_subject"] == "CN=ct1.hospital-a"
    assert echo(both.port, None) == 0


def test_tls_takes_the_port_where_it_has_none_of_its_own(start_service: StartService, pki: Pki) -> None:
    service = start_service(env=pki.environment())
    assert service.line.endswith("(TLS)")
    assert echo(service.tls_port, pki.context(pki.device)) == 0


def test_dcmtk_connects(both: ServiceProcess, pki: Pki) -> None:
    command = ["echoscu", "+tls", str(pki.device), str(pki.device), "+cf", str(pki.authority.file)]
    found = subprocess.run(
        [*command, "127.0.0.1", str(both.tls_port)], capture_output=True, text=True, timeout=20, check=False
    )
    assert found.returncode == 0, found.stderr
    file = str(get_testdata_file("CT_small.dcm"))
    found = subprocess.run(
        ["storescu", *command[1:], "127.0.0.1", str(both.tls_port), file],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert len(both.files()) == 1


def test_pynetdicom_connects(both: ServiceProcess, pki: Pki) -> None:
    ae = AE("CT1")
    ae.add_requested_context(Verification)
    ae.add_requested_context(CTImageStorage, EXPLICIT)
    association = ae.associate("127.0.0.1", both.tls_port, tls_args=(pki.context(pki.device), None))
    assert association.is_established
    assert association.send_c_echo().Status == 0
    assert association.send_c_store(get_testdata_file("CT_small.dcm")).Status == 0
    association.release()
    assert len(both.files()) == 1


def openssl(service: ServiceProcess, pki: Pki, *options: str) -> str:
    found = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{service.tls_port}", "-CAfile", str(pki.authority.file),
         "-cert", str(pki.device), *options],
        input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    return (found.stdout + found.stderr).decode()


def test_openssl_connects_and_old_protocols_and_ciphers_do_not(both: ServiceProcess, pki: Pki) -> None:
    for version in ("-tls1_2", "-tls1_3"):
        assert "Verify return code: 0 (ok)" in openssl(both, pki, version)
    for options in (
        ["-tls1"],
        ["-tls1_1"],
        ["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"],
    ):
        assert "Cipher is (NONE)" in openssl(both, pki, *options), options
    # openssl of today has neither; the ClientHello is what matters.
    for suite in (0x0005, 0x000A, 0xC012):
        with socket.create_connection(("127.0.0.1", both.tls_port), 5) as client:
            client.sendall(client_hello(suite))
            assert client.recv(7)[:2] == b"\x15\x03", "an alert"


def test_every_cipher_suite_of_the_statement_is_taken(start_service: StartService, pki: Pki, tmp_path: Path) -> None:
    rsa = pki.authority.issue("rsa", rsa_key=True)
    services = {
        "ECDSA": start_service(root=tmp_path / "ecdsa", env=pki.environment()),
        "RSA": start_service(
            root=tmp_path / "rsa",
            env=pki.environment() | {"STORESCP_TLS__CERTIFICATE": str(rsa), "STORESCP_TLS__PRIVATE_KEY": str(rsa)},
        ),
    }
    suites = _core.cipher_suites()
    assert len(suites) >= 9
    for suite in suites:
        if suite.startswith("TLS_ECDHE"):
            service = services["RSA" if "_RSA_" in suite else "ECDSA"]
            # OpenSSL's names have no TLS, WITH and underscores.
            name = suite.removeprefix("TLS_").replace("_WITH_", "_").replace("AES_", "AES").replace("_", "-")
            name = name.replace("CHACHA20-POLY1305-SHA256", "CHACHA20-POLY1305")
            said = openssl(service, pki, "-tls1_2", "-cipher", name)
        else:
            name = suite
            said = openssl(services["ECDSA"], pki, "-tls1_3", "-ciphersuites", name)
        assert f"Cipher is {name}" in said, suite


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(both: ServiceProcess, pki: Pki, version: ssl.TLSVersion) -> None:
    context = pki.context(pki.device)
    context.minimum_version = context.maximum_version = version

    def connect(session: ssl.SSLSession | None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", both.tls_port), 5)
        encrypted = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
        encrypted.sendall(associate_rq(ECHO))
        assert encrypted.recv(1) == b"\x02"
        return encrypted

    with connect(None) as first:
        session = first.session
    with connect(session) as second:
        assert not second.session_reused


def client_hello(suite: int) -> bytes:
    """A ClientHello of TLS 1.2 that offers one cipher suite."""
    extensions = bytes.fromhex("000a00040002001700 0b00020100 000d000400020403".replace(" ", ""))
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02" + suite.to_bytes(2, "big") + b"\x01\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake


def test_certificates_that_prove_nothing_are_refused(start_service: StartService, pki: Pki, tmp_path: Path) -> None:
    revoked = pki.authority.issue("revoked", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    crl = pki.authority.revoke(revoked)
    service = start_service(env=pki.environment(crl=crl))
    stranger = Authority.make(tmp_path / "other", "Other CA").issue("ct1.hospital-a")
    bad = {
        "none": None,
        "expired": pki.authority.issue("expired", days=(-30, -1)),
        "not yet valid": pki.authority.issue("early", days=(1, 30)),
        "wrong authority": stranger,
        "revoked": revoked,
        "wrong purpose": pki.server,
    }
    for why, certificate in bad.items():
        assert is_refused(service.tls_port, pki.context(certificate)), why
    assert echo(service.tls_port, pki.context(pki.device)) == 0
    refused = [event for event in service.events("connection.refused") if event["cause"] == "tls_handshake"]
    assert len(refused) == len(bad)
    details = " ".join(event["detail"] for event in refused)
    for word in ("expired", "UnknownIssuer", "Revoked", "not valid yet", "extended key usage"):
        assert word in details
    assert service.files() == []


def test_client_certificates_can_be_optional_or_off(start_service: StartService, pki: Pki, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path / "other", "Other CA").issue("x")
    service = start_service(env=pki.environment(client_auth="optional"), root=tmp_path / "optional")
    assert echo(service.tls_port, pki.context()) == 0
    assert echo(service.tls_port, pki.context(pki.device)) == 0
    assert is_refused(service.tls_port, pki.context(stranger))
    service = start_service(env=pki.environment(client_auth="none"), root=tmp_path / "none")
    assert echo(service.tls_port, pki.context()) == 0


def test_plaintext_on_the_tls_port_and_the_reverse_end_at_once(both: ServiceProcess, pki: Pki) -> None:
    for port, hello in ((both.tls_port, associate_rq(ECHO)), (both.port, client_hello(0xC02B))):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), 8) as client:
            client.sendall(hello)
            while client.recv(1000):
                pass
        assert time.monotonic() - began < 5
    assert echo(both.tls_port, pki.context(pki.device)) == echo(both.port, None) == 0


def test_silent_handshakes_end_at_their_deadline_and_hold_up_nobody(start_service: StartService, pki: Pki) -> None:
    service = start_service(env=pki.environment(port="0") | {"STORESCP_LIMITS__HANDSHAKE_TIMEOUT": "2"}, listeners=2)
    with contextlib.ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", service.tls_port), 8)) for _ in range(50)]
        began = time.monotonic()
        assert echo(service.tls_port, pki.context(pki.device)) == 0
        assert time.monotonic() - began < 1
        for client in silent:
            assert client.recv(100) == b""
        assert time.monotonic() - began < 5
    service.wait_for_event("connection.refused")


def test_sighup_takes_new_files_and_keeps_the_old_ones_where_the_new_are_bad(
    start_service: StartService, tmp_path: Path
) -> None:
    pki = Pki.make(tmp_path / "pki")
    crl = pki.authority.revoke()
    service = start_service(env=pki.environment(crl=crl))
    context = pki.context(pki.device)
    with RawAssociation(service.tls_port, ECHO, tls=context) as before:
        good = pki.server.read_bytes()
        pki.server.write_bytes(b"not a certificate")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for_event("reload.failed")
        assert echo(service.tls_port, context) == 0
        pki.server.write_bytes(good)
        pki.authority.revoke(pki.device)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for_event("reload.done")
        assert is_refused(service.tls_port, context)
        # What was let in before goes on.
        assert before.echo(1).status == 0


def test_bad_files_are_a_configuration_error(tmp_path: Path, pki: Pki) -> None:
    other = Authority.make(tmp_path / "other", "Other").issue("server")
    expired = pki.authority.issue("old-server", days=(-30, -1))
    for section, word in (
        ({"private_key": other}, "certificate"),
        ({"certificate": tmp_path / "absent.pem"}, "absent.pem"),
        ({"certificate": expired, "private_key": expired}, "valid from"),
        ({"client_ca": pki.server.parent / "nothing.pem"}, "client_ca"),
    ):
        with pytest.raises(AssertionError, match=word):
            ServiceProcess(tmp_path / "data", env=pki.environment(**section))


def test_tenants_and_titles_by_certificate(start_service: StartService, pki: Pki) -> None:
    rules = [{"tenant_id": "hospital-a", "tls_subject": "CN=ct1.hospital-a"}]
    clients = [{"subject": "CN=ct1.hospital-a", "calling_ae_titles": ["CT1"]}]
    service = start_service(
        env=pki.environment(port="0", clients=json.dumps(clients)) | {"STORESCP_TENANTS__RULES": json.dumps(rules)},
        listeners=2,
    )
    one = ct(3)
    contexts = [(1, one.sop_class, [EXPLICIT])]
    for port, tls in ((service.tls_port, pki.context(pki.device)), (service.port, None)):
        with RawAssociation(port, contexts, tls=tls, calling=b"CT1") as association:
            assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
            association.release()
    assert {file.relative_to(service.root).parts[0] for file in service.files()} == {"hospital-a", "1234567890"}
    with pytest.raises(Rejected, match="1/1/3"):
        RawAssociation(service.tls_port, contexts, tls=pki.context(pki.device), calling=b"MR1")
    another = pki.authority.issue("mr1.hospital-b", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(Rejected, match="1/1/3"):
        RawAssociation(service.tls_port, contexts, tls=pki.context(another), calling=b"CT1")


def user_identity(kind: int, username: bytes, passcode: bytes) -> bytes:
    """PS3.7 D.3.3.7.1, with a positive response asked for."""
    body = bytes([kind, 1]) + len(username).to_bytes(2, "big") + username
    return item(0x58, body + len(passcode).to_bytes(2, "big") + passcode)


def test_users_need_their_passcode_and_tls(start_service: StartService, pki: Pki, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"# devices\n{entry('ct1', 'geheim')}\n")
    service = start_service(env=pki.environment(port="0") | {"STORESCP_USER_IDENTITY__USERS": str(users)}, listeners=2)
    context = pki.context(pki.device)
    right = user_identity(2, b"ct1", b"geheim")
    with RawAssociation(service.tls_port, ECHO, tls=context, extra_items=right) as association:
        assert association.echo(1).status == 0
        assert association.user_information[0x59] == b"\0\0"
        association.release()
    for port, tls, extra in (
        (service.tls_port, context, b""),
        *((service.tls_port, context, user_identity(kind, b"ct1", b"")) for kind in (1, 3, 4, 5)),
        # One that cannot be read is passed over, and leaves nobody.
        *((service.tls_port, context, user_identity(kind, b"ct1", b"geheim")) for kind in (0, 6, 255)),
        (service.tls_port, context, item(0x58, b"\2\0\0\3ct1\0\xffgeheim")),
        (service.tls_port, context, user_identity(2, b"ct1", b"falsch")),
        (service.tls_port, context, user_identity(2, b"mr1", b"geheim")),
        (service.tls_port, context, user_identity(2, b"mr1", b"")),
        (service.port, None, right),
    ):
        with pytest.raises(Rejected, match="1/1/1"):
            RawAssociation(port, ECHO, tls=tls, extra_items=extra)
    service.stop()
    log = service.log()
    assert "geheim" not in log
    assert "falsch" not in log
    no_user, other_type = "the request names no user", "the user identity is not of type 2 (username and passcode)"
    wrong = "username or passcode is wrong"
    assert [line["detail"] for line in service.events("association.rejected")] == [
        no_user,
        *[other_type] * 4,
        *[no_user] * 4,
        *[wrong] * 3,
        "the connection is not over TLS",
    ]
