"""One peer that holds more than half of all associations is told, once for each turn."""

from __future__ import annotations

from structlog.testing import capture_logs

from storescp import _core
from storescp.network.admission import Admission
from storescp.network.occupancy import OccupancyWatch
from storescp.settings import Settings


def admission(most: int) -> Admission:
    settings = Settings.model_validate({"dicom_store_scp": {"max_associations": most}})
    return Admission(settings, lambda: None)


def enter(admission: Admission, address: str, title: str) -> _core.Place:
    place = admission.enter(address)
    assert isinstance(place, _core.Place)
    assert admission.enter_calling(place, title) is None
    return place


def test_each_turn_is_told_once() -> None:
    doors = admission(4)
    watch = OccupancyWatch(doors, 4)
    with capture_logs() as lines:
        places = [enter(doors, "10.0.0.1", title) for title in ("CT1", "CT2")]
        watch.look()
        assert lines == []  # half is not more than half
        places.append(enter(doors, "10.0.0.1", "CT3"))
        watch.look()
        watch.look()
        places.pop().leave()
        watch.look()
        watch.look()
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("associations.one_peer", "warning"),
        ("associations.shared", "info"),
    ]
    assert (lines[0]["address"], lines[0]["associations"], lines[0]["max_associations"]) == ("10.0.0.1", 3, 4)
    assert "limits.max_associations_per_address" in lines[0]["text"]


def test_a_title_behind_many_addresses_is_told_as_well() -> None:
    doors = admission(4)
    watch = OccupancyWatch(doors, 4)
    places = [enter(doors, f"10.0.0.{number}", "CT1") for number in range(3)]
    with capture_logs() as lines:
        watch.look()
    assert [(line["event"], line["calling_ae"]) for line in lines] == [("associations.one_peer", "CT1")]
    assert "limits.max_associations_per_calling_ae" in lines[0]["text"]
    assert doors.largest()[1] == ("CT1", 3)
    for place in places:
        place.leave()
    assert doors.largest() == (None, None)


def test_a_service_for_one_association_is_no_cause() -> None:
    doors = admission(1)
    place = enter(doors, "10.0.0.1", "CT1")
    with capture_logs() as lines:
        OccupancyWatch(doors, 1).look()
    assert lines == []
    place.leave()
