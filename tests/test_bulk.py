"""Many rows at once: as they were, or a clear error."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import postgres

from otel_cmb import binding, bulk, config, dialects, engines, transactions
from otel_cmb.faults import Fault, classify


def settings_for(url, **values):
    return config.load(database_url=url, **values)


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
