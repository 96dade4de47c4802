"""Engines and their connections: pragmas, forks, connections that are lost, SQLite and PostgreSQL with both drivers."""

from __future__ import annotations

import os
import time

import pytest
import sqlalchemy as sa
from support import postgres

from otel_cmb import engines, transactions
from otel_cmb.errors import DatabaseUnavailableError, DatabaseURLError
from otel_cmb.faults import Fault, classify


def test_read_only_makes_no_file_and_writes_nothing(tmp_path, engine_of):
    url = f"sqlite:///{tmp_path}/events.db"
    with pytest.raises(DatabaseURLError, match="nothing has been recorded"):
        engine_of(url, read_only=True)
    with engine_of(url).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    with engine_of(url, read_only=True).connect() as connection, pytest.raises(sa.exc.OperationalError) as caught:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert classify(caught.value).fault is Fault.MISCONFIGURED


def test_names_of_files_may_be_odd(tmp_path, engine_of):
    directory = tmp_path / "a b%20#ü"
    directory.mkdir()
    url = sa.URL.create("sqlite", database=f"{directory}/events.db").render_as_string()
    with engine_of(url).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert (directory / "events.db").exists()


def test_pragmas_hold_on_every_connection(sqlite_url, engine_of):
    engine = engine_of(sqlite_url, busy_timeout=1.5)
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            values = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("foreign_keys", "busy_timeout", "synchronous")
            }
            assert values == {"foreign_keys": 1, "busy_timeout": 1500, "synchronous": 2}


def test_a_forked_child_uses_no_connection_of_its_parent(any_url, engine_of):
    engine = engine_of(any_url)
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql("CREATE TABLE t (pid INTEGER)")
        connection.commit()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with engine.connect() as connection:
                transactions.begin_write(connection)
                connection.exec_driver_sql("INSERT INTO t VALUES (1)")
                connection.commit()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with engine.connect() as connection:
        transactions.begin_write(connection)
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 2


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_lost_connections_are_outages_and_heal(no_leaks, cuttable_postgresql, engine_of, driver):
    url, proxy = cuttable_postgresql
    engine = engine_of(postgres.text(sa.make_url(url), driver))
    with engines.connect(engine) as connection:
        transactions.begin_write(connection)
        proxy.cut()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql("SELECT 1")
        assert classify(caught.value).fault is Fault.OUTAGE
    with pytest.raises(DatabaseUnavailableError, match="no server answers"):
        engines.connect(engine)
    proxy.restore()
    with engines.connect(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()
    proxy.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("after", [engines.PING_AFTER, 0.0])
def test_a_connection_that_was_lost_while_nobody_used_it_is_not_used(
    no_leaks, postgresql_url, engine_of, driver, after, monkeypatch
):
    """Whether it was used a moment ago or not."""
    monkeypatch.setattr(engines, "PING_AFTER", after)
    engine = engine_of(postgres.text(sa.make_url(postgresql_url), driver))
    pids = []
    for _ in range(2):
        with engine.connect() as connection:
            pids.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
    assert pids[0] == pids[1]
    with engine_of(postgresql_url).connect() as other:
        other.exec_driver_sql("SELECT pg_terminate_backend(%s, 5000)", (pids[0],))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != pids[0]


def test_a_server_that_does_not_answer_is_given_up_in_time(cuttable_postgresql, engine_of):
    url, proxy = cuttable_postgresql
    proxy.freeze()
    start = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="in time"):
        engines.connect(engine_of(url, connect_timeout=2))
    assert time.monotonic() - start < 30
    proxy.restore()
