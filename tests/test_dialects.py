"""Statements spelt for SQLite and PostgreSQL, both drivers."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
import sqlalchemy as sa

from otel_cmb import dialects, transactions


def test_inserts_updates_and_lists(any_url, engine_of):
    engine = engine_of(any_url)
    dialect = engine.dialect.name
    table = dialects.qualified('odd "name')
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql(f'CREATE TABLE {table} (id TEXT PRIMARY KEY, "odd one" TEXT)')
        insert = dialects.insert_sql(dialect, table, ["id", "odd one"])
        connection.exec_driver_sql(insert, [("a", "1"), ("b", "2")])
        connection.exec_driver_sql(
            dialects.insert_sql(dialect, table, ["id", "odd one"], conflict=["id"]), [("a", "9"), ("c", "3")]
        )
        connection.exec_driver_sql(
            dialects.insert_sql(dialect, table, ["id", "odd one"], conflict=["id"], update=["odd one"]), [("b", "8")]
        )
        connection.exec_driver_sql(dialects.update_sql(dialect, table, ["odd one"]), [("7", "c")])
        where = dialects.in_list(dialect, "id")
        found = connection.exec_driver_sql(
            f"SELECT id, {dialects.identifier('odd one')} FROM {table} WHERE {where} ORDER BY id",
            (dialects.list_param(dialect, ["a", "b", "c", "it's", 'a "quoted" \\ one']),),
        )
        assert [tuple(row) for row in found] == [("a", "1"), ("b", "8"), ("c", "7")]
        many = dialects.list_param(dialect, (str(number) for number in range(100_000)))
        count = f"SELECT count(*) FROM {table} WHERE {where}"
        assert connection.exec_driver_sql(count, (many,)).scalar() == 0
        connection.rollback()


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_the_servers_time_zone_shifts_nothing(any_url, engine_of, zone):
    engine = engine_of(any_url)
    dialect = engine.dialect.name
    ns = 1_766_000_000_123_456_789
    if dialect == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{engine.url.database}" SET timezone TO \'{zone}\'')
        engine.dispose()
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql("CREATE TABLE t (a TIMESTAMP, b TIMESTAMP WITH TIME ZONE)")
        row = (dialects.timestamp(dialect, "timestamp", ns), dialects.timestamp(dialect, "timestamptz", ns))
        connection.exec_driver_sql(dialects.insert_sql(dialect, "t", ["a", "b"]), row)
        naive, aware = connection.exec_driver_sql("SELECT a, b FROM t").one()
        assert dialects.timestamp_ns(naive) == dialects.timestamp_ns(aware) == ns // 1000 * 1000
        typed = connection.execute(sa.select(sa.column("a", sa.TIMESTAMP())).select_from(sa.table("t"))).scalar()
        assert typed == datetime.fromtimestamp(ns // 1000 / 1e6, timezone.utc).replace(tzinfo=None)
        connection.rollback()


def test_pgbouncer_in_transaction_mode_finds_no_session_state(postgresql_url, engine_of):
    """What may be prepared or set lives in one transaction: after it the session is as it was."""
    engine = engine_of(postgresql_url)
    with engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT name, setting FROM pg_settings WHERE name !~ 'transaction'").all()
        connection.rollback()
        for _ in range(12):  # psycopg prepares from the fifth execution on unless told otherwise
            transactions.begin_write(connection)
            transactions.lock_runs(connection, ["a"])
            connection.exec_driver_sql("SELECT %s::text", ("x",))
            connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() == 0
        after = connection.exec_driver_sql("SELECT name, setting FROM pg_settings WHERE name !~ 'transaction'").all()
        assert after == before
