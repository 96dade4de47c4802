"""Rows of an application's that are known by a name in their `meta`: runs by `task_id`, nodes and steps by `id`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.dialects import SQLITE, list_param, mark

__all__ = ["json_member", "named_in_meta"]

_CHARACTERS, _PARTS = 200, 8
"""Most of a name that the text of a `meta` is searched for before it is read."""


def json_member(dialect: str, column: str, key: str) -> str:
    """SQL for a member, as text, of a column that holds JSON only; on SQLite it may hold any text. `key` is ours, never a
    user's."""
    if dialect == SQLITE:
        return f"CASE WHEN json_valid({column}) THEN CAST(json_extract({column}, '$.{key}') AS TEXT) END"
    return f"{column} ->> '{key}'"


def named_in_meta(
    connection: Connection, binding: Binding, table: str, key: str, names: Collection[str], columns: str, *,
    run_id: str | None = None, order: str = "id",
) -> list[tuple[Any, ...]]:
    """Rows, of one run or of all, whose `meta` has one of the names at `key`, as text: the name, then the columns. A `meta`
    that cannot be read has no name. `key` is ours, never a user's."""
    info, dialect = binding.tables[table], binding.dialect
    where, values = ("", ()) if run_id is None else (f"run_id = {mark(dialect)} AND ", (run_id,))
    text, condition = "CAST(meta AS text)", "CAST(meta AS text) ~ ANY(%s)"
    direct = dialect == SQLITE or info.columns["meta"].kind == "jsonb"
    wanted: Any = [_pattern(key, name) for name in names]
    if direct:
        text, wanted = json_member(dialect, "meta", key), list_param(dialect, names)
        condition = f"{text} IN (SELECT value FROM json_each(?))" if dialect == SQLITE else f"{text} = ANY(%s)"
    found = connection.exec_driver_sql(
        f"SELECT {text}, {columns} FROM {info.qualified} WHERE {where}{condition} ORDER BY {order}", (*values, wanted))
    if direct:
        return [tuple(row) for row in found]
    # One row whose text is no JSON, or whose JSON holds U+0000, would fail the statement for all: so PostgreSQL only looked
    # for the words, and what has them is read here.
    read = [(_text_member(row[0], key), *row[1:]) for row in found]
    return [row for row in read if row[0] in names]


def _pattern(key: str, name: str) -> str:
    """A regular expression that the text of every JSON object with this name at `key` matches, and few others. Characters
    that JSON may spell in several ways match anything."""
    parts = re.split(r"[^A-Za-z0-9_-]+", name[:_CHARACTERS])
    whole = len(name) <= _CHARACTERS and len(parts) <= _PARTS
    return f'"{key}"\\s*:\\s*"?' + ".*".join(parts[:_PARTS]) + ('["\\s,}]' if whole else "")


def _text_member(text: str | None, key: str) -> str | None:
    """What `->>` gives; `None` also where the text is no JSON object, or the member is an object or a list."""
    try:
        read = json.loads(text or "", parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return None
    value = read.get(key) if isinstance(read, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None
