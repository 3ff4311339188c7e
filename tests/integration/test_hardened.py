"""What the systemd unit forbids is nothing that the service needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.compressed import compressed_ct
from support.instances import ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.users import BECOME_NOBODY, NOBODY, require_root
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "storescp.service"
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which is what MemoryDenyWriteExecute=yes does; survives exec.
NO_NEW_CODE = (
    "import ctypes, os, sys\n"
    "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(125)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
RLE = "1.2.840.10008.1.2.5"
# Only what is native is left as it is, so that something is transcoded.
EVERYTHING = {
    "STORESCP_HTTP__PORT": "0",
    "STORESCP_HTTP__SHOW_PATIENT_DATA": "true",
    "STORESCP_DICOM_STORE_SCP__CORNERSTONEJS_SUPPORTED_TRANSFER_SYNTAX": f'["{EXPLICIT}"]',
}


# Loads what the service loads later, too.
AS_NOBODY = (
    "import difflib\n"
    "import storescp.memory, storescp.preparation, storescp.pure.engine, storescp.service\n"
    "from storescp.cli import main\n"
    f"{BECOME_NOBODY}\n"
    "main()\n"
)


def test_its_head_makes_what_a_service_of_another_user_needs(start_service: StartService, shared_folder: Path) -> None:
    require_root()
    text = UNIT.read_text()
    commands = re.findall(r"^#   (.*)$", text.partition("[Unit]")[0], re.MULTILINE)
    done_by_the_package_manager = [one for one in commands if re.match(r"python3 -m venv |useradd |systemctl ", one)]
    assert len(done_by_the_package_manager) == 3
    etc, data = shared_folder / "etc", shared_folder / "data"
    user = shlex.join([sys.executable, "-c", AS_NOBODY])
    script = "\n".join(one for one in commands if one not in done_by_the_package_manager)
    for said, here in (
        ("runuser -u storescp -- /opt/storescp/bin/storescpd", user),
        ("/opt/storescp/bin/storescpd", shlex.join([sys.executable, "-m", "storescp"])),
        ("/etc/storescp", str(etc)),
        ("/var/lib/storescp", str(data)),
        ("-o storescp", f"-o {NOBODY}"),
        ("-g storescp", f"-g {NOBODY}"),
        ("root:storescp", f"root:{NOBODY}"),
    ):
        assert said in script
        script = script.replace(said, here)
    done = subprocess.run(
        ["sh", "-eu", "-c", f"umask 077\n{script}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{data} was there and has the new identity \S+\n", done.stdout)
    environment = dict(re.findall(r"^Environment=(\w+)=(\S+)$", text, re.MULTILINE))
    service = start_service(
        "-c", str(etc / "storescp.toml"), root=data, env=environment, program=("-c", AS_NOBODY), names_root=False
    )
    one = ct_slice(1)
    with RawAssociation(service.port, [(1, one.sop_class, [EXPLICIT])]) as association:
        assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()
    [file] = service.files()
    assert file.stat().st_uid == NOBODY
    assert service.stop() == 0


def use(service: ServiceProcess) -> None:
    """Reception, transcoding, publication, a picture, and an orderly end."""
    port = http_port(service)
    one = compressed_ct(1, RLE)
    with RawAssociation(service.port, [(1, one.sop_class, [RLE])]) as association:
        assert association.store(1, one.sop_class, one.sop_instance, one.dataset).status == 0
        association.release()
    [record] = service.records(count=1)
    assert record["transfer_status"] == "Success"
    assert get(port, "/thumbnails/1")[0] == 200
    assert service.stop() == 0


def test_it_needs_no_memory_that_is_written_and_executed(start_service: StartService) -> None:
    assert "MemoryDenyWriteExecute=yes" in UNIT.read_text()
    wrapper = (sys.executable, "-c", NO_NEW_CODE)
    if subprocess.run([*wrapper, "true"], check=False).returncode == 125:
        pytest.skip("needs Linux 6.3")
    use(start_service(env=EVERYTHING, wrapper=wrapper))


def test_it_makes_no_system_call_that_the_unit_forbids(start_service: StartService, tmp_path: Path) -> None:
    if not (shutil.which("systemd-analyze") and shutil.which("strace")):
        pytest.skip("needs systemd-analyze and strace")
    filters = re.findall("^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert filters[0] == "@system-service"
    summary = tmp_path / "calls"
    wrapper = ("strace", "-D", "-f", "-qq", "-c", "-U", "name", "-o", str(summary))
    service = start_service(env=EVERYTHING, wrapper=wrapper)
    use(service)
    # The tracer ends after what it traced.
    wait_until(lambda: summary.exists() and "total" in summary.read_text())
    made = {line.strip() for line in summary.read_text().splitlines()[2:] if re.fullmatch(r"\w+", line.strip())}
    made -= {"total"}
    assert {"fdatasync", "accept4", "execve"} <= made
    # The processes that decode images ask for these themselves.
    own = {"seccomp", "landlock_create_ruleset", "landlock_restrict_self"}
    assert made >= own
    assert own <= {name for line in filters[1:] for name in line.split()}
    assert made - allowed("@system-service") - own == set()


def allowed(group: str) -> set[str]:
    """The system calls of a group and of the groups in it."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    names = {line.strip() for line in listed.splitlines()[1:] if not line.strip().startswith("#")} - {""}
    return {name for name in names if not name.startswith("@")}.union(
        *(allowed(name) for name in names if name.startswith("@"))
    )
