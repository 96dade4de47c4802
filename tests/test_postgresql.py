"""Whole ways into PostgreSQL (and SQLite): many writers, outages, drivers, time zones, other people's rules."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support import application_schema, pgbouncer, postgres
from support.application_schema import Shape
from support.crowd import together

from otel_cmb import binding, config, engines, faults, pipeline, transactions
from otel_cmb.compat.cmbagent import EventCaptureManager
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.workflow import Workflow


@pytest.fixture(autouse=True)
def _fresh_pipelines():
    yield
    pipeline.forget_pipelines()


def rows_of(url, sql):
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.text(sql))]
    engine.dispose()
    return found


# -- many writers -------------------------------------------------------------------------------------------------

WRITER = """
import sys, time, uuid
from otel_cmb import config, pipeline
from otel_cmb.event import Span, Stamp
url, state, shared, own, seed = sys.argv[1:]
door = pipeline.get_pipeline(config.load(database_url=url, state_dir=state, on_missing_run="create", batch_size=16,
                                         shutdown_timeout=60))
start = time.time_ns()
for number in range(16):
    trace = uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}/{number}").hex
    run = shared if number % 2 else own
    spans = [
        Span(trace, f"{index + 1:016x}", f"tool {index}", start + number * 1000 + index, start + number * 1000 + 500,
             parent_span_id=f"{(index + 1) // 2:016x}" if index else None, stamp=Stamp(run_id=run),
             attributes={"cmb.event.type": "tool_call", "cmb.agent.name": f"agent {index}",
                         "cmb.inputs": '{"tool_name": "t%d", "arguments": {}}' % index})
        for index in range(7)
    ]
    for part in (spans[4:], spans[1:4], spans[:1], spans[2:5]):  # children first, some twice
        door.accept(part)
    if number % 10 == 0:
        door.flush(60)
assert door.flush(120), door.stats()
stats = door.stats()
assert not stats.parked and not stats.lost, stats
"""


@pytest.mark.parametrize("locks", ["advisory", "rows"])
def test_eight_processes_on_one_run_and_on_many(database_url, tmp_path, locks, monkeypatch):
    """Rows, orders and links are counted: none missing, none twice, none wrong; and nobody deadlocks."""
    if locks == "rows":
        if database_url.startswith("sqlite"):
            pytest.skip("SQLite has one writer anyway")
        monkeypatch.setenv(transactions.ROW_LOCK_ENV, "rows")
    shared = str(uuid.uuid4())
    together(WRITER, [(database_url, tmp_path / f"state-{number}", shared, uuid.uuid4(), number) for number in range(8)])
    events = rows_of(database_url, "SELECT id, run_id, parent_event_id, execution_order, depth FROM execution_events")
    assert len(events) == 8 * 16 * 7
    assert len({(run, order) for _, run, _, order, _ in events}) == len(events)
    for run in {run for _, run, _, _, _ in events}:
        orders = sorted(order for _, its, _, order, _ in events if its == run)
        assert orders == list(range(orders[0], orders[0] + len(orders)))
    found = {id_: (parent, order, depth) for id_, _, parent, order, depth in events}
    for seed in range(8):
        for number in range(16):
            trace = uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}/{number}").hex
            ids = [event_id(trace, f"{index + 1:016x}") for index in range(7)]
            for index, id_ in enumerate(ids):
                parent, order, depth = found[id_]
                assert parent == (ids[(index + 1) // 2 - 1] if index else None)
                assert depth == (index + 1).bit_length() - 1
                assert not index or found[parent][1] < order


# -- drivers, outages ---------------------------------------------------------------------------------------------


def spans(count, run, start=None):
    start = start or time.time_ns()
    trace = uuid.uuid4().hex
    return [
        Span(trace, f"{number + 1:016x}", "t", start + number, start + number + 1000, stamp=Stamp(run_id=run),
             attributes={"cmb.event.type": "tool_call", "cmb.agent.name": f"a{number}",
                         "cmb.inputs": f'{{"tool_name": "t", "arguments": {{"n": {number}}}}}'})
        for number in range(count)
    ]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_both_drivers_store_the_same(postgresql_url, state_dir, driver):
    url = postgres.text(sa.make_url(postgresql_url), driver)
    door = pipeline.get_pipeline(config.load(database_url=url, state_dir=str(state_dir), on_missing_run="create"))
    ticket = door.accept(spans(300, "r"))
    assert ticket.wait(30).committed == 300
    counts = "SELECT count(*), count(DISTINCT execution_order), sum(depth) FROM execution_events"
    found = rows_of(postgresql_url, counts)
    assert found == [(300, 300, 0)]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("way", ["cut", "freeze"])
def test_an_outage_in_the_midst_loses_nothing(cuttable_postgresql, postgresql_server, state_dir, driver, way):
    url, proxy = cuttable_postgresql
    settings = config.load(
        database_url=postgres.text(sa.make_url(url), driver), state_dir=str(state_dir), on_missing_run="create",
        retry_max=0.2, connect_timeout=2)
    door = pipeline.get_pipeline(settings)
    assert door.accept(spans(10, "r")).wait(30).committed == 10

    def outage():
        time.sleep(0.02)
        getattr(proxy, way)()
        time.sleep(0.7)
        proxy.restore()

    thread = threading.Thread(target=outage)
    thread.start()
    for _ in range(20):
        door.accept(spans(50, "r"))
        time.sleep(0.005)
    thread.join()
    assert door.flush(60), door.stats()
    stats = door.stats()
    assert (stats.committed, stats.parked, stats.lost) == (1010, {}, {})
    direct = postgresql_server.url.set(database=sa.make_url(url).database)
    assert rows_of(direct, "SELECT count(*), count(DISTINCT execution_order) FROM execution_events") == [(1010, 1010)]


def test_a_server_that_restarts_loses_nothing(private_postgresql, state_dir):
    url = postgres.text(private_postgresql.url)
    door = pipeline.get_pipeline(
        config.load(database_url=url, state_dir=str(state_dir), on_missing_run="create", retry_max=0.2))
    assert door.accept(spans(10, "r")).wait(30).committed == 10
    private_postgresql.stop()
    ticket = door.accept(spans(40, "r"))
    assert ticket.wait(0.5).pending == 40
    private_postgresql.start()
    assert door.flush(30)
    assert rows_of(url, "SELECT count(*) FROM execution_events") == [(50,)]


# -- the application's database ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoned", [False, True])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_servers_time_zone_shifts_no_event(postgresql_url, state_dir, driver, zoned):
    app = application_schema.make(postgresql_url, Shape(timezone=zoned))
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    with app.engine.begin() as connection:
        database = sa.make_url(postgresql_url).database
        connection.execute(sa.text(f"ALTER DATABASE \"{database}\" SET timezone TO 'America/New_York'"))
    app.engine.dispose()
    start = 1_766_000_000_123_456_789
    url = postgres.text(sa.make_url(postgresql_url), driver)
    door = pipeline.get_pipeline(config.load(database_url=url, state_dir=str(state_dir)))
    assert door.accept(spans(20, run_id, start)).wait(30).committed == 20
    row = app.rows("execution_events", "execution_order")[0]
    expected = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=start // 1000)
    if not zoned:
        expected = expected.replace(tzinfo=None)
    assert row["started_at"] == row["timestamp"] == expected
    app.engine.dispose()


def test_jsonb_columns_take_and_give_values(postgresql_url):
    app = application_schema.make(postgresql_url, Shape(json="jsonb"))
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    app.add_node(run_id, session_id, "step_1")
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        captor.set_context(node_id="step_1")
        call = captor.capture_agent_call("a", "x\0y", metadata={"model": "m"})
        captor.flush()
        captor.capture_agent_response("a", "z", call, {"tokens": 3})
        captor.close()
    (row,) = app.rows("execution_events")
    assert (row["outputs"], row["meta"]["tokens"], row["meta"]["model"]) == ({"response": "z"}, 3, "m")
    assert row["node_id"] is not None
    app.engine.dispose()


@pytest.fixture
def role(postgresql_server, postgresql_url):
    """A user without any rights, and the database's URL for it."""
    name = f"writer_{os.getpid()}"
    postgresql_server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden-word'")
    yield name, postgres.text(sa.make_url(postgresql_url).set(username=name, password="hidden-word"))
    pipeline.forget_pipelines()
    postgresql_server.execute(f"DROP OWNED BY {name}", database=sa.make_url(postgresql_url).database)
    postgresql_server.execute(f"DROP ROLE {name}")


def test_under_row_level_security_what_is_allowed_arrives(postgresql_url, state_dir, role):
    """Runs of others do not exist for us; an event the policy refuses is parked alone."""
    name, url = role
    app = application_schema.make(postgresql_url)
    session_id = app.add_session()
    mine, other = app.add_run(session_id, agent="mine"), app.add_run(session_id, agent="other")
    with app.engine.begin() as connection:
        for statement in (
            f"GRANT SELECT, INSERT, UPDATE ON execution_events TO {name}",
            f"GRANT SELECT ON sessions, workflow_runs, dag_nodes TO {name}",
            "ALTER TABLE workflow_runs ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE execution_events ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY mine ON workflow_runs TO {name} USING (agent = 'mine')",
            f"CREATE POLICY mine ON execution_events TO {name} USING (true) WITH CHECK (agent_name <> 'a3')",
        ):
            connection.execute(sa.text(statement))
    door = pipeline.get_pipeline(config.load(database_url=url, state_dir=str(state_dir), park_retry=0))
    outcome = door.accept(spans(40, mine)).wait(30)
    assert (outcome.committed, outcome.parked) == (39, {"rejected_by_database": 1})
    outcome = door.accept(spans(2, other)).wait(30)
    assert outcome.parked == {"run_not_found": 2}
    assert len(app.rows("execution_events")) == 39
    pipeline.forget_pipelines()
    app.engine.dispose()


def test_an_alias_two_runs_share_and_names_of_other_runs_do_not_mislead(postgresql_url, state_dir):
    """A node's name is looked up within the run: the same name of another run is another node."""
    app = application_schema.make(postgresql_url)
    session_id = app.add_session()
    runs = [app.add_run(session_id, task_id=f"task_{number}") for number in range(2)]
    nodes = [app.add_node(run, session_id, "step_1", hashed=bool(number)) for number, run in enumerate(runs)]
    door = pipeline.get_pipeline(config.load(database_url=postgresql_url, state_dir=str(state_dir)))
    for number in range(2):
        batch = spans(1, f"task_{number}")
        batch[0].stamp.node_id = "step_1"
        assert door.accept(batch).wait(30).committed == 1
    found = {row["run_id"]: row["node_id"] for row in app.rows("execution_events")}
    assert found == dict(zip(runs, nodes, strict=True))
    app.engine.dispose()


# -- pgbouncer ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_behind_pgbouncer_in_transaction_mode(postgresql_server, tmp_path, driver):
    """Eight writers share two server connections: no state of a session is assumed."""
    with postgresql_server.database() as direct, pgbouncer.pooled(direct) as url:
        text = postgres.text(url, driver)
        doors = [
            pipeline.get_pipeline(config.load(
                database_url=text, state_dir=str(tmp_path / f"state-{number}"), on_missing_run="create"))
            for number in range(8)
        ]
        for _ in range(5):
            for number, door in enumerate(doors):
                door.accept(spans(20, "shared" if number % 2 else f"own-{number}"))
        assert all(door.flush(60) for door in doors)
        assert [door.stats().committed for door in doors] == [100] * 8
        counts = "SELECT count(*), count(DISTINCT (run_id, execution_order)) FROM execution_events"
        assert rows_of(direct, counts) == [(800, 800)]
        pipeline.forget_pipelines()


def test_a_run_two_writers_make_is_locked_by_the_second_too(postgresql_url, monkeypatch):
    """Without advisory locks a run that does not exist has no row to lock; the writer that comes second to make it must
    hold it as well, or a third would number beside it."""
    monkeypatch.setenv(transactions.ROW_LOCK_ENV, "rows")
    monkeypatch.setattr(transactions, "LOCK_WAIT", "5s")
    settings = config.load(database_url=postgresql_url)
    engine = engines.make_engine(settings)
    first, second, third = (engine.connect() for _ in range(3))
    workflow = Workflow(binding.bind(first, settings))
    for connection in (first, second):
        transactions.begin_write(connection)
        transactions.lock_runs(connection, ["r"], workflow.table("workflow_runs"))
    workflow.create_run(first, "r", session=None, started_ns=1)
    thread = threading.Thread(target=lambda: workflow.create_run(second, "r", session=None, started_ns=1))
    thread.start()
    time.sleep(0.2)
    first.commit()
    thread.join(60)
    monkeypatch.setattr(transactions, "LOCK_WAIT", "200ms")
    transactions.begin_write(third)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        transactions.lock_runs(third, ["r"], workflow.table("workflow_runs"))
    assert faults.classify(caught.value).fault is faults.Fault.OUTAGE
    for connection in (first, second, third):
        connection.close()
    engine.dispose()
