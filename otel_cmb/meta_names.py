"""Rows of an application's that are known by a name in their `meta`: runs by `task_id`, nodes and steps by `id`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from otel_cmb.binding import Binding
from otel_cmb.dialects import SQLITE, list_param, mark
from otel_cmb.faults import Fault, classify

__all__ = ["json_member", "named_in_meta"]

_MANY = 16
"""Names from which on it is cheaper to read every `meta` that has the key."""


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
    rows = _Rows(connection, binding, table, columns, run_id, order)
    if binding.dialect == SQLITE or binding.tables[table].columns["meta"].kind == "jsonb":
        return rows.by_member(key, names)
    if run_id is None:  # of a run there are few, and it is not worth a savepoint
        try:
            with connection.begin_nested():
                return rows.by_member(key, names)
        except DBAPIError as error:
            if classify(error).fault is not Fault.POISON:
                raise  # else one of all rows holds no JSON, or JSON with U+0000: that fails the whole statement
    return rows.by_words(key, names)


class _Rows:
    """The statements."""

    def __init__(
        self, connection: Connection, binding: Binding, table: str, columns: str, run_id: str | None, order: str
    ):
        self._connection, self._dialect, self._columns, self._order = connection, binding.dialect, columns, order
        self._info = binding.tables[table]
        self._of_run = "" if run_id is None else f"run_id = {mark(binding.dialect)} AND "
        self._values = () if run_id is None else (run_id,)

    def _where(self, text: str, condition: str, value: Any) -> list[tuple[Any, ...]]:
        found = self._connection.exec_driver_sql(
            f"SELECT {text}, {self._columns} FROM {self._info.qualified} WHERE {self._of_run}{condition} "
            f"ORDER BY {self._order}", (*self._values, value))
        return [tuple(row) for row in found]

    def by_member(self, key: str, names: Collection[str]) -> list[tuple[Any, ...]]:
        """The database reads every `meta`."""
        if self._dialect == SQLITE:
            member = json_member(self._dialect, "meta", key)
            return self._where(member, f"{member} IN (SELECT value FROM json_each(?))", list_param(self._dialect, names))
        column = "meta"
        if self._info.columns["meta"].kind == "text":
            column = "(CASE WHEN meta ~ '^\\s*[{]' THEN CAST(meta AS json) END)"
        member = json_member(self._dialect, column, key)
        return self._where(member, f"{member} = ANY(%s)", list_param(self._dialect, names))

    def by_words(self, key: str, names: Collection[str]) -> list[tuple[Any, ...]]:
        """The database only looks where the words are; what has them is read here."""
        text = "CAST(meta AS text)"
        condition = f"EXISTS (SELECT 1 FROM unnest(CAST(%s AS text[])) AS word WHERE strpos({text}, word) > 0)"
        words = [key] if len(names) >= _MANY else sorted({_word(name) or key for name in names})
        read = [(_text_member(row[0], key), *row[1:]) for row in self._where(text, condition, words)]
        return [row for row in read if row[0] in names]


def _word(name: str) -> str:
    """The longest part of it that JSON spells in one way only."""
    return max(re.findall(r"[A-Za-z0-9_-]+", name), key=len, default="")


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
