"""The page in a real browser. Without one these tests skip; with OTEL_CMB_REQUIRE_BROWSER=1 they fail instead."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import looking
import pytest
import sqlalchemy as sa
from browsing import Browser, browser_paths, get, serving, until
from looking import HOSTILE, RUN, SESSION, START, TRACE, Writer, add_run, conversation, example, many

from otel_cmb import schema
from otel_cmb.reader import open_reader
from otel_cmb.ui.app import create_app
from otel_cmb.ui.export import write_html

pytestmark = pytest.mark.browser

BIG = "22222222-0000-4000-8000-000000000000"
ESCAPE, ENTER, END, DOWN, LEFT, RIGHT = "\ue00c", "\ue007", "\ue010", "\ue015", "\ue012", "\ue014"
DRAW_ENV = "OTEL_CMB_SCREENSHOTS"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser_paths()
    browser = Browser(str(tmp_path_factory.mktemp("profile")))
    yield browser
    browser.close()


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(sqlite_url)
    looking.make_schema(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        example(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def base(engine: sa.Engine, sqlite_url: str, browser: Browser) -> Iterator[str]:
    browser.screen()
    with serving(create_app(lambda: open_reader(sqlite_url), jaeger_url="http://127.0.0.1:16686")) as url:
        yield url
        browser.page.get("about:blank")
    said = [line for line in browser.complaints() if "favicon" not in line]
    assert said == []


def titles(browser: Browser) -> list[str]:
    """Labels of the rows in sight, top to bottom."""
    rows: list[str] = browser.run(
        "return [...document.querySelectorAll('.row')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
        ".map((row) => row.getAttribute('aria-label'))"
    )
    return rows


def row(browser: Browser, text: str) -> Any:
    def find() -> Any:
        return browser.run(
            "return [...document.querySelectorAll('.row')]"
            ".find((row) => row.getAttribute('aria-label').includes(arguments[0]))", text,
        )

    return until(find, what=f"a row with {text!r}")


def test_runs_are_listed_filtered_and_opened(base: str, engine: sa.Engine, browser: Browser) -> None:
    with engine.begin() as connection:
        add_run(connection, BIG, started=None, status="draft", task_description="never started")
        for n in range(60):
            add_run(connection, str(uuid.UUID(int=n + 1)), started=START - timedelta(days=n + 1), status="failed")
    browser.open(base + "/")
    assert len(browser.all(".runs tbody tr")) == 50
    until(lambda: "5,595" in browser.text(".runs tbody tr"), what="sums")
    first = browser.text(".runs tbody tr")
    for said in ("Compute the angular power spectrum", "completed", "planner", "42.0 s", "21", "$0.0162"):
        assert said in first
    time_shown = browser.one(".runs time")
    assert time_shown.get_attribute("title") == "2026-11-22 09:30:00.000 UTC"
    browser.one(".list > .more").click()
    until(lambda: len(browser.all(".runs tbody tr")) == 62)
    assert "no start time" in browser.all(".runs tbody tr")[-1].text
    browser.keys("/", "spectrum")
    until(lambda: len(browser.all(".runs tbody tr")) == 1)
    assert browser.page.current_url.endswith("/?text=spectrum")
    browser.page.refresh()
    until(lambda: len(browser.all(".runs tbody tr")) == 1)
    browser.one(".runs a").click()
    until(lambda: browser.all(".row"))
    assert browser.page.current_url == f"{base}/runs/{RUN}"
    browser.page.back()
    until(lambda: len(browser.all(".runs tbody tr")) == 1)


def test_a_run_shows_its_graph_its_tree_and_its_sums(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    assert "Compute the angular power spectrum" in browser.text(".runhead h1")
    assert len(browser.all("svg .node")) == 5
    assert len(browser.all("svg .edge")) == 5
    assert browser.attribute("svg .node.s-failed", "aria-label") == "node step_2, agent · researcher, failed"
    shown = titles(browser)
    assert len(shown) == 21
    assert shown[0] == (
        "agent, planner, Compute the angular power spectrum of a simulated CMB map and plot it., completed, 6.4 s"
    )
    assert "ModuleNotFoundError" in next(label for label in shown if "failed" in label and "code" in label)
    first, second = row(browser, "agent, planner"), row(browser, "agent, engineer")
    bars = [item.find_element("css selector", ".bar").rect for item in (first, second)]
    assert bars[0]["x"] + bars[0]["width"] <= bars[1]["x"] + 2
    views = (("totals", "code: python"), ("files", "/work/out/spectrum.png"), ("messages", "Sample variance"))
    for view, said in views:
        browser.one(f"#tab-{view}").click()
        until(lambda said=said: said in browser.text("#view"), what=view)
        assert f"view={view}" in browser.page.current_url
    browser.one("#tab-agents").click()
    lanes = browser.one("canvas.lanes")
    assert lanes.get_attribute("aria-label").startswith("Lanes of planner (")
    browser.one("#tab-timeline").click()
    browser.run(
        "document.querySelectorAll('svg .node')[1]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    )
    until(lambda: browser.page.current_url == f"{base}/runs/{RUN}/nodes/step_1")
    until(lambda: len(browser.all(".row")) == 8)
    assert "8 found" in browser.text(".tools")


def test_branches_fold_by_mouse_and_by_keys(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    row(browser, "agent, engineer").find_element("css selector", ".fold").click()
    until(lambda: len(browser.all(".row")) == 14)
    assert row(browser, "agent, engineer").get_attribute("aria-expanded") == "false"
    assert browser.page.current_url == f"{base}/runs/{RUN}"
    browser.keys("c")
    until(lambda: len(browser.all(".row")) == 6)
    browser.keys("e")
    until(lambda: len(browser.all(".row")) == 21)
    browser.keys(DOWN)
    until(lambda: "/events/" in browser.page.current_url)
    browser.keys(LEFT)
    until(lambda: len(browser.all(".row")) == 20)
    browser.keys(RIGHT)
    until(lambda: len(browser.all(".row")) == 21)
    browser.keys(RIGHT)
    until(lambda: browser.attribute(".row[aria-selected=true]", "aria-label").startswith("llm, planner"))
    active = browser.attribute("[role=tree]", "aria-activedescendant")
    assert browser.attribute(".row[aria-selected=true]", "id") == active


def test_an_event_is_shown_for_what_it_is_and_has_an_address(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    row(browser, "failed").click()
    until(lambda: "exit code 1" in browser.text(".panel"))
    said = browser.text(".panel")
    for text in ("def power_spectrum", "ModuleNotFoundError: No module named 'matplotlib'", "Traceback", "executor"):
        assert text in said
    assert len(browser.all(".panel .code .h-k")) > 5
    address = browser.page.current_url
    browser.open(address, wait=".panel .event")
    assert "exit code 1" in browser.text(".panel")
    assert browser.attribute(".row[aria-selected=true]", "aria-label").startswith("code, executor")
    browser.keys("f")
    until(lambda: "Compare with the theoretical spectrum" in browser.text(".panel"), what="the next failure")
    browser.keys(ESCAPE)
    until(lambda: not browser.all(".panel .event"))
    assert browser.page.current_url == f"{base}/runs/{RUN}"
    for text, expected in (
        ("llm, planner", ["Break the task into steps", "system", "assistant", "prompt", "431", "$0.0023"]),
        ("tool, engineer", ["search_docs", "fft2 normalisation", "package", "norm='ortho'"]),
        ("handoff", ["planner → engineer", "plan approved"]),
        ("file,", ["/work/out/spectrum.png", "48.2 kB"]),
        ("approval", ["Publish the figure?", "yes"]),
        ("error, researcher", ["openai.RateLimitError", "raise RateLimitError(response)"]),
    ):
        row(browser, text).click()
        until(
            lambda expected=expected: all(part in browser.text(".panel") for part in expected),
            what=f"{text}: {expected}",
        )


def test_an_event_links_to_its_parent_children_node_and_to_jaeger(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    row(browser, "llm, planner").click()
    jaeger = until(lambda: browser.all(".panel a[target=_blank]"))[0]
    assert jaeger.get_attribute("href") == f"http://127.0.0.1:16686/trace/{TRACE}?uiFind=0000000000000002"
    summary = next(item for item in browser.all(".panel summary") if item.text == "Span attributes")
    summary.click()
    until(lambda: "gen_ai.request.model" in browser.text(".panel"))
    browser.run(
        "[...document.querySelectorAll('.panel details')]"
        ".find((box) => box.innerText.startsWith('Span as recorded')).open = true"
    )
    until(lambda: "1763803800300000000" in browser.text(".panel"), what="nanoseconds, not rounded")
    next(link for link in browser.all(".panel .links a") if link.text.startswith("agent planner")).click()
    until(lambda: "Conversation" in browser.text(".panel"))
    next(link for link in browser.all(".panel .links a") if link.text.startswith("llm planner")).click()
    until(lambda: "Break the task into steps" in browser.text(".panel"))
    next(link for link in browser.all(".panel .links a") if link.text == "planning").click()
    until(lambda: browser.page.current_url.startswith(f"{base}/runs/{RUN}") and "node" in browser.page.current_url)
    until(lambda: len(browser.all(".row")) == 3)


def test_events_are_found_by_text(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    browser.keys("/", "matplotlib")
    until(lambda: "2 found" in browser.text(".tools"))
    assert len(titles(browser)) == 3  # and the call they belong to
    browser.keys(ENTER)
    until(lambda: "exit code 1" in browser.text(".panel"))
    browser.one(".tools input").clear()
    browser.one(".tools input").send_keys("nothing of the kind")
    until(lambda: "No event fits" in browser.text(".waterfall"))


# -- live -------------------------------------------------------------------------------------------------------------


def _going(engine: sa.Engine) -> Writer:
    """A run of this moment, with enough events to scroll."""
    run, now = "44444444-0000-4000-8000-000000000000", datetime.now(timezone.utc).replace(tzinfo=None)
    with engine.begin() as connection:
        add_run(connection, run, status="executing", started=now, completed_at=None, task_description="live")
        writer = Writer(connection, run, start=now)
        parent = writer.event("agent_call", 0, None, status="running", agent_name="planner", inputs={"message": "go"})
        for n in range(60):
            tool = {"tool_name": f"tool {n}"}
            writer.event("tool_call", n, 1, parent=parent, depth=1, agent_name="planner", inputs=tool)
        folded = writer.event("agent_call", 100, 5, agent_name="folded")
        writer.event("tool_call", 101, 1, parent=folded, depth=1, inputs={"tool_name": "hidden"})
    return writer


def test_a_running_run_grows_within_a_second_and_the_view_stays(base: str, engine: sa.Engine, browser: Browser) -> None:
    writer = _going(engine)
    browser.open(f"{base}/runs/{writer.run_id}")
    browser.keys(END)
    row(browser, "agent, folded").find_element("css selector", ".fold").click()
    row(browser, "tool 55").click()
    until(lambda: "tool 55" in browser.text(".panel"))
    browser.run("document.querySelector('.wf-body').scrollTop = 700")
    until(lambda: row(browser, "tool 30").is_displayed())
    before = browser.run("return document.querySelector('.wf-body').scrollTop")
    delays = []
    for n in range(3):
        with engine.begin() as connection:
            writer.connection = connection
            writer.event("agent_call", 300 + n, 5, agent_name=f"new {n}")
        began = time.monotonic()
        until(lambda n=n: browser.run("return window.otelCmb.page.model.order.length") == 64 + n)
        delays.append(time.monotonic() - began)
        time.sleep(0.2)
    assert min(delays) < 4  # under 1 s on a quiet machine
    assert browser.run("return document.querySelector('.wf-body').scrollTop") == before
    assert browser.run("return window.otelCmb.page.selected") == browser.page.current_url.rpartition("/")[2]
    assert "tool 55" in browser.text(".panel")
    browser.keys(END)
    until(lambda: row(browser, "new 2"))
    browser.run("document.querySelector('.wf-body').scrollTop = 1e6")
    assert row(browser, "agent, folded").get_attribute("aria-expanded") == "false"
    assert not any("hidden" in label for label in titles(browser))


def test_a_run_that_is_killed_under_the_viewers_eyes_is_seen_to_be_dead(
    base: str, engine: sa.Engine, browser: Browser,
) -> None:
    writer = _going(engine)
    browser.open(f"{base}/runs/{writer.run_id}")
    assert "executing" in browser.text(".runhead")
    assert browser.all(".pill.going")
    events, runs = schema.execution_events, schema.workflow_runs
    with engine.begin() as connection:
        ended = writer.start + timedelta(seconds=1)
        connection.execute(sa.update(events).where(events.c.status == "running").values(
            status="failed", event_subtype="error", completed_at=ended,
            error_message="process ended before the span did",
        ))
        mine = runs.c.id == writer.run_id
        connection.execute(sa.update(runs).where(mine).values(status="failed", completed_at=ended))
    until(lambda: "process died" in browser.text(".runhead"))
    assert "failed" in browser.text(".runhead .pill")
    assert not browser.all(".pill.going")
    assert "process ended before the span did" in titles(browser)[0]


PROGRAM = """
import os, sys, time
import otel_cmb
with otel_cmb.agent_call("planner", message="go on") as call:
    open(sys.argv[1], "w").write(str(os.getpid()))
    for n in range(600):
        with otel_cmb.tool_call(f"look {n}", arguments={"n": n}) as tool:
            tool.set_result("seen")
        time.sleep(0.1)
"""


def test_a_real_program_is_watched_while_it_runs_and_when_it_is_killed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    database = f"sqlite:///{tmp_path}/otel_cmb.db"
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_cmb.cli", "run", "--database-url", database, "--task", "watched", "--",
         sys.executable, "program.py", "pid"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        browser.screen()
        with serving(create_app(lambda: open_reader(database))) as base:
            browser.open(base + "/")
            assert "watched" in browser.text(".runs tbody tr")
            browser.one(".runs a").click()
            until(lambda: len(browser.all(".row")) > 3)
            assert titles(browser)[0].startswith("agent, planner, go on, running")
            seen = len(browser.all(".row"))
            until(lambda: len(browser.all(".row")) >= seen + 5, seconds=4, what="growth")
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            until(lambda: "failed" in browser.text(".runhead .pill"), seconds=10, what="the death of the run")
            until(lambda: "failed" in titles(browser)[0], seconds=10, what="the death of the call")
            browser.page.get("about:blank")
    finally:
        process.kill()
        process.wait()
    assert browser.complaints() == []


ALONE = """
import os, sys, time
import otel_cmb
otel_cmb.configure(database_url=sys.argv[1], instrument=False)
with otel_cmb.run(task="alone"), otel_cmb.agent_call("planner", message="go on"):
    while True:
        with otel_cmb.tool_call("look"):
            time.sleep(0.1)
"""


def test_a_program_with_nobody_around_it_is_seen_to_be_dead_once_it_is_killed(browser: Browser, tmp_path: Path) -> None:
    """Nobody closes its rows before the next process comes; that its journal is nobody's tells it all the same."""
    database = f"sqlite:///{tmp_path}/otel_cmb.db"
    (tmp_path / "program.py").write_text(ALONE)
    program = subprocess.Popen([sys.executable, tmp_path / "program.py", database], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "otel_cmb.db").exists())
        with serving(create_app(lambda: open_reader(database))) as base:
            until(lambda: b"alone" in get(base + "/api/runs").body)
            browser.open(base + "/")
            browser.one(".runs a").click()
            until(lambda: len(browser.all(".row")) > 3)
            assert browser.all(".pill.going")
            assert "process died" not in browser.text(".runhead")
            program.kill()
            program.wait()
            until(lambda: "process died" in browser.text(".runhead"), seconds=5, what="the death of the program")
            assert not browser.all(".pill.going")
            browser.page.back()
            until(lambda: "process died" in browser.text(".runs tbody tr"), what="the death of the program, in the list")
            assert "parked replay" in browser.attribute(".runs .pill", "title")
            assert "executing" not in browser.text(".runs tbody tr")
            assert not browser.all(".pill.going")
            browser.page.get("about:blank")
    finally:
        program.kill()
        program.wait()


def test_a_death_comes_to_the_list_by_itself(browser: Browser, tmp_path: Path) -> None:
    """Nothing is committed when a process is killed."""
    database = f"sqlite:///{tmp_path}/otel_cmb.db"
    (tmp_path / "program.py").write_text(ALONE.replace("while True:", "time.sleep(1.5)\n    while True:"))
    program = subprocess.Popen([sys.executable, tmp_path / "program.py", database], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "otel_cmb.db").exists())
        browser.screen()
        with serving(create_app(lambda: open_reader(database))) as base:
            until(lambda: b"alone" in get(base + "/api/runs").body)
            browser.open(base + "/")
            assert "executing" in browser.text(".runs .pill.going")
            program.kill()
            program.wait()
            until(lambda: "process died" in browser.text(".runs .pill"), seconds=15, what="the death of the program")
            browser.page.get("about:blank")
    finally:
        program.kill()
        program.wait()


def test_a_run_that_fell_silent_says_since_when(base: str, engine: sa.Engine, browser: Browser) -> None:
    with engine.begin() as connection:
        run = "55555555-0000-4000-8000-000000000000"
        started = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(minutes=3)
        add_run(connection, run, status="executing", started=started, completed_at=None)
        Writer(connection, run, start=started).event("agent_call", 0, None, status="running", agent_name="planner")
    browser.open(f"{base}/runs/{run}")
    assert re.search(r"no news for [23] m", browser.text(".runhead"))


def test_new_runs_come_to_the_list_by_themselves(base: str, engine: sa.Engine, browser: Browser) -> None:
    browser.open(base + "/")
    with engine.begin() as connection:
        add_run(connection, BIG, started=START + timedelta(days=1), status="executing", completed_at=None)
    until(lambda: len(browser.all(".runs tbody tr")) == 2)
    assert "executing" in browser.text(".runs tbody tr")


# -- size, hostility, screens -----------------------------------------------------------------------------------------

MEASURE = """
const done = arguments[arguments.length - 1], what = arguments[0], body = document.querySelector(".wf-body");
const page = window.otelCmb.page, start = performance.now();
if (what === "fold") page.fold();
else if (what === "unfold") page.unfold();
else if (what === "scroll") body.scrollTop = body.scrollHeight / 2;
else if (what === "select") page.openEvent(page.model.order[7000].id);
else if (what === "search") { page.model.query = "tool_3"; page.filter(); }
else if (what === "clear") { page.model.query = ""; page.filter(); }
body.getBoundingClientRect();
requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
"""


def test_ten_thousand_events_answer_within_a_tenth_of_a_second(base: str, engine: sa.Engine, browser: Browser) -> None:
    with engine.begin() as connection:
        add_run(connection, BIG)
        many(connection, BIG, 10_000)
    browser.open(f"{base}/runs/{BIG}")
    assert browser.run("return window.otelCmb.page.model.order.length") == 10_000
    assert len(browser.all(".row")) < 80
    for what in ("fold", "unfold", "scroll", "select", "search", "clear"):
        times = sorted(browser.page.execute_async_script(MEASURE, what) for _ in range(3))
        assert times[0] < 100, (what, times)
    browser.run("document.querySelector('.wf-body').scrollTop = 1e9")
    positions = "return [...document.querySelectorAll('.row')].map((row) => +row.ariaPosInSet)"
    until(lambda: max(browser.run(positions), default=0) == 10_000)  # rows are drawn after the scroll, not with it


def test_hostile_content_is_text_and_nothing_else(base: str, engine: sa.Engine, browser: Browser) -> None:
    run = "run/../?a=b#<b>&\"'%2F"
    with engine.begin() as connection:
        add_run(connection, run, task_description=HOSTILE, agent=HOSTILE, mode=HOSTILE[:50], model=HOSTILE,
                started=START + timedelta(days=2))
        connection.execute(sa.insert(schema.dag_nodes).values(
            run_id=run, id=HOSTILE, session_id=SESSION, node_type="<b>", order_index=0, status="\"><script>",
        ))
        writer = Writer(connection, BIG)
        writer.run_id = BIG
        add_run(connection, BIG)
        keys = []
        for kind, inputs, outputs in (
            ("agent_call", {"message": HOSTILE}, {"response": HOSTILE}),
            ("tool_call", {"tool_name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}, {"result": {HOSTILE: [HOSTILE]}}),
            ("code_exec", {"code": HOSTILE}, {"result": HOSTILE}),
            ("llm_call", {"messages": [{"role": HOSTILE, "content": HOSTILE}]}, {"messages": "javascript:alert(1)"}),
            ("file_gen", {"file_path": "javascript:window.pwned=true"}, {}),
            (HOSTILE[:50], {"__proto__": {"polluted": True}, "constructor": 1}, [HOSTILE]),
        ):
            keys.append(writer.event(
                kind, 0, 1, inputs=inputs, outputs=outputs, agent_name=HOSTILE, status="failed",
                error_message=HOSTILE, span={HOSTILE: HOSTILE},
                meta={"model": HOSTILE, "stack": HOSTILE, HOSTILE: HOSTILE},
            ))
        connection.execute(sa.update(schema.execution_events).where(
            schema.execution_events.c.run_id == BIG).values(run_id=run, node_id=HOSTILE))
    browser.open(base + "/")
    assert HOSTILE in browser.text(".runs tbody tr")
    browser.one(".runs a").click()
    until(lambda: len(browser.all(".row")) == 6)
    address = browser.page.current_url
    for key in keys:
        row_id = f"e-{key}"
        browser.run("document.getElementById(arguments[0]).click()", row_id)
        until(lambda key=key: key in browser.text(".panel"), what=key)
        browser.run("for (const box of document.querySelectorAll('.panel details')) box.open = true")
    browser.open(address)
    assert len(browser.all(".row")) == 6
    for view in ("agents", "totals", "files", "messages"):
        browser.one(f"#tab-{view}").click()
        time.sleep(0.1)
    assert browser.run("return window.pwned") is None
    assert browser.run("return ({}).polluted") is None
    assert browser.all("main script, main img, main b > b") == []
    targets = browser.run("return [...document.querySelectorAll('a[href]')].map((link) => link.getAttribute('href'))")
    assert [target for target in targets if target.lower().startswith("javascript")] == []


def test_huge_values_do_not_freeze_the_page(base: str, engine: sa.Engine, browser: Browser) -> None:
    with engine.begin() as connection:
        add_run(connection, BIG)
        writer = Writer(connection, BIG)
        writer.event("code_exec", 0, 1, inputs={"code": "x = 1\n" * 100_000}, outputs={"result": "y" * 3_000_000})
        writer.event("tool_call", 1, 1, inputs={"tool_name": "t", "arguments": {f"k{n}": n for n in range(20_000)}},
                     outputs={"result": list(range(50_000))})
        deep: Any = "bottom"
        for _ in range(200):
            deep = [deep]
        writer.event("tool_call", 2, 1, inputs={"tool_name": "u", "arguments": deep})
    browser.open(f"{base}/runs/{BIG}")
    for text, title in (("tool, t,", "t"), ("tool, u", "u"), ("code", "x = 1")):
        began = time.monotonic()
        row(browser, text).click()
        until(lambda title=title: browser.text(".panel h2") == title, what=text)
        assert time.monotonic() - began < 15  # well under 1 s on a quiet machine
    next(button for button in browser.all(".panel .more") if "600.0 kB" in button.text).click()
    until(lambda: browser.run("return document.querySelector('.panel pre.code').textContent.length") > 90_000)


def test_it_is_legible_on_a_phone(base: str, browser: Browser) -> None:
    browser.screen(375, 720)
    for path in ("/", f"/runs/{RUN}", f"/runs/{RUN}?view=totals", f"/runs/{RUN}?view=messages"):
        browser.open(base + path, wait="#tab-totals, .runs tbody tr")
        time.sleep(0.2)
        assert browser.run("return document.documentElement.scrollWidth") <= 375, path
    browser.open(f"{base}/runs/{RUN}")
    row(browser, "tool, engineer").click()
    until(lambda: "search_docs" in browser.text(".panel"))
    panel = browser.one(".panel").rect
    assert (panel["x"], panel["width"]) == (0, 375)
    browser.one(".panel .close").click()
    until(lambda: browser.one(".row").is_displayed())


def _lightness(browser: Browser) -> int:
    return int(re.findall(r"\d+", browser.run("return getComputedStyle(document.body).backgroundColor"))[0])


def test_it_is_dark_where_the_reader_wants_it_dark(base: str, browser: Browser) -> None:
    browser.screen(dark=True)
    browser.open(f"{base}/runs/{RUN}")
    assert _lightness(browser) < 40
    browser.one("[aria-label='Switch between light and dark']").click()
    assert _lightness(browser) > 200
    browser.page.refresh()
    until(lambda: browser.all(".row"))
    assert _lightness(browser) > 200
    browser.run("localStorage.clear()")


def test_a_screen_reader_finds_names_and_roles(base: str, browser: Browser) -> None:
    browser.open(f"{base}/runs/{RUN}")
    row(browser, "llm, planner").click()
    until(lambda: "Prompt" in browser.text(".panel"))
    nameless = browser.run(
        "return [...document.querySelectorAll('button, a[href], input, select')].filter((item) =>"
        " !(item.getAttribute('aria-label') || item.textContent.trim() || item.closest('label')))"
        ".map((item) => item.outerHTML)"
    )
    assert nameless == []
    for selector in (
        "main", "header[role=banner]", "nav[aria-label]", "[role=tree][aria-label]", "[role=tablist]",
        "[role=tab][aria-selected=true]", "[role=tabpanel][aria-labelledby]", "aside[aria-label]", "[role=status]",
        "[role=treeitem][aria-level='2'][aria-setsize='21']",
    ):
        assert browser.all(selector), selector
    browser.keys("?")
    assert "next failure" in browser.one("dialog").text
    browser.keys(ESCAPE)
    until(lambda: not browser.all("dialog"))


def test_the_exported_file_is_the_same_page_without_a_server(
    engine: sa.Engine, sqlite_url: str, browser: Browser, tmp_path: Path,
) -> None:
    path = tmp_path / "run.html"
    with open_reader(sqlite_url) as reader:
        assert write_html(reader, RUN, path) == 21
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.glob(".otel-cmb-*")) == []
    browser.screen()
    browser.complaints()
    browser.open(path.as_uri())
    assert len(titles(browser)) == 21
    assert len(browser.all("svg .node")) == 5
    row(browser, "failed").click()
    until(lambda: "exit code 1" in browser.text(".panel"))
    address = browser.page.current_url
    assert address.startswith(f"{path.as_uri()}#/runs/{RUN}/events/")
    browser.open(address, wait=".panel .event")
    assert "exit code 1" in browser.text(".panel")
    row(browser, "agent, critic").click()
    until(lambda: HOSTILE in browser.text(".panel"))
    for view, said in (("totals", "code: python"), ("files", "spectrum.png"), ("messages", HOSTILE)):
        browser.one(f"#tab-{view}").click()
        until(lambda said=said: said in browser.text("#view"), what=view)
    assert browser.run("return window.pwned") is None
    assert browser.complaints() == []
    browser.page.get("about:blank")


def test_a_long_conversation_is_once_in_the_exported_file_and_whole_on_the_page(
    engine: sa.Engine, sqlite_url: str, browser: Browser, tmp_path: Path,
) -> None:
    with engine.begin() as connection:
        add_run(connection, BIG)
        conversation(connection, Writer(connection, BIG), 40)
    with open_reader(sqlite_url) as reader:
        write_html(reader, BIG, tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size < 500_000  # each whole call by itself: 1.2 MB
    browser.screen()
    browser.open((tmp_path / "run.html").as_uri())
    browser.keys(END)
    until(lambda: "question 39" in browser.text(".panel"))
    assert "question 0" in browser.text(".panel")
    assert "answer 20" in browser.text(".panel")
    browser.page.get("about:blank")
    assert browser.complaints() == []


def test_a_lost_server_is_told_and_found_again(engine: sa.Engine, sqlite_url: str, browser: Browser) -> None:
    from otel_cmb.errors import DatabaseUnavailableError

    away = threading.Event()

    def factory() -> Any:
        reader = open_reader(sqlite_url)
        line = reader.version

        def version() -> str | None:
            if away.is_set():
                raise DatabaseUnavailableError("the database is away; try again")
            return line()

        reader.version = version  # type: ignore[method-assign]
        return reader

    browser.screen()
    with serving(create_app(factory)) as base:
        browser.open(f"{base}/runs/{RUN}")
        away.set()
        until(lambda: "the database is away" in browser.text("#notice"))
        assert len(browser.all(".row")) == 21
        away.clear()
        until(lambda: browser.text("#notice") == "")
        browser.page.get("about:blank")
    browser.complaints()


@pytest.mark.skipif(os.environ.get(DRAW_ENV) != "1", reason=f"draws docs/images/*.png with {DRAW_ENV}=1")
def test_the_pictures_of_the_documentation_are_drawn(
    engine: sa.Engine, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine.begin() as connection:
        for n, (task, status, agent) in enumerate((
            ("Fit the power spectrum with a six-parameter model.", "executing", "planner"),
            ("Summarise three papers on lensing reconstruction.", "completed", "researcher"),
            ("Reproduce figure 4 with the public likelihood.", "failed", "engineer"),
        )):
            started = START - timedelta(hours=n * 5)
            if n == 0:
                started = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(seconds=40)
            run = f"{n + 3}7777777-0000-4000-8000-00000000000{n}"
            add_run(connection, run, started=started, status=status, agent=agent, mode="planning_control",
                    completed_at=None if n == 0 else started + timedelta(seconds=95 * n), task_description=task)
            many(connection, run, 40 + n * 71, start=started)
    engine.dispose()
    images = Path(__file__).parents[1] / "docs" / "images"
    images.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("events.db").rename("otel_cmb.db")
    browser.screen(1280, 470)
    with serving(create_app(open_reader)) as base:
        browser.open(base + "/")
        until(lambda: len(browser.all(".runs .cost:not(:empty)")) == 4)
        browser.page.save_screenshot(str(images / "runs.png"))
        for name, dark in (("run", False), ("run-dark", True)):
            browser.screen(1280, 860, dark=dark)
            browser.open(f"{base}/runs/{RUN}")
            row(browser, "failed").click()
            until(lambda: "exit code 1" in browser.text(".panel"))
            browser.page.save_screenshot(str(images / f"{name}.png"))
        browser.page.get("about:blank")


# -- long names, deep trees, nothing there ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1400, 1200, 1000])
def test_a_long_name_does_not_push_the_other_columns_out_of_view(
    base: str, engine: sa.Engine, browser: Browser, width: int,
) -> None:
    name = "an_agent_whose_name_goes_on_" * 8
    with engine.begin() as connection:
        add_run(connection, BIG, started=START + timedelta(days=1), agent=name, mode=name, model=name, status=name)
    browser.screen(width)
    browser.open(base + "/")
    until(lambda: "5,595" in browser.text(".runs tbody"), what="sums")
    box = browser.one(".list .scroll")
    assert browser.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", box)
    edge = browser.run("return document.querySelector('.runs thead th:last-child').getBoundingClientRect().right")
    assert edge <= width
    agent = browser.one(f"tr[data-id='{BIG}'] .agent")
    assert agent.get_attribute("title") == name
    assert browser.run("const s = getComputedStyle(arguments[0]); return [s.textOverflow, s.overflowX]", agent) == ["ellipsis", "hidden"]
    x, y = browser.run("const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]", agent)
    assert browser.run("return document.elementFromPoint(...arguments).title", x, y) == name, "what the mouse is over"
    agent.click()
    until(lambda: browser.page.current_url == f"{base}/runs/{BIG}")


def test_a_run_that_is_not_there_says_so_and_nothing_else(base: str, engine: sa.Engine, browser: Browser) -> None:
    browser.open(f"{base}/runs/{BIG}?view=totals", wait=".runhead h1")
    assert browser.text(".runhead h1") == "No such run"
    assert "No such run" in browser.page.title
    browser.keys("2", "f", "/")
    shown = browser.text("#content")
    assert shown.splitlines()[0] == "No such run"
    assert shown.splitlines()[-1] == "All runs"
    for said in ("Timeline", "No events yet", "Nothing to add up"):
        assert said not in shown
    assert "404" in browser.complaints()[0]
    with engine.begin() as connection:
        add_run(connection, BIG, task_description="here now")
    until(lambda: "here now" in browser.text(".runhead"), what="the run, when it has come")
    until(lambda: "Nothing to add up" in browser.text("#view"), what="the view that was asked for")
    browser.complaints()
    browser.open(f"{base}/runs/{BIG[:-1]}", wait=".runhead a, .runhead h1")
    browser.complaints()


@pytest.mark.parametrize(("width", "panel"), [(360, False), (1400, True), (900, True)])
def test_names_stay_visible_however_deep_they_are(
    base: str, engine: sa.Engine, browser: Browser, width: int, panel: bool,
) -> None:
    with engine.begin() as connection:
        add_run(connection, BIG)
        writer, parent = Writer(connection, BIG), None
        for depth in range(32):
            parent = writer.event("agent_call", depth, 100 - depth, parent=parent, depth=depth, agent_name=f"{depth:02} agent",
                                  meta={"tokens": 123_456})
    browser.screen(width, 1200)
    browser.open(f"{base}/runs/{BIG}" + (f"/events/{parent}" if panel else ""), wait=".row")
    until(lambda: len(browser.all(".row")) >= 28)
    seen = browser.run("""
        return [...document.querySelectorAll(".row")].map((row) => {
          const cell = row.firstChild.getBoundingClientRect(), name = row.querySelector("b").getBoundingClientRect();
          return [row.ariaLevel * 1, name.left - cell.left, Math.min(name.right, cell.right) - name.left];
        }).sort((a, b) => a[0] - b[0])""")
    assert min(shown for _, _, shown in seen) >= 24
    lefts = [left for level, left, _ in seen if level <= 24]
    assert lefts == sorted(lefts)
    assert lefts[-1] > lefts[0]
