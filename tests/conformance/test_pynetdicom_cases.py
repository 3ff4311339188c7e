"""pynetdicom's own tests of its storescp application, pointed at us.

Options are mapped to ours, its port to the one that we got, and the names it looks for to where we store. What does not
apply is listed with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom.apps.tests import test_storescp as cases

from support.service import ServiceProcess

_OPTIONS = {"--max-pdu": ["-m"], "-od": ["-o"], "-xi": []}
_ORDER = "contexts are negotiated in the order of the sender, who knows best what it can send without converting"
# One of their files has no Patient ID.
_NO_REQUIREMENTS = {"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": "[]"}
NOT_APPLICABLE = {
    "test_default": "asks for 16382 as maximum PDU length, and that SIGTERM is a failure: ours is 16384, and a drain is 0",
    "test_flag_version": "asks for the name of pynetdicom's program",
    "test_flag_quiet": "there is no -q: the line that says where it listens is part of the interface",
    "test_flag_verbose": "asks for pynetdicom's log lines",
    "test_flag_debug": "asks for pynetdicom's log lines",
    "test_flag_log_collision": "there is only one log option",
    "test_flag_log_level": "skipped by pynetdicom",
    "test_flag_ta": "skipped by pynetdicom",
    "test_flag_td": "skipped by pynetdicom",
    "test_flag_tn": "skipped by pynetdicom",
    "test_flag_xequal": _ORDER,
    "test_flag_xe": _ORDER,
    "test_flag_xb": _ORDER,
    "test_flag_ignore": "asks for success without storing, which is what this program must never do",
}
APPLICABLE = {"test_flag_max_pdu", "test_flag_xi", "test_flag_output", "test_store_deflated"}


class Stored(os.PathLike[str]):
    """The folder of the cases, with their names for what lies deeper in ours."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __fspath__(self) -> str:
        return str(self._root)

    def exists(self) -> bool:
        return self._root.exists()

    def __truediv__(self, name: str) -> Path:
        modality, _, uid = name.partition(".")
        assert modality in ("CT", "SC")
        return next(self._root.glob(f"*/*/*/*/{uid}.dcm"), self._root / name)


class Started:
    """Our process, as the cases know theirs."""

    def __init__(self, service: ServiceProcess) -> None:
        self.kill, self.terminate = service.process.kill, service.process.terminate
        self.wait = service.process.wait


class TestCases(cases.StoreSCPBase):
    """The cases with our program behind `func`."""

    @pytest.fixture(autouse=True)
    def _ours(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        if request.function.__name__ in NOT_APPLICABLE:
            pytest.skip(NOT_APPLICABLE[request.function.__name__])
        services: list[ServiceProcess] = []

        def start(options: list[str]) -> Started:
            mapped = [part for option in options for part in _OPTIONS.get(option, [option])]
            services.append(ServiceProcess(tmp_path / "stored", *mapped, env=_NO_REQUIREMENTS))
            return Started(services[-1])

        class Ae(cases.AE):
            def associate(self, address: str, port: int, *arguments, **options):
                assert (address, port) == ("localhost", 11112)
                return super().associate("127.0.0.1", services[-1].port, *arguments, **options)

        monkeypatch.setattr(cases, "TEST_DIR", Stored(tmp_path / "stored"))
        monkeypatch.setattr(cases, "AE", Ae)
        self.func = start
        yield
        for service in services:
            service.kill()

    def setup_method(self) -> None:
        self.ae = self.p = None


def test_every_case_is_run_or_listed() -> None:
    known = {name for name in dir(cases.StoreSCPBase) if name.startswith("test_")}
    assert known == APPLICABLE | NOT_APPLICABLE.keys()
    assert not APPLICABLE & NOT_APPLICABLE.keys()
