"""What the endpoints ask the service."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from storescp import _core
from storescp.engine import Engine
from storescp.licence import Licence
from storescp.logs import Warnings
from storescp.network.admission import Admission
from storescp.publish.publisher import Publisher
from storescp.settings import Settings


@dataclass(frozen=True)
class Probe:
    """The parts of a running service that can be asked while it works."""

    settings: Settings
    host: str
    warned: Warnings
    engine: Engine
    admission: Admission
    publisher: Publisher
    licence: Callable[[], Licence]
    refused_connections: Callable[[], dict[str, int]]
    not_ready: Callable[[], list[str]]  # a word or a sentence for each reason; none where it is ready

    @property
    def topics(self) -> tuple[str, str]:
        """The names of `topic_main` and `topic_dicom_receive`."""
        queue = self.settings.message_queue
        return queue.topic_main, queue.topic_dicom_receive


class ServiceCollector(Collector):
    """The metrics of a service, read at each scrape. No label carries a UID, patient data or free text."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        yield from self._associations()
        yield from self._outbox()
        yield from self._process()
        if isinstance(self._probe.engine, _core.Engine):
            yield from self._instances(self._probe.engine)

    def _associations(self) -> Iterable[Metric]:
        active, total, rejected = self._probe.admission.counts()
        yield GaugeMetricFamily("storescp_associations_active", "Associations now.", active)
        yield CounterMetricFamily("storescp_associations", "Associations that were let in.", total)
        refused = CounterMetricFamily(
            "storescp_refused", "Associations and connections that were turned away.", labels=["reason"]
        )
        for reason, count in (self._probe.refused_connections() | rejected).items():
            refused.add_metric([reason], count)
        yield refused

    def _instances(self, engine: _core.Engine) -> Iterable[Metric]:
        received, stored = engine.counters()
        yield CounterMetricFamily("storescp_received_bytes", "Bytes of data sets that were received.", received)
        instances = CounterMetricFamily(
            "storescp_instances", "C-STOREs that were answered.", labels=["status", "tenant"]
        )
        for status, tenant, count in stored:
            instances.add_metric([f"{status:04X}", tenant], count)
        yield instances
        transcodes = CounterMetricFamily(
            "storescp_transcodes", "Instances that were to be transcoded.", labels=["source", "target", "outcome"]
        )
        for source, target, outcome, count in engine.transcodes():
            transcodes.add_metric([source, target, outcome], count)
        yield transcodes
        stages = HistogramMetricFamily(
            "storescp_stage_duration_seconds", "How long the stages of an instance took.", labels=["stage"]
        )
        for stage, buckets, total in engine.stages():
            limits = [("+Inf" if limit == float("inf") else repr(limit), float(count)) for limit, count in buckets]
            stages.add_metric([stage], limits, total)
        yield stages
        yield GaugeMetricFamily(
            "storescp_storage_free_bytes", "Free bytes in the file system of the storage root.", engine.free_bytes()
        )

    def _outbox(self) -> Iterable[Metric]:
        pending = GaugeMetricFamily("storescp_outbox_pending", "Records that a topic has not got.", labels=["topic"])
        age = GaugeMetricFamily(
            "storescp_outbox_oldest_age_seconds", "Age of the oldest record that a topic has not got.", labels=["topic"]
        )
        dead = GaugeMetricFamily(
            "storescp_outbox_set_aside", "Records that a topic refused and that wait for an operator.", labels=["topic"]
        )
        now = datetime.now(UTC).timestamp()
        for number, topic in enumerate(self._probe.topics):
            count, oldest, refused = self._probe.engine.outbox_lag(number)
            pending.add_metric([topic], count)
            age.add_metric([topic], 0.0 if oldest is None else max(0.0, now - oldest / 1e6))
            dead.add_metric([topic], refused)
        yield from (pending, age, dead)
        published = CounterMetricFamily(
            "storescp_published",
            "Records by what became of them: delivered, rejected; failed counts attempts.",
            labels=["topic", "outcome"],
        )
        for (topic, outcome), count in list(self._probe.publisher.published.items()):
            published.add_metric([topic, outcome], count)
        yield published

    def _process(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "storescp_licence_expiry_timestamp_seconds",
            "When the licence ends.",
            self._probe.licence().not_after.timestamp(),
        )
        yield GaugeMetricFamily(
            "storescp_ready", "Whether new associations are let in.", 0.0 if self._probe.not_ready() else 1.0
        )
        build = GaugeMetricFamily("storescp_build_info", "What runs.", labels=["version", "python", "sqlite"])
        known = dict(_core.build_info())
        build.add_metric([_core.__version__, platform.python_version(), known.get("sqlite", "")], 1.0)
        yield build
