"""What a database's errors mean: SQLite and PostgreSQL with both drivers."""

from __future__ import annotations

import sqlite3
import threading

import pytest
import sqlalchemy as sa
from support import postgres

from otel_cmb import engines, transactions
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from otel_cmb.faults import Fault, classify

DDL = (
    "CREATE TABLE parent (id VARCHAR(4) PRIMARY KEY)",
    """CREATE TABLE t (id VARCHAR(4) PRIMARY KEY, p VARCHAR(4) REFERENCES parent(id), n INTEGER NOT NULL CHECK (n > 0),
       body JSON)""",
    "INSERT INTO t VALUES ('a', NULL, 1, NULL)",
)


@pytest.fixture
def refused(any_url, engine_of):
    """What a statement with these values is refused with."""
    engine = engine_of(any_url)
    with engine.connect() as connection:
        transactions.begin_write(connection)
        for statement in DDL:
            connection.exec_driver_sql(statement)
        connection.commit()

    def attempt(sql, *values):
        with engine.connect() as connection:
            transactions.begin_write(connection)
            marks = sql if connection.dialect.name == "postgresql" else sql.replace("%s", "?")
            with pytest.raises(Exception) as caught:
                connection.exec_driver_sql(marks, values)
            connection.rollback()
        return classify(caught.value)

    attempt.dialect = engine.dialect.name
    return attempt


@pytest.mark.parametrize(
    ("sql", "values", "fault"),
    [
        ("INSERT INTO t VALUES (%s, NULL, 1, NULL)", ("a",), Fault.DUPLICATE),
        ("INSERT INTO t VALUES (%s, %s, 1, NULL)", ("b", "gone"), Fault.POISON),
        ("INSERT INTO t VALUES (%s, NULL, NULL, NULL)", ("b",), Fault.POISON),
        ("INSERT INTO t VALUES (%s, NULL, %s, NULL)", ("b", -1), Fault.POISON),
        ("INSERT INTO t VALUES (%s, NULL, %s, NULL)", ("b", 2**70), Fault.POISON),
        ("INSERT INTO t VALUES (%s, NULL, 1, NULL)", ("\ud800",), Fault.POISON),
        ("INSERT INTO no_such_table VALUES (%s)", ("b",), Fault.MISCONFIGURED),
        ("INSERT INTO t (id, no_such_column) VALUES (%s, 1)", ("b",), Fault.MISCONFIGURED),
    ],
)
def test_refusals_are_told_apart(refused, sql, values, fault):
    found = refused(sql, *values)
    assert found.fault is fault
    assert "\n" not in found.reason


@pytest.mark.parametrize("value", ["nul\0here", "longer than four"])
def test_values_postgresql_refuses_are_poison_and_not_repeated(refused, value):
    if refused.dialect == "sqlite":
        pytest.skip("SQLite takes them")
    found = refused("INSERT INTO t VALUES (%s, NULL, 1, NULL)", value)
    assert found.fault is Fault.POISON
    assert value not in found.reason


def test_json_that_is_none_is_poison(refused):
    if refused.dialect == "sqlite":
        pytest.skip("SQLite takes it")
    assert refused("INSERT INTO t VALUES ('b', NULL, 1, %s)", "{NaN").fault is Fault.POISON


def test_disk_full_is_an_outage(sqlite_url, engine_of):
    engine = engine_of(sqlite_url)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count=3")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")
    assert classify(caught.value).fault is Fault.OUTAGE
    assert "full" in classify(caught.value).reason


def test_a_damaged_file_is_told_as_such(sqlite_url, engine_of, tmp_path):
    with engine_of(sqlite_url).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    path = tmp_path / "events.db"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (path.stat().st_size - 100))
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        engines.connect(engine_of(sqlite_url))
    assert classify(caught.value).fault is Fault.MISCONFIGURED


def test_a_server_that_restarts_is_an_outage(private_postgresql, engine_of):
    engine = engine_of(postgres.text(private_postgresql.url))
    with engines.connect(engine) as connection:
        connection.exec_driver_sql("SELECT 1")
        private_postgresql.stop()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql("SELECT 1")
        assert classify(caught.value).fault is Fault.OUTAGE
    with pytest.raises(DatabaseUnavailableError):
        engines.connect(engine)
    private_postgresql.start()
    with engines.connect(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_deadlocks_are_outages(postgresql_url, engine_of):
    engine = engine_of(postgresql_url)
    with engine.connect() as first, engine.connect() as second:
        transactions.begin_write(first)
        first.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        first.exec_driver_sql("INSERT INTO t VALUES (1), (2)")
        first.commit()
        transactions.begin_write(first)
        transactions.begin_write(second)
        first.exec_driver_sql("SELECT * FROM t WHERE id = 1 FOR UPDATE")
        second.exec_driver_sql("SELECT * FROM t WHERE id = 2 FOR UPDATE")
        caught = []

        def cross(connection, number):
            try:
                connection.exec_driver_sql(f"SELECT * FROM t WHERE id = {number} FOR UPDATE")
            except sa.exc.DBAPIError as error:
                caught.append(classify(error))
                connection.rollback()

        thread = threading.Thread(target=cross, args=(first, 2))
        thread.start()
        cross(second, 1)
        thread.join(20)
    assert [verdict.fault for verdict in caught] == [Fault.OUTAGE]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (SchemaError("no table"), Fault.MISCONFIGURED), (DatabaseUnavailableError("away"), Fault.OUTAGE),
        (OSError(28, "No space left on device"), Fault.OUTAGE), (OverflowError("int too large"), Fault.POISON),
        (sa.exc.TimeoutError("pool"), Fault.OUTAGE), (KeyError("anything unknown"), Fault.POISON),
    ],
)
def test_other_errors(error, fault):
    assert classify(error).fault is fault


def test_without_result_codes_the_text_decides():
    """Python 3.10 gives no `sqlite_errorcode`."""
    texts = {
        "database is locked": Fault.OUTAGE, "database or disk is full": Fault.OUTAGE, "disk I/O error": Fault.OUTAGE,
        "attempt to write a readonly database": Fault.MISCONFIGURED, "no such table: x": Fault.MISCONFIGURED,
        "table t has no column named x": Fault.MISCONFIGURED, "UNIQUE constraint failed: t.id": Fault.DUPLICATE,
        "FOREIGN KEY constraint failed": Fault.POISON, "string or blob too big": Fault.POISON,
        "Error binding parameter 1: type 'dict' is not supported": Fault.POISON,
    }
    for text, fault in texts.items():
        assert classify(sqlite3.OperationalError(text)).fault is fault, text
