"""The application's own class, by one changed import: its calls, its database, its queries (SQLite and PostgreSQL)."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
import time
import uuid

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Session
from support import application_schema
from support.application_schema import Shape

from otel_cmb import pipeline
from otel_cmb.compat import cmbagent
from otel_cmb.compat.cmbagent import EventCaptureManager, get_event_captor, set_event_captor
from otel_cmb.errors import ConfigurationError, RunNotFoundError
from otel_cmb.event import event_id
from otel_cmb.processor import CMBSpanProcessor
from otel_cmb.setup import install_processor


@pytest.fixture(autouse=True)
def _fresh_pipelines():
    yield
    pipeline.forget_pipelines()


@pytest.fixture
def application(database_url, request):
    made = []

    def make(shape=None, **options):
        made.append(application_schema.make(database_url, shape, **options))
        return made[-1]

    yield make
    pipeline.forget_pipelines()
    for item in made:
        item.engine.dispose()


@pytest.fixture
def work(application):
    """The application with a session, a run without `started_at` as it makes it, and a node `step_1`."""
    app = application()
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    node_id = app.add_node(run_id, session_id, "step_1")
    return app, session_id, run_id, node_id


@pytest.fixture
def manager(work):
    app, session_id, run_id, _ = work
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        yield captor
        captor.close()


def events(app):
    return app.rows("execution_events", "execution_order")


def test_a_whole_conversation_is_read_back_by_the_application(work, manager):
    app, session_id, run_id, node_id = work
    manager.set_context(node_id="step_1", step_id=app.add_step(run_id, session_id))
    call = manager.capture_agent_call("engineer", "plot it", metadata={"model": "gpt-4.1", "sender": None})
    tool = manager.capture_tool_call("engineer", "search", {"q": "x"}, result={"hits": 0})
    code = manager.capture_code_execution(
        "executor", "1/0", result="boom\nZeroDivisionError", exit_code=1, duration_ms=40)
    good = manager.capture_code_execution("executor", "print(1)", result="1", exit_code=0)
    file = manager.capture_file_generation("executor", "plots/a.png", "plot", size_bytes=0)
    handoff = manager.capture_handoff("engineer", "planner", context={"why": 1}, reason="done")
    message = manager.capture_message("engineer", "planner", "hello " * 400, tokens=12, metadata={"cost_usd": 0.25})
    error = manager.capture_error("planner", "it broke", error_type="ValueError")
    assert manager.capture_agent_response("engineer", "here", call, {"tokens": 30, "cost_usd": 0.5}) is None
    assert manager.flush() is None
    rows = {row["id"]: row for row in events(app)}
    assert set(rows) == {call, tool, code, good, file, handoff, message, error}
    assert all(uuid.UUID(identifier).version == 8 for identifier in rows)
    for row in rows.values():
        assert (row["run_id"], row["session_id"], row["node_id"]) == (run_id, session_id, node_id)
        assert row["step_id"] is not None
        assert row["parent_event_id"] == (None if row["id"] == call else call)
    assert rows[call]["inputs"] == {"message": "plot it", "context": {}}
    assert rows[call]["outputs"] == {"response": "here"}
    assert (rows[call]["event_subtype"], rows[call]["status"]) == ("complete", "completed")
    assert rows[call]["meta"]["model"] == "gpt-4.1"
    assert "sender" not in rows[call]["meta"]
    assert rows[tool]["inputs"] == {"tool_name": "search", "arguments": {"q": "x"}}
    assert rows[tool]["outputs"] == {"result": {"hits": 0}}
    assert (rows[code]["event_subtype"], rows[code]["status"]) == ("error", "failed")
    assert rows[code]["error_message"] == "exit code 1: ZeroDivisionError"
    assert rows[code]["duration_ms"] == 40
    assert rows[code]["meta"]["language"] == "python"
    assert rows[code]["meta"]["exit_code"] == 1
    assert rows[good]["meta"]["exit_code"] == 0
    assert rows[file]["inputs"] == {"file_path": "plots/a.png", "file_type": "plot"}
    assert rows[file]["meta"]["size_bytes"] == 0
    assert rows[handoff]["inputs"] == {"from_agent": "engineer", "to_agent": "planner", "context": {"why": 1}}
    assert rows[handoff]["meta"]["reason"] == "done"
    assert rows[message]["event_subtype"] == "message"
    assert rows[message]["inputs"]["content"] == "hello " * 400
    assert (rows[error]["event_type"], rows[error]["status"]) == ("error", "failed")
    assert rows[error]["error_message"] == "it broke"
    assert rows[error]["meta"]["error_type"] == "ValueError"
    # The application's tree, orders, node summary, files and messages.
    assert app.event_tree(call, session_id)[0] == call
    assert set(app.event_tree(call, session_id)) == set(rows)
    orders = [row["execution_order"] for row in events(app)]
    assert len(set(orders)) == len(orders)
    in_order = [row["id"] for row in events(app) if row["id"] != code]  # `code` began 40 ms before it was captured
    assert in_order == [call, tool, good, file, handoff, message, error]
    summary = app.node_summary(node_id, run_id)
    assert (summary["total_events"], summary["tokens"], summary["cost_usd"], summary["failed"], summary["files"]) == (
        8, 42, 0.75, 2, 1)
    (stored_file,) = app.rows("files")
    assert (stored_file["file_path"], stored_file["event_id"], stored_file["node_id"]) == ("plots/a.png", file, node_id)
    assert stored_file["is_final_output"] is False
    (stored_message,) = app.rows("messages")
    assert (stored_message["content"], stored_message["tokens"], stored_message["event_id"]) == (
        "hello " * 400, 12, message)


def test_what_runs_is_seen_running_and_one_row_is_completed(work, manager):
    app = work[0]
    call = manager.capture_agent_call("engineer", "a long task")
    deadline = time.monotonic() + 60
    while not events(app) and time.monotonic() < deadline:
        time.sleep(0.02)
    (row,) = events(app)
    assert (row["id"], row["event_subtype"], row["status"], row["outputs"]) == (call, "start", "running", None)
    manager.capture_agent_response("engineer", "done", call)
    manager.flush()
    (row,) = events(app)
    assert (row["event_subtype"], row["status"], row["outputs"]) == ("complete", "completed", {"response": "done"})
    assert row["completed_at"] >= row["started_at"]


def test_a_flush_shows_running_calls_and_what_hangs_below_them(work, manager):
    app, session_id, *_ = work
    outer = manager.capture_agent_call("planner", "plan")
    inner = manager.capture_agent_call("engineer", "do")
    manager.flush()
    assert [(row["id"], row["status"], row["parent_event_id"]) for row in events(app)] == [
        (outer, "running", None), (inner, "running", outer)]
    tool = manager.capture_tool_call("engineer", "t", {})
    manager.flush()
    assert app.event_tree(outer, session_id) == [outer, inner, tool]
    manager.capture_agent_response("engineer", "done", inner)
    manager.capture_agent_response("planner", "done", outer)
    manager.flush()
    assert [row["status"] for row in events(app)] == ["completed"] * 3


def test_messages_of_a_live_call_are_stored_once(work, manager):
    """The application numbers its messages itself: completing their event must not add them again."""
    app = work[0]
    call = manager.capture_agent_call("engineer", "x")
    manager.capture_message("a", "b", "hello")
    manager.flush()
    time.sleep(0.3)
    manager.capture_agent_response("engineer", "y", call)
    manager.capture_message("a", "c", "again")
    manager.flush()
    assert [row["content"] for row in app.rows("messages", "id")] == ["hello", "again"]


def test_a_response_without_a_call_is_an_event_of_its_own(work, manager):
    app = work[0]
    manager.capture_agent_response("engineer", "unasked")
    manager.capture_agent_response("engineer", "lost call", event_id=str(uuid.uuid4()))
    manager.flush()
    assert [(row["event_subtype"], row["outputs"]) for row in events(app)] == [
        ("complete", {"response": "unasked"}), ("complete", {"response": "lost call"})]


def test_calls_nest_per_thread(work, manager):
    app = work[0]
    outer = manager.capture_agent_call("outer", "x")
    inner = manager.capture_agent_call("inner", "y")
    assert manager.event_stack == [outer, inner]
    elsewhere = []

    def other_thread():
        elsewhere.append(list(manager.event_stack))
        elsewhere.append(manager.capture_tool_call("other", "t", {}))
        manager.capture_agent_response("inner", "answered on another thread", inner)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    after = manager.capture_tool_call("outer", "t", {})
    manager.capture_agent_response("outer", "z", outer)
    assert manager.event_stack == []
    manager.flush()
    parents = {row["id"]: row["parent_event_id"] for row in events(app)}
    assert elsewhere[0] == []
    assert parents == {outer: None, inner: outer, elsewhere[1]: None, after: outer}


def test_a_call_that_ended_by_an_exception_takes_no_later_events(work, manager):
    app = work[0]
    outer = manager.capture_agent_call("outer", "x")
    lost = manager.capture_agent_call("inner", "raises, and nobody captures a response")
    manager.capture_agent_response("outer", "z", outer)
    assert manager.event_stack == []
    later = manager.capture_tool_call("later", "t", {})
    manager.close()
    rows = {row["id"]: row for row in events(app)}
    assert rows[later]["parent_event_id"] is None
    assert (rows[lost]["status"], rows[lost]["parent_event_id"]) == ("failed", outer)


def test_a_second_manager_may_bring_the_response(work, manager):
    app, session_id, run_id, _ = work
    call = manager.capture_agent_call("engineer", "x")
    with Session(app.engine) as db:
        second = EventCaptureManager(db, run_id, session_id)
        second.capture_agent_response("engineer", "y", event_id=call)
        second.flush()
    (row,) = events(app)
    assert (row["id"], row["outputs"]) == (call, {"response": "y"})


def test_a_missing_run_is_a_value_error(work):
    app, session_id, _, _ = work
    with Session(app.engine) as db:
        with pytest.raises(ValueError, match="task_1768904279349_a64oayyk2"):
            EventCaptureManager(db, "task_1768904279349_a64oayyk2", session_id)
        with pytest.raises(RunNotFoundError):
            EventCaptureManager(db, str(uuid.uuid4()), session_id)


def test_a_run_of_an_uncommitted_transaction_is_missing(work):
    """It may yet be rolled back, and nobody else can refer to it."""
    app, session_id, _, _ = work
    if app.engine.dialect.name == "sqlite":
        pytest.skip("SQLite would make the reader wait for the application's lock")
    with Session(app.engine) as db:
        run_id = str(uuid.uuid4())
        db.execute(sa.insert(app.table("workflow_runs")), {
            "id": run_id, "session_id": session_id, "mode": "m", "agent": "a", "model": "m", "status": "draft",
            "checkpoint_frequency_minutes": 10, "is_branch": False, "branch_depth": 0})
        with pytest.raises(ValueError, match=run_id):
            EventCaptureManager(db, run_id, session_id)
        db.commit()
        EventCaptureManager(db, run_id, session_id).close()


def test_a_run_is_found_by_the_applications_alias(application):
    app = application()
    session_id = app.add_session()
    run_id = app.add_run(session_id, task_id="task_1768904279349_a64oayyk2")
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, "task_1768904279349_a64oayyk2", session_id)
        assert captor.run_id == run_id
        captor.capture_agent_response("a", "b")
        captor.close()
    assert [row["run_id"] for row in events(app)] == [run_id]


def test_the_session_is_the_runs(work):
    app, session_id, run_id, _ = work
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, "unknown")
        captor.capture_agent_response("a", "b")
        captor.close()
    assert [row["session_id"] for row in events(app)] == [session_id]


def test_the_callers_transaction_is_not_used(work):
    """The original committed whatever its caller had open; here a rollback still undoes the caller's own work."""
    app, session_id, run_id, _ = work
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        name = app.table("sessions").c.name
        before = db.execute(sa.select(name)).scalars().all()
        captor.capture_agent_response("a", "b")
        captor.flush()
        db.execute(sa.update(app.table("sessions")), {"name": "changed"})
        captor.capture_agent_response("a", "c")
        db.rollback()
        captor.flush()
        assert db.execute(sa.select(name)).scalars().all() == before
        captor.close()
    assert len(events(app)) == 2


def test_an_open_transaction_of_the_caller_is_no_deadlock(work, monkeypatch):
    """On SQLite the caller's open write keeps everybody out: flush gives up in time, nothing is lost."""
    app, session_id, run_id, _ = work
    monkeypatch.setenv("OTEL_EXPORTER_CMB_EXPORT_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_CMB_BUSY_TIMEOUT", "0.2")
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        db.execute(sa.update(app.table("sessions")), {"name": "changed"})
        started = time.monotonic()
        captor.capture_agent_response("a", "b")
        captor.flush()
        assert time.monotonic() - started < 9, "less than the default"
        db.commit()
        captor.close()
    assert len(events(app)) == 1


def test_disabled_it_does_nothing_at_all():
    captor = EventCaptureManager(None, "test", "test", enabled=False)
    assert captor.capture_agent_call("a", "b") is None
    assert captor.capture_agent_response("a", "b") is None
    assert captor.capture_tool_call("a", "t", {}) is None
    assert captor.capture_error("a", "b") is None
    captor.flush()
    captor.close()
    assert captor.get_performance_stats() == {
        "total_events": 0, "total_capture_time_ms": 0, "avg_capture_time_ms": 0, "enabled": False,
        "current_node_id": None, "current_step_id": None, "execution_order": 0,
    }


def test_closed_it_captures_no_more_and_open_calls_are_failed(work):
    app, session_id, run_id, _ = work
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        captor.capture_agent_call("a", "b")
        captor.close()
        assert not captor.enabled
        assert captor.capture_agent_call("a", "b") is None
    (row,) = events(app)
    assert (row["status"], row["error_message"]) == ("failed", "no response was captured")


def test_statistics(manager):
    manager.set_context(node_id="step_1")
    manager.set_context(step_id="s")
    manager.capture_tool_call("a", "t", {})
    stats = manager.get_performance_stats()
    assert (stats["total_events"], stats["execution_order"], stats["enabled"]) == (1, 1, True)
    assert (stats["current_node_id"], stats["current_step_id"]) == ("step_1", "s")
    assert stats["avg_capture_time_ms"] == stats["total_capture_time_ms"] > 0
    assert (manager.current_node_id, manager.current_step_id) == ("step_1", "s")


def test_an_in_memory_database_is_refused():
    engine = sa.create_engine("sqlite://")
    with Session(engine) as db, pytest.raises(ConfigurationError, match="in-memory"):
        EventCaptureManager(db, "r", "s")
    engine.dispose()


def test_any_value_may_be_captured(work, manager):
    app = work[0]

    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    cycle = {}
    cycle["self"] = cycle
    assert manager.capture_tool_call("a\0b", "t", {"x": float("nan"), "y": Odd(), 3: {1, 2}}, result=cycle)
    assert manager.capture_agent_call("a", "\ud800", context={"z": b"\xff"}, metadata={"llm_config": Odd(), "n": None})
    assert manager.capture_code_execution("a", "x" * 300_000, result="y" * 300_000, exit_code=0)
    manager.close()
    assert len(events(app)) == 3


def test_the_captor_belongs_to_its_context():
    set_event_captor("main")
    contextvars.copy_context().run(set_event_captor, "branch")
    assert get_event_captor() == "main"
    set_event_captor(None)
    assert get_event_captor() is None


def test_the_callback_is_awaited_where_a_loop_runs(work):
    app, session_id, run_id, _ = work
    seen = []

    async def callback(websocket, event, run):
        seen.append((websocket, event.id, event.event_type, event.execution_order, run))
        if event.event_type == "error":
            raise RuntimeError("page closed")

    async def main():
        with Session(app.engine) as db:
            captor = EventCaptureManager(
                db, run_id, session_id, websocket="socket", emit_event_callback=callback)
            made = [captor.capture_tool_call("a", "t", {}), captor.capture_error("a", "b")]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(captor.close)
            return made

    tool, error = asyncio.run(main())
    assert seen == [("socket", tool, "tool_call", 1, run_id), ("socket", error, "error", 2, run_id)]


@pytest.mark.parametrize("looping", [True, False])
def test_a_callback_that_fails_or_is_no_coroutine_costs_no_event(work, looping):
    app, session_id, run_id, _ = work
    seen = []

    def plain(websocket, event, run):
        seen.append(event.event_type)

    def broken(websocket, event, run):
        raise RuntimeError("page closed")

    async def asynchronous(websocket, event, run):
        seen.append("asynchronous")

    with Session(app.engine) as db:
        captors = [
            EventCaptureManager(db, run_id, session_id, websocket="socket", emit_event_callback=callback)
            for callback in (plain, broken, asynchronous, lambda *given: asynchronous(*given))
        ]

        def capture():
            return [captor.capture_tool_call("a", "t", {}) for captor in captors]

        async def in_a_loop():
            made = capture()
            await asyncio.sleep(0.02)
            return made

        made = asyncio.run(in_a_loop()) if looping else capture()
        captors[0].flush()
    assert {row["id"] for row in events(app)} == set(made)
    assert seen == (["tool_call", "asynchronous", "asynchronous"] if looping else ["tool_call"])


def test_what_is_switched_on_later_captures_from_then_on(work):
    app, session_id, run_id, _ = work
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id, enabled=False)
        assert captor.capture_error("a", "b") is None
        captor.enabled = True
        made = captor.capture_error("a", "c")
        captor.close()
    assert [(row["id"], row["error_message"]) for row in events(app)] == [(made, "c")]


@pytest.mark.parametrize(
    ("given", "tokens", "cost", "kept"),
    [
        ({"tokens": "12", "cost_usd": "0.5"}, 12, 0.5, {}),
        ({"tokens": 12.0, "cost_usd": decimal.Decimal("0.25")}, 12, 0.25, {}),
        ({"tokens": float("nan"), "cost_usd": "much"}, 0, 0, {"tokens_given": "NaN", "cost_usd_given": "much"}),
        ({"tokens": True, "cost_usd": None}, 0, 0, {"tokens_given": True}),
        (["not", "a", "dict"], 0, 0, {"metadata": ["not", "a", "dict"]}),
    ],
)
def test_what_the_application_adds_up_are_numbers(work, manager, given, tokens, cost, kept):
    app, _, run_id, node_id = work
    manager.set_context(node_id="step_1")
    manager.capture_tool_call("a", "t", {}, metadata=given)
    manager.flush()
    summary = app.node_summary(node_id, run_id)
    assert (summary["tokens"], summary["cost_usd"]) == (tokens, cost)
    assert type(summary["tokens"]) is int
    meta = {key: value for key, value in events(app)[0]["meta"].items() if key not in ("otel", "tokens", "cost_usd")}
    assert meta == kept


def test_loosely_typed_arguments_are_understood(work, manager):
    class Agent:
        name = "engineer"

    app, *_ = work
    made = [
        manager.capture_code_execution(Agent(), None, exit_code="0"),
        manager.capture_code_execution("a", "x", exit_code="1"),
        manager.capture_file_generation("a", "/tmp/x.txt", "data", size_bytes="12"),
        manager.capture_message(Agent(), "b", [{"type": "text", "text": "hi"}], tokens="5"),
        manager.capture_message("a", "b", None),
        manager.capture_error("a", ValueError("no"), error_type=ValueError),
    ]
    manager.flush()
    rows = {row["id"]: row for row in events(app)}
    assert [(rows[i]["status"], rows[i]["error_message"]) for i in made] == [
        ("completed", None), ("failed", "exit code 1"), ("completed", None), ("completed", None), ("completed", None),
        ("failed", "no"),
    ]
    assert rows[made[0]]["agent_name"] == "engineer"
    assert rows[made[0]]["inputs"] == {"code": ""}
    assert rows[made[5]]["meta"]["error_type"] == "ValueError"
    assert [row["size_bytes"] for row in app.rows("files")] == [12]
    assert [(row["sender"], row["content"], row["tokens"]) for row in app.rows("messages", "id")] == [
        ("engineer", '[{"type": "text", "text": "hi"}]', 5), ("a", "", None)]


@pytest.mark.parametrize(
    "shape",
    [
        Shape(node_key="pair"), Shape(timezone=True), Shape(json="text"), Shape(server_defaults=True),
        Shape(without_tables=("files", "messages", "workflow_steps", "dag_edges")),
        Shape(without_columns={"execution_events": ("agent_role", "depth", "step_id")}),
        Shape(extra_columns={"files": {"tenant": sa.String(20)}}),
    ],
    ids=["pair", "timestamptz", "json-as-text", "server-defaults", "without-optional", "without-columns", "tenant"],
)
def test_every_shape_of_the_application_gets_its_events(application, shape):
    app = application(shape)
    before = app.fingerprint()
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    node_id = app.add_node(run_id, session_id, "step_1")
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        captor.set_context(node_id="step_1")
        call = captor.capture_agent_call("engineer", "x")
        captor.flush()
        captor.capture_message("a", "b", "hello", tokens=3)
        captor.capture_file_generation("a", "x.txt", "data")
        captor.capture_agent_response("engineer", "y", call)
        captor.close()
    rows = events(app)
    assert [row["node_id"] for row in rows] == [node_id] * 3
    assert {row["parent_event_id"] for row in rows} == {None, call}
    if "files" not in shape.without_tables:
        assert len(app.rows("files")) == (0 if shape.extra_columns else 1)
        assert len(app.rows("messages")) == 1
    assert app.fingerprint() == before


def test_another_schema_of_the_server(postgresql_url, monkeypatch):
    app = application_schema.make(postgresql_url, Shape(schema="agents"))
    monkeypatch.setenv("OTEL_EXPORTER_CMB_SCHEMA", "agents")
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        captor.capture_tool_call("a", "t", {})
        captor.close()
    assert len(events(app)) == 1
    pipeline.forget_pipelines()
    app.engine.dispose()


def test_beside_the_application_writing_in_the_same_file(tmp_path):
    """Its connection writes an event of its own per transaction, ours writes ours: both arrive, WAL or not."""
    for wal in (False, True):
        app = application_schema.make(f"sqlite:///{tmp_path}/app{wal}.db", wal=wal)
        session_id = app.add_session()
        run_id = app.add_run(session_id)
        with Session(app.engine) as db:
            captor = EventCaptureManager(db, run_id, session_id)
            for number in range(30):
                captor.capture_tool_call("a", "t", {"n": number})
                app.add_step(run_id, session_id, number)
            captor.close()
        assert (len(events(app)), len(app.rows("workflow_steps"))) == (30, 30)
        pipeline.forget_pipelines()
        app.engine.dispose()


def test_eight_managers_on_one_run(work):
    """Rows, orders and links are counted: none missing, none twice."""
    app, session_id, run_id, _ = work

    def use():
        with Session(app.engine) as db:
            captor = EventCaptureManager(db, run_id, session_id)
            for _ in range(10):
                call = captor.capture_agent_call("a", "x")
                captor.capture_tool_call("a", "t", {})
                captor.capture_agent_response("a", "y", call)
            captor.close()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    rows = events(app)
    assert len(rows) == 160
    assert len({row["execution_order"] for row in rows}) == 160
    calls = {row["id"] for row in rows if row["event_type"] == "agent_call"}
    assert {row["parent_event_id"] for row in rows if row["event_type"] == "tool_call"} == calls


def test_beside_configure_the_same_spans_go_to_its_exporters(work, database_url, monkeypatch):
    """Where a provider for the same database is installed, Jaeger shows what the rows say."""
    app, session_id, run_id, _ = work
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    install_processor(provider, CMBSpanProcessor(database_url))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        tool = captor.capture_tool_call("a", "t", {})
        captor.close()
    (span,) = exporter.get_finished_spans()
    assert event_id(f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == tool
    assert [row["id"] for row in events(app)] == [tool]
    provider.shutdown()


def test_the_provider_of_the_managers_can_be_shut_down(work, manager):
    manager.capture_tool_call("engineer", "search", {})
    cmbagent._providers[manager._pipeline].shutdown()
    assert manager._pipeline.stats().pending == 0
    assert len(events(work[0])) == 1
