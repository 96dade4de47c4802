"""Transactions and locks of runs: SQLite and PostgreSQL with both drivers."""

from __future__ import annotations

import random
import threading
import time

import pytest
import sqlalchemy as sa
from support import postgres

from otel_cmb import dialects, transactions
from otel_cmb.faults import Fault, classify


def test_a_transaction_is_all_or_nothing_and_begins_when_told(no_leaks, any_url, engine_of):
    engine = engine_of(any_url)
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        connection.commit()
        transactions.begin_write(connection)
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        connection.rollback()
        transactions.begin_write(connection)
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        connection.commit()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM t").scalars().all() == [2]
    engine.dispose()


def test_a_reading_transaction_sees_one_state(any_url, engine_of):
    engine = engine_of(any_url)
    with engine.connect() as writer, engine.connect() as reader:
        if writer.dialect.name == "sqlite":
            writer.exec_driver_sql("PRAGMA journal_mode=WAL")
        transactions.begin_write(writer)
        writer.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        writer.commit()
        transactions.begin_read(reader)
        assert reader.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
        transactions.begin_write(writer)
        writer.exec_driver_sql("INSERT INTO t VALUES (1)")
        writer.commit()
        assert reader.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
        reader.rollback()
        transactions.begin_read(reader)
        assert reader.exec_driver_sql("SELECT count(*) FROM t").scalar() == 1
        reader.rollback()


def test_a_second_writer_of_the_file_is_an_outage(sqlite_url, engine_of):
    engine = engine_of(sqlite_url, busy_timeout=0.1)
    with engine.connect() as first, engine.connect() as second:
        transactions.begin_write(first)
        start = time.monotonic()
        with pytest.raises(sa.exc.OperationalError) as caught:
            transactions.begin_write(second)
        assert 0.05 < time.monotonic() - start < 4.5, "less than the driver would wait by itself"
        assert classify(caught.value).fault is Fault.OUTAGE
        first.rollback()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_servers_default_isolation_does_not_matter(postgresql_url, engine_of, isolation):
    """Under a snapshot taken before the lock was granted, two writers would read the same highest order."""
    plain = sa.create_engine(postgresql_url)
    with plain.begin() as connection:
        database = sa.make_url(postgresql_url).database
        connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET default_transaction_isolation TO \'{isolation}\'')
    plain.dispose()
    with engine_of(postgresql_url).connect() as connection:
        transactions.begin_write(connection)
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"


def test_locks_are_found_out(any_url, engine_of):
    with engine_of(any_url).connect() as connection:
        assert transactions.lock_mode(connection) == ("none" if connection.dialect.name == "sqlite" else "advisory")


@pytest.mark.parametrize("pretence", ["RAISE EXCEPTION 'not supported' USING ERRCODE = '0A000'", "NULL"])
def test_an_engine_without_working_advisory_locks_is_found_out(postgresql_url, engine_of, pretence):
    """Some engines refuse the function, others accept it and lock nothing."""
    engine = engine_of(postgresql_url)
    with engine.connect() as connection:
        transactions.begin_write(connection)
        for statement in (
            "CREATE SCHEMA pretend",
            f"""CREATE FUNCTION pretend.pg_advisory_xact_lock_shared(bigint) RETURNS void LANGUAGE plpgsql AS
                $$BEGIN {pretence}; END$$""",
            "SET LOCAL search_path TO pretend, pg_catalog",
        ):
            connection.exec_driver_sql(statement)
        assert transactions.lock_mode(connection) == "rows"
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1  # the probe did not break the transaction


@pytest.mark.parametrize("mode", ["advisory", "rows"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_writers_of_one_run_take_turns(no_leaks, postgresql_url, engine_of, mode, driver, monkeypatch):
    """Eight writers, each numbering rows of several runs by MAX+1: no number twice, no deadlock."""
    if mode == "rows":
        monkeypatch.setenv(transactions.ROW_LOCK_ENV, "rows")
    engine = engine_of(postgres.text(sa.make_url(postgresql_url), driver), connect_timeout=30)
    runs = [f"run-{number}" for number in range(4)]
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql("CREATE TABLE workflow_runs (id TEXT PRIMARY KEY)")
        connection.exec_driver_sql("CREATE TABLE numbers (run_id TEXT REFERENCES workflow_runs, n INTEGER)")
        insert = dialects.insert_sql("postgresql", '"workflow_runs"', ["id"])
        connection.exec_driver_sql(insert, [(run,) for run in runs])
        connection.commit()
    errors = []

    def write(seed):
        chance = random.Random(seed)
        try:
            for _ in range(10):
                chosen = chance.sample(runs, 3)
                with engine.connect() as connection:
                    transactions.begin_write(connection)
                    transactions.lock_runs(connection, chosen)
                    assert transactions.lock_mode(connection) == mode
                    for run in chosen:
                        connection.exec_driver_sql(
                            "INSERT INTO numbers SELECT %s, coalesce(max(n), 0) + 1 FROM numbers WHERE run_id = %s",
                            (run, run),
                        )
                    connection.commit()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT count(*), count(DISTINCT (run_id, n)) FROM numbers").one()
    assert tuple(rows) == (240, 240)
    engine.dispose()


def test_the_row_lock_lets_the_application_insert(postgresql_url, engine_of, monkeypatch):
    monkeypatch.setenv(transactions.ROW_LOCK_ENV, "rows")
    engine = engine_of(postgresql_url)
    with engine.connect() as ours, engine.connect() as theirs:
        transactions.begin_write(ours)
        ours.exec_driver_sql("CREATE TABLE workflow_runs (id TEXT PRIMARY KEY)")
        ours.exec_driver_sql("CREATE TABLE events (run_id TEXT REFERENCES workflow_runs)")
        ours.exec_driver_sql("INSERT INTO workflow_runs VALUES ('a')")
        ours.commit()
        transactions.begin_write(ours)
        transactions.lock_runs(ours, ["a", "no-such-run"])
        transactions.begin_write(theirs)
        theirs.exec_driver_sql("INSERT INTO events VALUES ('a')")
        theirs.commit()


def test_a_lock_that_is_not_given_is_an_outage(postgresql_url, engine_of, monkeypatch):
    monkeypatch.setattr(transactions, "LOCK_WAIT", "100ms")
    engine = engine_of(postgresql_url)
    with engine.connect() as first, engine.connect() as second:
        transactions.begin_write(first)
        transactions.lock_runs(first, ["a"])
        transactions.begin_write(second)
        transactions.lock_runs(second, ["b"])
        with pytest.raises(sa.exc.DBAPIError) as caught:
            transactions.lock_runs(second, ["a"])
        assert classify(caught.value).fault is Fault.OUTAGE
