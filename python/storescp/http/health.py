"""What the endpoints ask the service."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from storescp import _core
from storescp.engine import Engine
from storescp.licensing import LicenceWatch
from storescp.logs import Warnings
from storescp.network.admission import Admission
from storescp.publish.publisher import Publisher
from storescp.settings import Settings

if TYPE_CHECKING:
    from storescp.http.storage import Storage


@dataclass(frozen=True)
class Probe:
    """The parts of a running service that can be asked while it works."""

    settings: Settings
    host: str
    warned: Warnings
    engine: Engine
    admission: Admission
    publisher: Publisher
    licence: LicenceWatch
    refused_connections: Callable[[], dict[str, int]]
    not_ready: Callable[[], list[str]]  # a word or a sentence for each reason that is in memory; none where it is ready
    dead: Callable[[], list[str]]  # what must live and does not

    @property
    def topics(self) -> tuple[str, str]:
        """The names of `topic_main` and `topic_dicom_receive`."""
        queue = self.settings.message_queue
        return queue.topic_main, queue.topic_dicom_receive


@dataclass(frozen=True)
class Family:
    """A metric as it is declared: without its values."""

    kind: Callable[..., Any]
    name: str
    documentation: str
    labels: tuple[str, ...] = ()

    def of(self, value: float) -> Any:
        """The metric, which has no labels."""
        return self.kind(self.name, self.documentation, value)

    def empty(self) -> Any:
        """The metric, to be filled for each of its labels."""
        return self.kind(self.name, self.documentation, labels=self.labels)


_ACTIVE = Family(GaugeMetricFamily, "storescp_associations_active", "Associations now.")
_LARGEST = Family(
    GaugeMetricFamily,
    "storescp_associations_largest",
    "Associations now of the one address, and of the one calling AE title, that holds most of them.",
    ("by",),
)
_ASSOCIATIONS = Family(CounterMetricFamily, "storescp_associations", "Associations that were let in.")
_REFUSED = Family(
    CounterMetricFamily, "storescp_refused", "Associations and connections that were turned away.", ("reason",)
)
_BYTES = Family(CounterMetricFamily, "storescp_received_bytes", "Bytes of data sets that were received.")
_INSTANCES = Family(CounterMetricFamily, "storescp_instances", "C-STOREs that were answered.", ("status", "tenant"))
_TRANSCODES = Family(
    CounterMetricFamily,
    "storescp_transcodes",
    "Instances that were to be transcoded.",
    ("source", "target", "outcome"),
)
_ANOMALIES = Family(
    CounterMetricFamily,
    "storescp_anomalies",
    "Instances that were stored as received although something in their data set was odd.",
    ("kind",),
)
_STAGES = Family(
    HistogramMetricFamily,
    "storescp_stage_duration_seconds",
    "How long the stages of an instance took: receive, scan, transcode, write, sync, outbox.",
    ("stage",),
)
_FREE = Family(GaugeMetricFamily, "storescp_storage_free_bytes", "Free bytes in the file system of the storage root.")
_PENDING = Family(GaugeMetricFamily, "storescp_outbox_pending", "Records that a topic has not got.", ("topic",))
_OLDEST = Family(
    GaugeMetricFamily,
    "storescp_outbox_oldest_age_seconds",
    "Age of the oldest record that a topic has not got.",
    ("topic",),
)
_SET_ASIDE = Family(
    GaugeMetricFamily,
    "storescp_outbox_set_aside",
    "Records that a topic refused and that wait for an operator.",
    ("topic",),
)
_FINDINGS = Family(
    GaugeMetricFamily,
    "storescp_storage_findings",
    "What needs an operator: files in quarantine, changed, missing or unreadable, records that are undecided.",
    ("kind",),
)
_REPLACED_FILES = Family(GaugeMetricFamily, "storescp_replaced_files", "Replaced files that are kept.")
_REPLACED_BYTES = Family(GaugeMetricFamily, "storescp_replaced_bytes", "Bytes of replaced files that are kept.")
_REPLACED_LIMIT = Family(
    GaugeMetricFamily, "storescp_replaced_limit_bytes", "Bytes of replaced files that may be kept."
)
_REPLACED = Family(CounterMetricFamily, "storescp_replaced", "Files that another instance took the place of.")
_DAMAGED = Family(
    GaugeMetricFamily,
    "storescp_quarantined_data_sets",
    "Damaged data sets that wait in quarantine. Their senders take them for stored.",
)
_DAMAGED_BYTES = Family(
    GaugeMetricFamily, "storescp_quarantined_bytes", "Bytes of damaged data sets that wait in quarantine."
)
_DAMAGED_LIMIT = Family(
    GaugeMetricFamily, "storescp_quarantined_limit_bytes", "Bytes of damaged data sets that may wait in quarantine."
)
_DAMAGED_SINCE = Family(
    GaugeMetricFamily,
    "storescp_quarantined_oldest_timestamp_seconds",
    "When the oldest damaged data set in quarantine came; left out where there is none.",
)
_STALE = Family(
    GaugeMetricFamily,
    "storescp_scrape_stale",
    "Whether the metrics of the disk or the outbox are older than this scrape, because the storage does not answer.",
    ("part",),
)
_PUBLISHED = Family(
    CounterMetricFamily,
    "storescp_published",
    "Records by what became of them: delivered, rejected; failed counts attempts.",
    ("topic", "outcome"),
)
_LICENCE = Family(GaugeMetricFamily, "storescp_licence_expiry_timestamp_seconds", "When the licence ends.")
_READY = Family(GaugeMetricFamily, "storescp_ready", "Whether new associations are let in.")
_BUILD = Family(GaugeMetricFamily, "storescp_build_info", "What runs.", ("version", "python", "sqlite"))
# Of `StorageState`: what needs an operator.
FINDINGS = ("quarantined", "changed", "missing", "unreadable", "undecided")
METRICS = (
    _ACTIVE, _LARGEST, _ASSOCIATIONS, _REFUSED, _INSTANCES, _BYTES, _STAGES, _TRANSCODES, _ANOMALIES, _FREE,
    _FINDINGS, _REPLACED_FILES, _REPLACED_BYTES, _REPLACED_LIMIT, _REPLACED,
    _DAMAGED, _DAMAGED_BYTES, _DAMAGED_LIMIT, _DAMAGED_SINCE,
    _PENDING, _OLDEST, _SET_ASIDE, _STALE, _PUBLISHED, _LICENCE, _READY, _BUILD,
)  # fmt: skip


class ServiceCollector(Collector):
    """The metrics of a service, read at each scrape. No label carries a UID, patient data or free text."""

    def __init__(self, probe: Probe, storage: Storage) -> None:
        """`storage` is asked by whoever scrapes: here nothing waits for a disk."""
        self._probe = probe
        self._storage = storage

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        yield from self._associations()
        yield from self._disk_and_outbox()
        yield from self._storage_state()
        yield from self._process()
        if isinstance(self._probe.engine, _core.Engine):
            yield from self._instances(self._probe.engine)

    def _associations(self) -> Iterable[Metric]:
        active, total, rejected = self._probe.admission.counts()
        yield _ACTIVE.of(active)
        largest = _LARGEST.empty()
        for by, holder in zip(("address", "calling_ae"), self._probe.admission.largest(), strict=True):
            largest.add_metric([by], holder[1] if holder else 0)
        yield largest
        yield _ASSOCIATIONS.of(total)
        refused = _REFUSED.empty()
        for reason, count in (self._probe.refused_connections() | rejected).items():
            refused.add_metric([reason], count)
        yield refused

    def _instances(self, engine: _core.Engine) -> Iterable[Metric]:
        received, stored = engine.counters()
        yield _BYTES.of(received)
        instances = _INSTANCES.empty()
        for status, tenant, count in stored:
            instances.add_metric([f"{status:04X}", tenant], count)
        yield instances
        transcodes = _TRANSCODES.empty()
        for source, target, outcome, count in engine.transcodes():
            transcodes.add_metric([source, target, outcome], count)
        yield transcodes
        anomalies = _ANOMALIES.empty()
        # Also those that have not come yet: an alert sees the first one only where it saw none before.
        for kind, count in (dict.fromkeys(_core.anomalies(), 0) | dict(engine.anomalies())).items():
            anomalies.add_metric([kind], count)
        yield anomalies
        stages = _STAGES.empty()
        for stage, buckets, total in engine.stages():
            limits = [("+Inf" if limit == float("inf") else repr(limit), float(count)) for limit, count in buckets]
            stages.add_metric([stage], limits, total)
        yield stages

    def _disk_and_outbox(self) -> Iterable[Metric]:
        """What was answered last; a family without a first answer is left out."""
        disk, lags = self._storage.disk.last, self._storage.outbox.last
        if disk is not None:
            yield _FREE.of(disk.free_bytes)
        if lags is not None:
            pending, age, dead = _PENDING.empty(), _OLDEST.empty(), _SET_ASIDE.empty()
            now = datetime.now(UTC).timestamp()
            for topic, lag in zip(self._probe.topics, lags, strict=True):
                pending.add_metric([topic], lag.pending)
                age.add_metric([topic], 0.0 if lag.oldest is None else max(0.0, now - lag.oldest))
                dead.add_metric([topic], lag.set_aside)
            yield from (pending, age, dead)
        stale = _STALE.empty()
        for part, slow in self._storage.parts.items():
            stale.add_metric([part], slow.failure is not None)
        yield stale
        published = _PUBLISHED.empty()
        for (topic, outcome), count in list(self._probe.publisher.published.items()):
            published.add_metric([topic, outcome], count)
        yield published

    def _storage_state(self) -> Iterable[Metric]:
        state = self._probe.engine.storage_state()
        findings = _FINDINGS.empty()
        for kind in FINDINGS:
            findings.add_metric([kind], getattr(state, kind))
        yield findings
        yield _REPLACED_FILES.of(state.replaced_files)
        yield _REPLACED_BYTES.of(state.replaced_bytes)
        yield _REPLACED_LIMIT.of(state.replaced_max_bytes)
        yield _REPLACED.of(state.replaced_total)
        yield _DAMAGED.of(state.damaged)
        yield _DAMAGED_BYTES.of(state.damaged_bytes)
        yield _DAMAGED_LIMIT.of(state.damaged_max_bytes)
        if state.damaged_since is not None:
            yield _DAMAGED_SINCE.of(state.damaged_since)

    def _process(self) -> Iterable[Metric]:
        yield _LICENCE.of(self._probe.licence.licence.not_after.timestamp())
        yield _READY.of(0.0 if self._probe.not_ready() or self._storage.reasons() else 1.0)
        build = _BUILD.empty()
        known = dict(_core.build_info())
        build.add_metric([_core.__version__, platform.python_version(), known["sqlite"]], 1.0)
        yield build
