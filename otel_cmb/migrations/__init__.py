"""The owned schema: made at once where there is nothing, brought up to date by Alembic from inside the package (no
`alembic.ini` needed) where there is an older one.

Only a database without tables of the application's names is ever touched. The whole upgrade is one transaction on both
dialects, and processes that come at the same time wait for the first.
"""

from __future__ import annotations

import threading
import time

from sqlalchemy import Column, Connection, Engine, MetaData, PrimaryKeyConstraint, String, Table
from sqlalchemy.exc import DBAPIError

from otel_cmb.config import Settings
from otel_cmb.dialects import SQLITE, qualified, schema_identifier
from otel_cmb.errors import SchemaError
from otel_cmb.faults import Fault, classify
from otel_cmb.schema import APPLICATION_TABLES, VERSION_TABLE, metadata
from otel_cmb.transactions import begin_write, lock_mode

__all__ = ["HEAD", "current", "make_schema", "table_names", "upgrade"]

HEAD = "0001"
"""The newest revision, so that checking a database needs no Alembic."""

KNOWN = ("0001",)

ATTEMPTS = 5

_version = Table(  # as Alembic makes it
    VERSION_TABLE, MetaData(), Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"))

_UPGRADE_KEY = 7021951342208138
_alembic_lock = threading.Lock()  # Alembic's `context` and `op` are globals of the process


def table_names(connection: Connection, schema: str | None) -> set[str]:
    """Tables and views of the schema (SQLite: of the file)."""
    if connection.dialect.name == SQLITE:
        rows = connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    else:
        rows = connection.exec_driver_sql(
            "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            (schema,),
        )
    return {row[0] for row in rows}


def current(connection: Connection, schema: str | None = None) -> str | None:
    """The revision of an owned schema; `None` where there is none. Writes nothing.

    Raises :class:`SchemaError` for a version table that does not say exactly one revision, or tables that are missing
    beside it: a schema that was half made or half removed.
    """
    names = table_names(connection, schema)
    if VERSION_TABLE not in names:
        return None
    versions = [row[0] for row in connection.exec_driver_sql(
        f"SELECT version_num FROM {qualified(VERSION_TABLE, schema)}"
    )]
    missing = sorted({table.name for table in APPLICATION_TABLES} - names)
    if len(versions) != 1 or missing:
        raise SchemaError(
            f"the schema made by otel-cmb is incomplete: {VERSION_TABLE} holds {versions or 'no revision'}, missing "
            f"tables: {', '.join(missing) or 'none'}; restore it from a backup, or point otel-cmb at an empty database"
        )
    return str(versions[0])


def upgrade(engine: Engine, settings: Settings, schema: str | None = None) -> str:
    """Bring an empty or older owned schema to :data:`HEAD`; returns the revision found there afterwards.

    Safe to be called by any number of processes at once; does nothing when there is nothing to do. An empty SQLite file
    becomes a WAL file. Raises :class:`SchemaError` where tables of the application's names are in the way.
    """
    with engine.connect() as connection:
        if connection.dialect.name == SQLITE:
            _use_wal(connection, settings.busy_timeout)
        else:
            schema = schema or settings.schema or connection.exec_driver_sql("SELECT current_schema()").scalar()
            connection.rollback()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _upgrade(connection, schema)
                break
            except DBAPIError as error:
                # Without a lock that all engines have, two make the same table: the second finds it made, or waits.
                if connection.invalidated:
                    raise
                connection.rollback()
                if current(connection, schema) == HEAD:
                    break
                if classify(error).fault is not Fault.OUTAGE or attempt == ATTEMPTS:
                    raise
                connection.rollback()
                time.sleep(0.1 * attempt)
        connection.rollback()
        return current(connection, schema) or ""


def make_schema(engine: Engine, schema: str) -> None:
    """`CREATE SCHEMA IF NOT EXISTS` on PostgreSQL, for `otel-cmb db init --schema`."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema_identifier(schema)}")


def _upgrade(connection: Connection, schema: str | None) -> None:
    begin_write(connection)
    if connection.dialect.name != SQLITE:
        if schema:
            connection.exec_driver_sql(f"SET LOCAL search_path TO {schema_identifier(schema)}")
        if lock_mode(connection) == "advisory":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADE_KEY})")
    revision = current(connection, schema)
    if revision == HEAD:
        return
    if revision is not None and revision not in KNOWN:
        raise SchemaError(
            f"the schema has revision {revision}, made by a newer otel-cmb; this one knows up to {HEAD}: "
            "pip install --upgrade otel-cmb"
        )
    in_the_way = {table.name for table in APPLICATION_TABLES} & table_names(connection, schema)
    if revision is None and in_the_way:
        raise SchemaError(
            f"tables not made by otel-cmb are in the way: {', '.join(sorted(in_the_way))}; use an empty database "
            "or another schema, or check whether otel-cmb can use them as they are with `otel-cmb db check`"
        )
    if revision is None:
        _make_at_once(connection)
    else:
        _run_alembic(connection)
    connection.commit()


def _make_at_once(connection: Connection) -> None:
    """What the migrations come to, in an empty database: a new file costs a program neither Alembic's memory nor its time."""
    metadata.create_all(connection, checkfirst=False)
    _version.create(connection, checkfirst=False)
    connection.execute(_version.insert(), {"version_num": HEAD})


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "otel_cmb:migrations")
    config.attributes["connection"] = connection
    with _alembic_lock:
        command.upgrade(config, HEAD)


def _use_wal(connection: Connection, timeout: float) -> None:
    """WAL for a file that holds nothing yet. Switching ignores the busy timeout when another does the same, hence the
    loop."""
    deadline = time.monotonic() + timeout
    while not table_names(connection, None):
        try:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except DBAPIError as error:
            if classify(error).fault is not Fault.OUTAGE or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
