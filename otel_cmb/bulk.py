"""New rows into a table, the fastest way there is (numbers: `tests/benchmarks/pg_paths.py`, docs/databases.md).

PostgreSQL with psycopg 3: COPY straight into the table, twice as fast as INSERT in a pipeline and a third of its CPU.
Everything else: `executemany`. Both are one statement of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from otel_cmb.dialects import identifier, insert_sql, lock_mode
from otel_cmb.fit import TableInfo

__all__ = ["COPY_FROM", "insert_rows"]

COPY_FROM = 16
"""Fewest rows for which COPY is worth its two extra messages."""


def insert_rows(
    connection: Connection, table: TableInfo, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows that are not there yet, tuples in the order of `columns`.

    Raises what the driver raises, as SQLAlchemy's errors; a row that is there already is a `DUPLICATE`
    (:func:`otel_cmb.dialects.classify`) and spoils the transaction like any other error.
    """
    if not rows:
        return
    if len(rows) >= COPY_FROM and table.copy and connection.dialect.driver == "psycopg" \
            and lock_mode(connection) == "advisory":  # engines that only speak PostgreSQL have their own idea of COPY
        _copy(connection, table, columns, rows)
    else:
        connection.exec_driver_sql(insert_sql(connection.dialect.name, table.qualified, columns), list(rows))


def _copy(
    connection: Connection, table: TableInfo, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    import psycopg

    # No values are bound in this statement, so a `%` of the schema's name stands single.
    sql = f"COPY {table.qualified.replace('%%', '%')} ({', '.join(map(identifier, columns))}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(sql) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        wrapped = DBAPIError.instance(sql, None, error, psycopg.Error, dialect=connection.dialect)
        raise wrapped from error
