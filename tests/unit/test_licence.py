"""The licence: what passes, what does not, and what is never shown."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storescp.config import Configuration, load
from storescp.errors import LicenceError, TemporaryFailure
from storescp.licence import HASH_CODE_OID, IssuedLicence, Licence, issue_licence, validate_client_certificate
from storescp.licensing import LicenceWatch, configured_licence, evaluation_licence
from storescp.settings import Settings
from support.steps import Killed, killed_at
from support.users import BECOME_NOBODY, require_root

OTHER_OID = "1.3.6.1.4.1.99999.1"
ISSUE = "storescpd license issue --client-id ID DIR"


@pytest.fixture
def issued(tmp_path: Path) -> IssuedLicence:
    return issue_licence("hospital-a", 30, tmp_path / "licence")


def validate(issued: IssuedLicence, **changes: object) -> Licence:
    arguments = {
        "client_certificate": issued.client_certificate,
        "ca_certificate": issued.ca_certificate,
        "client_id": issued.client_id,
        "license_key": issued.license_key,
    }
    return validate_client_certificate(**(arguments | changes))  # type: ignore[arg-type]


def refused(issued: IssuedLicence, **changes: object) -> str:
    with pytest.raises(LicenceError) as error:
        validate(issued, **changes)
    assert issued.license_key not in str(error.value)
    assert ISSUE not in str(error.value)
    return str(error.value)


def test_an_issued_licence_is_valid_and_its_keys_are_private(issued: IssuedLicence) -> None:
    licence = validate(issued)
    assert (licence.client_id, licence.hash_code) == ("hospital-a", issued.license_key)
    assert 28 <= licence.days_left(datetime.now(UTC)) <= 30
    folder = issued.client_certificate.parent
    for name in ("ca.key", "client.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_licence_is_never_overwritten(issued: IssuedLicence) -> None:
    with pytest.raises(LicenceError, match=r"never overwritten\. Choose another folder"):
        issue_licence("other", 30, issued.client_certificate.parent)


def test_wrong_values_are_refused_with_what_to_correct_and_no_hash_code(issued: IssuedLicence, tmp_path: Path) -> None:
    message = refused(issued, client_id="hospital-b")
    assert "common name 'hospital-a'" in message
    assert message.endswith("the configured client_id 'hospital-b'. Compare with 'storescpd license show'")
    message = refused(issued, license_key="0" * 64)
    assert message.endswith("the configured license_key. Compare with 'storescpd license show'")
    assert "license_key" in refused(issued, license_key="ü")
    message = refused(issued, now=datetime.now(UTC) - timedelta(days=1))
    assert str(issued.client_certificate) in message
    assert "is not valid before 2" in message
    assert "Look at the clock" in message
    other = issue_licence("hospital-a", 30, tmp_path / "other")
    message = refused(issued, ca_certificate=other.ca_certificate)
    assert "not issued by the configured CA" in message
    assert message.endswith("both are named CN=storescp licence CA, with different keys. Correct the path")
    message = refused(issued, ca_certificate=issued.client_certificate)
    assert "its issuer is CN=storescp licence CA, and the configured CA is CN=hospital-a. Correct the path" in message
    message = refused(issued, client_certificate=tmp_path / "absent.pem")
    assert message.endswith("No such file or directory. Correct the path, or its permissions")
    (tmp_path / "junk.pem").write_text("junk")
    assert "no PEM certificate. Correct the path" in refused(issued, ca_certificate=tmp_path / "junk.pem")
    assert "no extension" in refused(issued, hash_code_oid=OTHER_OID)


Sign = Callable[..., Path]


@pytest.fixture
def sign(tmp_path: Path) -> Sign:
    """Makes a client certificate with a CA of its own; both in one folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    now = datetime.now(UTC)

    def build(subject: x509.Name, days: float = 10) -> x509.CertificateBuilder:
        end = now + timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - timedelta(days=1))
            .not_valid_after(end)
        )

    def certificate(
        extension: bytes,
        *,
        names: tuple[str, ...] = ("c",),
        usage: object = None,
        ca: bool = True,
        authority_days: float = 10,
    ) -> Path:
        authority = build(ca_name, authority_days)
        authority = authority.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        (tmp_path / "ca.pem").write_bytes(authority.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        client = build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
        client = client.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(HASH_CODE_OID), extension), critical=False
        )
        if usage is not None:
            client = client.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)  # type: ignore[list-item]
        (tmp_path / "client.pem").write_bytes(
            client.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return tmp_path

    return certificate


def check(folder: Path, license_key: str) -> Licence:
    return validate_client_certificate(
        client_certificate=folder / "client.pem",
        ca_certificate=folder / "ca.pem",
        client_id="c",
        license_key=license_key,
    )


def test_the_hash_code_is_a_der_utf8_string_or_raw_utf8(sign: Sign) -> None:
    text = "käse"
    raw = text.encode()
    assert check(sign(raw), text).hash_code == text
    assert check(sign(bytes([0x0C, len(raw)]) + raw), text).hash_code == text
    long = "x" * 300
    assert check(sign(b"\x0c\x82\x01\x2c" + long.encode()), long).hash_code == long
    with pytest.raises(LicenceError, match="not text"):
        check(sign(b"\xff\xfe"), "x")


def test_chain_and_purpose(sign: Sign) -> None:
    with pytest.raises(LicenceError, match="not issued by"):
        check(sign(b"x", ca=False), "x")
    with pytest.raises(LicenceError, match="client authentication"):
        check(sign(b"x", usage=ExtendedKeyUsageOID.SERVER_AUTH), "x")
    assert check(sign(b"x", usage=ExtendedKeyUsageOID.CLIENT_AUTH), "x")
    with pytest.raises(LicenceError, match="single common name"):
        check(sign(b"x", names=("c", "d")), "x")


def test_an_issued_licence_can_be_read_by_another_user_but_not_its_keys(shared_folder: Path) -> None:
    require_root()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from storescp.licence import HASH_CODE_OID, issue_licence, validate_client_certificate\n"
        "import os; os.umask(0o077)\n"
        "issued = issue_licence('hospital', 30, Path(sys.argv[1]))\n"
        f"{BECOME_NOBODY}\n"
        "validate_client_certificate(client_certificate=issued.client_certificate, ca_certificate=issued.ca_certificate,\n"
        "                            client_id='hospital', license_key=issued.license_key)\n"
        "for key in ('ca.key', 'client.key'):\n"
        "    try:\n"
        "        issued.ca_certificate.with_name(key).read_bytes()\n"
        "    except PermissionError:\n"
        "        print(key, 'is refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(shared_folder / "etc" / "licence")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ca.key is refused\nclient.key is refused\n"), done.stderr


def test_a_licence_ends_with_the_first_certificate_of_its_chain(sign: Sign) -> None:
    now = datetime.now(UTC)
    short = check(sign(b"x", authority_days=3), "x")
    assert now + timedelta(days=2) < short.not_after < now + timedelta(days=4)
    long = check(sign(b"x", authority_days=30), "x")
    assert now + timedelta(days=9) < long.not_after < now + timedelta(days=11)
    ended = check(sign(b"x", authority_days=-0.5), "x")
    assert ended.has_ended(now)
    with pytest.raises(LicenceError, match="never valid together"):
        check(sign(b"x", authority_days=-2), "x")


def test_intermediate_authorities_and_renewed_ones_count_for_the_end(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "between", "c")}

    def signed(subject: str, issuer: str, days: int) -> bytes:
        named = {one: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer)}
        builder = (
            x509.CertificateBuilder(named[issuer], named[subject], keys[subject].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=subject != "c", path_length=None), critical=True)
            .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(HASH_CODE_OID), b"x"), critical=False)
        )
        return builder.sign(keys[issuer], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def days_left(between: int, *roots: int) -> int:
        (tmp_path / "client.pem").write_bytes(signed("c", "between", 40) + signed("between", "root", between))
        (tmp_path / "ca.pem").write_bytes(b"".join(signed("root", "root", days) for days in roots))
        return check(tmp_path, "x").days_left(now)

    assert days_left(60, 60) == 39
    assert days_left(20, 60) == 19
    assert days_left(60, 10) == 9
    assert days_left(60, 10, 60) == 39
    (tmp_path / "client.pem").write_bytes(signed("c", "between", 40))
    with pytest.raises(LicenceError, match="was not issued by the configured CA"):
        check(tmp_path, "x")


def settings_of(issued: IssuedLicence, root: Path, *, create: bool = True) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"root": root, "create": create},
            "dicom_license_server": {
                "client_id": issued.client_id,
                "license_key": issued.license_key,
                "client_certificate": issued.client_certificate,
                "ca_certificate": issued.ca_certificate,
            },
        }
    )


def watch(issued: IssuedLicence, root: Path, now: datetime) -> LicenceWatch:
    settings = settings_of(issued, root)
    configuration = Configuration(settings, None, (("option", {}), ("environment", {})))
    return LicenceWatch(configured_licence(settings, now), configuration)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / ".outbox").mkdir(parents=True)
    return tmp_path / "data"


@pytest.mark.parametrize("later", [timedelta(hours=1), timedelta(days=2), timedelta(days=3000)])
def test_a_start_goes_on_after_the_end_where_the_root_has_served_under_a_valid_licence(
    issued: IssuedLicence, root: Path, later: timedelta
) -> None:
    """Two days after the end the certificate of the CA has ended, too."""
    before = datetime.now(UTC)
    first = watch(issued, root, before)
    after = first.licence.not_after + later
    with pytest.raises(LicenceError) as error:
        configured_licence(settings_of(issued, root), after)
    for part in (str(issued.client_certificate), f"ended on {first.licence.not_after:%Y-%m-%d}", ISSUE, str(root)):
        assert part in str(error.value)
    first.mark_root(after)
    with pytest.raises(LicenceError):
        configured_licence(settings_of(issued, root), after)
    first.mark_root(before)
    assert configured_licence(settings_of(issued, root), after) == first.licence
    assert json.loads((root / ".outbox" / "licensed").read_text()) == {
        "client_id": "hospital-a",
        "issuer": "CN=storescp licence CA",
        "not_after": first.licence.not_after.isoformat(),
    }


def test_a_mark_of_another_client_or_a_damaged_one_does_not_help(
    issued: IssuedLicence, root: Path, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    watch(issue_licence("hospital-b", 400, tmp_path / "b"), root, now).mark_root(now)
    after = now + timedelta(days=40)
    for damaged in (None, b"", b"{", b"[]", b"\xff"):
        if damaged is not None:
            (root / ".outbox" / "licensed").write_bytes(damaged)
        with pytest.raises(LicenceError, match="has not served under a valid one"):
            configured_licence(settings_of(issued, root), after)


def test_a_licence_that_has_ended_does_not_refuse_a_start_whose_disk_is_not_there_yet(
    issued: IssuedLicence, tmp_path: Path
) -> None:
    """It is tried again: the mark is on that disk."""
    with pytest.raises(TemporaryFailure, match="is not there"):
        configured_licence(settings_of(issued, tmp_path / "disk", create=False), datetime.now(UTC) + timedelta(days=40))
    assert not (tmp_path / "disk").exists()


def test_warnings_begin_thirty_days_before_the_end_and_name_what_to_do(root: Path, tmp_path: Path) -> None:
    issued = issue_licence("hospital-a", 365, tmp_path / "licence")
    observed = watch(issued, root, datetime.now(UTC))
    end = observed.licence.not_after

    def told(now: datetime) -> list[tuple[str, str]]:
        with structlog.testing.capture_logs() as lines:
            observed.check(now)
        for line in lines:
            for part in (str(issued.client_certificate), f"{end:%Y-%m-%d}", ISSUE, "SIGHUP"):
                assert part in line["text"]
        return [(line["log_level"], line["event"]) for line in lines]

    assert told(end - timedelta(days=30)) == []
    assert told(end - timedelta(days=29, hours=23)) == [("warning", "licence.expires_soon")]
    assert told(end + timedelta(seconds=1)) == [("error", "licence.expired")]


def test_a_note_that_cannot_be_written_is_written_later(issued: IssuedLicence, root: Path) -> None:
    now = datetime.now(UTC)
    observed = watch(issued, root, now)
    (root / ".outbox").rmdir()
    with structlog.testing.capture_logs() as lines:
        observed.mark_root(now)
    assert [line["event"] for line in lines] == ["licence.not_noted"]
    (root / ".outbox").mkdir()
    observed.mark_root(now)
    assert (root / ".outbox" / "licensed").exists()


def evaluation(root: Path) -> Settings:
    return Settings.model_validate({"storage": {"root": root}})


def test_the_evaluation_licence_is_made_anew_before_it_ends_and_after(tmp_path: Path) -> None:
    settings, now = evaluation(tmp_path / "data"), datetime.now(UTC)
    first = evaluation_licence(settings)
    assert evaluation_licence(settings, first.not_after - timedelta(days=30)) == first
    second = evaluation_licence(settings, first.not_after - timedelta(days=29, hours=23))
    assert second.hash_code != first.hash_code
    assert second.not_after > now + timedelta(days=89)
    assert evaluation_licence(settings) == second
    third = evaluation_licence(settings, second.not_after + timedelta(days=1000))
    assert third.hash_code != second.hash_code
    assert sorted(path.name for path in (tmp_path / "data" / ".outbox").iterdir()) == ["evaluation"]


def test_the_evaluation_licence_is_made_anew_while_the_service_runs_and_warns_of_nothing(tmp_path: Path) -> None:
    configuration = load({("storage", "root"): tmp_path / "data"}, None)
    assert configuration.evaluation
    observed = LicenceWatch(evaluation_licence(configuration.settings), configuration)
    first = observed.licence
    with structlog.testing.capture_logs() as lines:
        observed.check(first.not_after - timedelta(days=31))
        assert observed.licence == first
        observed.check(first.not_after - timedelta(days=1))
    assert observed.licence.hash_code != first.hash_code
    assert lines == []
    assert observed.state(first.not_after + timedelta(days=1000)) == "valid"
    assert observed.notes() == []


def test_an_evaluation_licence_that_cannot_be_renewed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = evaluation(tmp_path / "data")
    first = evaluation_licence(settings)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "full")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(os, "fsync", full)
        assert evaluation_licence(settings, first.not_after + timedelta(days=1)) == first
    assert [line["event"] for line in lines] == ["licence.not_renewed"]
    assert evaluation_licence(settings, first.not_after + timedelta(days=1)) != first


@pytest.mark.parametrize("name", ["client.pem", "ca.pem", "license_key"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_a_damaged_evaluation_licence_is_made_anew(tmp_path: Path, name: str, content: bytes | None) -> None:
    settings = evaluation(tmp_path / "data")
    first = evaluation_licence(settings)
    file = tmp_path / "data" / ".outbox" / "evaluation" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert evaluation_licence(settings).hash_code != first.hash_code


@pytest.mark.parametrize("is_renewed", [False, True])
def test_a_kill_or_a_power_cut_at_any_step_leaves_a_root_that_starts(tmp_path: Path, is_renewed: bool) -> None:
    """What was not synced is empty after a power cut, as XFS leaves it."""
    for step in itertools.count():
        settings, now = evaluation(tmp_path / str(step)), datetime.now(UTC)
        folder = tmp_path / str(step) / ".outbox"
        synced: set[int] = set()
        if is_renewed:
            now = evaluation_licence(settings).not_after - timedelta(days=1)
            synced |= {file.stat().st_ino for file in folder.rglob("*")}
        with pytest.MonkeyPatch.context() as patch:
            steps = killed_at(step, patch, synced)
            with contextlib.suppress(Killed):
                evaluation_licence(settings, now)
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_ino not in synced:
                os.truncate(file, 0)
        evaluation_licence(settings, now)
        assert evaluation_licence(settings) == evaluation_licence(settings)
        if len(steps) < step:
            break
    assert step > 10
