"""The service in a control group, as in a container: what it takes for itself is within the limits there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from support.command import storescp
from support.control_groups import PERIOD, ControlGroup, NoControlGroupsError, control_group
from support.service import ServiceProcess

GIB = 1 << 30
ASK = (
    "import json; from storescp import machine; print(json.dumps([machine.processors(), machine.memory_limit_bytes()]))"
)


@pytest.fixture
def small() -> Iterator[ControlGroup]:
    """3 GiB of memory and half a processor."""
    try:
        with control_group(memory_bytes=3 * GIB, quota=PERIOD // 2) as group:
            yield group
    except NoControlGroupsError as error:
        pytest.skip(f"this machine lets no control groups be made ({error})")


def test_limits_of_the_group_that_a_process_is_in_are_found(small: ControlGroup) -> None:
    done = subprocess.run(
        [*small.wrapper, sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [1, 3 * GIB]


def test_a_start_and_check_config_say_how_many_workers_there_is_room_for(
    small: ControlGroup, start_service: Callable[..., ServiceProcess]
) -> None:
    wanted = {"STORESCP_TRANSCODING__WORKERS": "4"}
    said = "within the memory limit of 3 GiB there is room for 1 of 4 worker processes of 2 GiB beside the service"
    checked = storescp("check-config", env=wanted, wrapper=small.wrapper)
    plan, last = checked.stdout.splitlines()[-2:]
    assert last == "a start would succeed"
    assert plan.startswith("transcoding: 1 worker process of 2 GiB at most; ")
    assert said in plan
    service = start_service(env=wanted, wrapper=small.wrapper)
    assert service.stop() == 0
    [line] = service.events("transcoding.workers_limited")
    assert (line["level"], line["workers"], line["worker_memory_bytes"]) == ("warning", 1, 2 * GIB)
    assert said in line["text"]


def test_what_fits_is_not_told_by_the_log(small: ControlGroup, start_service: Callable[..., ServiceProcess]) -> None:
    service = start_service(wrapper=small.wrapper)
    assert service.stop() == 0
    assert service.events("transcoding.workers_limited") == []
