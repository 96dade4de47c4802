"""New rows into a table, the fastest way there is (numbers: `tests/benchmarks/pg_paths.py`, docs/databases.md).

PostgreSQL with psycopg 3: COPY straight into the table, twice as fast as INSERT in a pipeline and a third of its CPU.
Everything else: `executemany`. Both are one statement of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from otel_cmb.dialects import identifier, insert_sql, lock_mode
from otel_cmb.fit import TableInfo

__all__ = ["COPY_FROM", "inserting"]

COPY_FROM = 16
"""Fewest rows for which COPY is worth its two extra messages."""


@contextmanager
def inserting(
    connection: Connection, table: TableInfo, columns: Sequence[str], rows: Iterable[tuple[Any, ...]], count: int
) -> Iterator[None]:
    """Insert `count` rows that are not there yet, tuples in the order of `columns`; they are in when the block is over.

    PostgreSQL works while Python does: it takes in rows while `rows`, an iterator, makes the next ones, and checks the keys
    of all of them during the block. So neither may use the connection. Raises what the driver raises, as SQLAlchemy's
    errors, on entry or at the end; a row that is there already is a `DUPLICATE`
    (:func:`otel_cmb.dialects.classify`) and spoils the transaction like any other error.
    """
    if count >= COPY_FROM and table.copy and connection.dialect.driver == "psycopg" \
            and lock_mode(connection) == "advisory":  # engines that only speak PostgreSQL have their own idea of COPY
        with _copying(connection, table, columns, rows):
            yield
        return
    made = list(rows)
    if made:
        connection.exec_driver_sql(insert_sql(connection.dialect.name, table.qualified, columns), made)
    yield


@contextmanager
def _copying(
    connection: Connection, table: TableInfo, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]
) -> Iterator[None]:
    import psycopg

    from otel_cmb.copying import copying

    # No values are bound in this statement, so a `%` of the schema's name stands single.
    sql = f"COPY {table.qualified.replace('%%', '%')} ({', '.join(map(identifier, columns))}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    try:
        with copying(driver, sql, rows):
            yield
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        wrapped = DBAPIError.instance(sql, None, error, psycopg.Error, dialect=connection.dialect)
        raise wrapped from error
