"""Beside the application's own tables: what the store makes there, so that the application's screens find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import BASE_NS, agent_span
from support import application_schema
from support.application_schema import Application, Shape

from otel_cmb import config
from otel_cmb.errors import RunNotFoundError
from otel_cmb.items import Item
from otel_cmb.store import Store


@pytest.fixture
def application(database_url: str) -> Iterator[Callable[..., Application]]:
    made: list[Application] = []

    def make(shape: Shape | None = None) -> Application:
        made.append(application_schema.make(database_url, shape))
        return made[-1]

    yield make
    for app in made:
        app.engine.dispose()


@pytest.fixture
def store(database_url: str, state_dir: Path) -> Iterator[Store]:
    made = Store(config.load(database_url=database_url, state_dir=str(state_dir)), str(state_dir))
    yield made
    made.close()


def start_run(store: Store, run_id: str, **values: Any) -> None:
    item = Item(1, command={"do": "run_start", "id": run_id, "at": BASE_NS, **values})
    store.write([item])
    assert item.outcome is not None
    assert item.outcome.result == "committed"


def sessions_of_runs(app: Application) -> dict[str, str]:
    return {row["id"]: row["session_id"] for row in app.rows("workflow_runs")}


def test_a_run_of_ours_is_in_the_session_the_applications_screens_look_in(application, store):
    app = application()
    with app.engine.begin() as connection:
        app._insert(connection, "sessions", id="default_session", name="Default Session")
    other = app.add_session("elsewhere")
    start_run(store, "ours")
    start_run(store, "named", session="elsewhere")
    start_run(store, "literal", session="default")
    found = sessions_of_runs(app)
    assert found["ours"] == "default_session"
    assert found["named"] == other
    names = {row["id"]: row["name"] for row in app.rows("sessions")}
    assert names[found["literal"]] == "default"


def test_without_the_applications_session_one_of_ours_is_made_once(application, store):
    app = application()
    start_run(store, "first")
    start_run(store, "second")
    assert [row["name"] for row in app.rows("sessions")] == ["default"]
    assert len(set(sessions_of_runs(app).values())) == 1


def test_rows_of_ours_have_what_the_applications_code_would_have_filled(application, store):
    app = application()
    before = app.fingerprint()
    start_run(store, "ours", task="t")
    run = app.rows("workflow_runs")[0]
    assert (run["is_branch"], run["branch_depth"], run["checkpoint_frequency_minutes"]) == (False, 0, 10)
    assert run["started_at"] is not None
    assert app.fingerprint() == before
    with app.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == ["b8c9d0e1f2a3"]


@pytest.mark.parametrize("table", ["dag_nodes", "workflow_steps"])
def test_what_the_application_deleted_meanwhile_costs_no_event(application, store, table):
    app = application()
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    app.add_node(run_id, session_id, "step_1")
    step_id = app.add_step(run_id, session_id)

    def write(n: int) -> str:
        span = agent_span(n, 1, run=run_id, start=n * 1000, name="agent")
        span.attributes |= {"cmb.node.id": "step_1", "cmb.step.id": step_id}
        item = Item(n, span=span)
        store.write([item])
        assert item.outcome is not None
        return item.outcome.result

    assert write(1) == "committed"
    with app.engine.begin() as connection:
        connection.execute(sa.delete(app.table(table)))
    assert write(2) == "committed"
    last = app.rows("execution_events", "execution_order")[-1]
    gone, name, key = {
        "dag_nodes": ("node_id", "step_1", "node"), "workflow_steps": ("step_id", step_id, "step"),
    }[table]
    assert last[gone] is None
    assert last["meta"][key] == name
    if table == "dag_nodes":  # and it may come back under another id
        with app.engine.begin() as connection:
            app._insert(
                connection, "dag_nodes", id="another", run_id=run_id, session_id=session_id, node_type="agent",
                order_index=1, status="pending", meta={"id": "step_1"})
        assert write(3) == "committed"
        assert app.rows("execution_events", "execution_order")[-1]["node_id"] == "another"


def test_a_parent_the_application_deleted_costs_no_event(application, store):
    app = application()
    run_id = app.add_run(app.add_session())

    def write(n: int, parent: int | None) -> str:
        item = Item(n, span=agent_span(1, n, run=run_id, parent=parent, start=n * 1000, name=f"agent {n}"))
        store.write([item])
        assert item.outcome is not None
        return item.outcome.result

    assert write(1, None) == "committed"
    with app.engine.begin() as connection:
        connection.execute(sa.delete(app.table("execution_events")))
    assert write(2, 1) == "committed"
    assert [row["parent_event_id"] for row in app.rows("execution_events")] == [None]


@pytest.mark.parametrize("other_process", [False, True])
def test_a_row_whose_meta_the_application_replaced_stays(application, store, database_url, tmp_path, other_process):
    app = application()
    run_id = app.add_run(app.add_session())
    events = app.table("execution_events")
    other = Store(config.load(database_url=database_url, state_dir=str(tmp_path)), str(tmp_path))

    def write(n: int, parent: int | None, writer: Store = store) -> None:
        item = Item(n, span=agent_span(1, n, run=run_id, parent=parent, start=n * 1000, name=f"agent {n}"))
        writer.write([item])
        assert item.outcome is not None
        assert item.outcome.result == "committed"

    def rows() -> list[tuple[Any, ...]]:
        return [
            (row["id"], row["parent_event_id"], row["depth"], row["execution_order"], row["meta"].get("app"))
            for row in app.rows("execution_events", "execution_order")]

    write(1, None)
    with app.engine.begin() as connection:
        connection.execute(sa.update(events).values(meta={"app": "mine"}, outputs={"response": "edited"}))
    root = app.rows("execution_events")[0]["id"]
    write(2, 1, other if other_process else store)
    write(3, 2)
    other.close()
    child, grandchild = (row[0] for row in rows()[1:])
    assert rows() == [
        (root, None, 0, 1, "mine"), (child, root, 1, 2, None), (grandchild, child, 2, 3, None)]
    assert app.rows("execution_events", "execution_order")[0]["outputs"] == {"response": "edited"}


def test_a_run_of_ours_learns_its_agent_and_model_and_a_run_of_the_application_does_not(application, store):
    app = application()
    theirs = app.add_run(app.add_session(), agent="unknown", model="unknown")
    start_run(store, "ours")
    for n, run_id in enumerate((theirs, "ours"), 1):
        span = agent_span(n, 1, run=run_id, start=1000, name="engineer")
        span.attributes |= {"gen_ai.agent.name": "engineer", "gen_ai.request.model": "gpt-4.1"}
        store.write([Item(n, span=span)])
    runs = {row["id"]: (row["agent"], row["model"]) for row in app.rows("workflow_runs")}
    assert runs == {theirs: ("unknown", "unknown"), "ours": ("engineer", "gpt-4.1")}


def test_an_alias_is_text_and_means_the_run_that_was_started_last(application, store):
    app = application()
    session_id = app.add_session()
    moments = [datetime(2026, 1, day) for day in (2, 3, 1)]  # noqa: DTZ001 - the application's columns are naive
    runs = [app.add_run(session_id, task_id="again", started_at=moment) for moment in moments]
    app.add_run(session_id, task_id="again")
    numbered = app.add_run(session_id, meta={"task_id": 77})
    assert store.check_run("again").id == runs[1]
    assert store.check_run("77").id == numbered


def test_what_a_span_says_in_meta_is_added_up_once_and_as_numbers(application, store):
    app = application()
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    node_id = app.add_node(run_id, session_id, "step_1")
    spans = [
        agent_span(1, 1, run=run_id, start=1000, name="tokens as text"),
        agent_span(2, 1, run=run_id, start=2000, name="agent"),
        agent_span(2, 2, run=run_id, parent=1, start=3000, name="chat"),
    ]
    spans[0].attributes |= {"cmb.event.type": "agent_call", "cmb.meta": '{"tokens": "12", "cost_usd": "much"}'}
    spans[1].attributes |= {"cmb.event.type": "agent_call", "cmb.meta": '{"tokens": 10, "cost_usd": 0.5}'}
    spans[2].attributes |= {
        "gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}
    for span in spans:
        span.attributes["cmb.node.id"] = "step_1"
    store.write([Item(n, span=span) for n, span in enumerate(spans)])
    summary = app.node_summary(node_id, run_id)
    assert (summary["tokens"], summary["cost_usd"]) == (22, 0.5)
    metas = [row["meta"] for row in app.rows("execution_events", "execution_order")]
    assert metas[0]["cost_usd_given"] == "much"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_broken_meta_of_one_row_hides_no_other(application, store, database_url, kind):
    """What `json` takes and its operators do not: U+0000. What `text` takes: anything."""
    app = application(Shape(json="text" if kind == "text" else "json"))
    session_id = app.add_session()
    named = [app.add_run(session_id, task_id=name) for name in ("good-task", "zwölf %_\"{x}\\ Uhr", "x" * 300)]
    numbered = app.add_run(session_id, meta={"task_id": 77})
    bad = app.add_run(session_id)
    node, step = app.add_node(bad, session_id, "step_1"), app.add_step(bad, session_id)
    other = app.add_node(bad, session_id, "other", hashed=False), app.add_step(bad, session_id, 2)
    app_text = "'{broken'" if kind == "text" else "'{\"task_id\": \"\\u0000\"}'"
    with app.engine.begin() as connection:
        for table, id_ in (("workflow_runs", bad), ("dag_nodes", other[0]), ("workflow_steps", other[1])):
            connection.exec_driver_sql(f"UPDATE {table} SET meta = {app_text} WHERE id = '{id_}'")
        connection.exec_driver_sql(f"UPDATE workflow_steps SET meta = '{{\"id\": \"planning\"}}' WHERE id = '{step}'")
    assert store.check_run("good-task").id == named[0]
    assert store.check_run("zwölf %_\"{x}\\ Uhr").id == named[1]
    assert store.check_run("x" * 300).id == named[2]
    assert store.check_run("77").id == numbered
    for unknown in ("nope", "good-tas", "x" * 299, "é"):
        with pytest.raises(RunNotFoundError):
            store.check_run(unknown)
    spans = [agent_span(1, 1, run=bad, **{"cmb.node.id": "step_1", "cmb.step.id": "planning"}),
             agent_span(2, 2, run=bad, start=9, **{"cmb.node.id": "never", "cmb.step.id": "never"})]
    items = [Item(n, span=span) for n, span in enumerate(spans)]
    store.write(items)
    assert [item.outcome.result for item in items] == ["committed", "committed"]
    assert [(row["node_id"], row["step_id"]) for row in app.rows("execution_events", "execution_order")] == [
        (node, step), (None, None)]
    many = [Item(n, span=agent_span(n + 10, 1, run=name)) for n, name in enumerate(["good-task", *map(str, range(70, 90))])]
    store.write(many)
    stored = {item.span.trace_id: item.outcome.result for item in many if item.outcome.result != "parked"}
    assert stored == {f"{10:032x}": "committed", f"{18:032x}": "committed"}  # the alias, and 77


def backwards(run_id: str) -> list[Item]:
    return [Item(n, span=agent_span(1, n, run=run_id, parent=n - 1 or None, start=n * 1000, name=f"a{n}"))
            for n in (4, 2, 3, 1)]


def places(app: Application) -> list[tuple[str, int]]:
    return [(row["agent_name"], row["execution_order"]) for row in app.rows("execution_events", "execution_order")]


def test_an_application_without_depths_gets_all_events(application, store):
    app = application(Shape(without_columns={"execution_events": ("depth",)}))
    for item in backwards(app.add_run(app.add_session())):
        store.write([item])
    assert places(app) == [("a1", 1), ("a2", 2), ("a3", 3), ("a4", 4)]
    rows = app.rows("execution_events", "execution_order")
    assert [row["parent_event_id"] for row in rows] == [None, *(row["id"] for row in rows[:-1])]


def test_where_a_number_may_be_there_once_the_rows_still_change_places(application, store):
    app = application()
    run_id = app.add_run(app.add_session())
    with app.engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX once ON execution_events (run_id, execution_order)")
        app._insert(connection, "execution_events", id="theirs", run_id=run_id,
                    session_id=app.rows("workflow_runs")[0]["session_id"], event_type="info", execution_order=2,
                    status="completed", agent_name="app")
    for item in backwards(run_id):
        store.write([item])
    assert places(app) == [("app", 2), ("a1", 3), ("a2", 4), ("a3", 5), ("a4", 6)]
    one, two = app.add_run(app.add_session()), app.add_run(app.add_session())
    batch = [Item(n, span=agent_span(
        9 + n % 2, n, run=(one, two)[n % 2], parent=n - 2 if n > 2 else None, start=n * 1000, name=f"a{n}"))
        for n in range(8, 0, -1)]
    store.write(batch[:5])
    store.write(batch[5:])
    assert [item.outcome.result for item in batch] == ["committed"] * 8
    orders = [(row["run_id"], row["execution_order"]) for row in app.rows("execution_events") if row["run_id"] in (one, two)]
    assert sorted(orders) == sorted((run, n) for run in (one, two) for n in range(1, 5))
