"""Many rows at once, in the way that each database is quick at.

SQLite prepares a statement once and runs it for each row. PostgreSQL takes columns as arrays, in one statement: a
statement for each row costs it a hundred microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

Key = tuple[Any, ...]
# SQLite takes 32,766 parameters.
_KEYS = 1000
_ARRAYS = {
    sa.String: "text",
    sa.Text: "text",
    sa.Integer: "integer",
    sa.BigInteger: "bigint",
    sa.Double: "float8",
    sa.Boolean: "boolean",
}


def keys(table: sa.Table) -> list[str]:
    """Names of the columns of the primary key."""
    return [column.name for column in table.primary_key.columns]


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    names: Sequence[str],
    rows: Mapping[Key, Sequence[Any]],
    *,
    changing: Mapping[str, str] | None = None,
) -> None:
    """Writes rows: primary key to the values of the columns `names`.

    A row that is there gets the new values, or those of the SQL expressions of `changing`, in which `excluded` is the
    new row. Rows are written, and locked, in the order of their keys, so that two workers do not wait for each other.
    """
    if not rows:
        return
    key = keys(table)
    set_to = {name: f"excluded.{_quoted(connection, name)}" for name in names} if changing is None else changing
    clause = ", ".join(f"{_quoted(connection, name)} = {value}" for name, value in set_to.items())
    conflict = f"ON CONFLICT ({_listed(connection, key)}) DO UPDATE SET {clause}"
    _insert(connection, table, [*key, *names], [(*one, *rows[one]) for one in sorted(rows)], conflict)


def insert(connection: sa.Connection, table: sa.Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows that are not there."""
    _insert(connection, table, names, rows, "")


def _insert(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], rows: Sequence[Sequence[Any]], clause: str
) -> None:
    if not rows:
        return
    into = f"INSERT INTO {table.name} ({_listed(connection, names)})"
    if connection.dialect.name == "postgresql":
        source = f"SELECT * FROM {_unnested(table, names)}"
        connection.exec_driver_sql(f"{into} {source} {clause}", _columns(rows))
    else:
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(f"{into} VALUES ({marks}) {clause}", [tuple(row) for row in rows])


def delete(connection: sa.Connection, table: sa.Table, which: Iterable[Key]) -> None:
    """Removes rows by their primary keys."""
    rows = sorted(which)
    if not rows:
        return
    key = keys(table)
    if connection.dialect.name == "postgresql":
        same = " AND ".join(f"t.{name} = k.{name}" for name in key)
        source = f"{_unnested(table, key)} AS k({', '.join(key)})"
        connection.exec_driver_sql(f"DELETE FROM {table.name} t USING {source} WHERE {same}", _columns(rows))
    else:
        same = " AND ".join(f"{name} = ?" for name in key)
        connection.exec_driver_sql(f"DELETE FROM {table.name} WHERE {same}", rows)


def select(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], which: Iterable[Key], *, lock: bool = False
) -> dict[Key, tuple[Any, ...]]:
    """Rows by primary key, or by its first columns where keys are shorter: primary key to the values of `names`.

    With `lock` they are locked in the order of their keys.
    """
    key = keys(table)
    listed = ", ".join(f"t.{_quoted(connection, name)}" for name in (*key, *names))
    found: dict[Key, tuple[Any, ...]] = {}
    for source, parameters in _joined(connection, table, which):
        query = f"SELECT {listed} {source}"
        # A transaction of SQLite has locked the whole database.
        if lock and connection.dialect.name == "postgresql":
            # In the order in which `upsert` locks them, which is not that of every collation.
            order = ", ".join(f't.{name} COLLATE "C"' for name in key)
            query += f" ORDER BY {order} FOR UPDATE OF t"
        for row in connection.exec_driver_sql(query, parameters):
            found[tuple(row[: len(key)])] = tuple(row[len(key) :])
    return found


def distinct(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], which: Iterable[Key]
) -> set[tuple[Any, ...]]:
    """The different values of some columns, of rows by the first columns of their primary keys."""
    listed = ", ".join(f"t.{_quoted(connection, name)}" for name in names)
    found: set[tuple[Any, ...]] = set()
    for source, parameters in _joined(connection, table, which):
        found |= {tuple(row) for row in connection.exec_driver_sql(f"SELECT DISTINCT {listed} {source}", parameters)}
    return found


def _joined(connection: sa.Connection, table: sa.Table, which: Iterable[Key]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The FROM clause of a table whose rows have these keys, as often as its parameters allow; `t` is the table."""
    wanted = sorted(which)
    for begin in range(0, len(wanted), _KEYS):
        some = wanted[begin : begin + _KEYS]
        given = keys(table)[: len(some[0])]
        same = " AND ".join(f"t.{name} = k.{name}" for name in given)
        if connection.dialect.name == "postgresql":
            yield (
                f"FROM {table.name} t JOIN {_unnested(table, given)} AS k({', '.join(given)}) ON {same}",
                _columns(some),
            )
            continue
        # CROSS JOIN keeps this order: SQLite would look through the whole table for `IN (VALUES ...)`.
        columns = ", ".join(f"column{number} AS {name}" for number, name in enumerate(given, 1))
        marks = ", ".join([f"({', '.join('?' * len(given))})"] * len(some))
        source = f"(SELECT {columns} FROM (VALUES {marks})) k CROSS JOIN {table.name} t ON {same}"
        yield f"FROM {source}", tuple(value for one in some for value in one)


def _unnested(table: sa.Table, names: Sequence[str]) -> str:
    return f"unnest({', '.join(f'%s::{_ARRAYS[type(table.c[name].type)]}[]' for name in names)})"


def _columns(rows: Sequence[Sequence[Any]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _listed(connection: sa.Connection, names: Iterable[str]) -> str:
    return ", ".join(_quoted(connection, name) for name in names)


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)
