"""`otel-cmb parked list|replay|drop`: what could not be stored, looked at, tried again, given up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from pathlib import Path

import pytest
from commands import Shell, eventually

PARKED = {"OTEL_TRACES_EXPORTER": "cmb", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
          "OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "30"}
AWAY = {"OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "0.5", "OTEL_EXPORTER_CMB_EXPORT_TIMEOUT": "0.5"}
"""Where the database cannot be reached anyway, its program ends soon."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    directory = tmp_path / "work"
    directory.mkdir()
    return Shell(directory)


def make_run(shell: Shell, run_id: str) -> None:
    shell.program(f"import otel_cmb\notel_cmb.configure()\nwith otel_cmb.run(run_id={run_id!r}):\n    pass\n", "make.py")
    shell.prepare("make.py")


def park(shell: Shell, run_id: str, *names: str) -> None:
    shell.program(f"""
        for name in {names!r}:
            with agent(name):
                pass
    """)
    assert shell.run("opentelemetry-instrument", "python", "program.py", OTEL_CMB_RUN_ID=run_id, **PARKED).returncode == 0


def listed(shell: Shell) -> list[dict[str, object]]:
    done = shell.run("otel-cmb", "parked", "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_nothing_parked_is_an_empty_list_and_a_sentence(shell: Shell) -> None:
    make_run(shell, "run-1")
    assert listed(shell) == []
    done = shell.run("otel-cmb", "parked", "list")
    assert (done.returncode, done.stdout) == (0, "nothing is parked for sqlite:///otel_cmb.db\n")


def test_list_gives_one_object_per_span_with_ids_reason_and_time(shell: Shell) -> None:
    park(shell, "run-2", "planner", "engineer")
    one, other = listed(shell)
    assert one.keys() >= {"trace_id", "span_id", "name", "run_id", "reason", "since", "attempts"}
    assert {one["name"], other["name"]} == {"invoke_agent planner", "invoke_agent engineer"}
    assert (one["run_id"], one["reason"]) == ("run-2", "run_not_found")
    assert re.fullmatch(r"[0-9a-f]{32}", str(one["trace_id"]))
    assert re.fullmatch(r"[0-9a-f]{16}", str(one["span_id"]))
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*Z$", str(one["since"]))
    assert int(str(one["attempts"])) >= 1
    text = shell.run("otel-cmb", "parked", "list", COLUMNS="160").stdout
    assert "2 × run_not_found" in text
    assert "run-2" in text
    assert "otel-cmb parked replay" in text


def test_replay_stores_what_has_its_run_now_and_says_what_stays(shell: Shell) -> None:
    park(shell, "run-1", "planner", "engineer")
    park(shell, "run-2", "critic")
    first = shell.run("otel-cmb", "parked", "replay", "--json")
    assert first.returncode == 1, "exit code 1: something stays parked"
    assert json.loads(first.stdout) == {"before": 3, "stored": 0, "parked": {"run_not_found": 3}, "told": 0}
    make_run(shell, "run-1")
    second = shell.run("otel-cmb", "parked", "replay")
    assert second.returncode == 1
    assert "1 still parked" in second.stdout
    assert sorted(event.agent_name for event in shell.events(run_id="run-1")) == ["engineer", "planner"]
    make_run(shell, "run-2")
    third = shell.run("otel-cmb", "parked", "replay")
    assert (third.returncode, listed(shell)) == (0, [])
    assert [event.agent_name for event in shell.events(run_id="run-2")] == ["critic"]
    assert shell.run("otel-cmb", "parked", "replay").returncode == 0, "again changes nothing"
    assert len(shell.events(run_id="run-1")) == 2


def test_parked_spans_of_a_living_process_are_listed_and_stored_by_it_when_replay_says_now(shell: Shell) -> None:
    shell.program("""
        import os
        with agent("engineer"):
            pass
        open("go").read()
    """)
    os.mkfifo(shell.directory / "go")
    process = shell.start("opentelemetry-instrument", "python", "program.py", OTEL_CMB_RUN_ID="run-1",
                          **PARKED, OTEL_EXPORTER_CMB_PARK_RETRY="0")
    try:
        [found] = eventually(lambda: listed(shell), "the span of the living process in the list")
        assert found["process"] == process.pid
        make_run(shell, "run-1")
        replayed = shell.run("otel-cmb", "parked", "replay", "--json")
        assert json.loads(replayed.stdout)["told"] == 1
        [event] = eventually(lambda: shell.events(run_id="run-1"), "the living process tries now")
        assert event.agent_name == "engineer"
    finally:
        (shell.directory / "go").write_text("", encoding="utf-8")
        process.communicate(timeout=30)
    assert listed(shell) == []


def test_replay_counts_what_waited_without_being_parked(shell: Shell) -> None:
    """A program that ended while the file was locked: pending, not parked."""
    assert shell.run("otel-cmb", "db", "init").returncode == 0
    shell.program("""
        for n in range(3):
            with agent(f"agent {n}"):
                pass
    """)
    with contextlib.closing(sqlite3.connect(shell.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        shell.run("opentelemetry-instrument", "python", "program.py", **PARKED | AWAY, OTEL_EXPORTER_CMB_BUSY_TIMEOUT="0.1")
        other.execute("ROLLBACK")
    done = shell.run("otel-cmb", "parked", "replay")
    assert (done.returncode, done.stdout) == (0, "3 stored, 0 still parked\n")
    assert len(shell.events()) == 3


def test_drop_gives_up_what_was_named_and_counts_it(shell: Shell) -> None:
    park(shell, "run-1", "planner", "engineer")
    park(shell, "run-2", "critic")
    nothing = shell.run("otel-cmb", "parked", "drop", "--run", "run-3", "--json")
    assert json.loads(nothing.stdout) == {"dropped": 0, "kept": 0}
    one = shell.run("otel-cmb", "parked", "drop", "--run", "run-2", "--yes")
    assert (one.returncode, one.stdout) == (0, "1 dropped\n")
    assert {item["run_id"] for item in listed(shell)} == {"run-1"}
    rest = shell.run("otel-cmb", "parked", "drop", "--reason", "run_not_found", "--json", "--yes")
    assert json.loads(rest.stdout) == {"dropped": 2, "kept": 0}
    assert listed(shell) == []
    make_run(shell, "run-1")
    doctor = json.loads(shell.run("otel-cmb", "doctor", "--json").stdout)
    assert doctor["accounting"]["lost"] == {"dropped": 3}
    assert doctor["accounting"]["received"] == doctor["accounting"]["ignored"] + 3


def test_drop_asks_first_and_no_answer_is_no(shell: Shell) -> None:
    park(shell, "run-1", "planner")
    done = shell.run("otel-cmb", "parked", "drop")
    assert done.returncode == 1
    assert "drop 1 parked span(s)" in done.stdout
    assert len(listed(shell)) == 1
    done = shell.run("otel-cmb", "parked", "drop", "--json")
    assert (done.returncode, done.stdout) == (1, "")  # asked where JSON is not read
    assert "drop 1 parked span(s)" in done.stderr
    assert len(listed(shell)) == 1


def test_replay_against_a_server_that_is_away_loses_nothing_and_says_so(shell: Shell) -> None:
    url = "postgresql://user:secret-word@127.0.0.1:1/agents"
    shell.program("with agent('engineer'):\n    pass\n")
    shell.run("opentelemetry-instrument", "python", "program.py", OTEL_EXPORTER_CMB_DATABASE_URL=url, **PARKED | AWAY)
    done = shell.run("otel-cmb", "parked", "replay", "--database-url", url)
    assert done.returncode == 1
    assert "cannot be written now" in done.stderr
    assert "secret-word" not in done.stdout + done.stderr
    text = shell.run("otel-cmb", "parked", "list", "--database-url", url).stdout
    assert "1 span" in text


@pytest.mark.parametrize("command", ["list", "replay", "drop"])
def test_a_wrong_database_is_one_sentence_and_exit_code_2(shell: Shell, command: str) -> None:
    done = shell.run("otel-cmb", "parked", command, "--database-url", "sqlite://")
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert "in-memory SQLite" in sentence
