"""New rows into a table, the fastest way there is (numbers: `tests/benchmarks/pg_paths.py`, docs/databases.md).

PostgreSQL with psycopg 3: COPY straight into the table, twice as fast as INSERT in a pipeline and a third of its CPU.
Everything else: `executemany`. Both are one statement of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from otel_cmb.dialects import POSTGRESQL, identifier, insert_sql, update_sql
from otel_cmb.fit import TableInfo
from otel_cmb.transactions import lock_mode

__all__ = ["COPY_FROM", "ManyRows", "inserting"]

COPY_FROM = 4
"""Fewest rows for which COPY is worth its two extra messages."""

JSON_FROM = 2
"""Fewest rows that are worth a statement which reads them from JSON."""


@contextmanager
def inserting(
    connection: Connection, table: TableInfo, columns: Sequence[str], rows: Iterable[tuple[Any, ...]], count: int
) -> Iterator[None]:
    """Insert `count` rows that are not there yet, tuples in the order of `columns`; they are in when the block is over.

    PostgreSQL works while Python does: it takes in rows while `rows`, an iterator, makes the next ones, and checks the keys
    of all of them during the block. So neither may use the connection. Raises what the driver raises, as SQLAlchemy's
    errors, on entry or at the end; a row that is there already is a `DUPLICATE`
    (:func:`otel_cmb.faults.classify`) and spoils the transaction like any other error.
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


class ManyRows:
    """One statement for rows that may be there already, or that change: few columns, few rows.

    `%s` is where the statement takes them: `insert` and `update` say how. On PostgreSQL they go as one JSON text; a row by
    itself costs it 40 us, to parse and plan the statement anew, and psycopg 15.
    """

    def __init__(self, dialect: str, one: str, many: str, columns: Mapping[str, str]):
        self._one = one
        self._many = many if dialect == POSTGRESQL else ""
        self._columns = tuple(columns)

    @classmethod
    def insert(
        cls, dialect: str, table: str, columns: Mapping[str, str], conflict: Sequence[str], change: Sequence[str]
    ) -> ManyRows:
        """See :func:`otel_cmb.dialects.insert_sql`. `columns`: names and PostgreSQL's types. No two rows have one key."""
        one = insert_sql(dialect, table, tuple(columns), conflict=conflict, update=change)
        begin, _, _ = one.partition(" VALUES ")
        _, _, end = one.partition(" ON CONFLICT ")
        return cls(dialect, one, f"{begin} SELECT * FROM {_recordset(columns)} ON CONFLICT {end}", columns)

    @classmethod
    def update(cls, dialect: str, table: str, columns: Mapping[str, str], key: str, *, exact: bool) -> ManyRows:
        """See :func:`otel_cmb.dialects.update_sql`; `columns` end with the key. Not `exact`: the columns may be of similar
        types, for which PostgreSQL would not use its index; then the rows go one by one."""
        changing = [name for name in columns if name != key]
        changes = ", ".join(f"{identifier(name)} = made.{identifier(name)}" for name in changing)
        return cls(
            dialect if exact else "", update_sql(dialect, table, changing, (key,)),
            f"UPDATE {table} AS old SET {changes} FROM {_recordset(columns)} "
            f"WHERE old.{identifier(key)} = made.{identifier(key)}", columns)

    def write(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write the rows, tuples in the order of the columns."""
        if len(rows) >= JSON_FROM and self._many and lock_mode(connection) == "advisory":
            with suppress(orjson.JSONEncodeError):  # what JSON cannot say the driver refuses in its own words
                made = orjson.dumps([dict(zip(self._columns, row, strict=True)) for row in rows], default=_hex).decode()
                connection.exec_driver_sql(self._many, (made,))
                return
        if rows:
            connection.exec_driver_sql(self._one, list(rows))


def _recordset(columns: Mapping[str, str]) -> str:
    kinds = ", ".join(f"{identifier(name)} {kind}" for name, kind in columns.items())
    return f"json_to_recordset(CAST(%s AS json)) AS made({kinds})"


def _hex(value: Any) -> str:
    """Bytes as `bytea` reads them."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    raise TypeError(type(value))


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
