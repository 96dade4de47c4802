"""What is there: the tables and columns of the database that is read, looked at once, and its SQL for JSON.

An attached database belongs to the application and may lack tables or columns, or keep JSON as text. Columns are
declared without a type, so that values arrive as the driver gives them and `records` decides what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Numeric,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    inspect,
    literal,
    null,
)
from sqlalchemy.types import JSON, NullType

from otel_cmb.errors import SchemaError
from otel_cmb.schema import APPLICATION_TABLES
from otel_cmb.schema import metadata as owned

__all__ = ["Schema", "reflect"]

NEEDED = {"workflow_runs": ("id",), "execution_events": ("id", "run_id", "event_type", "execution_order")}
"""Without these there is nothing to read; everything else may be missing."""


OWN_TABLES = ("otel_cmb_resources", "otel_cmb_history", "otel_cmb_contents")
"""What otel-cmb keeps apart in an owned database and a reader puts back."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables there are. `json_in_sql`: JSON columns can be asked in SQL (SQLite, PostgreSQL's json and jsonb)."""

    dialect: str
    tables: dict[str, Table]
    json_in_sql: bool

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tables

    def has(self, table: str, *columns: str) -> bool:
        return table in self.tables and all(column in self.tables[table].c for column in columns)

    def column(self, table: str, name: str) -> ColumnElement[Any]:
        """The column, or a NULL of its type where there is none."""
        found: ColumnElement[Any] | None = self.tables[table].c.get(name)
        if found is not None:
            return found
        kind = owned.tables[table].c[name].type
        return cast(null(), Text() if isinstance(kind, JSON) else kind).label(name)

    def read(self, table: str) -> list[ColumnElement[Any]]:
        """All columns, to be read: JSON as text, so that no driver takes it apart in its own way."""
        return [
            cast(column, Text).label(column.name) if column.info["json"] and self.dialect != "sqlite" else column
            for column in self.tables[table].c
        ]

    def json_text(self, table: str, column: str, *path: str) -> ColumnElement[Any]:
        """The text at `path` of a JSON column; NULL where there is none or the column holds no JSON object."""
        source: ColumnElement[Any] | None = self.tables[table].c.get(column)
        if source is None:
            return cast(null(), Text)
        if self.dialect == "sqlite":
            where = "$" + "".join(f'."{key}"' for key in path)
            return case((func.json_valid(source) == 1, cast(func.json_extract(source, where), Text)))
        for key in path[:-1]:
            source = source.op("->")(literal(key, Text))
        return source.op("->>")(literal(path[-1], Text))

    def json_number(self, table: str, column: str, key: str) -> ColumnElement[Any]:
        """The number at `key` of a JSON column; NULL for anything that is not a number."""
        source: ColumnElement[Any] | None = self.tables[table].c.get(column)
        if source is None:
            return cast(null(), Numeric)
        if self.dialect == "sqlite":
            where = f'$."{key}"'
            kind = case((func.json_valid(source) == 1, func.json_type(source, where)))
            return case((kind.in_(("integer", "real")), func.json_extract(source, where)))
        typeof = func.jsonb_typeof if source.info["jsonb"] else func.json_typeof
        is_number = typeof(source.op("->")(literal(key, Text))) == "number"
        return case((is_number, cast(source.op("->>")(literal(key, Text)), Numeric)))

    def says(self, table: str, column: str, text: str) -> ColumnElement[bool]:
        """The column, read as text, contains `text`: a sieve for values that are then looked at in Python."""
        return and_(self.column(table, column).is_not(None),
                    cast(self.column(table, column), Text).contains(text, autoescape=True))


def _column(described: Any) -> Column[Any]:
    kind = described["type"]
    return Column(
        described["name"], NullType(),
        info={
            "json": isinstance(kind, JSON), "jsonb": type(kind).__name__.upper() == "JSONB",
            "zone": bool(getattr(kind, "timezone", False)),
        },
    )


def reflect(connection: Connection, schema: str | None, where: str) -> Schema:
    """Look at the database once. Raises :class:`SchemaError` naming all that is missing of :data:`NEEDED`."""
    inspector = inspect(connection)
    present = set(inspector.get_table_names(schema)) | set(inspector.get_view_names(schema))
    metadata = MetaData(schema=schema)
    tables = {
        name: Table(name, metadata, *[_column(item) for item in inspector.get_columns(name, schema)])
        for name in (*(table.name for table in APPLICATION_TABLES), *OWN_TABLES) if name in present
    }
    missing = [
        f"{table}.{column}" if table in tables else table
        for table, columns in NEEDED.items() for column in columns
        if table not in tables or column not in tables[table].c
    ]
    if missing:
        raise SchemaError(
            f"{where} has no {', '.join(dict.fromkeys(missing))}: it is not a database of runs and events. "
            "Name the right one with --database-url, or make the tables with `otel-cmb db init`."
        )
    asked = [tables["execution_events"].c[name] for name in ("inputs", "meta") if name in tables["execution_events"].c]
    sqlite = connection.dialect.name == "sqlite"
    return Schema(connection.dialect.name, tables, sqlite or all(column.info["json"] for column in asked))
