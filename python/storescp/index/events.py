"""Timers of studies, and the events that they give: rows that are written with the data they speak of.

A timer counts from the moment at which the last record of a study was applied, by the clock of the database. It may
fire only for a moment up to which its partition has been read to the end: what is in the topic and not in the tables
could still belong to the study.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from storescp.index import bulk, tables

# Of `study-event.schema.json`.
SCHEMA_VERSION = 1
# Studies whose events are made in one transaction.
_TOGETHER = 200
Kind = Literal["to_publish", "to_run"]
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
        while True:
            query = sa.select(table.c.tenant_id, table.c.study_uid).where(due).order_by(table.c.applied)
            with self._engine.connect().execution_options(**self._reads) as connection:
                found = sorted(tuple(row) for row in connection.execute(query.limit(_TOGETHER)))
            if not found:
                return count
            with self._engine.begin() as connection:
                count += self._make(connection, found, due, at - quiet, wanted)
            if len(found) < _TOGETHER:
                return count

    def _make(
        self,
        connection: sa.Connection,
        studies: Sequence[_Study],
        due: sa.ColumnElement[bool],
        quiet_since: float,
        wanted: Collection[Kind],
    ) -> int:
        study, timer = tables.study, tables.study_timer
        these = _among(study, studies)
        # In the order in which records lock them: the study first.
        query = sa.select(study).where(these).order_by(study.c.tenant_id, study.c.study_uid).with_for_update()
        facts = {(row["tenant_id"], row["study_uid"]): row for row in connection.execute(query).mappings()}
        query = sa.select(timer).where(_among(timer, studies), due).with_for_update()
        timers = {(row["tenant_id"], row["study_uid"]): row for row in connection.execute(query).mappings()}
        made = [key for key in timers if key in facts]
        generations = _generations(connection, made)
        serieses, nodes = _series(connection, made), _nodes(connection, made)
        now = connection.execute(sa.select(self._clock)).scalar_one()
        rows = []
        for key in made:
            one, generation = timers[key], generations.get(key, 0) + 1
            event = "study.quiet" if one["applied"] <= quiet_since else "study.forced"
            message = _message(event, generation, facts[key], serieses[key], nodes[key])
            names = ("topic", "partition", "opened", "applied")
            rows.append(
                {"tenant_id": key[0], "study_uid": key[1], "generation": generation, "event": event}
                | {"message": message, "made": now}
                | {name: one[name] for name in names}
                | {"to_publish": "to_publish" in wanted, "to_run": "to_run" in wanted}
            )
        if rows:
            connection.execute(sa.insert(tables.study_event), rows)
        # A timer whose study is not there any more has nothing to tell.
        bulk.delete(connection, timer, timers)
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


def _generations(connection: sa.Connection, studies: Sequence[_Study]) -> dict[_Study, int]:
    table = tables.study_event
    query = sa.select(table.c.tenant_id, table.c.study_uid, sa.func.max(table.c.generation))
    query = query.where(_among(table, studies)).group_by(table.c.tenant_id, table.c.study_uid)
    return {(tenant, study): last for tenant, study, last in connection.execute(query)}


def _series(connection: sa.Connection, studies: Sequence[_Study]) -> dict[_Study, list[dict[str, Any]]]:
    table = tables.series
    query = sa.select(table).where(_among(table, studies)).order_by(table.c.series_uid)
    found: dict[_Study, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        facts = {"series_uid": row["series_uid"], "modality": row["modality"], "instances": row["instance_count"]}
        found[row["tenant_id"], row["study_uid"]].append(facts)
    return found


def _nodes(connection: sa.Connection, studies: Sequence[_Study]) -> dict[_Study, list[str]]:
    table = tables.location
    columns = (table.c.tenant_id, table.c.study_uid, table.c.node_id)
    found: dict[_Study, list[str]] = defaultdict(list)
    for tenant, study, node in connection.execute(sa.select(*columns).where(_among(table, studies)).distinct()):
        found[tenant, study].append(node)
    return found


def _message(
    event: str, generation: int, study: Mapping[Any, Any], serieses: Sequence[dict[str, Any]], nodes: Sequence[str]
) -> str:
    """`study-event.schema.json`."""
    tenant, uid = study["tenant_id"], study["study_uid"]
    fields = {
        "schema_version": SCHEMA_VERSION,
        "event": event,
        "event_id": f"{tenant}/{uid}/{generation}",
        "generation": generation,
        "tenant_id": tenant,
        "study_uid": uid,
        "patient_id": study["patient_id"],
        "accession_number": study["accession_number"],
        "first_received": study["first_received"],
        "last_received": study["last_received"],
        "instances": study["instance_count"],
        "bytes": study["bytes"],
        "series": serieses,
        "nodes": sorted(nodes),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
