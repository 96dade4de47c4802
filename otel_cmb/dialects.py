"""How SQLite and PostgreSQL spell the same statement: placeholders, names, upserts, lists, times. Elsewhere the SQL is one.

What they do differently is in :mod:`otel_cmb.engines` (connections), :mod:`otel_cmb.transactions` (locks) and
:mod:`otel_cmb.faults` (what an error means).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson

__all__ = [
    "POSTGRESQL", "SQLITE", "identifier", "in_list", "insert_sql", "list_param", "mark", "qualified", "schema_identifier",
    "timestamp", "timestamp_ns", "update_sql",
]

SQLITE, POSTGRESQL = "sqlite", "postgresql"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def mark(dialect: str) -> str:
    """The placeholder of a bound value for `exec_driver_sql`."""
    return "?" if dialect == SQLITE else "%s"


def identifier(name: str) -> str:
    """The name, quoted for both dialects."""
    return '"' + name.replace('"', '""') + '"'


def schema_identifier(name: str) -> str:
    """A PostgreSQL schema's name, chosen by the user: quoted, and safe in a statement where `%s` marks a value."""
    return identifier(name).replace("%", "%%")


def qualified(table: str, schema: str | None = None) -> str:
    """The table's quoted name, with its schema where there is one."""
    return identifier(table) if schema is None else f"{schema_identifier(schema)}.{identifier(table)}"


def insert_sql(
    dialect: str, table: str, columns: Sequence[str], *, conflict: Sequence[str] = (), update: Sequence[str] = (),
) -> str:
    """`INSERT` for tuples in the order of `columns`; `table` is a qualified name. With `conflict` (key columns): a row
    that is there already is left alone, or gets the new values of the columns in `update`."""
    names = ", ".join(map(identifier, columns))
    marks = ", ".join([mark(dialect)] * len(columns))
    text = f"INSERT INTO {table} ({names}) VALUES ({marks})"
    if not conflict:
        return text
    changes = ", ".join(f"{identifier(name)} = excluded.{identifier(name)}" for name in update)
    action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
    return f"{text} ON CONFLICT ({', '.join(map(identifier, conflict))}) {action}"


def update_sql(dialect: str, table: str, columns: Sequence[str], key: Sequence[str] = ("id",)) -> str:
    """`UPDATE` by key for tuples in the order of `columns` followed by `key`."""
    changes = ", ".join(f"{identifier(name)} = {mark(dialect)}" for name in columns)
    where = " AND ".join(f"{identifier(name)} = {mark(dialect)}" for name in key)
    return f"UPDATE {table} SET {changes} WHERE {where}"


def in_list(dialect: str, column: str) -> str:
    """Condition that a text column (quoted here) is one of a list given as **one** bound value, see
    :func:`list_param`: the statement is the same for any length, and no limit on placeholders applies."""
    if dialect == SQLITE:
        return f"{identifier(column)} IN (SELECT value FROM json_each(?))"
    return f"{identifier(column)} = ANY(%s)"


def list_param(dialect: str, values: Iterable[str]) -> Any:
    """The bound value for :func:`in_list`."""
    items = list(values)
    return orjson.dumps(items).decode() if dialect == SQLITE else items


def timestamp(dialect: str, kind: str, ns: int) -> Any:
    """Nanoseconds since the epoch as the bound value of a column of `kind` (`timestamp` or `timestamptz`), in UTC
    whatever the server's time zone. On SQLite the text SQLAlchemy's own types read and write."""
    moment = _EPOCH + timedelta(microseconds=ns // 1000)
    if dialect == SQLITE:
        return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    return moment if kind == "timestamptz" else moment.replace(tzinfo=None)


def timestamp_ns(value: str | datetime) -> int:
    """The reverse of :func:`timestamp`, for what a driver returns; a value without a zone is UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
