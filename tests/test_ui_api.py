"""The JSON under the page, over real sockets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import looking
import pytest
import sqlalchemy as sa
from browsing import Answer, get, serving
from looking import RUN, SESSION, START, Writer, add_run, example, many
from support import application_schema

import otel_cmb.ui
from otel_cmb import schema
from otel_cmb.reader import open_reader
from otel_cmb.ui.app import create_app

both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
"""The answers are the reader's, which is tested on both; what asks in its own way is asked on both here too."""


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The database: SQLite unless the test says `both`."""
    found: str = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")
    return found


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    looking.make_schema(engine)
    with engine.begin() as connection:
        example(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def base(engine: sa.Engine, url: str) -> Iterator[str]:
    with serving(create_app(lambda: open_reader(url), jaeger_url="http://127.0.0.1:16686/")) as address:
        yield address


@both
def test_every_endpoint_answers_with_what_the_reader_says(base: str, url: str) -> None:
    with open_reader(url) as reader:
        expected = {
            "/api/info": None,
            "/api/sessions": {"sessions": [session.to_dict() for session in reader.sessions()]},
            "/api/runs": {"runs": [run.to_dict() for run in reader.runs()], "next": None},
            f"/api/runs/totals?id={RUN}": {"totals": {RUN: reader.run_totals([RUN])[RUN].to_dict()}},
            f"/api/runs/{RUN}": {"run": reader.run(RUN).to_dict()},
            f"/api/runs/{RUN}/totals": reader.totals(RUN).to_dict(),
            f"/api/runs/{RUN}/tree": {"tree": [root.to_dict() for root in reader.tree(RUN)]},
            f"/api/runs/{RUN}/events?limit=3": {
                "events": [event.to_dict() for event in reader.events(RUN, limit=3)],
                "next": reader.events(RUN, limit=3)[-1].cursor,
            },
            f"/api/runs/{RUN}/graph": {
                "nodes": [node.to_dict() for node in reader.nodes(RUN)],
                "edges": [edge.to_dict() for edge in reader.edges(RUN)],
            },
            f"/api/runs/{RUN}/steps": {"steps": []},
            f"/api/runs/{RUN}/messages": {"messages": [message.to_dict() for message in reader.messages(RUN)]},
        }
        parent = reader.lines(RUN)[3]
        child = reader.children(parent.id)[0]
        expected[f"/api/events/{child.id}"] = {
            "event": reader.event(child.id).to_dict(), "spans": [], "parent": parent.to_dict(), "children": [],  # type: ignore[union-attr]
        }
    for path, answer in expected.items():
        got = get(base + path)
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        if answer is not None:
            assert got.json == answer
        assert get(base + path, If_None_Match=got.headers["etag"]).status == 304
    assert get(base + "/api/info").json["jaeger_url"] == "http://127.0.0.1:16686"
    files = get(f"{base}/api/runs/{RUN}/files").json
    assert (files["total_files"], files["files"][0]["file_name"]) == (1, "spectrum.png")


# What the application's own endpoints answer: the shapes of its `backend/routers`.
HISTORY_KEYS = {
    "id", "timestamp", "event_type", "event_subtype", "node_id", "agent_name", "description", "meta", "inputs",
    "outputs", "error_message", "status", "duration_ms",
}
NODE_KEYS = {
    "id", "event_type", "event_subtype", "agent_name", "timestamp", "duration_ms", "execution_order", "depth", "inputs",
    "outputs", "error_message", "status", "meta", "parent_event_id",
}


@both
def test_the_applications_history_has_the_same_answer(base: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        writer = Writer(connection)
        writer.order = 21
        writer.event("tool_call", 0, None, status="running")
        writer.event("node_started", 0, 0)
    for name in (RUN, "task_1768904279349_a64oayyk2"):
        answer = get(f"{base}/api/runs/{name}/history").json
        assert {key: answer[key] for key in ("run_id", "resolved_run_id", "total_events")} == {
            "run_id": name, "resolved_run_id": RUN, "total_events": 21,
        }
        assert len(answer["events"]) == 21
        assert set(answer["events"][0]) == HISTORY_KEYS
        assert answer["events"][0]["timestamp"] == "2026-11-22T09:30:00"
    kinds = get(f"{base}/api/runs/{RUN}/history?event_type=code_exec").json["events"]
    assert {event["event_type"] for event in kinds} == {"code_exec"}
    nothing = get(f"{base}/api/runs/nope/history")
    assert (nothing.status, nothing.json["total_events"], nothing.json["events"]) == (200, 0, [])
    assert "no run 'nope'" in nothing.json["error"]


@both
def test_the_applications_events_of_a_node_have_the_same_answer(base: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        writer = Writer(connection)
        writer.order = 21
        writer.event("tool_call", 0, None, status="running", node_id="step_1")
    for query, expected in (("", 8), (f"?run_id={RUN}", 8), ("?include_internal=true", 9), ("?event_type=llm_call", 2)):
        answer = get(f"{base}/api/nodes/step_1/events{query}").json
        assert (answer["node_id"], answer["total_events"], len(answer["events"])) == ("step_1", expected, expected)
        assert set(answer["events"][0]) == NODE_KEYS
        orders = [event["execution_order"] for event in answer["events"]]
        assert orders == sorted(orders)
    nothing = get(f"{base}/api/nodes/step_9/events").json
    assert (nothing["total_events"], nothing["events"], bool(nothing["error"])) == (0, [], True)


@both
def test_hashed_nodes_of_an_attached_database_are_found_by_name(url: str) -> None:
    application = application_schema.make(url)
    session = application.add_session()
    run = application.add_run(session, task_id="task_1")
    node = application.add_node(run, session, "step/1")
    with application.engine.begin() as connection:
        application._insert(
            connection, "execution_events", id="e", run_id=run, node_id=node, session_id=session, status="completed",
            event_type="tool_call", event_subtype="complete", execution_order=1, inputs={"tool_name": "x"},
        )
    with serving(create_app(lambda: open_reader(url))) as base:
        name = quote("step/1", safe="")
        assert get(f"{base}/api/nodes/{name}/events").json["events"][0]["id"] == "e"
        assert get(f"{base}/api/nodes/{name}/events?run_id=task_1").json["total_events"] == 1
    application.engine.dispose()


def test_long_histories_come_whole(base: str, engine: sa.Engine) -> None:
    other = "11111111-0000-4000-8000-000000000000"
    with engine.begin() as connection:
        add_run(connection, other)
        many(connection, other, 1203)
    answer = get(f"{base}/api/runs/{other}/history").json
    assert answer["total_events"] == 1203
    assert len({event["id"] for event in answer["events"]}) == 1203


@pytest.mark.parametrize(("path", "status", "said"), [
    ("/api/runs/nope", 404, "no run 'nope'"),
    ("/api/runs/nope/live", 404, "no run 'nope'"),
    ("/api/events/nope", 404, "no event 'nope'"),
    ("/api/runs?limit=0", 400, "limit: found '0', expected a whole number from 1 to 1000"),
    ("/api/runs?limit=x", 400, "expected a whole number"),
    ("/api/runs?cursor=x", 400, "expected the cursor of a run"),
    ("/api/runs?since=soon", 400, "since: found 'soon'"),
    (f"/api/runs/{RUN}/events?after=x", 400, "expected the cursor of an event"),
])
def test_bad_requests_are_told_what_was_wrong(base: str, path: str, status: int, said: str) -> None:
    answer = get(base + path)
    assert answer.status == status
    assert said in answer.json["error"]


def test_runs_are_paged_and_narrowed(base: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for n in range(5):
            add_run(connection, f"{n}1111111-0000-4000-8000-000000000000", started=START + timedelta(days=n + 1))
    seen, cursor = [], ""
    while True:
        page = get(f"{base}/api/runs?limit=2&cursor={cursor}").json
        seen += [run["id"] for run in page["runs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 6
    assert len(get(f"{base}/api/runs?since=2026-11-24T00:00:00Z&until=2026-11-26").json["runs"]) == 2
    assert get(f"{base}/api/runs?text=SPECTRUM&status=failed&status=completed").json["runs"][0]["id"] == RUN
    assert get(f"{base}/api/runs?totals=0").json["runs"][0]["totals"] is None


# -- live -------------------------------------------------------------------------------------------------------------


def _look(base: str, tag: str = "") -> Answer:
    time.sleep(0.3)  # looks closer than that share one reading
    return get(f"{base}/api/runs/{RUN}/live", If_None_Match=f'"{tag}"')


@both
def test_a_live_view_is_sent_only_what_changed(base: str, engine: sa.Engine) -> None:
    first = _look(base)
    body = first.json
    assert body["full"]
    assert len(body["rows"]) == 21
    assert len(body["graph"]["nodes"]) == 5
    assert body["run"]["totals"]["tokens"] == 5595
    assert _look(base, body["token"]).status == 304
    events = schema.execution_events
    with engine.begin() as connection:
        writer = Writer(connection)
        writer.order = 21
        started = writer.event("tool_call", 42_000, None, status="running", inputs={"tool_name": "late"})
    second = _look(base, body["token"]).json
    place = body["columns"].index
    assert not second["full"]
    assert [(row[0], row[place("title")], row[place("end")]) for row in second["rows"]] == [(started, "late", None)]
    assert "graph" not in second
    with engine.begin() as connection:
        connection.execute(sa.update(events).where(events.c.id == started).values(
            status="completed", completed_at=START + timedelta(seconds=43),
        ))
        connection.execute(sa.delete(events).where(events.c.execution_order == 20))
        connection.execute(sa.update(schema.dag_nodes).values(status="completed"))
    third = _look(base, second["token"]).json
    assert [(row[0], row[place("status")]) for row in third["rows"]] == [(started, "completed")]
    assert third["removed"] == [body["rows"][20][0]]
    assert {node["status"] for node in third["graph"]["nodes"]} == {"completed"}
    # One who has missed a look gets the sum of both; one from before a restart gets all.
    missed = _look(base, body["token"]).json
    assert ([row[0] for row in missed["rows"]], missed["removed"]) == ([started], third["removed"])
    assert _look(base, "otherepoch.3").json["full"]


def test_a_run_too_long_for_one_page_goes_on_on_the_next(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.ui.live.MAX_LINES", 15)
    first = get(f"{base}/api/runs/{RUN}/live").json
    assert len(first["rows"]) == 15
    assert first["run"]["totals"]["events"] == 21
    second = get(f"{base}/api/runs/{RUN}/live?after={first['next']}").json
    assert (len(second["rows"]), second["next"]) == (6, None)


def test_a_replaced_file_is_opened_anew(tmp_path: Path) -> None:
    def make(name: str, run: str) -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path}/{name}")
        looking.make_schema(engine)
        with engine.begin() as connection:
            add_run(connection, run)
        engine.dispose()

    make("a.db", "first")
    with serving(create_app(lambda: open_reader(f"sqlite:///{tmp_path}/a.db"))) as base:
        assert get(f"{base}/api/runs").json["runs"][0]["id"] == "first"
        make("b.db", "second")
        (tmp_path / "b.db").replace(tmp_path / "a.db")
        assert get(f"{base}/api/runs").json["runs"][0]["id"] == "second"
        (tmp_path / "a.db").unlink()
        gone = get(f"{base}/api/runs")
        assert gone.status == 400
        assert "there is no file" in gone.json["error"]


# -- who may read -----------------------------------------------------------------------------------------------------


def test_nothing_but_reading_and_no_name_but_this_machines(base: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert get(base + "/api/runs", method).status == 405
    port = base.rpartition(":")[2]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost", f"[::1]:{port}"):
        assert get(base + "/", Host=name).status == 200
    for name in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example", f"localhost.evil.example:{port}"):
        assert get(base + "/api/runs", Host=name).status == 421
    answer = get(base + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in get(base + "/api/runs", Origin="http://evil.example").headers


def test_a_token_is_asked_for_taken_in_a_header_or_turned_into_a_cookie(engine: sa.Engine, url: str) -> None:
    token = "correct horse+battery/staple"
    with serving(create_app(lambda: open_reader(url), token=token, hosts=None)) as base:
        wrong = ({"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Cookie": "otel_cmb_token=x"})
        for headers in ({}, *wrong):
            assert get(base + "/api/runs", **headers).status == 401
            assert get(base + "/", **headers).status == 401
        assert get(base + "/api/runs?token=wrong").status == 401
        assert get(base + "/api/runs", Authorization=f"Bearer {token}").status == 200
        answer = get(f"{base}/runs/{RUN}?view=totals&token={quote(token, safe='')}")
        assert (answer.status, answer.headers["location"]) == (303, f"/runs/{RUN}?view=totals")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert get(base + "/api/runs", Cookie=cookie.partition(";")[0]).status == 200


def test_a_token_bound_to_a_session_sees_that_session_only(engine: sa.Engine, url: str) -> None:
    other = "22222222-0000-4000-8000-000000000000"
    with engine.begin() as connection:
        add_run(connection, other, session="33333333-0000-4000-8000-000000000000")
    with open_reader(url) as reader:
        event = reader.lines(RUN)[0].id
    tokens = {"mine-token": SESSION, "other-token": "33333333-0000-4000-8000-000000000000"}
    with serving(create_app(lambda: open_reader(url), token=tokens)) as base:
        def ask(token: str, path: str) -> Answer:
            return get(base + path, Authorization=f"Bearer {token}")

        assert [run["id"] for run in ask("mine-token", "/api/runs").json["runs"]] == [RUN]
        assert [run["id"] for run in ask("other-token", "/api/runs").json["runs"]] == [other]
        assert ask("other-token", f"/api/runs?session={SESSION}").json["runs"][0]["id"] == other
        assert ask("mine-token", f"/api/runs/{RUN}/live").status == 200
        for path in (f"/api/runs/{RUN}", f"/api/runs/{RUN}/live", f"/api/runs/{RUN}/files", f"/api/events/{event}"):
            assert ask("other-token", path).status == 404
        for path in (f"/api/runs/{RUN}/history", "/api/nodes/step_1/events", f"/api/nodes/step_1/events?run_id={RUN}"):
            assert ask("other-token", path).json["events"] == []
        assert ask("other-token", f"/api/runs/totals?id={RUN}&id={other}").json["totals"].keys() == {other}
        assert len(ask("other-token", "/api/sessions").json["sessions"]) == 1


# -- the page's own files ---------------------------------------------------------------------------------------------


def test_the_page_is_small_and_loads_nothing_from_elsewhere(base: str) -> None:
    directory = Path(otel_cmb.ui.__file__).parent / "static"
    assert sum(file.stat().st_size for file in directory.iterdir()) < 300_000
    for file in directory.iterdir():
        answer = get(f"{base}/static/{file.name}")
        assert answer.status == 200
        assert answer.body == file.read_bytes() or file.name == "index.html"
        hosts = set(re.findall(rb"https?://[\w.]+", file.read_bytes())) - {b"http://www.w3.org"}
        assert hosts == set()
        sinks = rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|<script>"
        assert not re.search(sinks, file.read_bytes())
        assert get(f"{base}/static/{file.name}", If_None_Match=answer.headers["etag"]).status == 304
    assert get(base + "/static/../app.py").status == 404
    assert get(base + "/static/%2e%2e%2fapp.py").status == 404
    for path in ("/", f"/runs/{RUN}", f"/runs/{RUN}/events/x", f"/runs/{RUN}/nodes/y"):
        page = get(base + path)
        assert page.headers["content-type"].startswith("text/html")
        assert b"<script>" not in page.body
        assert b" style=" not in page.body


def test_the_page_can_be_mounted_below_another_application(engine: sa.Engine, url: str) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    app = create_app(lambda: open_reader(url))
    with serving(Starlette(routes=[Mount("/traces", app)])) as base:
        assert b'src="/traces/static/main.js"' in get(base + "/traces/").body
        assert get(base + "/traces/static/main.js").status == 200
        assert get(base + "/traces/api/runs").json["runs"][0]["id"] == RUN


# -- the command ------------------------------------------------------------------------------------------------------


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "otel_cmb.cli", "ui", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def test_the_command_serves_soon_and_small_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    engine = sa.create_engine(url)
    looking.make_schema(engine)
    with engine.begin() as connection:
        example(connection)
        add_run(connection, "11111111-0000-4000-8000-000000000000", started=None)
        many(connection, "11111111-0000-4000-8000-000000000000", 10_000)
    engine.dispose()
    began = time.monotonic()
    process = _start("--database-url", url, "--http", "127.0.0.1:0")
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        assert get(address[0] + "/api/runs").status == 200
        took = time.monotonic() - began
        assert len(get(address[0] + "/api/runs/11111111/live").json["rows"]) == 10_000
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
        process.send_signal(2)
        process.wait(60)
        assert process.returncode in {0, 130}
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]
    assert took < 20  # under 2 s on a machine that has nothing else to do
    assert memory < 102_400  # kB, after 10,000 events


@pytest.mark.parametrize(("arguments", "said"), [
    (["--http", "0.0.0.0:0"], "others can reach that address"),
    (["--http", "somewhere"], "expected HOST:PORT"),
    (["--http", "127.0.0.1:99999"], "expected HOST:PORT"),
    (["--token-file", "/nonexistent"], "token file /nonexistent"),
])
def test_the_command_refuses_what_would_be_unsafe_or_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    engine = sa.create_engine(url)
    looking.make_schema(engine)
    engine.dispose()
    process = _start("--database-url", url, *arguments)
    assert said in process.communicate(timeout=30)[1]
    assert process.returncode == 2


def test_the_command_says_when_its_port_is_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    engine = sa.create_engine(url)
    looking.make_schema(engine)
    engine.dispose()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = _start("--database-url", url, "--http", f"127.0.0.1:{taken.getsockname()[1]}")
        assert "choose another, or port 0" in process.communicate(timeout=30)[1]
    assert process.returncode == 2
