"""The order of system calls: every 0000 follows data sync, row sync, name and directory sync; what is replaced is kept before."""

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
CALLS = "openat,fdatasync,fsync,sync_file_range,linkat,renameat,renameat2,sendto"
STEPS = ("on its disk", "data", "row", "name", "folder")
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
        ["strace", "-f", "-y", "-s", "80", "-e", f"trace={CALLS}", "-o", str(trace), "-p", str(scp.process.pid)],
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
            # Every tenth takes the place of the one before; some are so large that they go past the page cache.
            one = ct_slice(number - (number % 10 == 9), rows=(8, 256)[number % 2], series="1.2.826.0.1.1")
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    assert scp.stop() == 0
    strace.communicate(timeout=20)

    answered, since = 0, dict.fromkeys(STEPS, False)
    names = dict.fromkeys(("linkat", "rename"), 0)
    kept, kept_for_good = 0, False
    for call in finished_calls(trace):
        if call.startswith(("fsync(", "fdatasync(")) and "/journal-" in call:
            since["row"] = True
        elif call.startswith("sync_file_range(") and "SYNC_FILE_RANGE_WAIT_AFTER" in call:
            since["on its disk"] = True
        elif call.startswith("fdatasync(") and "/.incoming/" in call:
            since["on its disk"] = since["data"] = True
        elif call.startswith(("linkat(", "fsync(")) and "/.replaced/" in call:
            kept_for_good = call.startswith("fsync(")
            kept += not kept_for_good
        elif call.startswith(("linkat(", "rename")) and '.dcm"' in call:
            assert since["row"], "named before its row was synced"
            assert since["on its disk"], "named before its data was on the disk"
            assert since["data"] or call.startswith("linkat("), "replaced another one before its data was synced"
            assert kept_for_good or call.startswith("linkat("), "replaced another one before that was kept"
            since["name"] = True
            names["linkat" if call.startswith("linkat(") else "rename"] += 1
        elif call.startswith("fsync(") and "/.incoming/#" in call:  # what a file is called that was made without a name
            since["data"] = since["name"]
        elif call.startswith("fsync(") and "/1.2.826.0.1.1>" in call:
            since["folder"] = since["name"]
        elif call.startswith("sendto(") and '"\\4\\0' in call:
            assert all(since.values()), f"answered too early: {since}"
            answered += 1
            since = dict.fromkeys(STEPS, False)
    assert answered == sum(names.values()) == STORES
    assert names["rename"] == kept >= STORES // 10
    print(f"\n{Row('R3 order of system calls', STORES, answered)}")
