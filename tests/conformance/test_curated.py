"""Real files through real senders: what is stored is byte for byte what was on the wire, and others can read it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from storescp import _core
from support.instances import Instance, curated_instances, dataset_of
from support.proxy import RecordingProxy, Sent
from support.scu import RawAssociation
from support.service import ServiceProcess

pytestmark = [
    pytest.mark.curated,
    pytest.mark.timeout(300),
    # Real files break rules; pydicom says so.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
StartService = Callable[..., ServiceProcess]

# A big endian UN sequence of undefined length: pydicom cannot read the original either.
UNREADABLE_BY_PYDICOM = {"1.2.276.0.7230010.3.1.4.1787205428.2345.1071048146.1"}


def open_service(start_service: StartService, *options: str) -> ServiceProcess:
    """Nothing is transcoded: see test_transcoding for that."""
    decodable = [uid for uid, _, decodes, _ in _core.transfer_syntaxes() if decodes]
    return start_service(
        "--promiscuous",
        *options,
        env={
            "STORESCP_DICOM_STORE_SCP__CORNERSTONEJS_SUPPORTED_TRANSFER_SYNTAX": json.dumps(decodable),
        },
    )


def send_raw(service: ServiceProcess, instance: Instance) -> tuple[int, str]:
    """Status and Error Comment."""
    sop_class = instance.sop_class or "1.2.840.10008.5.1.4.1.1.7"
    with RawAssociation(service.port, [(1, sop_class, [instance.transfer_syntax])]) as association:
        assert association.accepted[1][0] == 0
        answer = association.store(1, sop_class, instance.sop_instance, instance.dataset)
        association.release()
    return answer.status, answer.comment


def stored(service: ServiceProcess, sop_instance: str) -> list[Path]:
    return [file for file in service.files() if file.name == f"{sop_instance}.dcm"]


def assert_readable(files: list[Path]) -> None:
    assert files
    for file in files:
        result = subprocess.run(["dcmdump", "-q", str(file)], capture_output=True, check=False)
        assert result.returncode == 0, (file, result.stderr[-500:])
        if file.stem not in UNREADABLE_BY_PYDICOM:
            pydicom.dcmread(file)


def refusals(service: ServiceProcess, folder: Path) -> tuple[int, dict[str, str]]:
    """Sends each file; how many were stored, and the status and reason of those that were not."""
    taken, refused = 0, {}
    for name, instance in curated_instances(folder):
        before = len(service.files())
        status, comment = send_raw(service, instance)
        if status == 0:
            taken += 1
            files = stored(service, instance.sop_instance)
            assert instance.dataset in [dataset_of(file) for file in files], name
        else:
            refused[name] = f"{status:04X} {comment}"
            assert len(service.files()) == before, name
    assert service.temporary_files() == []
    return taken, refused


EXPECTED = json.loads((Path(__file__).parent / "curated_refusals.json").read_text())


def test_exactly_these_curated_files_are_refused_at_the_default(start_service: StartService, curated: Path) -> None:
    service = open_service(start_service)
    taken, refused = refusals(service, curated)
    assert refused == EXPECTED
    assert taken >= 165
    assert_readable(service.files())


def check_against_the_wire(service: ServiceProcess, sent: list[Sent], at_least: int) -> None:
    """The last acknowledged instance of each UID is what lies on disk."""
    acknowledged = [one for one in sent if one.status == 0]
    assert len(acknowledged) >= at_least, [(one.sop_instance, one.status) for one in sent]
    last = {one.sop_instance: one for one in acknowledged}
    for uid, one in last.items():
        assert one.dataset in [dataset_of(file) for file in stored(service, uid)], uid
    assert {file.stem for file in service.files()} == set(last)
    assert_readable(service.files())


# Without it DCMTK waits 40 ms for a delayed acknowledgement with each instance.
NO_DELAY = {"TCP_NODELAY": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=240,
        env=os.environ | NO_DELAY,
    )


def files_of(folder: Path) -> list[str]:
    # DCMTK's own parser has no limit on nesting.
    return [str(path) for path in sorted(folder.glob("*.dcm")) if not path.name.startswith("orthbad_2026-05-06")]


def test_dcmsend(start_service: StartService, curated: Path) -> None:
    service = open_service(start_service)
    with RecordingProxy(service.port) as proxy:
        run("dcmsend", "-nh", "-dn", "-nip", "127.0.0.1", str(proxy.port), *files_of(curated))
    check_against_the_wire(service, proxy.stores(), 105)


def test_storescu(start_service: StartService, curated: Path) -> None:
    service = open_service(start_service)
    with RecordingProxy(service.port) as proxy:
        for option in ("-xe", "-xs", "-xy", "-xx", "-xv", "-xw", "-xt", "-xu", "-xr", "-xi", "-xb"):
            run("storescu", "-nh", "-R", option, "127.0.0.1", str(proxy.port), *files_of(curated))
    check_against_the_wire(service, proxy.stores(), 100)


def test_storescu_deflated(start_service: StartService, curated: Path) -> None:
    # One file by itself: storescu's deflate never returns on some of the others.
    service = open_service(start_service)
    with RecordingProxy(service.port) as proxy:
        run("storescu", "-xd", "127.0.0.1", str(proxy.port), str(curated / "wg04_CT1_REF.dcm"))
    check_against_the_wire(service, proxy.stores(), 1)
    [record] = service.records(count=1)
    assert record["transfer_syntax_uid"] == "1.2.840.10008.1.2.1.99"


def test_pynetdicom_storescu(start_service: StartService, curated: Path) -> None:
    service = open_service(start_service)
    with RecordingProxy(service.port) as proxy:
        run(sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", str(proxy.port), str(curated), "-r", "-cx")
    check_against_the_wire(service, proxy.stores(), 100)


def test_echoscu(scp: ServiceProcess) -> None:
    assert run("echoscu", "--repeat", "3", "127.0.0.1", str(scp.port)).returncode == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Starts Orthanc that knows one modality, at a port; the address of its REST interface."""
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def start(modality_port: int) -> str:
        http, dicom = free_port(), free_port()
        config = tmp_path / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "HttpPort": http,
                    "DicomPort": dicom,
                    "StorageDirectory": str(tmp_path / "orthanc"),
                    "IndexDirectory": str(tmp_path / "orthanc"),
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomModalities": {"scp": ["STORE-SCP", "127.0.0.1", modality_port]},
                    "DicomScuTimeout": 20,
                    "Plugins": [],
                }
            )
        )
        process = subprocess.Popen(["Orthanc", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        running.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if b"Orthanc has started" in line:
                break
        return f"http://127.0.0.1:{http}"

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=30)


def post(url: str, body: bytes) -> object:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=120) as answer:
        return json.load(answer)


def test_orthanc(start_service: StartService, curated: Path, orthanc: Callable[[int], str]) -> None:
    service = open_service(start_service)
    with RecordingProxy(service.port) as proxy:
        rest = orthanc(proxy.port)
        taken = []
        # Orthanc ends itself on some of the files that are broken on purpose.
        for path in sorted(path for path in curated.glob("*.dcm") if "bad_" not in path.name):
            try:
                answer = post(f"{rest}/instances", path.read_bytes())
            except urllib.error.HTTPError as error:
                error.close()
                continue
            assert isinstance(answer, dict)
            taken.append(answer["ID"])
        for identifier in sorted(set(taken)):
            body = json.dumps({"Resources": [identifier], "Synchronous": True}).encode()
            try:
                post(f"{rest}/modalities/scp/store", body)
            except urllib.error.HTTPError as error:
                error.close()
    check_against_the_wire(service, proxy.stores(), 100)
