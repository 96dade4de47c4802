"""The database as the reader's parts see it: rows, one read-only transaction each, and whether anything changed."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TypeVar

from sqlalchemy import Connection, DateTime, Engine, Select, String, and_, literal, or_, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from otel_cmb.config import safe_url
from otel_cmb.dialects import SQLITE, timestamp
from otel_cmb.errors import CMBError, ConfigurationError, DatabaseUnavailableError, SchemaError
from otel_cmb.faults import Fault, classify
from otel_cmb.reader.records import Record, maker
from otel_cmb.reader.reflection import Schema
from otel_cmb.reader.values import as_moment
from otel_cmb.transactions import begin_read

__all__ = ["EVENTS", "NODES", "RUNS", "Source", "UnreadableJSONError", "reading"]

EVENTS, RUNS, NODES = "execution_events", "workflow_runs", "dag_nodes"
INTERNAL_TYPES = ("node_started", "node_completed")
"""The application's own bookkeeping rows, left out of a history by its own query."""

R = TypeVar("R", bound=Record)


class UnreadableJSONError(Exception):
    """The server cannot take a JSON value apart (an escaped NUL, a lone surrogate): the rows are then read whole."""


@contextmanager
def reading(engine: Engine, where: str) -> Iterator[Connection]:
    """A connection in a transaction that only reads; the driver's errors become ours."""
    try:
        with engine.connect() as connection:
            begin_read(connection)
            try:
                yield connection
            finally:
                connection.rollback()
    except CMBError:
        raise
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        state = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
        if isinstance(error, DBAPIError) and state.startswith("22"):  # data exception
            raise UnreadableJSONError from error
        verdict = classify(error)
        if verdict.fault is Fault.MISCONFIGURED:
            raise SchemaError(f"{where} cannot be read: {verdict.reason}") from error
        raise DatabaseUnavailableError(f"{where} cannot be read now: {verdict.reason}; try again") from error


class Source:
    """Where rows come from. May be used from several threads."""

    def __init__(self, engine: Engine, schema: Schema, url: str) -> None:
        self._engine = engine
        self.schema = schema
        self.where = safe_url(url)
        self._gate: Connection | None = None
        self._gate_lock = threading.Lock()
        self._file = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        """Which file this is, SQLite only."""
        if self.schema.dialect != SQLITE:
            return None
        try:
            found = os.stat(self._engine.url.database or "")
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def replaced(self) -> bool:
        return self._identity() != self._file

    def close(self) -> None:
        with self._gate_lock:
            if self._gate is not None:
                self._gate.close()
                self._gate = None
        self._engine.dispose()

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, statement: Select[Any]) -> list[dict[str, Any]]:
        with reading(self._engine, self.where) as connection:
            try:
                return [dict(row) for row in connection.execute(statement).mappings()]
            except UnicodeEncodeError:  # asked for a text with a lone surrogate, e.g. of a command line: no database has one
                return []

    def records(self, kind: type[R], statement: Select[Any]) -> list[R]:
        with reading(self._engine, self.where) as connection:
            try:
                result = connection.execute(statement)
            except UnicodeEncodeError:
                return []
            make_one = maker(kind, tuple(result.keys()))
            return [make_one(row) for row in result]

    def select(self, table: str) -> Select[Any]:
        return select(*self.schema.read(table))

    def events(self, run_id: str, after: str | None, limit: int | None) -> Select[Any]:
        """Whole rows of a run's events in execution order, from behind the cursor `after`."""
        events = self.schema[EVENTS]
        statement = self.select(EVENTS).where(events.c.run_id == run_id, *self.after(after))
        return statement.order_by(events.c.execution_order, events.c.id).limit(limit)

    def after(self, cursor: str | None) -> list[Any]:
        """Conditions for what comes behind the cursor `order:id`; the order alone need not be unique."""
        if cursor is None:
            return []
        fits = re.fullmatch(r"(-?[0-9]{1,18}):(.*)", cursor, re.DOTALL)
        if fits is None:
            raise ConfigurationError(f"after: found {cursor[:80]!r}, expected the cursor of an event (order:id)")
        order, key = int(fits[1]), fits[2]
        events = self.schema[EVENTS]
        return [events.c.execution_order >= order, or_(events.c.execution_order > order, events.c.id > key)]

    def equal(self, table: str, **wanted: str | None) -> list[Any]:
        return [self.schema.column(table, name) == value for name, value in wanted.items() if value is not None]

    def not_internal(self) -> Any:
        subtype, kind = self.schema.column(EVENTS, "event_subtype"), self.schema[EVENTS].c.event_type
        return and_(or_(subtype.is_(None), subtype != "start"), kind.not_in(INTERNAL_TYPES))

    # -- times --------------------------------------------------------------------------------------------------------

    def moment(self, table: str, column: str, moment: datetime) -> Any:
        """The time as a value to compare the column with; naive means UTC."""
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        kind = "timestamptz" if self.schema[table].c[column].info["zone"] else "timestamp"
        value = timestamp(self.schema.dialect, kind, round(aware.timestamp() * 1_000_000) * 1000)
        return literal(value, String() if self.schema.dialect == SQLITE else DateTime(timezone=kind == "timestamptz"))

    def same_moment(self, table: str, column: str, raw: str) -> Any:
        """A value that was read from this very column, in the form `raw` it had there."""
        if self.schema.dialect == SQLITE:
            return literal(raw, String())
        moment = as_moment(raw)
        if moment is None:
            raise ConfigurationError(f"cursor: found {raw[:80]!r}, expected the cursor of a run")
        return self.moment(table, column, moment)

    # -- changes ------------------------------------------------------------------------------------------------------

    def version(self) -> str | None:
        statement = "PRAGMA data_version" if self.schema.dialect == SQLITE else "SELECT txid_current_snapshot()::text"
        with self._gate_lock:
            try:
                if self._gate is None:
                    self._gate = self._engine.connect()  # data_version is relative to one connection
                answer = self._gate.exec_driver_sql(statement).scalar()
                self._gate.rollback()
            except SQLAlchemyError:
                gate, self._gate = self._gate, None
                if gate is not None:
                    gate.invalidate()
                    gate.close()
                return None
        return None if answer is None else str(answer)
