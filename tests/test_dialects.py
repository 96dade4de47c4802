"""URLs, engines, transactions, locks and what errors mean: SQLite and PostgreSQL, both drivers."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import postgres

from otel_cmb import binding, bulk, config, database_url, dialects, engines, transactions
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, DatabaseURLError, SchemaError
from otel_cmb.faults import Fault, classify


def settings_for(url, **values):
    return config.load(database_url=url, **values)


@pytest.fixture
def engine_of():
    made = []

    def make(url, *, read_only=False, **values):
        made.append(engines.make_engine(settings_for(url, **values), read_only=read_only))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture(params=["sqlite", "psycopg", "psycopg2"])
def any_url(request):
    """The three ways to reach a database."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return postgres.text(sa.make_url(request.getfixturevalue("postgresql_url")), request.param)


# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cannot be read"),
        ("postgresql://user:hidden-word@host:port/db", "cannot be read"),
        ("mysql://user:hidden-word@host/db", "supported are sqlite"),
        ("postgresql+asyncpg://user:hidden-word@host/db", "supported are sqlite"),
        ("sqlite+aiosqlite:///file.db", "supported are sqlite"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in-memory"),
        ("sqlite:///file:x.db?uri=true", "plain path"),
        ("sqlite://relative/file.db", "three slashes"),
        ("sqlite:////no/such/directory/x.db", "does not exist"),
        ("sqlite:////dev/null", "not a regular file"),
        ("sqlite:////tmp", "is a directory"),
    ],
)
def test_a_url_that_cannot_work_is_one_sentence(url, words):
    with pytest.raises(DatabaseURLError, match=words) as caught:
        database_url.check_url(settings_for(url))
    assert "hidden-word" not in str(caught.value)
    assert "hidden-word" not in repr(caught.value.__cause__)


def test_a_file_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database")
    with pytest.raises(DatabaseURLError, match="is not a SQLite database"):
        database_url.check_url(settings_for(f"sqlite:///{path}"))
    assert path.read_text() == "these are notes, not a database"


def test_an_empty_file_is_an_empty_database(tmp_path):
    (tmp_path / "new.db").touch()
    assert database_url.check_url(settings_for(f"sqlite:///{tmp_path}/new.db")).database == f"{tmp_path}/new.db"


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/usr/bin/setpriv"), reason="needs root and setpriv")
@pytest.mark.parametrize("place", ["file", "directory"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    path = tmp_path / "events.db"
    if place == "file":
        sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from otel_cmb import config, database_url, errors\n"
        "try: database_url.check_url(config.load(database_url=sys.argv[1]))\n"
        "except errors.DatabaseURLError as error: print(error)"
    )
    preload = "import otel_cmb.database_url, sqlite3, sqlalchemy.dialects.sqlite\n"
    command = [sys.executable, "-c", preload + program, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("cannot be written" if place == "file" else "is not writable") in done.stdout, done.stderr


def test_a_relative_path_is_fixed_where_it_was_said(tmp_path, monkeypatch, engine_of):
    monkeypatch.chdir(tmp_path)
    engine = engine_of("sqlite:///events.db")
    monkeypatch.chdir("/")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert (tmp_path / "events.db").exists()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u@h/d", "postgresql+psycopg"), ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2"),
    ],
)
def test_the_driver_is_chosen(url, driver):
    assert database_url.check_url(settings_for(url)).drivername == driver


def test_without_psycopg_the_older_driver_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert database_url.check_url(settings_for("postgresql://u@h/d")).drivername == "postgresql+psycopg2"


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(DatabaseURLError, match=r"otel-cmb\[postgres\]") as caught:
        database_url.check_url(settings_for("postgresql://u:hidden-word@h/d"))
    assert "hidden-word" not in str(caught.value)


# -- engines and transactions -------------------------------------------------------------------------------------


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


# -- locks --------------------------------------------------------------------------------------------------------


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


# -- SQL ----------------------------------------------------------------------------------------------------------


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


# -- what errors mean ---------------------------------------------------------------------------------------------

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


# -- many rows at once --------------------------------------------------------------------------------------------


@pytest.fixture
def owned(any_url, engine_of):
    """An owned database with a session and a run, its engine and binding."""
    engine = engine_of(any_url)
    with engine.connect() as connection:
        found = binding.bind(connection, settings_for(any_url))
        now = dialects.timestamp(found.dialect, "timestamp", 1_766_000_000_000_000_000)
        transactions.begin_write(connection)
        for table, row in (
            ("sessions", {"id": "s", "name": "s", "created_at": now, "last_active_at": now}),
            ("workflow_runs", {"id": "r", "session_id": "s", "mode": "m", "agent": "a", "model": "m"}),
        ):
            connection.exec_driver_sql(
                dialects.insert_sql(found.dialect, found.tables[table].qualified, list(row)), tuple(row.values())
            )
        connection.commit()
    return engine, found


EVENT = ("id", "run_id", "session_id", "event_type", "timestamp", "meta", "execution_order", "error_message")


def event_rows(dialect, count, start=0, run="r"):
    now = dialects.timestamp(dialect, "timestamp", 1_766_000_000_123_456_000)
    odd = 'tab\t newline\n backslash \\ quote " \\N é 😀'
    return [
        (f"event-{number}", run, "s", "agent_call", now, '{"a": "\\n\\u00e9"}', number, odd if number % 2 else None)
        for number in range(start, start + count)
    ]


@pytest.mark.parametrize("count", [1, bulk.COPY_FROM, 300])
def test_many_rows_arrive_as_they_were(owned, count):
    engine, found = owned
    rows = event_rows(found.dialect, count)
    with engine.connect() as connection:
        transactions.begin_write(connection)
        with bulk.inserting(connection, found.tables["execution_events"], EVENT, iter(rows), count):
            pass
        connection.commit()
        select = "SELECT execution_order, error_message FROM execution_events ORDER BY 1"
        stored = connection.exec_driver_sql(select).all()
        assert [tuple(row) for row in stored] == [(row[6], row[7]) for row in rows]
        kept = connection.execute(sa.select(sa.column("meta", sa.JSON())).select_from(sa.table("execution_events")))
        assert kept.scalars().first() == {"a": "\né"}


def test_a_bad_row_among_many_spoils_all_and_is_told(owned):
    engine, found = owned
    with engine.connect() as connection:
        for rows, fault in (
            (event_rows(found.dialect, 20) + event_rows(found.dialect, 1), Fault.DUPLICATE),
            (event_rows(found.dialect, 20) + event_rows(found.dialect, 1, 30, "no such run"), Fault.POISON),
        ):
            transactions.begin_write(connection)
            with (
                pytest.raises(sa.exc.IntegrityError) as caught,
                bulk.inserting(connection, found.tables["execution_events"], EVENT, rows, len(rows)),
            ):
                pass
            assert classify(caught.value).fault is fault
            connection.rollback()
        assert connection.exec_driver_sql("SELECT count(*) FROM execution_events").scalar() == 0


def test_what_goes_wrong_beside_the_rows_is_told_and_the_connection_goes_on(owned):
    """While rows are made, or while the database checks them; also when the database has something to say too."""
    engine, found = owned
    events = found.tables["execution_events"]

    def failing():
        yield from event_rows(found.dialect, 300)
        raise ZeroDivisionError

    def block(rows, count=300):
        with bulk.inserting(connection, events, EVENT, rows, count):
            raise ZeroDivisionError

    with engine.connect() as connection:
        for rows in (failing(), event_rows(found.dialect, 300)):
            transactions.begin_write(connection)
            with pytest.raises(ZeroDivisionError):
                block(rows)
            connection.rollback()
        transactions.begin_write(connection)
        with pytest.raises((ZeroDivisionError, sa.exc.IntegrityError)):
            block(event_rows(found.dialect, 300, run="no such run"))
        connection.rollback()
        transactions.begin_write(connection)
        with bulk.inserting(connection, events, EVENT, event_rows(found.dialect, 300), 300):
            pass
        connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM execution_events").scalar() == 300


def test_rows_larger_than_every_buffer_are_copied(owned):
    engine, found = owned
    rows = [(*row[:-1], "é" * 500_000) for row in event_rows(found.dialect, 30)]
    with engine.connect() as connection:
        transactions.begin_write(connection)
        with bulk.inserting(connection, found.tables["execution_events"], EVENT, rows, len(rows)):
            pass
        connection.commit()
        lengths = connection.exec_driver_sql("SELECT length(error_message) FROM execution_events").scalars().all()
        assert lengths == [500_000] * 30


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30) | st.lists(
    st.sampled_from(["\\", "\t", "\n", "\r", "\b", "\v", "N", ".", "", "x", "1", "\x1f", "\x7f", "'", '"', "é", "😀"]),
).map("".join)


@pytest.fixture(scope="module")
def hostile(postgresql_databases):
    with postgresql_databases.database() as url:
        engine = engines.make_engine(settings_for(postgres.text(url)))
        with engine.connect() as connection:
            found = binding.bind(connection, settings_for(postgres.text(url)))
            transactions.begin_write(connection)
            connection.exec_driver_sql("CREATE TABLE odd (n INTEGER, a TEXT, b TEXT, c JSON)")
            connection.commit()
            yield connection, replace(found.tables["execution_events"], qualified='"odd"')
        engine.dispose()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS | st.none(), TEXTS | st.none(), TEXTS), min_size=1, max_size=40))
def test_every_text_is_copied_as_it_is(hostile, texts):
    connection, table = hostile
    rows = [(n, a, b, orjson.dumps(c).decode()) for n, (a, b, c) in enumerate(texts)]
    rows += [(n, None, "", "null") for n in range(len(rows), bulk.COPY_FROM)]
    transactions.begin_write(connection)
    with bulk.inserting(connection, table, ("n", "a", "b", "c"), iter(rows), len(rows)):
        pass
    stored = connection.exec_driver_sql("SELECT n, a, b, c::text FROM odd ORDER BY n").all()
    connection.rollback()
    assert [tuple(row) for row in stored] == rows


MANY = {"n": "bigint", "a": "text", "b": "bytea"}
INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(INT64, TEXTS | st.none(), st.binary(max_size=30) | st.none()), max_size=8, unique_by=lambda row: row[0]),
    st.lists(st.tuples(TEXTS | st.none(), st.binary(max_size=30)), min_size=8, max_size=8),
)
def test_rows_that_go_as_one_json_are_those_that_go_one_by_one(hostile, rows, others):
    connection, _ = hostile
    changed = [(*other, row[0]) for row, other in zip(rows, others, strict=False)]
    stored = []
    for shared in (0, 99):  # from how many rows on they share a statement
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk, "JSON_FROM", shared)
            transactions.begin_write(connection)
            connection.exec_driver_sql('CREATE TABLE "many" (n BIGINT PRIMARY KEY, a TEXT, b BYTEA)')
            insert = bulk.ManyRows.insert("postgresql", '"many"', MANY, ("n",), ("a",))
            update = bulk.ManyRows.update("postgresql", '"many"', {"a": "text", "b": "bytea", "n": "bigint"}, "n", exact=True)
            for table in (rows, rows[::2], [(n, a, b) for a, b, n in changed]):  # what is there already keeps its `b`
                insert.write(connection, table)
            update.write(connection, changed[::2])
            stored.append(connection.exec_driver_sql('SELECT n, a, b FROM "many" ORDER BY n').all())
            connection.rollback()
    assert stored[0] == stored[1]
    assert len(stored[0]) == len(rows)


def test_a_number_beyond_json_is_refused_like_any_other_that_is_too_large(hostile):
    connection, _ = hostile
    for number in (2**63, 2**70):
        transactions.begin_write(connection)
        connection.exec_driver_sql('CREATE TABLE "many" (n BIGINT PRIMARY KEY, a TEXT, b BYTEA)')
        with pytest.raises(sa.exc.DBAPIError) as caught:
            bulk.ManyRows.insert("postgresql", '"many"', MANY, ("n",), ("a",)).write(
                connection, [(1, "", b""), (number, "", b"")])
        assert classify(caught.value).fault is Fault.POISON
        connection.rollback()


def test_under_row_level_security_rows_are_inserted_not_copied(postgresql_url, engine_of):
    engine = engine_of(postgresql_url)
    with engine.connect() as connection:
        binding.bind(connection, settings_for(postgresql_url))
        transactions.begin_write(connection)
        connection.exec_driver_sql("ALTER TABLE execution_events ENABLE ROW LEVEL SECURITY")
        connection.commit()
        found = binding.bind(connection, settings_for(postgresql_url))
    assert not found.tables["execution_events"].copy
    assert found.tables["messages"].copy


def test_a_connection_lost_during_copy_is_an_outage(cuttable_postgresql, engine_of):
    url, proxy = cuttable_postgresql
    engine = engine_of(url)
    with engine.connect() as connection:
        found = binding.bind(connection, settings_for(url))
        transactions.begin_write(connection)
        proxy.cut()
        rows = event_rows("postgresql", 5000)
        with (
            pytest.raises(sa.exc.DBAPIError) as caught,
            bulk.inserting(connection, found.tables["execution_events"], EVENT, rows, len(rows)),
        ):
            pass
        assert classify(caught.value).fault is Fault.OUTAGE
        connection.rollback()
    proxy.restore()
    with engines.connect(engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM execution_events").scalar() == 0
