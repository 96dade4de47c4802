"""The reader, on real SQLite files and a real PostgreSQL, owned and attached."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import looking
import pytest
import sqlalchemy as sa
from looking import RUN, SESSION, START, Writer, add_run, conversation, example, many
from support import application_schema
from support.application_schema import Shape

from otel_cmb import schema
from otel_cmb.errors import ConfigurationError, DatabaseURLError, RunNotFoundError, SchemaError
from otel_cmb.reader import Reader, open_reader
from otel_cmb.reader.reader import grow
from otel_cmb.reader.records import Line


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """The writing side of an owned database."""
    engine = sa.create_engine(database_url)
    looking.make_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def reader(engine: sa.Engine, database_url: str) -> Iterator[Reader]:
    with open_reader(database_url) as reader:
        yield reader


def run_id(n: int) -> str:
    return str(uuid.UUID(int=n << 64 | 0x8000000000000000))


# -- runs -------------------------------------------------------------------------------------------------------------


def test_runs_come_newest_first_and_those_without_a_start_last(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, run_id(1), started=START)
        add_run(connection, run_id(2), started=None)
        add_run(connection, run_id(3), started=START + timedelta(hours=1))
        add_run(connection, run_id(4), started=START)
        add_run(connection, run_id(5), started=None)
    assert [run.id for run in reader.runs()] == [run_id(n) for n in (3, 4, 1, 5, 2)]
    assert reader.runs()[0].started_at == (START + timedelta(hours=1)).replace(tzinfo=timezone.utc)
    assert reader.runs()[-1].started_at is None


def test_pages_of_runs_show_each_once_whatever_the_ties(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        for n in range(1, 12):
            add_run(connection, run_id(n), started=None if n > 8 else START + timedelta(microseconds=n // 3))
    everything = [run.id for run in reader.runs()]
    seen: list[str] = []
    cursor = None
    while page := reader.runs(limit=2, cursor=cursor):
        seen += [run.id for run in page]
        cursor = page[-1].cursor
    assert seen == everything
    assert len(set(seen)) == 11


def test_runs_are_narrowed(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, run_id(1), status="failed", task_description="Plot 100% of the Spectrum")
        add_run(connection, run_id(2), agent="planner", started=START + timedelta(days=1))
        add_run(connection, run_id(3), status="executing", completed_at=None, started=None)

    def ids(**filters: Any) -> list[str]:
        return [run.id for run in reader.runs(**filters)]

    assert ids(status="failed") == [run_id(1)]
    assert ids(status=["failed", "executing"]) == [run_id(1), run_id(3)]
    assert ids(agent="planner") == [run_id(2)]
    assert ids(text="spectrum") == ids(text="100% OF") == [run_id(1)]
    assert ids(text="100_") == ids(text="nothing of the kind") == []
    assert ids(since=START + timedelta(hours=1)) == [run_id(2)]
    assert ids(until=(START + timedelta(hours=1)).replace(tzinfo=timezone.utc)) == [run_id(1)]
    assert ids(session="another") == []


def test_a_run_knows_what_it_came_to(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        example(connection)
    (run,) = reader.runs()
    assert run.totals is not None
    assert (run.totals.events, run.totals.failures, run.totals.running, run.totals.tokens) == (21, 3, 0, 5595)
    assert run.totals.cost_usd == pytest.approx(0.01616)
    assert (run.duration_ms, run.ended) == (42_000, True)
    assert run.to_dict()["started_at"] == "2026-11-22T09:30:00Z"
    assert run == reader.run(RUN)
    assert reader.run(RUN, totals=False).totals is None


def test_remembered_sums_notice_new_rows(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        writer = example(connection)
    assert reader.run_totals([RUN])[RUN].tokens == 5595
    with engine.begin() as connection:
        writer.connection = connection
        writer.event("llm_call", 43_000, 10, meta={"tokens": 5})
    assert reader.run_totals([RUN])[RUN].tokens == 5600


def test_a_budget_stops_between_runs_and_says_which_were_not_reached(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        for n in range(1, 31):
            add_run(connection, run_id(n))
    found = reader.runs(budget=0.0)
    assert len(found) == 30
    assert [run.totals is not None for run in found] == [True] * 10 + [False] * 20


def test_an_unknown_run_is_told_with_what_is_near(engine: sa.Engine, reader: Reader) -> None:
    with pytest.raises(RunNotFoundError, match="no runs yet"):
        reader.run(RUN)
    with engine.begin() as connection:
        example(connection)
    with pytest.raises(RunNotFoundError, match=f"run {RUN} has it as its task_id"):
        reader.run("task_1768904279349_a64oayyk2")
    with pytest.raises(RunNotFoundError, match=f"near it: {RUN}"):
        reader.run(RUN[:-2] + "ff")
    with pytest.raises(RunNotFoundError, match=f"the newest is {RUN}"):
        reader.run("zz")
    with pytest.raises(ValueError, match="no run ''"):
        reader.run("")


def test_a_run_is_found_by_what_a_person_calls_it(engine: sa.Engine, reader: Reader) -> None:
    with pytest.raises(RunNotFoundError):
        reader.resolve("latest")
    with engine.begin() as connection:
        example(connection)
        add_run(connection, RUN[:8] + run_id(1)[8:], started=None)
    assert reader.resolve() == reader.resolve("latest") == RUN
    assert reader.resolve(RUN) == RUN
    assert reader.resolve(RUN[:12]) == RUN
    assert reader.resolve("task_1768904279349_a64oayyk2") == RUN
    for name in (RUN[:8], "%", "", "task_"):
        with pytest.raises(RunNotFoundError):
            reader.resolve(name)


def test_sessions(engine: sa.Engine, reader: Reader) -> None:
    assert reader.sessions() == []
    with engine.begin() as connection:
        add_run(connection, RUN)
    assert [session.id for session in reader.sessions()] == [SESSION]


# -- events -----------------------------------------------------------------------------------------------------------


def test_a_history_leaves_out_what_is_running_and_internal(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        writer = Writer(connection)
        writer.event("agent_call", 0, None, status="running")
        done = writer.event("tool_call", 1, 5)
        writer.event("node_started", 2, 0)
        writer.event("node_completed", 3, 0)
        bare = writer.event("info", 4, 0, subtype="x")
        connection.execute(
            sa.update(schema.execution_events).where(schema.execution_events.c.id == bare).values(event_subtype=None)
        )
    assert [event.id for event in reader.history(RUN)] == [done, bare]
    assert [event.id for event in reader.history(RUN, event_type="tool_call")] == [done]
    assert len(reader.events(RUN)) == 5


def test_events_are_whole_rows_in_order(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        example(connection)
    events = reader.events(RUN)
    assert [event.execution_order for event in events] == list(range(21))
    code = next(event for event in events if event.event_type == "code_exec")
    assert code.inputs == {"code": looking.CODE}
    assert code.meta["exit_code"] == 1
    assert code.started_at == START.replace(tzinfo=timezone.utc) + timedelta(milliseconds=11_800)
    assert set(code.to_dict()) == {column.name for column in schema.execution_events.c}
    assert reader.event(code.id) == code
    assert reader.event("nope") is None
    assert {event.id for event in events if event.status == "failed"} == {
        event.id for event in reader.events(RUN, status="failed")
    }
    assert {event.agent_name for event in reader.events(RUN, agent="critic")} == {"critic"}


def test_pages_of_events_show_each_once_even_where_orders_repeat(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        writer = Writer(connection)
        for n in range(20):
            writer.event("info", n, 1)
        events = schema.execution_events
        connection.execute(sa.update(events).values(execution_order=events.c.execution_order // 6))
    everything = [event.id for event in reader.events(RUN)]
    for read in (reader.events, reader.history, reader.lines):
        seen: list[str] = []
        after = None
        while page := read(RUN, limit=3, after=after):
            seen += [event.id for event in page]
            after = page[-1].cursor
        assert seen == everything
    with pytest.raises(ConfigurationError, match="cursor of an event"):
        reader.events(RUN, after="1; DROP TABLE")
    with pytest.raises(ConfigurationError, match="cursor of a run"):
        reader.runs(cursor="!")


def test_events_of_a_node_are_those_of_the_newest_run_that_has_it(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        for n, started in ((1, START), (2, START + timedelta(hours=1)), (3, None), (4, START + timedelta(hours=2))):
            add_run(connection, run_id(n), started=started)
            if n < 4:
                connection.execute(sa.insert(schema.dag_nodes).values(
                    run_id=run_id(n), id="step_1", session_id=SESSION, node_type="agent", order_index=0,
                ))
                writer = Writer(connection, run_id(n))
                writer.event("agent_call", 0, 1, node_id="step_1")
                writer.event("agent_call", 1, None, node_id="step_1", status="running")
                writer.event("agent_call", 2, 1)
    assert {event.run_id for event in reader.events_of_node("step_1")} == {run_id(2)}
    assert [event.execution_order for event in reader.events_of_node("step_1")] == [0, 1]
    assert [event.run_id for event in reader.events_of_node("step_1", run_id(3))] == [run_id(3)] * 2
    assert [event.execution_order for event in reader.events_of_node("step_1", include_internal=False)] == [0]
    assert reader.events_of_node("step_1", run_id(4)) == reader.events_of_node("step_9") == []


def test_a_tree_hangs_events_below_their_parents(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        example(connection)
    roots = reader.tree(RUN)
    assert [root.event.event_type for root in roots] == [
        "agent_call", "handoff", "agent_call", "agent_call", "agent_call", "approval_requested",
    ]
    build = roots[2]
    assert [child.event.title for child in build.children] == [
        None, "search_docs", "import numpy as np", None, "pip install matplotlib", "import numpy as np",
    ]
    assert build.children[-1].children[0].event.title == "/work/out/spectrum.png"
    assert build.to_dict()["children"][5]["children"][0]["event_type"] == "file_gen"
    assert [line.id for line in reader.children(build.event.id)] == [child.event.id for child in build.children]
    assert reader.line(build.event.id) == build.event
    assert roots[1].event.title == "planner → engineer"


def line(key: str, parent: str | None) -> Line:
    return Line(key, parent, *[None] * 16)


def test_a_tree_of_strange_parents_still_shows_every_event() -> None:
    lines = [line("a", "b"), line("b", "a"), line("c", "c"), line("d", "gone"), line("e", "a"), line("f", None)]
    roots = grow(lines)

    def count(nodes: list[Any]) -> int:
        return sum(1 + count(node.children) for node in nodes)

    assert count(roots) == 6
    assert "d" in {root.event.id for root in roots}


def test_a_very_deep_tree_is_rendered() -> None:
    depth = 20_000
    (root,) = grow(line(str(n), str(n - 1) if n else None) for n in range(depth))
    plain, levels = root.to_dict(), 1
    while plain["children"]:
        plain, levels = plain["children"][0], levels + 1
    assert levels == depth


def test_conversations_that_are_stored_once_are_read_whole(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        asked = conversation(connection, Writer(connection), 12)
    stored = reader.events(RUN, whole=False)
    assert len(stored[11].inputs["messages"]) < 3
    assert [event.inputs for event in reader.events(RUN)] == [{"messages": messages} for messages in asked]
    assert [event.inputs["messages"] for event in reader.history(RUN)] == asked
    assert [event.inputs["messages"] for event in reader.whole(stored)] == asked
    last = reader.event(stored[11].id)
    assert last is not None
    assert last.inputs == {"messages": asked[11]}
    (span,) = reader.spans(last)
    assert (span["attributes"], span["trace_id"]) == ({"n": 11}, looking.TRACE)
    # A link that somebody deleted: the row is shown as it is.
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM otel_cmb_history WHERE previous IS NULL")
    assert reader.event(stored[11].id) == stored[11]


# -- sums -------------------------------------------------------------------------------------------------------------


def test_totals_by_agent_tool_and_model(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        example(connection)
    totals = reader.totals(RUN)
    agents = {share.name: share for share in totals.agents}
    assert (agents["engineer"].calls, agents["engineer"].tokens) == (1, 4361)
    assert agents["researcher"].failures == 1
    tools = {share.name: share for share in totals.tools}
    assert (tools["code: python"].calls, tools["code: python"].failures) == (2, 1)
    assert tools["search_docs"].duration_ms == 640
    models = {share.name: share for share in totals.models}
    assert (models["gpt-4.1"].calls, models["gpt-4.1"].tokens) == (3, 4662)
    assert sum(share.tokens for share in totals.models) == totals.run.tokens == 5595
    assert [share.name for share in totals.models] == ["gpt-4.1", "gpt-4.1-mini"]


ODD: list[Any] = [
    None, [], "text", 7, {"tokens": "12", "cost_usd": "a lot"}, {"tokens": None}, {"tokens": True, "cost_usd": [1]},
    {"tokens": 3.0, "cost_usd": 0.5, "model": {"name": "x"}}, {"tokens": {"total": 5}}, {"model": 5, "tokens": 4},
    {"otel": "not an object"}, {"otel": {"name": ["chat", 1]}}, {"tokens": -1}, {"tokens": 2**40},
]


def odd_rows(connection: sa.Connection) -> None:
    add_run(connection, RUN)
    writer = Writer(connection)
    for n, meta in enumerate(ODD):
        kind = ("llm_call", "tool_call", "info", "handoff")[n % 4]
        key = writer.event(kind, n, 1, inputs=[None, 3, {"tool_name": 5}][n % 3])
        connection.execute(
            sa.update(schema.execution_events).where(schema.execution_events.c.id == key).values(meta=meta)
        )


def test_odd_values_never_break_a_question_and_numbers_alone_count(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        odd_rows(connection)
    assert [event.meta for event in reader.events(RUN)] == ODD
    totals = reader.totals(RUN)
    assert totals.run.events == len(ODD)
    assert (totals.run.tokens, totals.run.cost_usd) == (2**40 + 6, 0.5)
    assert len(reader.lines(RUN)) == len(reader.tree(RUN)) == len(ODD)


def test_sums_of_huge_numbers_do_not_overflow(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        writer = Writer(connection)
        for tokens in (2**62, 2**62, 2**62, 10**30):
            writer.event("llm_call", 0, 1, meta={"tokens": tokens, "model": "m"})
    assert reader.run_totals([RUN])[RUN].tokens == pytest.approx(10**30)
    assert reader.totals(RUN).models[0].tokens == pytest.approx(10**30)
    assert reader.events(RUN)[3].meta["tokens"] == 10**30


def test_lines_and_sums_are_the_same_asked_in_sql_and_worked_out_here(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        odd_rows(connection)
        example(connection, run_id(9))

    def answers() -> list[str]:
        reader._runs._remembered.clear()
        found = [
            repr((reader.lines(run), reader.totals(run), reader.run_totals([run]))) for run in (RUN, run_id(9))
        ]
        # PostgreSQL gives an object as it was written, with the spaces.
        return [text.replace('"name": "x"', '"name":"x"').replace('"chat", 1', '"chat",1') for text in found]

    asked = answers()
    reader._summary._in_sql = False
    assert answers() == asked


def test_json_that_postgresql_cannot_take_apart_is_read_all_the_same(postgresql_url: str) -> None:
    engine = sa.create_engine(postgresql_url)
    looking.make_schema(engine)
    with engine.begin() as connection:
        add_run(connection, RUN)
        writer = Writer(connection)
        for text in ('{"tool_name": "a\\u0000b"}', '{"tool_name": "\\ud800"}'):
            key = writer.event("tool_call", 0, 1, meta={"tokens": 4})
            connection.exec_driver_sql("UPDATE execution_events SET inputs = %s WHERE id = %s", (text, key))
    engine.dispose()
    with open_reader(postgresql_url) as reader:
        assert [found.title for found in reader.lines(RUN)] == ["a\x00b", "\ud800"]
        assert {share.name: share.calls for share in reader.totals(RUN).tools} == {"a\x00b": 1, "\ud800": 1}
        assert reader.run(RUN).totals.tokens == 8  # type: ignore[union-attr]


# -- attached databases -----------------------------------------------------------------------------------------------

SHAPES = {
    "as it is": Shape(),
    "zones and jsonb": Shape(timezone=True, json="jsonb"),
    "json as text": Shape(json="text"),
    "hardly anything": Shape(
        without_tables=("files", "messages", "workflow_steps", "dag_edges"),
        without_columns={"execution_events": ("agent_role", "duration_ms"), "workflow_runs": ("meta", "model")},
    ),
    "more than known": Shape(extra_columns={"execution_events": {"colour": sa.String(10)}}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_applications_own_tables_are_read_as_they_are(database_url: str, name: str) -> None:
    shape = SHAPES[name]
    if shape.json == "jsonb" and database_url.startswith("sqlite"):
        shape = Shape(timezone=True)
    application = application_schema.make(database_url, shape)
    session = application.add_session()
    run = application.add_run(session, task_id="task_1")
    node = application.add_node(run, session, "step_1")
    with application.engine.begin() as connection:
        meta: Any = {"tokens": 12, "model": "gpt-4.1"}
        inputs: Any = {"tool_name": "search"}
        if shape.json == "text":
            meta, inputs = json.dumps(meta), json.dumps(inputs)
        moment = START.replace(tzinfo=timezone.utc) if shape.timezone else START
        for n in range(3):
            application._insert(
                connection, "execution_events", id=str(uuid.uuid4()), run_id=run, node_id=node, session_id=session,
                event_type="tool_call", event_subtype="complete", execution_order=n, status="completed",
                started_at=moment, timestamp=moment, meta=meta, inputs=inputs, colour="blue",
            )
    before = application.fingerprint()
    with open_reader(database_url) as reader:
        assert reader.runs()[0].totals.tokens == 36  # type: ignore[union-attr]
        assert [event.inputs for event in reader.events_of_node("step_1")] == [{"tool_name": "search"}] * 3
        assert [event.node_id for event in reader.events_of_node("step_1", run)] == [node] * 3
        assert reader.events(run)[0].timestamp == START.replace(tzinfo=timezone.utc)
        assert [found.title for found in reader.lines(run)] == ["search"] * 3
        assert [share.calls for share in reader.totals(run).tools] == [3]
        assert [found.name for found in reader.nodes(run)] == ["step_1"]
        assert reader.files(run) == reader.messages(run) == reader.steps(run) == reader.edges(run) == []
        assert len(reader.tree(run)) == len(reader.history(run)) == 3
        assert reader.token(run) == reader.token(run)
        if "meta" not in shape.without_columns.get("workflow_runs", ()):
            assert reader.resolve("task_1") == run
        if shape.extra_columns:
            assert reader.events(run)[0].to_dict()["colour"] == "blue"
    assert application.fingerprint() == before
    application.engine.dispose()


def test_edges_without_a_run_are_found_by_the_runs_nodes(database_url: str) -> None:
    application = application_schema.make(database_url)
    session = application.add_session()
    run, other = application.add_run(session), application.add_run(session)
    ends = [application.add_node(run, session, name) for name in ("a", "b")]
    others = [application.add_node(other, session, name) for name in ("a", "b")]
    with application.engine.begin() as connection:
        for pair in (ends, others):
            application._insert(
                connection, "dag_edges", from_node_id=pair[0], to_node_id=pair[1], dependency_type="sequential",
            )
    with open_reader(database_url) as reader:
        assert [(edge.from_node_id, edge.to_node_id) for edge in reader.edges(run)] == [tuple(ends)]
        assert {node.id for node in reader.nodes(run)} == {
            hashlib.md5(f"{run}:{name}".encode()).hexdigest() for name in ("a", "b")
        }
    application.engine.dispose()


# -- opening, closing, never writing ----------------------------------------------------------------------------------


def test_a_missing_file_is_an_error_and_stays_missing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseURLError, match=r"there is no file .*none\.db"):
        open_reader(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.glob("none*")) == []


def test_a_database_without_runs_is_an_error_that_names_what_is_missing(database_url: str, tmp_path: Path) -> None:
    if database_url.startswith("sqlite"):
        (tmp_path / "events.db").touch()
    with pytest.raises(SchemaError, match="workflow_runs, execution_events"):
        open_reader(database_url)
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE workflow_runs (id TEXT)")
        connection.exec_driver_sql("CREATE TABLE execution_events (id TEXT, event_type TEXT, execution_order INTEGER)")
    engine.dispose()
    with pytest.raises(SchemaError, match=r"has no execution_events\.run_id: "):
        open_reader(database_url)


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    looking.make_schema(engine)
    with engine.begin() as connection:
        example(connection)
    engine.dispose()
    before = path.read_bytes()
    path.chmod(0o444)
    with open_reader(f"sqlite:///{path}") as reader:
        reader.runs()
        reader.totals(RUN)
        reader.version()
        with pytest.raises(sa.exc.OperationalError, match="readonly"), reader._source._engine.connect() as connection:
            connection.exec_driver_sql("DELETE FROM workflow_runs")
    assert path.read_bytes() == before
    reader.close()


def test_the_first_rows_of_a_long_run_are_found_by_index(tmp_path: Path) -> None:
    """No scan of the events table and no sort of a whole run, whatever is asked for the first rows."""
    url = f"sqlite:///{tmp_path}/events.db"
    engine = sa.create_engine(url)
    looking.make_schema(engine)
    with engine.begin() as connection:
        add_run(connection, RUN)
        many(connection, RUN, 300)
    engine.dispose()
    with open_reader(url) as reader:
        plans: list[str] = []

        @sa.event.listens_for(reader._source._engine, "before_cursor_execute")
        def explain(_connection: Any, cursor: sqlite3.Cursor, statement: str, values: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values))

        reader.events(RUN, limit=200, after="20:")
        reader.history(RUN, limit=200)
        reader.tree(RUN, limit=200)
        reader.runs(limit=200)
        assert plans
        assert [plan for plan in plans if plan.startswith("SCAN execution_events")] == []
        assert [plan for plan in plans if plan == "USE TEMP B-TREE FOR ORDER BY"] == []


# -- changes ----------------------------------------------------------------------------------------------------------


def test_the_version_changes_with_every_commit_and_only_then(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        writer = example(connection)
    first = reader.version()
    assert first is not None
    assert reader.version() == first
    token = reader.token(RUN)
    with engine.begin() as connection:
        writer.connection = connection
        key = writer.event("agent_call", 43_000, None, status="running")
    second = reader.version()
    assert second != first
    assert reader.token(RUN) != token
    token = reader.token(RUN)
    with engine.begin() as connection:
        connection.execute(
            sa.update(schema.execution_events).where(schema.execution_events.c.id == key).values(status="completed")
        )
    assert reader.version() != second
    assert reader.token(RUN) != token


def test_following_a_run_ends_with_the_run(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN, status="executing", completed_at=None)
        writer = Writer(connection)
        writer.event("agent_call", 0, 5)

    def grow_and_end() -> None:
        with engine.begin() as connection:
            writer.connection = connection
            writer.event("tool_call", 10, 5)
        with engine.begin() as connection:
            ended = START + timedelta(days=1)
            connection.execute(sa.update(schema.workflow_runs).values(status="completed", completed_at=ended))

    seen = []
    thread = threading.Timer(0.2, grow_and_end)
    for run, lines in reader.follow(RUN, interval=0.02):
        if not seen:  # on a busy machine the first look takes longer than that
            thread.start()
        seen.append((run.ended, len(lines)))
    thread.join()
    assert seen[0] == (False, 1)
    assert seen[-1] == (True, 2)
    assert len(seen) <= 3


def test_one_reader_serves_several_threads(engine: sa.Engine, reader: Reader) -> None:
    with engine.begin() as connection:
        example(connection)
    found: list[int] = []

    def look() -> None:
        for _ in range(20):
            found.append(len(reader.events(RUN)) + len(reader.lines(RUN)))
            reader.version()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [42] * 80
