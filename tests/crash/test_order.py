"""The order of system calls: every 0000 follows data sync, row sync, rename and directory sync."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.faults import Row, rounds
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

STORES = rounds(500, 30)
CALLS = "openat,fdatasync,fsync,renameat,renameat2,sendto"
LINE = re.compile(r"^(\d+)\s+(.*)$")


def finished_calls(trace: Path) -> list[str]:
    """The calls in the order in which they returned; an unfinished one is joined with its end."""
    begun: dict[str, str] = {}
    calls = []
    for line in trace.read_text(errors="replace").splitlines():
        match = LINE.match(line)
        if not match:
            continue
        thread, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>")
        elif "resumed>" in text:
            calls.append(begun.pop(thread, "") + text.split("resumed>", 1)[1])
        else:
            calls.append(text)
    return [call for call in calls if "= -1" not in call]


@pytest.mark.timeout(0)
def test_success_follows_durability(scp: ServiceProcess, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "16", "-e", f"trace={CALLS}", "-o", str(trace), "-p", str(scp.process.pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    attached = strace.stderr.readline()
    if "attached" not in attached:
        strace.wait(10)
        pytest.skip(f"strace cannot attach here: {attached.strip()}")
    with RawAssociation(scp.port, [(1, CT, [EXPLICIT])]) as association:
        for number in range(STORES):
            one = ct_slice(number, rows=8, series=f"1.2.826.0.1.{number % 3}")
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    assert scp.stop() == 0
    strace.communicate(timeout=20)

    answered, since = 0, dict.fromkeys(("created", "data", "row", "name", "folder"), False)
    for call in finished_calls(trace):
        if call.startswith("openat(") and ".part" in call:
            since["created"] = True
        elif call.startswith("fdatasync(") and ".part>" in call:
            since["data"] = True
        elif call.startswith(("fsync(", "fdatasync(")) and "/journal-" in call:
            since["row"] = True
        elif call.startswith("rename"):
            assert since["created"]
            assert since["data"], "named before its data was synced"
            assert since["row"], "named before its row was synced"
            since["name"] = True
        elif call.startswith("fsync(") and "/1.2.826.0.1." in call:
            since["folder"] = since["name"]
        elif call.startswith("sendto(") and '"\\4\\0' in call:
            assert all(since.values()), f"answered too early: {since}"
            answered += 1
            since = dict.fromkeys(since, False)
    assert answered == STORES
    print(f"\n{Row('R3 order of system calls', STORES, answered)}")
