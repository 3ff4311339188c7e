"""Timers of studies, and the events that they give: rows that are written with the data they speak of.

A timer counts from the moment at which the last record of a study was applied, by the clock of the database. It may
fire only for a moment up to which its partition has been read to the end: what is in the topic and not in the tables
could still belong to the study.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from storescp.index import bulk, tables

# Of `study-event.schema.json`.
SCHEMA_VERSION = 1
# Studies whose events are made in one transaction.
_TOGETHER = 200
Kind = Literal["to_publish", "to_run"]
_OF_STUDY = ("patient_id", "accession_number", "first_received", "last_received", "instance_count", "bytes")
_NODES = ("tenant_id", "study_uid", "node_id")
_Study = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where records come from: partitions of a topic, or the JSON lines of a root, which are partition 0.

    `most`: number of partitions that the topic has. Timers of those beyond it, of a topic that was made anew smaller,
    belong to partition 0.
    """

    topic: str
    partitions: frozenset[int]
    most: int | None = None

    def includes(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Whether a row of `study_timer` or `study_event` is of it."""
        these: sa.ColumnElement[bool] = table.c.partition.in_(sorted(self.partitions))
        if self.most is not None and 0 in self.partitions:
            these |= table.c.partition >= self.most
        return (table.c.topic == self.topic) & these

    def has(self, topic: str, partition: int) -> bool:
        """The same of values."""
        is_beyond = self.most is not None and 0 in self.partitions and partition >= self.most
        return topic == self.topic and (partition in self.partitions or is_beyond)


class _Timer(NamedTuple):
    """Columns of `study_timer`."""

    topic: str
    partition: int
    opened: float
    applied: float


@dataclass(frozen=True)
class StudyEvent:
    """One that is to be delivered."""

    key: tuple[str, str, int]
    message: str

    @property
    def study(self) -> str:
        """The key of the message."""
        return "/".join(self.key[:2])

    @property
    def id(self) -> str:
        """Its `event_id`."""
        return "/".join(map(str, self.key))


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Now: seconds since 1970."""
    if dialect == "postgresql":
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    # Days since noon in Greenwich on November 24, 4714 B.C. (sqlite.org/lang_datefunc.html)
    return (sa.func.julianday("now") - 2440587.5) * 86400.0


class Timers:
    """`study_timer` and `study_event` of a database."""

    def __init__(self, engine: sa.Engine, reads: Mapping[str, Any]) -> None:
        self._engine = engine
        self._reads = dict(reads)
        self._clock = clock(engine.dialect.name)

    def now(self) -> float:
        """The clock of the database."""
        with self._engine.connect().execution_options(**self._reads) as connection:
            return float(connection.execute(sa.select(self._clock)).scalar_one())

    def touch(self, connection: sa.Connection, studies: Mapping[_Study, tuple[str, int]]) -> None:
        """Notes that records of studies are applied, which came from a partition of a topic."""
        if not studies:
            return
        now = connection.execute(sa.select(self._clock)).scalar_one()
        rows = {study: (*source, now, now) for study, source in studies.items()}
        changing = {name: f"excluded.{name}" for name in ("topic", "partition", "applied")}
        names = ("topic", "partition", "opened", "applied")
        bulk.upsert(connection, tables.study_timer, names, rows, changing=changing)

    def due(self, origin: Origin, *, quiet: float, force: float) -> tuple[float, set[int]]:
        """Now, and the partitions that have timers which are due; those beyond the last one count as partition 0."""
        table = tables.study_timer
        late = (table.c.applied <= self._clock - quiet) | (table.c.opened <= self._clock - force)
        query = sa.select(table.c.partition).where(origin.includes(table), late).distinct()
        with self._engine.connect().execution_options(**self._reads) as connection:
            now = float(connection.execute(sa.select(self._clock)).scalar_one())
            found = set(connection.execute(query).scalars())
        return now, {one if one in origin.partitions else 0 for one in found}

    def fire(self, origin: Origin, at: float, *, quiet: float, force: float, wanted: Collection[Kind]) -> int:
        """Makes the events that are due at a moment up to which everything is applied; returns how many there are.

        An event that is `wanted` to be published or run stays pending until `done` is called for it.
        """
        table, count = tables.study_timer, 0
        due = origin.includes(table) & ((table.c.applied <= at - quiet) | (table.c.opened <= at - force))

        def is_due(timer: _Timer) -> bool:
            return origin.has(timer.topic, timer.partition) and (
                timer.applied <= at - quiet or timer.opened <= at - force
            )

        while True:
            query = sa.select(table.c.tenant_id, table.c.study_uid).where(due).order_by(table.c.applied)
            with self._engine.connect().execution_options(**self._reads) as connection:
                found = sorted(tuple(row) for row in connection.execute(query.limit(_TOGETHER)))
            if not found:
                return count
            with self._engine.begin() as connection:
                count += self._make(connection, found, is_due, at - quiet, wanted)
            if len(found) < _TOGETHER:
                return count

    def _make(
        self,
        connection: sa.Connection,
        studies: Sequence[_Study],
        is_due: Callable[[_Timer], bool],
        quiet_since: float,
        wanted: Collection[Kind],
    ) -> int:
        # In the order in which records lock them: the study first.
        facts = bulk.select(connection, tables.study, _OF_STUDY, studies, lock=True)
        timers = {
            key: timer
            for key, values in bulk.select(connection, tables.study_timer, _Timer._fields, studies, lock=True).items()
            if is_due(timer := _Timer._make(values))
        }
        made = [key for key in timers if key in facts]
        generations: dict[_Study, int] = {}
        for tenant_id, study_uid, generation in bulk.select(connection, tables.study_event, (), made):
            generations[tenant_id, study_uid] = max(generation, generations.get((tenant_id, study_uid), 0))
        serieses: dict[_Study, list[dict[str, Any]]] = defaultdict(list)
        for key, (modality, count) in sorted(
            bulk.select(connection, tables.series, ("modality", "instance_count"), made).items()
        ):
            serieses[key[:2]].append({"series_uid": key[2], "modality": modality, "instances": count})
        nodes: dict[_Study, list[str]] = defaultdict(list)
        for tenant_id, study_uid, node_id in bulk.distinct(connection, tables.location, _NODES, made):
            nodes[tenant_id, study_uid].append(node_id)
        now = connection.execute(sa.select(self._clock)).scalar_one()
        rows = []
        for key in made:
            timer, generation = timers[key], generations.get(key, 0) + 1
            event = "study.quiet" if timer.applied <= quiet_since else "study.forced"
            study = dict(zip(_OF_STUDY, facts[key], strict=True))
            message = _message(event, generation, key, study, serieses[key], sorted(nodes[key]))
            rows.append((*key, generation, event, message, *timer, now, "to_publish" in wanted, "to_run" in wanted))
        names = [column.name for column in tables.study_event.columns]
        bulk.insert(connection, tables.study_event, names, rows)
        # A timer whose study is not there any more has nothing to tell.
        bulk.delete(connection, tables.study_timer, timers)
        return len(rows)

    def pending(self, origin: Origin, kind: Kind, most: int, without: Sequence[_Study] = ()) -> list[StudyEvent]:
        """Events that are not delivered yet, the oldest first, but those of some studies."""
        table = tables.study_event
        columns = (table.c.tenant_id, table.c.study_uid, table.c.generation, table.c.message)
        query = sa.select(*columns).where(table.c[kind], origin.includes(table))
        if without:
            query = query.where(~_among(table, without))
        with self._engine.connect().execution_options(**self._reads) as connection:
            rows = connection.execute(query.order_by(table.c.made, table.c.generation).limit(most)).all()
        return [StudyEvent((tenant, study, generation), message) for tenant, study, generation, message in rows]

    def done(self, events: Iterable[StudyEvent], kind: Kind) -> None:
        """Notes that events are delivered."""
        table = tables.study_event
        these = sa.and_(
            table.c.tenant_id == sa.bindparam("a_tenant"),
            table.c.study_uid == sa.bindparam("a_study"),
            table.c.generation == sa.bindparam("a_generation"),
        )
        rows = [dict(zip(("a_tenant", "a_study", "a_generation"), event.key, strict=True)) for event in events]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(sa.update(table).where(these).values({kind: False}), rows)


def _among(table: sa.Table, studies: Sequence[_Study]) -> sa.ColumnElement[bool]:
    return sa.tuple_(table.c.tenant_id, table.c.study_uid).in_(studies)


def _message(
    event: str,
    generation: int,
    key: _Study,
    study: Mapping[str, Any],
    serieses: Sequence[dict[str, Any]],
    nodes: Sequence[str],
) -> str:
    """`study-event.schema.json`."""
    tenant_id, study_uid = key
    fields = {
        "schema_version": SCHEMA_VERSION,
        "event": event,
        "event_id": f"{tenant_id}/{study_uid}/{generation}",
        "generation": generation,
        "tenant_id": tenant_id,
        "study_uid": study_uid,
        "patient_id": study["patient_id"],
        "accession_number": study["accession_number"],
        "first_received": study["first_received"],
        "last_received": study["last_received"],
        "instances": study["instance_count"],
        "bytes": study["bytes"],
        "series": serieses,
        "nodes": nodes,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
