"""The Rust engine against the pure-Python engine: over loopback, and one instance by itself.

Every bench asserts that all instances arrived, byte for byte in size, before it reports.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from quiet import quiet
from sender import Round
from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.network.contexts import known_transfer_syntaxes, storage_sop_classes
from storescp.pure.engine import PureEngine
from storescp.pure.index import read_index, wanted
from storescp.pure.structure import WalkLimits, walk
from storescp.settings import Settings
from support.instances import ct_slice
from support.scu import RawAssociation, associate_rq, item
from support.service import ServiceProcess

INSTANCES = 300
ROUNDS = 5
REQUIRED = ["PatientID", "StudyDate"]
StartBenchService = Callable[..., ServiceProcess]


def assert_all_arrived(service: ServiceProcess, instances: int, dataset_bytes: int) -> None:
    files = service.files()
    assert len(files) == instances
    sizes = {file.stat().st_size for file in files}
    assert all(dataset_bytes < size < dataset_bytes + 1024 for size in sizes)
    assert len(service.records(count=instances)) == instances


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("max_pdu", [16384, 131072])
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_receive(
    benchmark: BenchmarkFixture,
    bench_folder: Path,
    start_bench_service: StartBenchService,
    engine: str,
    max_pdu: int,
    durability: str,
) -> None:
    service = start_bench_service(engine, durability=durability, max_pdu=max_pdu)
    numbers = itertools.count()
    sent = []

    def setup() -> tuple[tuple[Round], dict[str, object]]:
        sent.append(Round(next(numbers), INSTANCES, max_pdu))
        quiet(bench_folder)
        return (sent[-1],), {}

    benchmark.pedantic(lambda one: one.send(service.port), setup=setup, rounds=3, warmup_rounds=1)
    assert_all_arrived(service, INSTANCES * len(sent), sent[0].dataset_bytes)
    benchmark.extra_info["instances_per_second"] = round(INSTANCES / benchmark.stats.stats.median, 1)


@pytest.mark.parametrize("durability", ["none", "full"])
def test_rust_against_python(
    benchmark: BenchmarkFixture, bench_folder: Path, start_bench_service: StartBenchService, durability: str
) -> None:
    """Interleaved rounds at max PDU 16384; the ratio of the medians is printed."""
    services = {name: start_bench_service(name, durability=durability, max_pdu=16384) for name in ("rust", "python")}
    seconds: dict[str, list[float]] = {name: [] for name in services}
    for number in range(ROUNDS + 1):
        one = Round(number, INSTANCES, 16384)
        for name, service in services.items():
            quiet(bench_folder)
            started = time.perf_counter()
            one.send(service.port)
            if number:
                seconds[name].append(time.perf_counter() - started)
    for service in services.values():
        assert_all_arrived(service, INSTANCES * (ROUNDS + 1), one.dataset_bytes)
    rates = {name: INSTANCES / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["rust"] / rates["python"]
    print(f"\n{durability}: rust {rates['rust']:.0f}/s, python {rates['python']:.0f}/s, ratio {ratio:.1f}")
    benchmark.extra_info.update({"ratio": round(ratio, 2), "rust_per_second": rates["rust"]})
    final = Round(number + 1, INSTANCES, 16384)
    benchmark.pedantic(final.send, args=(services["rust"].port,), rounds=1)


@pytest.mark.parametrize(("classes", "syntaxes"), [(1, 1), (20, 3), (128, 4), (128, 57)])
@pytest.mark.parametrize("seen_before", [False, True])
def test_association_set_up(
    benchmark: BenchmarkFixture,
    start_bench_service: StartBenchService,
    classes: int,
    syntaxes: int,
    seen_before: bool,
) -> None:
    """A-ASSOCIATE-RQ to A-ASSOCIATE-AC; we offer all classes and syntaxes, the peer proposes some of them."""
    service = start_bench_service("rust", durability="none", max_pdu=16384)
    proposed = sorted(known_transfer_syntaxes())[:syntaxes]
    contexts = [(2 * n + 1, uid, proposed) for n, uid in enumerate(sorted(storage_sop_classes())[:classes])]
    numbers = itertools.count()
    open_associations: list[RawAssociation] = []

    def setup() -> tuple[tuple[bytes], dict[str, object]]:
        while open_associations:
            open_associations.pop().release()
        version = "SAME" if seen_before else f"V{next(numbers)}"
        return (associate_rq(contexts, extra_items=item(0x55, version.encode())),), {}

    def associate(request: bytes) -> None:
        open_associations.append(RawAssociation(service.port, [], request=request))

    benchmark.pedantic(associate, setup=setup, rounds=30, warmup_rounds=2)
    association = open_associations.pop()
    assert [result for result, _ in association.accepted.values()] == [0] * classes
    association.release()


@pytest.mark.parametrize("engine", ["rust", "python"])
def test_scan(benchmark: BenchmarkFixture, engine: str) -> None:
    instance = ct_slice(1)
    kept, limits = wanted(tuple(REQUIRED)), WalkLimits(64, 1 << 24, 1 << 31)

    def scan_python() -> str:
        found = walk(instance.dataset, instance.transfer_syntax, kept, limits)
        return read_index(found, tuple(REQUIRED)).sop_instance_uid

    def scan_rust() -> str:
        return _core.scan(instance.dataset, instance.transfer_syntax, REQUIRED).sop_instance_uid

    assert scan_rust() == scan_python() == instance.sop_instance
    benchmark(scan_rust if engine == "rust" else scan_python)


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_ingest(benchmark: BenchmarkFixture, bench_folder: Path, engine: str, durability: str) -> None:
    settings = Settings.model_validate({"storage": {"root": bench_folder / "root", "durability": durability}})
    opened: Engine = _core.Engine(engine_config(settings)) if engine == "rust" else PureEngine(settings)
    numbers = itertools.count(1)
    template = ct_slice(1000000)

    def setup() -> tuple[tuple[bytes, str], dict[str, object]]:
        uid = template.sop_instance.replace("1000000", str(1000000 + next(numbers)))
        return (template.dataset.replace(template.sop_instance.encode(), uid.encode()), uid), {}

    def ingest(dataset: bytes, uid: str) -> None:
        status = opened.ingest(
            dataset, template.sop_class, uid, template.transfer_syntax, "CT1", "STORE-SCP", "127.0.0.1", "bench"
        )
        assert status == (0, "")

    benchmark.pedantic(ingest, setup=setup, rounds=200, warmup_rounds=10)
    assert len(list((bench_folder / "root" / "bench").rglob("*.dcm"))) == next(numbers) - 1
    opened.close()
