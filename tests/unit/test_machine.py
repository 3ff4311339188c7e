"""Processors and memory by the control groups of a process, and the workers that fit into them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storescp import machine
from storescp.settings import Settings, Transcoding
from storescp.workers import SERVICE_BYTES, fit

GIB = 1 << 30
MIB = 1 << 20
CORES = 8


class Process:
    """The folder of a process in `/proc`, and the control groups that are mounted where it is."""

    def __init__(self, folder: Path) -> None:
        self.proc, self._point = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        self._joined: list[str] = []
        self._mounts = ["21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]

    def joins(self, path: str, controllers: str = "", root: str = "/") -> None:
        """Group, its controllers of version 1, and the group at which the mount of these begins."""
        self._joined.append(f"{len(self._joined)}:{controllers}:{path}")
        kind = "cgroup" if controllers else "cgroup2"
        options = f"rw,{controllers}" if controllers else "rw,nsdelegate"
        self._mounts.append(
            f"30 21 0:26 {root} {self._point / controllers} rw,nosuid shared:4 - {kind} cgroup {options}"
        )
        (self.proc / "cgroup").write_text("\n".join(self._joined) + "\n")
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")

    def write(self, file: str, content: str) -> None:
        """A file beneath the mount points."""
        (self._point / file).parent.mkdir(parents=True, exist_ok=True)
        (self._point / file).write_text(content + "\n")


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    return Process(tmp_path)


def test_without_control_groups_the_affinity_counts(process: Process) -> None:
    assert machine.processors(process.proc) == CORES
    assert machine.memory_limit_bytes(process.proc) is None


def test_without_an_affinity_all_processors_count(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.processors(process.proc) == 3


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("max 100000", CORES),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100001 100000", 2),
        ("10000 100000", 1),
        ("1600000 100000", CORES),
        ("nonsense", CORES),
        ("100000 0", CORES),
        ("", CORES),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(process: Process, written: str, expected: int) -> None:
    process.joins("/service")
    process.write("service/cpu.max", written)
    assert machine.processors(process.proc) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CORES), ("250000", 3), ("50000", 1)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuset,cpu"])
def test_a_quota_of_version_1_is_rounded_up(process: Process, controllers: str, quota: str, expected: int) -> None:
    process.joins("/service", "memory")
    process.joins("/service", controllers)
    process.write(f"{controllers}/service/cpu.cfs_quota_us", quota)
    process.write(f"{controllers}/service/cpu.cfs_period_us", "100000")
    assert machine.processors(process.proc) == expected


def test_of_groups_within_each_other_the_smallest_limit_counts(process: Process) -> None:
    process.joins("/pods/pod/container")
    process.write("pods/cpu.max", "600000 100000")
    process.write("pods/pod/cpu.max", "300000 100000")
    process.write("pods/pod/container/cpu.max", "max 100000")
    process.write("pods/memory.max", str(5 * GIB))
    process.write("pods/pod/memory.max", "max")
    process.write("pods/pod/container/memory.max", str(6 * GIB))
    process.write("elsewhere/memory.max", str(GIB))
    assert machine.processors(process.proc) == 3
    assert machine.memory_limit_bytes(process.proc) == 5 * GIB


@pytest.mark.parametrize(("written", "expected"), [(str(3 * GIB), 3 * GIB), ("9223372036854771712", None)])
def test_a_memory_limit_of_version_1(process: Process, written: str, expected: int | None) -> None:
    process.joins("/a", "memory")
    process.joins("/unlimited")  # as on a system with both: its tree of version 2 has no controllers
    process.write("memory/a/memory.limit_in_bytes", written)
    assert machine.memory_limit_bytes(process.proc) == expected


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/docker/1234", "/docker/1234"),  # a container that sees the names of the host
        ("/", "/"),  # one with a namespace of its own
        ("/docker/1234", "/elsewhere"),
        ("/../1234", "/"),  # outside of the namespace
    ],
)
def test_in_a_container_the_mount_point_is_its_group(process: Process, path: str, root: str) -> None:
    process.joins(path, "memory", root)
    process.joins(path, "cpu", root)
    process.write("memory/memory.limit_in_bytes", str(GIB))
    process.write("cpu/cpu.cfs_quota_us", "200000")
    process.write("cpu/cpu.cfs_period_us", "100000")
    assert machine.memory_limit_bytes(process.proc) == GIB
    assert machine.processors(process.proc) == 2


def test_a_group_within_that_of_the_container_counts(process: Process) -> None:
    process.joins("/docker/1234/service", "memory", "/docker/1234")
    process.write("memory/memory.limit_in_bytes", str(4 * GIB))
    process.write("memory/service/memory.limit_in_bytes", str(GIB))
    assert machine.memory_limit_bytes(process.proc) == GIB


def test_without_a_limit_there_is_a_worker_for_each_processor() -> None:
    plan = fit(Transcoding(), 6, None)
    assert (plan.processes, plan.threads, plan.memory_bytes, plan.remark) == (6, 6, 2 * GIB, None)
    assert fit(Transcoding(workers=3), 6, None).processes == 3
    assert plan.text == "transcoding: 6 worker processes of 2 GiB at most"


@pytest.mark.parametrize(
    ("limit", "wanted", "expected", "words"),
    [
        (9 * GIB, {}, (4, 2 * GIB), ""),
        (4 * GIB, {}, (1, 2 * GIB), "4 GiB there is room for 1 of 4 worker processes of 2 GiB"),
        (5 * GIB, {"workers": 3}, (2, 2 * GIB), "5 GiB there is room for 2 of 3 worker processes"),
        (5 * GIB, {"workers": 2}, (2, 2 * GIB), ""),
        (2 * GIB, {}, (1, 1536 * MIB), "2 GiB there is room for one worker process of 1536 MiB"),
        (2 * GIB + 12345, {"worker_memory_bytes": 512 * MIB}, (3, 512 * MIB), "2 GiB there is room for 3 of 4"),
        (512 * MIB, {}, (1, 256 * MIB), "512 MiB there is room for one worker process of 256 MiB"),
        (512 * MIB, {"worker_memory_bytes": 256 * MIB, "workers": 1}, (1, 256 * MIB), ""),
        (300 * MIB, {}, (1, 256 * MIB), "300 MiB the service and one worker process of 256 MiB do not fit"),
    ],
)
def test_workers_fit_into_the_memory_limit_beside_the_service(
    limit: int, wanted: dict[str, int], expected: tuple[int, int], words: str
) -> None:
    plan = fit(Transcoding(**wanted), 4, limit)
    assert (plan.processes, plan.memory_bytes) == expected
    assert plan.threads == 4
    assert (plan.remark is None) == (words == "")
    assert words in (plan.remark or "")
    if limit >= 512 * MIB:
        assert plan.processes * plan.memory_bytes + min(SERVICE_BYTES, limit // 2) <= limit


def test_the_plan_of_the_engine_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from storescp.engine import pool_config

    monkeypatch.setattr(machine, "processors", lambda: 5)
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 3 * GIB)
    pool = pool_config(Settings())
    assert (pool["workers"], pool["threads"]) == (1, 5)
    assert isinstance(pool["command"], list)
    assert pool["command"][-1] == str(2 * GIB)
