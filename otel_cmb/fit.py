"""Do the application's tables fit? What is needed of them, as data, and the comparison. Pure: reflection is in
:mod:`otel_cmb.binding`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from otel_cmb.dialects import SQLITE, identifier
from otel_cmb.schema import metadata

__all__ = [
    "REQUIRED_TABLES", "ColumnInfo", "Mismatch", "TableInfo", "UniqueInfo", "compare", "compare_numbers", "create_sql",
    "neutral_values", "unfilled", "unfilled_mismatch",
]

TEXT, JSON, TIME, NUMBER = ("text",), ("json", "jsonb", "text"), ("timestamp", "timestamptz"), ("integer",)

REQUIRED_TABLES = ("sessions", "workflow_runs", "dag_nodes", "execution_events")

# The columns without which an event cannot be stored or its run not be checked: accepted kinds, and the shortest text
# column that holds what is written there. Any other column of the owned schema is used where it exists.
REQUIRED: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "sessions": {"id": (TEXT, 0)},
    "workflow_runs": {"id": (TEXT, 0), "session_id": (TEXT, 0), "started_at": (TIME, 0)},
    "dag_nodes": {"id": (TEXT, 0), "run_id": (TEXT, 0)},
    "execution_events": {
        "id": (TEXT, 36), "run_id": (TEXT, 0), "node_id": (TEXT, 0), "session_id": (TEXT, 0),
        "parent_event_id": (TEXT, 36), "event_type": (TEXT, 18), "event_subtype": (TEXT, 9), "agent_name": (TEXT, 0),
        "timestamp": (TIME, 0), "started_at": (TIME, 0), "completed_at": (TIME, 0), "inputs": (JSON, 0),
        "outputs": (JSON, 0), "meta": (JSON, 0), "execution_order": (NUMBER, 0), "status": (TEXT, 9),
    },
    "workflow_steps": {"id": (TEXT, 0), "run_id": (TEXT, 0)},
    "files": {"id": (TEXT + NUMBER, 36), "run_id": (TEXT, 0), "event_id": (TEXT, 36), "file_path": (TEXT, 0)},
    "messages": {"id": (TEXT + NUMBER, 36), "run_id": (TEXT, 0), "event_id": (TEXT, 36), "content": (TEXT, 0)},
}

# Kinds of the other columns that are written where they exist.
OPTIONAL_KINDS: dict[str, tuple[str, ...]] = {
    "step_id": TEXT, "event_id": TEXT, "node_id": TEXT, "session_id": TEXT, "agent_role": TEXT, "duration_ms": NUMBER,
    "error_message": TEXT, "depth": NUMBER, "meta": JSON, "inputs": JSON, "outputs": JSON, "tokens": NUMBER,
    "size_bytes": NUMBER, "created_at": TIME, "last_active_at": TIME, "timestamp": TIME, "started_at": TIME,
    "completed_at": TIME, "status": TEXT, "order_index": NUMBER, "step_number": NUMBER,
}

KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sessions": (("id",),), "workflow_runs": (("id",),), "execution_events": (("id",),), "workflow_steps": (("id",),),
    "dag_nodes": (("id",), ("run_id", "id")),
}

# Neutral values of columns that the application's code fills and its DDL does not (cmbagent/database/models.py).
NEUTRAL: dict[str, dict[str, Any]] = {
    "workflow_runs": {"checkpoint_frequency_minutes": 10, "is_branch": False, "branch_depth": 0, "status": "draft"},
    "sessions": {"status": "active"},
    "workflow_steps": {"goal": "", "progress_percentage": 0, "status": "pending"},
    "dag_nodes": {"depth": 0, "order_index": 0, "status": "pending", "node_type": "agent"},
    "dag_edges": {"dependency_type": "sequential"},
    "execution_events": {"depth": 0, "status": "completed"},
    "files": {"is_final_output": False, "file_type": "other"},
    "messages": {"recipient": "", "sender": ""},
}

# What the store writes beside the columns of the owned schema, where the application has them.
_ALSO_WRITTEN: dict[str, frozenset[str]] = {"files": frozenset({"session_id"})}


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column. `kind`: text, json, jsonb, timestamp, timestamptz, integer, smallint, float, numeric, boolean, uuid,
    any (SQLite without a declared type) or the type's own name. `length`: characters of a text column, `None` if
    unbounded. `default`: the database fills the column when it is left out."""

    name: str
    kind: str
    length: int | None
    nullable: bool
    default: bool


@dataclass(frozen=True)
class UniqueInfo:
    """A unique index, or a unique constraint."""

    name: str
    columns: tuple[str, ...]
    constraint: bool


@dataclass(frozen=True)
class TableInfo:
    """One table as it is. `qualified` is the quoted name for SQL text. Not `writable`: `reason` says what stands in the
    way of an INSERT. Not `copy`: PostgreSQL takes no COPY into it (row-level security)."""

    name: str
    qualified: str
    columns: dict[str, ColumnInfo]
    key: tuple[str, ...]
    writable: bool = True
    reason: str = ""
    copy: bool = True
    numbers: tuple[UniqueInfo, ...] = ()
    """Of an application's `execution_events`: what allows an order number once only."""

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def refused(self, reason: str) -> TableInfo:
        """The same table, not to be written."""
        return replace(self, writable=False, reason=reason)


@dataclass(frozen=True)
class Mismatch:
    """What was found, what is needed, and the SQL that would mend it."""

    table: str
    column: str
    found: str
    needed: str
    sql: str

    def __str__(self) -> str:
        where = f"{self.table}.{self.column}" if self.column else self.table
        return f"{where}: found {self.found}, needed {self.needed}; would be mended by: {self.sql}"


_NEEDED_SQL = {TEXT: "VARCHAR(255)", JSON: "JSON", TIME: "TIMESTAMP", NUMBER: "INTEGER"}


def compare(table: TableInfo, dialect: str) -> list[Mismatch]:
    """Everything of the table that does not fit."""
    mismatches = []
    for name, (kinds, length) in REQUIRED.get(table.name, {}).items():
        column = table.columns.get(name)
        needed = _spell(kinds, length)
        if column is None:
            type_sql = f"VARCHAR({length})" if kinds is TEXT and length else _NEEDED_SQL.get(kinds, "VARCHAR(36)")
            sql = f"ALTER TABLE {table.qualified} ADD COLUMN {identifier(name)} {type_sql}"
            mismatches.append(Mismatch(table.name, name, "no such column", needed, sql))
        else:
            mismatches += _compare_column(table, column, kinds, length, dialect)
    for name, kinds in OPTIONAL_KINDS.items():
        column = table.columns.get(name)
        ours = metadata.tables.get(table.name)
        if column is not None and ours is not None and name in ours.c and name not in REQUIRED.get(table.name, {}):
            mismatches += _compare_column(table, column, kinds, 0, dialect)
    accepted = KEYS.get(table.name)
    if accepted and all(set(table.key) != set(key) for key in accepted):
        wanted = " or ".join(f"({', '.join(key)})" for key in accepted)
        found = f"primary key ({', '.join(table.key)})" if table.key else "no primary key"
        sql = f"ALTER TABLE {table.qualified} ADD PRIMARY KEY ({', '.join(accepted[0])})"
        mismatches.append(Mismatch(table.name, "", found, f"primary key {wanted}", _alter(dialect, table, sql)))
    return mismatches


def _compare_column(
    table: TableInfo, column: ColumnInfo, kinds: tuple[str, ...], length: int, dialect: str
) -> list[Mismatch]:
    needed = _spell(kinds, length)
    if dialect == SQLITE:  # a declared type converts what it can, a declared length is not enforced
        fits = column.kind in {*kinds, "any"} or (column.kind == "text" and kinds is TIME)
        if not fits:
            return [Mismatch(table.name, column.name, _spell_found(column), needed, _alter(dialect, table, ""))]
        return []
    target = f"VARCHAR({length})" if length else _NEEDED_SQL.get(kinds, "VARCHAR(36)")
    name = identifier(column.name)
    alter = f"ALTER TABLE {table.qualified} ALTER COLUMN {name} TYPE {target}"
    if column.kind not in kinds:
        return [Mismatch(table.name, column.name, _spell_found(column), needed, f"{alter} USING {name}::{target}")]
    if column.kind == "text" and column.length is not None and column.length < length:
        return [Mismatch(table.name, column.name, _spell_found(column), needed, alter)]
    return []


def _alter(dialect: str, table: TableInfo, sql: str) -> str:
    return f"a new {table.name} table, copied (SQLite cannot alter this in place)" if dialect == SQLITE else sql


def create_sql(name: str) -> str:
    """The least table of that name that would do."""
    columns = ", ".join(
        f"{identifier(column)} {_NEEDED_SQL.get(kinds, 'VARCHAR(36)')}{' PRIMARY KEY' if column == 'id' else ''}"
        for column, (kinds, _) in REQUIRED[name].items()
    )
    return f"CREATE TABLE {identifier(name)} ({columns})"


def _spell(kinds: tuple[str, ...], length: int) -> str:
    text = " or ".join(kinds)
    return f"{text} of at least {length} characters" if length and "text" in kinds else text


def _spell_found(column: ColumnInfo) -> str:
    return f"{column.kind}({column.length})" if column.length is not None else column.kind


def unfilled(table: TableInfo) -> list[str]:
    """NOT NULL columns without a default that nobody fills: they refuse what would write the table, nothing else."""
    ours = metadata.tables.get(table.name)
    filled = set(ours.c.keys() if ours is not None else ()) | set(NEUTRAL.get(table.name, {}))
    filled |= _ALSO_WRITTEN.get(table.name, frozenset())
    return [
        column.name for column in table.columns.values()
        if not column.nullable and not column.default and column.name not in filled
    ]


def unfilled_mismatch(table: TableInfo, name: str, dialect: str) -> Mismatch:
    """What is to be said about one of the :func:`unfilled` columns."""
    alter = f"ALTER TABLE {table.qualified} ALTER COLUMN {identifier(name)} DROP NOT NULL"
    return Mismatch(
        table.name, name, "NOT NULL without a default and unknown to otel-cmb", "a default, or NULL allowed",
        _alter(dialect, table, alter))


def compare_numbers(events: TableInfo, node_key: tuple[str, ...], dialect: str) -> list[Mismatch]:
    """Order numbers begin anew in each run: an index that allows a number once must not reach beyond one run. `node_key`:
    the key of the nodes, which are of one run where it is `id` alone."""
    of_one_run = {"id", "run_id"} | ({"node_id"} if node_key == ("id",) else set())
    mismatches = []
    for unique in events.numbers:
        if of_one_run.isdisjoint(unique.columns):
            name = identifier(unique.name)
            drop = f"DROP INDEX {name}"
            if unique.constraint:
                drop = _alter(dialect, events, f"ALTER TABLE {events.qualified} DROP CONSTRAINT {name}")
            elif dialect != SQLITE:
                drop = f"DROP INDEX {events.qualified.rpartition('.')[0]}.{name}"
            mismatches.append(Mismatch(
                events.name, "execution_order", f"unique by ({', '.join(unique.columns)})",
                "numbers that begin anew in each run: unique by (run_id, execution_order), or not at all", drop))
    return mismatches


def neutral_values(table: TableInfo) -> dict[str, Any]:
    """Values for the NOT NULL columns of an application's table that its code fills and its DDL does not."""
    values = {}
    for name, value in NEUTRAL.get(table.name, {}).items():
        column = table.columns.get(name)
        if column is not None and not column.nullable and not column.default:
            values[name] = int(value) if column.kind in {"integer", "smallint"} else value
    return values
