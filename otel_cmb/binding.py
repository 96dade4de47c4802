"""Owned or attached? What tables and columns there are, and whether they fit.

An owned database has our version table and exactly the columns of :mod:`otel_cmb.schema`. An attached one has the
application's tables: they are reflected, checked by :mod:`otel_cmb.fit` and used as they are; nothing is created or
altered there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, inspect, types
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB
from sqlalchemy.engine.reflection import ObjectKind

from otel_cmb import migrations
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import POSTGRESQL, SQLITE, identifier, qualified
from otel_cmb.errors import SchemaError
from otel_cmb.fit import (
    REQUIRED_TABLES,
    ColumnInfo,
    Mismatch,
    TableInfo,
    UniqueInfo,
    compare,
    compare_numbers,
    create_sql,
    neutral_values,
    unfilled,
    unfilled_mismatch,
)
from otel_cmb.schema import APPLICATION_TABLES, OWN_PREFIX, VERSION_TABLE

__all__ = ["Binding", "ColumnInfo", "Examination", "Mismatch", "SchemaMismatchError", "TableInfo", "bind", "examine"]

OLDEST_POSTGRESQL = 14

_WRITES_EVENTS = ("SELECT", "INSERT", "UPDATE")


class SchemaMismatchError(SchemaError):
    """The application's tables do not fit; `mismatches` has all of them."""

    def __init__(self, message: str, mismatches: list[Mismatch]) -> None:
        super().__init__(message)
        self.mismatches = mismatches


@dataclass(frozen=True)
class Binding:
    """What the store and the reader may rely on in one database."""

    owned: bool
    dialect: str
    schema: str | None
    tables: dict[str, TableInfo]
    node_key: str
    """`pair`: nodes are keyed by (run_id, id); `single`: by id alone."""
    fill: dict[str, dict[str, Any]]
    """Per table: neutral values of NOT NULL columns without a default, to be overlaid by what is known."""
    notes: tuple[str, ...] = ()

    def table(self, name: str) -> TableInfo:
        """The table, for writing. Raises :class:`SchemaError` if it is absent or cannot be written."""
        info = self.tables.get(name)
        if info is None:
            raise SchemaError(f"the database has no table {name}; see `otel-cmb db check`")
        if not info.writable:
            raise SchemaError(f"table {name} cannot be written: {info.reason}; see `otel-cmb db check`")
        return info


@dataclass
class Examination:
    """Everything `otel-cmb db check` says."""

    dialect: str
    schema: str | None = None
    server: str = ""
    revision: str | None = None
    empty: bool = False
    in_the_way: tuple[str, ...] = ()
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, TableInfo] = field(default_factory=dict)

    @property
    def owned(self) -> bool:
        return self.revision is not None


def bind(connection: Connection, settings: Settings, *, create: bool = True, read_only: bool = False) -> Binding:
    """What this database is and has.

    `create`: an empty database gets the owned schema, an owned SQLite file of an older revision is upgraded; an older
    PostgreSQL schema is refused, because other hosts may run older programs on it. `read_only` changes nothing and
    asks for no rights to write. Any transaction of the connection is rolled back. Raises :class:`SchemaError` with one
    message for everything that does not fit; errors of the driver pass through.
    """
    found = examine(connection, settings, read_only=read_only)
    connection.rollback()
    if create and not read_only and _may_make(found):
        migrations.upgrade(connection.engine, settings, found.schema)
        found = examine(connection, settings)
        connection.rollback()
    readable = "execution_events" in found.tables and not found.mismatches and found.revision in {None, migrations.HEAD}
    if not (read_only and readable) and (reason := refusal(found, settings)) is not None:
        raise SchemaMismatchError(reason, found.mismatches) if found.mismatches else SchemaError(reason)
    return Binding(
        owned=found.owned, dialect=found.dialect, schema=found.schema, tables=found.tables,
        node_key="pair" if len(found.tables["dag_nodes"].key) == 2 else "single",
        fill={name: neutral_values(table) for name, table in found.tables.items()}, notes=tuple(found.notes),
    )


def _may_make(found: Examination) -> bool:
    if found.empty:
        return True
    return found.owned and found.dialect == SQLITE and found.revision in migrations.KNOWN[:-1]


def refusal(found: Examination, settings: Settings) -> str | None:
    """Why this database cannot be written, in one message for everything that does not fit; `None`: it can."""
    where = safe_url(settings.database_url)
    if found.empty:
        return f"{where} has no tables yet; make them with: otel-cmb db init"
    if found.in_the_way:
        return (
            f"{where} has tables of another program ({', '.join(found.in_the_way)}) but no execution_events; let the "
            "application make its tables first, or use another database or schema"
        )
    if found.revision is not None and found.revision not in migrations.KNOWN:
        return (
            f"{where} has revision {found.revision} of the schema, made by a newer otel-cmb; this one knows "
            f"{migrations.HEAD}: pip install --upgrade otel-cmb"
        )
    if found.owned and found.revision != migrations.HEAD:
        return (
            f"{where} has revision {found.revision} of the schema, this otel-cmb needs {migrations.HEAD}; "
            "upgrade it with: otel-cmb db upgrade"
        )
    if found.mismatches:
        listed = "\n".join(f"  {number}. {item}" for number, item in enumerate(found.mismatches, 1))
        return f"the tables of {where} do not fit ({len(found.mismatches)} found); nothing was changed:\n{listed}"
    return None


# -- what is there ------------------------------------------------------------------------------------------------


def examine(connection: Connection, settings: Settings, *, read_only: bool = False) -> Examination:
    """Look, change nothing. Raises :class:`SchemaError` where looking itself has no sense: a server that is too old, a
    schema that does not exist, an owned schema that is half there."""
    found = Examination(dialect=SQLITE if connection.dialect.name == SQLITE else POSTGRESQL)
    if found.dialect == POSTGRESQL:
        found.server = _check_server(connection)
        found.schema = _find_schema(connection, settings)
    names = migrations.table_names(connection, found.schema)
    found.revision = migrations.current(connection, found.schema)
    known = {table.name for table in APPLICATION_TABLES} | {VERSION_TABLE}
    if "execution_events" not in names:
        found.in_the_way = tuple(sorted(names & known))
        found.empty = not found.in_the_way
        return found
    found.tables = _reflect(connection, found.schema, names & known)
    for name in REQUIRED_TABLES:
        if name not in found.tables:
            found.mismatches.append(Mismatch(name, "", "no such table", "the application's table", create_sql(name)))
    if found.dialect == POSTGRESQL:
        _check_rights(connection, found, read_only=read_only)
    if not found.owned:
        _find_numbers(connection, found)
    for table in list(found.tables.values()):
        _check_fit(table, found, read_only=read_only)
    return found


def _check_fit(table: TableInfo, found: Examination, *, read_only: bool) -> None:
    """Misfits of the tables an event needs refuse the database; another table is left out, or only not written."""
    mismatches = compare(table, found.dialect)
    unknown = [] if found.owned else [unfilled_mismatch(table, name, found.dialect) for name in unfilled(table)]
    if table.name == "execution_events" and not read_only:
        nodes = found.tables.get("dag_nodes")
        mismatches += [*unknown, *compare_numbers(table, () if nodes is None else nodes.key, found.dialect)]
    if mismatches and table.name not in REQUIRED_TABLES:
        del found.tables[table.name]
        found.notes += [f"{table.name} is left out: {item}" for item in mismatches]
        return
    found.mismatches += mismatches
    if unknown and table.writable:
        columns = ", ".join(item.column for item in unknown)
        found.tables[table.name] = table.refused(f"column {columns} is NOT NULL without a default and unknown to otel-cmb")
        if table.name != "execution_events" or read_only:
            found.notes += [f"{table.name} cannot be written: {item}" for item in unknown]


AN_EXPRESSION = "an expression"
"""What stands for a column in an index that has none there."""


def _find_numbers(connection: Connection, found: Examination) -> None:
    """Which unique indexes and constraints an order number is part of."""
    events = found.tables["execution_events"]
    unique = _unique_of_sqlite(connection, events.name) if found.dialect == SQLITE else _unique(connection, found, events.name)
    numbers = tuple(item for item in unique if "execution_order" in item.columns)
    if numbers:
        found.tables[events.name] = replace(events, numbers=numbers)


def _unique_of_sqlite(connection: Connection, table: str) -> list[UniqueInfo]:
    """SQLAlchemy leaves out indexes on expressions, with a warning."""
    rows = connection.exec_driver_sql(
        "SELECT i.name, c.name, i.origin FROM pragma_index_list(?) i JOIN pragma_index_xinfo(i.name) c "
        'WHERE i."unique" AND c.key ORDER BY i.seq, c.seqno', (table,))
    columns: dict[tuple[str, bool], list[str]] = {}
    for name, column, origin in rows:
        columns.setdefault((name, origin != "c"), []).append(column or AN_EXPRESSION)
    return [UniqueInfo(name, tuple(names), constraint=of_table) for (name, of_table), names in columns.items()]


def _unique(connection: Connection, found: Examination, table: str) -> list[UniqueInfo]:
    inspector = inspect(connection)
    indexes = [item for item in inspector.get_indexes(table, found.schema) if item["unique"]]
    constraints = inspector.get_unique_constraints(table, found.schema)
    named = {item["name"] for item in constraints}
    return [
        *(UniqueInfo(str(item["name"]), tuple(name or AN_EXPRESSION for name in item["column_names"]), constraint=False)
          for item in indexes if item["name"] not in named),
        *(UniqueInfo(str(item["name"]), tuple(item["column_names"]), constraint=True) for item in constraints),
    ]


def _check_server(connection: Connection) -> str:
    name = str(connection.exec_driver_sql("SELECT version()").scalar()).partition(" on ")[0]
    plain = re.match(r"PostgreSQL (\d+)(\.\d+)*( |$|beta|rc|devel)", name)  # "PostgreSQL 15.2-YB-..." counts otherwise
    if plain and int(plain[1]) < OLDEST_POSTGRESQL:
        raise SchemaError(f"the server is {name}; otel-cmb needs PostgreSQL {OLDEST_POSTGRESQL} or newer")
    return name


def _find_schema(connection: Connection, settings: Settings) -> str:
    if settings.schema is not None:
        if not connection.exec_driver_sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", (settings.schema,)).scalar():
            raise SchemaError(
                f"schema {settings.schema!r} does not exist in {safe_url(settings.database_url)}; correct the setting "
                f"`schema`, or make it with: otel-cmb db init --schema {settings.schema}"
            )
        return settings.schema
    visible = connection.exec_driver_sql(
        "SELECT coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = to_regclass('execution_events')), current_schema())"
    ).scalar()
    if visible is None:
        raise SchemaError(
            f"the search path of {safe_url(settings.database_url)} names no schema that exists; set `schema`"
        )
    return str(visible)


def _reflect(connection: Connection, schema: str | None, names: Iterable[str]) -> dict[str, TableInfo]:
    wanted = sorted(name for name in names if not name.startswith(OWN_PREFIX))
    inspector = inspect(connection)
    columns = inspector.get_multi_columns(schema, wanted, ObjectKind.ANY)
    keys = inspector.get_multi_pk_constraint(schema, wanted, ObjectKind.ANY)
    tables = {}
    for place, found in columns.items():
        name = place[1]
        constraint = keys.get(place)
        key = tuple(constraint["constrained_columns"]) if constraint else ()
        infos = {item["name"]: _column(item, key, connection.dialect.name) for item in found}
        tables[name] = TableInfo(name, qualified(name, schema), infos, key)
    return tables


def _column(item: Mapping[str, Any], key: tuple[str, ...], dialect: str) -> ColumnInfo:
    kind, length = _kind(item["type"])
    rowid = dialect == SQLITE and key == (item["name"],) and str(item["type"]).upper() == "INTEGER"
    default = item.get("default") is not None or "identity" in item or "computed" in item or rowid
    return ColumnInfo(item["name"], kind, length, bool(item["nullable"]) and item["name"] not in key, default)


_KINDS: tuple[tuple[type[Any], str], ...] = (
    (JSONB, "jsonb"), (types.JSON, "json"), (types.Boolean, "boolean"), (types.Uuid, "uuid"),
    (types.SmallInteger, "smallint"), (types.Integer, "integer"), (types.Float, "float"), (types.Numeric, "numeric"),
    (types.Enum, "enum"), (types.String, "text"), (types.NullType, "any"),
)


def _kind(type_: Any) -> tuple[str, int | None]:
    if isinstance(type_, DOMAIN):
        type_ = type_.data_type
    if isinstance(type_, types.DateTime):
        return ("timestamptz" if type_.timezone else "timestamp"), None
    for cls, kind in _KINDS:
        if isinstance(type_, cls):
            return kind, getattr(type_, "length", None) if kind == "text" else None
    return str(type_).lower(), None


def _check_rights(connection: Connection, found: Examination, *, read_only: bool) -> None:
    user = connection.exec_driver_sql("SELECT current_user").scalar()
    rows = connection.exec_driver_sql(
        "SELECT c.relname, c.relrowsecurity, has_any_column_privilege(c.oid, 'SELECT'), "
        "has_any_column_privilege(c.oid, 'INSERT'), has_any_column_privilege(c.oid, 'UPDATE') "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = ANY(%s)",
        (found.schema, list(found.tables)),
    )
    for name, row_security, select, insert, update in rows:
        table = found.tables[name]
        rights = {"SELECT": select, "INSERT": insert, "UPDATE": update}
        if row_security:
            table = found.tables[name] = replace(table, copy=False)
            found.notes.append(f"{name} is under row-level security: only rows its policies show {user} are seen")
        needed = ("SELECT",) if read_only or name != "execution_events" else _WRITES_EVENTS
        missing = [right for right in needed if not rights[right]]
        if missing and name in REQUIRED_TABLES:
            sql = f"GRANT {', '.join(missing)} ON {table.qualified} TO {identifier(str(user))}"
            found.mismatches.append(
                Mismatch(name, "", f"no right to {' and '.join(missing)}", f"rights of user {user}", sql)
            )
        elif missing:  # an optional table that may not be looked at is one that is not there
            del found.tables[name]
            found.notes.append(f"{name} is left out: user {user} may not read it")
        elif not insert:
            found.tables[name] = table.refused(f"user {user} has no right to INSERT")
    if not connection.exec_driver_sql("SELECT has_schema_privilege(%s, 'USAGE')", (found.schema,)).scalar():
        sql = f"GRANT USAGE ON SCHEMA {identifier(str(found.schema))} TO {identifier(str(user))}"
        found.mismatches.append(Mismatch(str(found.schema), "", "no right to USAGE", "use of the schema", sql))
