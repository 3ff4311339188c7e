"""Fixtures of all suites."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from support import prepared, skips
from support.instances import curated_folder
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
_CHECKOUT = Path(__file__).parents[1]
# The same for all processes of a run; given again, every test draws the same numbers.
_SEED = os.environ.setdefault("STORESCP_TEST_SEED", str(random.SystemRandom().getrandbits(32)))
# What measures time, memory or the processor, fills disks or uses fixed ports: no other test may run beside it.
_ALONE = ("tests/ceiling/", "tests/crash/", "tests/docs/", "tests/kafka/", "tests/integration/test_hardened.py")
# Long by nature: `make test` runs it, `make check` does not. A browser, a Prometheus that scrapes for seconds, deadlines
# and looks at the disk that are waited for, and a start that is ended before each of its calls in turn.
_SLOW = (
    "tests/integration/test_busy.py",
    "tests/integration/test_page.py",
    "tests/integration/test_proxy.py::test_header_and_request_share_one_deadline",
    "tests/integration/test_space.py",
    "tests/integration/test_watched.py",
    "tests/integration/test_reconcile.py::test_a_start_that_is_killed_before_any_call",
)


@pytest.fixture(autouse=True)
def no_settings_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run is told by the environment is no setting of the service."""
    for name in ("STORESCP_REQUIRE_ALL", "STORESCP_TEST_SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws from the same seed, unless another one is asked for."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = _SEED


def pytest_report_header() -> str:
    return f"STORESCP_TEST_SEED={_SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(_ALONE):
            item.add_marker(pytest.mark.alone)
        if item.nodeid.startswith(_SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(f"{_SEED} {item.nodeid}")
    # What runs alone measures, or is about starts.
    prepared.SWITCH.is_on = not item.nodeid.startswith(_ALONE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        report.user_properties += [("claim", key) for mark in item.iter_markers("proves") for key in mark.args]
    skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    skips.refuse(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in skips.summary(terminalreporter.getreports("skipped")):
        terminalreporter.write_line(line, yellow=True)
    if terminalreporter.verbosity < 0:  # there was no header
        terminalreporter.write_line(pytest_report_header())


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Starts services; those that still run at the end are stopped."""
    started: list[ServiceProcess] = []

    def start(*options: str, root: Path | None = None, **keywords: object) -> ServiceProcess:
        service = ServiceProcess(root or tmp_path / "data", *options, logs=tmp_path, **keywords)  # type: ignore[arg-type]
        started.append(service)
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.stop()
        service.close()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="storescp-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def scp(start_service: StartService) -> ServiceProcess:
    """The service in evaluation mode on a free port, Rust engine."""
    return start_service()


@pytest.fixture(scope="session")
def curated() -> Path:
    """The folder of curated real files."""
    folder = curated_folder()
    if folder is None:
        pytest.skip("the folder of curated files is not here (set STORESCP_CURATED)")
    return folder


@pytest.fixture(scope="session")
def fail_points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the package has its fail points: this package, with the extension of another build."""
    extension = _CHECKOUT / "target" / "failpoints" / "storescp" / "_core.abi3.so"
    if not extension.exists():
        pytest.skip("the extension with fail points is not built (make .make/failpoints)")
    folder = tmp_path_factory.mktemp("failpoints")
    package = folder / "storescp"
    package.mkdir()
    for file in (_CHECKOUT / "python" / "storescp").iterdir():
        if file.name != extension.name:
            (package / file.name).symlink_to(file)
    (package / extension.name).symlink_to(extension)
    return {"PYTHONPATH": str(folder)}
