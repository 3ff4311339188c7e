"""Whether one peer holds more than half of all associations that may run at once.

Without limits for each peer one sender can keep all others out, with a C-ECHO a minute. There are none by default,
because behind a router or a load balancer one address is the whole hospital. So it is told.
"""

from __future__ import annotations

import threading

import structlog

from storescp.network.admission import Admission

log = structlog.get_logger("storescp.network")
_LOOK_SECONDS = 5.0
_END_SECONDS = 5.0
# Key of the log, in words, and the setting that bounds it.
_KINDS = (
    ("address", "address", "limits.max_associations_per_address"),
    ("calling_ae", "calling AE title", "limits.max_associations_per_calling_ae"),
)


class OccupancyWatch:
    """Looks every five seconds, in a thread of its own; one line for each turn."""

    def __init__(self, admission: Admission, max_associations: int, look_seconds: float = _LOOK_SECONDS) -> None:
        self._admission = admission
        self._most = max_associations
        self._look_seconds = look_seconds
        self._told: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="storescp-occupancy")

    def start(self) -> None:
        """Begins to look again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._thread.join(_END_SECONDS)

    def look(self) -> None:
        """Logs who holds more than half of the associations since the last look, and when that is over."""
        for (kind, in_words, setting), largest in zip(_KINDS, self._admission.largest(), strict=True):
            name, count = largest or ("", 0)
            is_large = 2 * count > self._most and count > 1
            if is_large and kind not in self._told:
                self._told.add(kind)
                text = f"one {in_words} holds more than half of all associations and can keep others out: see {setting}"
                facts = {kind: name, "associations": count, "max_associations": self._most}
                log.warning("associations.one_peer", text=text, **facts)
            elif not is_large and kind in self._told:
                self._told.remove(kind)
                text = f"no {in_words} holds more than half of all associations any more"
                log.info("associations.shared", text=text, max_associations=self._most)

    def _watch(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            self.look()
