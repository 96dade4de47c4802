"""`otel-cmb runs` and `otel-cmb show`, as real commands on real files."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import looking
import pytest
import sqlalchemy as sa
from looking import HOSTILE, RUN, START, Writer, add_run, example, many
from support import forked

from otel_cmb import schema
from otel_cmb.cli.look import Moment
from otel_cmb.cli.tree import Glyphs, clean, draw, money, rows_of, span
from otel_cmb.reader import open_reader

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def engine(sqlite_url: str) -> sa.Engine:
    engine = sa.create_engine(sqlite_url)
    looking.make_schema(engine)
    return engine


@pytest.fixture
def otel_cmb(sqlite_url: str, tmp_path: Path) -> Command:
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"OTEL_EXPORTER_CMB_DATABASE_URL": sqlite_url, "COLUMNS": "120", "TZ": "UTC", **environment}
        if not {"PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG"} & environment.keys():
            return forked.run(["otel-cmb", *arguments], tmp_path, {**os.environ, **settings}, 60)
        return subprocess.run(
            [sys.executable, "-m", "otel_cmb.cli", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=60,
            cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "utf-8", **settings}, check=False,
        )

    return call


def test_runs_are_listed(engine: sa.Engine, otel_cmb: Command) -> None:
    assert "no runs yet" in otel_cmb("runs").stdout
    with engine.begin() as connection:
        example(connection)
        add_run(connection, "11111111-0000-4000-8000-000000000000", started=None, status="draft")
    result = otel_cmb("runs")
    first, second, third = result.stdout.splitlines()
    assert first.split() == ["run", "status", "started", "took", "agent", "events", "failed", "tokens", "cost", "task"]
    assert second.split()[:10] == [
        "6f1c1f0e", "completed", "2026-11-22", "09:30:00", "42.0", "s", "planner", "21", "3", "5,595",
    ]
    assert third.split()[:3] == ["11111111", "draft", "-"]
    assert otel_cmb("runs", "--status", "nothing").stdout == "no run fits\n"
    found = json.loads(otel_cmb("runs", "--json", "--text", "SPECTRUM", "--since", "2026-11-22T00:00:00Z").stdout)
    assert [(run["id"], run["totals"]["tokens"]) for run in found] == [(RUN, 5595)]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_run_is_drawn_within_the_width_of_the_terminal(engine: sa.Engine, otel_cmb: Command, width: int) -> None:
    with engine.begin() as connection:
        example(connection)
    result = otel_cmb("show", COLUMNS=str(width))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in result.stdout
    assert "├─ ✓ agent planner" in result.stdout
    code = next(number for number, line in enumerate(lines) if "✗ code executor" in line)
    assert "2.3 s" in lines[code]
    assert lines[code + 1].strip("│ ") == "ModuleNotFoundError: No module named 'matplotlib'"
    for said in ("step_1", "✓ handoff planner", "gpt-4.1", "5,595 tokens", "✓ file executor", "━"):
        assert said in result.stdout


def test_bars_stand_where_their_events_happened(engine: sa.Engine, sqlite_url: str) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN, completed_at=START + timedelta(seconds=10))
        writer = Writer(connection)
        writer.event("agent_call", 0, 5000, agent_name="a")
        writer.event("agent_call", 5000, 5000, agent_name="b")
    with open_reader(sqlite_url) as reader:
        run, lines = reader.run(RUN), reader.lines(RUN)
    now = datetime.now(timezone.utc)
    first, second = (text.plain for text in draw(run, [], lines, 80, glyphs=Glyphs.plain(), now=now))
    assert first.index("=") + first.count("=") == second.index("=")
    assert first.count("=") == second.count("=") > 5


def test_a_terminal_that_knows_only_ascii_gets_only_ascii(engine: sa.Engine, otel_cmb: Command) -> None:
    with engine.begin() as connection:
        writer = example(connection)
        writer.event("tool_call", 50_000, 1, inputs={"tool_name": "café"})
    result = otel_cmb("show", PYTHONIOENCODING="ascii:replace")
    assert result.returncode == 0
    assert "|- + agent planner" in result.stdout
    assert result.stdout.isascii()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "cp1252"])
def test_an_encoding_that_lacks_what_is_drawn_ends_no_command(engine: sa.Engine, otel_cmb: Command, encoding: str) -> None:
    with engine.begin() as connection:
        example(connection)
    for command in (["show"], ["runs"], ["show", "no such run \u2713\udcff"]):
        result = otel_cmb(*command, PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8")
        assert (result.returncode, "Traceback" in result.stderr) == (len(command) - 1, False), result.stderr
    whole = json.loads(otel_cmb("show", "--json", PYTHONIOENCODING=encoding).stdout)
    assert whole == json.loads(otel_cmb("show", "--json").stdout)


def test_every_column_of_every_event_is_in_the_json(engine: sa.Engine, otel_cmb: Command) -> None:
    with engine.begin() as connection:
        example(connection)
    whole = json.loads(otel_cmb("show", RUN[:8], "--json").stdout)
    assert set(whole) == {"run", "totals", "nodes", "edges", "steps", "events", "files", "messages"}
    assert len(whole["events"]) == 21
    assert {column.name for column in schema.execution_events.c} == set(whole["events"][0])
    assert whole["events"][0]["started_at"] == "2026-11-22T09:30:00Z"
    assert [len(whole[name]) for name in ("nodes", "edges", "files", "messages")] == [5, 5, 1, 3]


def test_a_run_goes_by_alias_prefix_and_latest(engine: sa.Engine, otel_cmb: Command) -> None:
    assert otel_cmb("show").returncode == 1
    with engine.begin() as connection:
        example(connection)
    for name in ("latest", RUN, RUN[:6], "task_1768904279349_a64oayyk2"):
        assert otel_cmb("show", name).stdout.startswith(f"run {RUN}  completed\n")
    result = otel_cmb("show", RUN[:-1] + "x")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"otel-cmb: no run '{RUN[:-1]}x' in sqlite:///")
    assert f"near it: {RUN}" in result.stderr


def test_a_missing_file_and_a_wrong_url_are_told_with_exit_code_2(otel_cmb: Command, tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/none.db", "sqlite:///:memory:", "nonsense"):
        result = otel_cmb("runs", "--database-url", url)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("otel-cmb: database")
        assert ("--database-url" in result.stderr) == ("none.db" in url), "a file that is not there is perhaps elsewhere"
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.db"))


def test_no_text_of_a_model_steers_the_terminal(engine: sa.Engine, otel_cmb: Command) -> None:
    evil = "[bold]x\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u200b[/bold]\r\nnext"
    with engine.begin() as connection:
        add_run(connection, RUN, task_description=evil, agent=evil, status="failed")
        writer = Writer(connection)
        writer.event("tool_call", 0, 1, inputs={"tool_name": evil}, agent_name=evil, status="failed",
                     error_message=evil)
    for arguments in (("show",), ("runs",)):
        output = otel_cmb(*arguments, FORCE_COLOR="1").stdout
        assert "]0;owned" in output
        assert "[bold]x" in output
        for forbidden in ("\x1b]", "\x07", "\x1b[2J", "\u202e", "\u200b", "\r"):
            assert forbidden not in output
    assert clean(evil).startswith("[bold]x ]0;owned")
    assert "\x1b[" not in otel_cmb("show", NO_COLOR="1").stdout


def test_long_runs_are_cut_and_say_so(engine: sa.Engine, otel_cmb: Command) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        many(connection, RUN, 300)
    result = otel_cmb("show", "--limit", "50")
    assert "250 more events; all with --limit 0" in result.stdout
    assert otel_cmb("show", "--limit", "0").stdout.count("agent agent_") == 90


def test_following_prints_what_starts_and_ends_until_the_run_does(engine: sa.Engine, sqlite_url: str, tmp_path: Path) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN, status="executing", completed_at=None)
        writer = Writer(connection)
        key = writer.event("agent_call", 0, None, status="running", agent_name="planner", inputs={"message": "plan"})

    def finish() -> None:
        events, runs = schema.execution_events, schema.workflow_runs
        with engine.begin() as connection:
            writer.connection = connection
            writer.event("tool_call", 100, 20, agent_name="planner", parent=key, depth=1, status="failed",
                         inputs={"tool_name": "search"}, error_message="no network")
        with engine.begin() as connection:
            connection.execute(sa.update(events).where(events.c.id == key).values(
                status="completed", event_subtype="complete", duration_ms=900,
                completed_at=START + timedelta(milliseconds=900),
            ))
            connection.execute(sa.update(runs).values(status="completed", completed_at=START + timedelta(seconds=1)))

    for arguments in (("--follow",), ("--follow", "--json")):
        with engine.begin() as connection:
            connection.execute(sa.update(schema.workflow_runs).values(status="executing", completed_at=None))
            connection.execute(sa.delete(schema.execution_events).where(schema.execution_events.c.id != key))
            connection.execute(sa.update(schema.execution_events).values(status="running", completed_at=None))
            writer.order = 1
        with subprocess.Popen(
            [sys.executable, "-m", "otel_cmb.cli", "show", RUN, *arguments], stdout=subprocess.PIPE, encoding="utf-8",
            cwd=tmp_path, env={**os.environ, "OTEL_EXPORTER_CMB_DATABASE_URL": sqlite_url, "COLUMNS": "120",
                               "PYTHONIOENCODING": "utf-8"},
        ) as process:
            assert process.stdout is not None
            said = ""
            while "planner" not in said:  # what runs is shown before it ends
                line = process.stdout.readline()
                assert line, said
                said += line
            finish()
            said += process.stdout.read()
        assert process.returncode == 0
        if "--json" in arguments:
            changes = [json.loads(line) for line in said.splitlines()]
            events = [change["event"] for change in changes if "event" in change]
            assert [event["status"] for event in events if event["id"] == key] == ["running", "completed"]
            assert changes[-1]["run"]["status"] == "completed"
        else:
            places = [said.index(text) for text in ("▶ agent planner plan", "✗ tool planner search", "✓ agent planner")]
            assert places == sorted(places)
            assert "no network" in said
            assert "2 events · 1 failed" in said


def test_following_on_a_terminal_redraws_and_ends_with_the_whole_tree(engine: sa.Engine, sqlite_url: str) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN, status="executing", completed_at=None)
        writer = Writer(connection)
        for n in range(40):
            writer.event("tool_call", n * 10, 5, inputs={"tool_name": f"look {n}"})

    def finish() -> None:
        with engine.begin() as connection:
            connection.execute(sa.update(schema.workflow_runs).values(status="completed", completed_at=START))

    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover
        os.environ.update(TERM="xterm", LINES="24", COLUMNS="100", PYTHONIOENCODING="utf-8")
        os.execv(sys.executable, [sys.executable, "-m", "otel_cmb.cli", "show", "-f", "--database-url", sqlite_url])
    output, finished = b"", False
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        output += part
        if not finished and output.count(b"lines above") >= 2:  # drawn, and drawn again
            finish()
            finished = True
    assert os.waitpid(process, 0)[1] == 0
    os.close(terminal)
    assert finished
    text = output.decode()
    live, _, final = text.rpartition("completed")
    assert live.count("lines above") >= 2
    assert "\x1b[1A" in live
    assert final.count("look ") == 40


def test_times_and_sums_are_told_shortly() -> None:
    assert [span(ms) for ms in (None, 0, 999, 6400, 125_000, 11_220_000)] == [
        "", "0 ms", "999 ms", "6.4 s", "2 m 05 s", "3 h 07 m",
    ]
    assert [money(cost) for cost in (None, 0, 1e-6, 0.00231, 12.5)] == ["", "", "<$0.0001", "$0.0023", "$12.50"]


def test_a_time_is_given_as_people_say_it(otel_cmb: Command, engine: sa.Engine) -> None:
    now = datetime.now(timezone.utc)
    assert abs(Moment().convert("2h", None, None) - (now - timedelta(hours=2))) < timedelta(seconds=5)
    moment = Moment().convert("2026-11-22T09:30:00+01:00", None, None)
    assert moment == datetime(2026, 11, 22, 8, 30, tzinfo=timezone.utc)
    result = otel_cmb("runs", "--since", "yesterday")
    assert result.returncode == 2
    assert "expected a time like" in result.stderr


def test_hostile_names_stay_in_their_line(engine: sa.Engine, otel_cmb: Command) -> None:
    with engine.begin() as connection:
        add_run(connection, RUN)
        Writer(connection).event("tool_call", 0, 1, inputs={"tool_name": HOSTILE + "\n" * 50 + "x" * 5000})
    lines = otel_cmb("show").stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 6


def _sequence(connection: sa.Connection) -> None:
    """A sequence of chats, as AG2's `initiate_chats` leaves it: the sequence is of no node, each chat of its own."""
    add_run(connection, RUN)
    for index, node in enumerate(["chat_1", "chat_2", "idle", *(f"late_{n}" for n in range(3))]):
        connection.execute(sa.insert(schema.dag_nodes).values(
            run_id=RUN, id=node, session_id=looking.SESSION, node_type="agent", status="completed", order_index=index, depth=0))
    writer = Writer(connection)
    whole = writer.event("info", 0, 900, agent_name="user")
    for number, at in ((1, 0), (2, 400)):
        chat = writer.event("info", at, 300, parent=whole, depth=1, node_id=f"chat_{number}", agent_name=f"talk{number}")
        writer.event("agent_call", at, 100, parent=chat, depth=2, node_id=f"chat_{number}", agent_name=f"first{number}")
        call = writer.event("agent_call", at + 100, 200, parent=chat, depth=2, agent_name=f"second{number}")
        writer.event("tool_call", at + 200, 50, parent=call, depth=3, node_id="gone", inputs={"tool_name": f"tool{number}"})
    back = writer.event("agent_call", 700, 100, parent=chat, depth=2, node_id="chat_1", agent_name="back")
    for n in range(4):
        writer.event("agent_call", 700, 10, parent=back, depth=3, node_id=f"late_{n % 3}" if n else "idle", agent_name=f"far{n}")


def test_what_an_event_of_another_node_called_stands_under_its_own_node(
    engine: sa.Engine, otel_cmb: Command, sqlite_url: str,
) -> None:
    with engine.begin() as connection:
        _sequence(connection)
    with open_reader(sqlite_url) as reader:
        nodes, lines = reader.nodes(RUN), reader.lines(RUN)
    rows = list(rows_of(nodes, lines, Glyphs()))
    assert sorted(row.line.id for row in rows if row.line) == sorted(line.id for line in lines)
    assert [
        row.guides + (row.node.name if row.node else row.line.agent_name or row.line.title or "" if row.line else "")
        + "".join(f" > {name}" for name in row.elsewhere) for row in rows
    ] == [
        "chat_1", "├─ talk1", "│  ├─ first1", "│  └─ second1", "│     └─ tool1", "└─ back > idle > late_1 > late_2 > late_0",
        "chat_2", "└─ talk2 > chat_1", "   ├─ first2", "   └─ second2", "      └─ tool2",
        "idle", "└─ far0", "late_0", "└─ far3", "late_1", "└─ far1", "late_2", "└─ far2",
        "user > chat_1 > chat_2",
    ]
    drawn = otel_cmb("show", COLUMNS="200").stdout
    assert "└─ ✓ agent back  → idle, late_1, late_2, …  " in drawn
    assert "✓ info user  → chat_1, chat_2  " in drawn
    drawn = otel_cmb("show", COLUMNS="200", PYTHONIOENCODING="ascii:replace").stdout
    assert "`- + agent back  -> idle, late_1, late_2, ...  " in drawn
