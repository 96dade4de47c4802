"""What deleting in an application's database and in our own have in common: short transactions, and what is old."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from otel_cmb.binding import Binding
from otel_cmb.dialects import SQLITE, in_list, list_param, mark, timestamp
from otel_cmb.faults import Fault, classify
from otel_cmb.transactions import begin_write

__all__ = ["CHUNK", "Deleting"]

CHUNK = 500
"""Events, or traces, of one transaction."""

ATTEMPTS = 5

R = TypeVar("R")


class Deleting:
    """Statements for one database and cutoff."""

    def __init__(self, engine: Engine, binding: Binding, cutoff_ns: int) -> None:
        self._engine, self._binding, self._cutoff_ns = engine, binding, cutoff_ns
        self._dialect, self._mark = binding.dialect, mark(binding.dialect)
        self._tables = {name: table.qualified for name, table in binding.tables.items()}
        self._events = self._tables["execution_events"]

    def count(self, table: str, run_id: str) -> int:
        with self._engine.connect() as connection:
            sql = f"SELECT count(*) FROM {self._tables[table]} WHERE run_id = {self._mark}"
            return int(connection.exec_driver_sql(sql, (run_id,)).scalar() or 0)

    def free_bytes(self) -> int:
        if self._dialect != SQLITE:
            return 0
        with self._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0
            return int(pages * (connection.exec_driver_sql("PRAGMA page_size").scalar() or 0))

    def _delete(
        self, connection: Connection, table: str, column: str, values: Sequence[str], condition: str = "",
    ) -> int:
        if not values:
            return 0
        sql = f"DELETE FROM {table} WHERE {in_list(self._dialect, column)}{condition}"
        return int(connection.exec_driver_sql(sql, (list_param(self._dialect, values),)).rowcount)

    def _cutoff(self, table: str, column: str) -> Any:
        return timestamp(self._dialect, self._binding.tables[table].columns[column].kind, self._cutoff_ns)

    def _transaction(self, work: Callable[[Connection], R]) -> R:
        """One short transaction; tried again when another writer was in the way."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._engine.connect() as connection:
                    begin_write(connection)
                    result = work(connection)
                    connection.commit()
                    return result
            except DBAPIError as error:
                if classify(error).fault is not Fault.OUTAGE or attempt == ATTEMPTS:
                    raise
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")
