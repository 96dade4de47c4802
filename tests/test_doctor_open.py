"""`otel-cmb doctor` about what goes on although it should have ended: whose it is, and advice that works."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from commands import Shell
from test_doctor import asked, check


@pytest.fixture
def killed(tmp_path: Path) -> Shell:
    """A program that was killed in the middle of an agent's call."""
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work")
    shell.program("""
        import os, signal, otel_cmb
        from otel_cmb.pipeline import current_pipeline
        otel_cmb.configure(instrument=False)
        with otel_cmb.run(run_id="run-1"), otel_cmb.agent_call("engineer"):
            current_pipeline().show_running()
            assert current_pipeline().flush(10)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert shell.run("python", "program.py").returncode == -9
    return shell


def changed(shell: Shell, *statements: str) -> list[Any]:
    connection = sqlite3.connect(shell.database)
    try:
        with connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]
    finally:
        connection.close()


def test_a_row_whose_journal_is_there_is_closed_by_the_advice(killed: Shell) -> None:
    changed(killed, "UPDATE workflow_runs SET completed_at = started_at")
    code, found = asked(killed)
    running = check(found, "running")
    assert (code, running["ok"], running["count"], running["whose"]) == (1, False, 1, {"died": 1})
    assert "`otel-cmb parked replay` closes them" in running["advice"]
    assert killed.run("otel-cmb", "parked", "replay").returncode == 0
    assert asked(killed)[0] == 0
    [event] = killed.events()
    assert (event.status, event.error_message) == ("failed", "process ended before the span did")
    assert event.completed_at is event.duration_ms is None  # nobody knows when it ended


def test_a_row_whose_journal_is_gone_gets_advice_that_works(killed: Shell) -> None:
    changed(killed, "UPDATE workflow_runs SET completed_at = started_at")
    shutil.rmtree(killed.state)
    code, found = asked(killed)
    running = check(found, "running")
    assert (code, running["whose"]) == (1, {"nobody": 1})
    assert running["advice"].startswith("1 in no journal of this host")
    statement = running["advice"].partition("but SQL does: ")[2].partition(". Keep the state directory")[0]
    changed(killed, statement.replace("...", "run-1"))
    assert asked(killed)[0] == 0
    [event] = killed.events()
    assert (event.status, event.error_message) == ("failed", "process ended before the span did")


def test_a_run_that_goes_on_for_ever_is_named(killed: Shell) -> None:
    """One that a process left is bad; what no journal here knows may be busy on another host."""
    changed(killed, "UPDATE workflow_runs SET started_at = '2026-01-01 00:00:00.000000'",
            "UPDATE execution_events SET started_at = '2026-01-01 00:00:00.000000'")
    code, found = asked(killed)
    executing = check(found, "executing")
    assert (code, executing["ok"], executing["examples"], executing["whose"]) == (1, False, ["run-1"], {"died": 1})
    assert "`otel-cmb parked replay` ends them" in executing["advice"]
    shutil.rmtree(killed.state)
    code, found = asked(killed)
    executing = check(found, "executing")
    assert (code, executing["ok"], executing["whose"]) == (0, True, {"nobody": 1})
    statement = executing["advice"].partition("but SQL does: ")[2]
    changed(killed, statement.replace("...", "run-1"))
    assert check(asked(killed)[1], "executing")["count"] == 0
    assert [run.status for run in killed.runs()] == ["failed"]


def test_what_a_living_process_does_is_its_own(killed: Shell) -> None:
    killed.program("""
        import time, otel_cmb
        from otel_cmb.pipeline import current_pipeline
        otel_cmb.configure(instrument=False)
        with otel_cmb.run(run_id="run-2"):
            call = otel_cmb.agent_call("late")
            call.__enter__()
        current_pipeline().show_running()
        assert current_pipeline().flush(10)
        print("ready", flush=True)
        time.sleep(60)
    """, "living.py")
    killed.run("otel-cmb", "parked", "replay")
    living = killed.start("python", "living.py")
    try:
        assert living.stdout is not None
        assert living.stdout.readline() == "ready\n"
        code, found = asked(killed)
        assert (code, check(found, "running")["whose"]) == (0, {"living": 1})
    finally:
        living.kill()
        living.wait()
        living.stdout.close()
        if living.stderr is not None:
            living.stderr.close()
