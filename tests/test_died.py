"""A run whose process died goes on in the database. That its journal is nobody's is seen by everything that shows runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import get, serving
from commands import Shell, eventually
from support import forked
from test_doctor import asked, check

from otel_cmb import config, journal_files
from otel_cmb.adoption import Adoption
from otel_cmb.journal import adoptable, journals, read_only_summary
from otel_cmb.owners import Owners
from otel_cmb.reader import Reader, open_reader
from otel_cmb.state_paths import state_directory
from otel_cmb.ui.app import create_app

LONG_CALL = """
    import os, signal, sys, time, otel_cmb
    from otel_cmb.pipeline import current_pipeline
    otel_cmb.configure(instrument=False)
    with {block}otel_cmb.agent_call("engineer", message="long"):
        current_pipeline().show_running()
        assert current_pipeline().flush(10)
        open("ready", "w").close()
        {then}
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work")


@pytest.fixture
def killed(shell: Shell) -> Shell:
    """A program that was killed in the middle of an agent's call."""
    shell.program(LONG_CALL.format(block="otel_cmb.run(), ", then="os.kill(os.getpid(), signal.SIGKILL)"))
    forked.run(["python", "program.py"], shell.directory, shell.environment(), 60)
    return shell


@contextmanager
def group(shell: Shell) -> Iterator[Callable[[], None]]:
    """`otel-cmb run` with a program in the middle of an agent's call, and what kills both at once."""
    shell.program(LONG_CALL.format(block="", then="time.sleep(60)"))
    process = subprocess.Popen(
        ["otel-cmb", "run", "--", "python", "program.py"], cwd=shell.directory, env=shell.environment(),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill() -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    try:
        eventually((shell.directory / "ready").exists, "the call")
        yield kill
    finally:
        if process.poll() is None:
            kill()


def settings_of(shell: Shell) -> config.Settings:
    return config.load(database_url=shell.url, state_dir=str(shell.state / "otel-cmb"))


@contextmanager
def reading(shell: Shell) -> Iterator[Reader]:
    with open_reader(shell.url, state_dir=settings_of(shell).state_dir) as reader:
        yield reader


def test_doctor_names_the_run_at_once_and_its_advice_works(shell: Shell) -> None:
    killed = shell
    with group(shell) as kill:
        kill()
    [run] = killed.runs()
    code, found = asked(killed, "latest")
    executing, running, died = (check(found, name) for name in ("executing", "running", "run_died"))
    assert (code, executing["ok"], executing["examples"], executing["whose"]) == (1, False, [run.id], {"died": 1})
    assert "`otel-cmb parked replay` ends them" in executing["advice"]
    assert (running["ok"], running["count"], running["whose"]) == (False, 1, {"died": 1})
    assert (died["ok"], run.id in died["answer"], "`otel-cmb parked replay`" in died["advice"]) == (False, True, True)
    assert killed.run("otel-cmb", "parked", "replay").returncode == 0
    code, found = asked(killed, "latest")
    assert (code, check(found, "executing")["count"], check(found, "running")["count"]) == (0, 0, 0)
    assert "run_died" not in {one["check"] for one in found["checks"]}
    assert [(run.status, run.died) for run in killed.runs()] == [("failed", False)]


def test_the_terminal_shows_it_as_died(killed: Shell) -> None:
    listed = killed.run("otel-cmb", "runs", COLUMNS="120").stdout.splitlines()[1]
    assert "process died" in listed
    assert "executing" not in listed
    assert [run["died"] for run in json.loads(killed.run("otel-cmb", "runs", "--json").stdout)] == [True]
    shown = killed.run("otel-cmb", "show", COLUMNS="120").stdout
    assert "executing  process died\n" in shown
    assert "`otel-cmb parked replay` finishes it" in shown
    assert json.loads(killed.run("otel-cmb", "show", "--json").stdout)["run"]["died"] is True
    killed.run("otel-cmb", "parked", "replay")
    after = killed.run("otel-cmb", "runs", COLUMNS="120").stdout + killed.run("otel-cmb", "show", COLUMNS="120").stdout
    assert "process died\n" not in after
    assert "parked replay" not in after


def test_who_follows_it_is_told_and_let_go(killed: Shell) -> None:
    done = killed.run("otel-cmb", "show", "--follow", timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Its process died before it ended; `otel-cmb parked replay` finishes it."
    done = killed.run("otel-cmb", "show", "--follow", "--json", timeout=20)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["run"]["died"] for line in lines if "run" in line] == [True]
    assert done.stderr == "otel-cmb: Its process died before it ended; `otel-cmb parked replay` finishes it.\n"


def test_who_follows_while_it_dies_is_told_although_nothing_is_committed(shell: Shell) -> None:
    with group(shell) as kill, reading(shell) as reader:
        follow = reader.follow(reader.resolve("latest"), interval=0.05)
        run, lines = next(follow)
        assert (run.died, [line.status for line in lines]) == (False, ["running"])
        kill()
        assert [(run.status, run.died) for run, _ in follow] == [("executing", True)]


def test_the_list_of_the_page_has_it(killed: Shell) -> None:
    with serving(create_app(lambda: open_reader(killed.url, state_dir=settings_of(killed).state_dir))) as base:
        [run] = get(base + "/api/runs").json["runs"]
        assert (run["status"], run["ended"], run["died"]) == ("executing", False, True)
        tag = get(base + "/api/runs?totals=0").headers["etag"]
        live = get(f"{base}/api/runs/{run['id']}/live").json
        assert (live["died"], live["run"]["died"], get(f"{base}/api/runs/{run['id']}").json["run"]["died"]) == (True, True, True)
        killed.run("otel-cmb", "parked", "replay")
        later = eventually(lambda: (answer := get(base + "/api/runs?totals=0", If_None_Match=tag)).body and answer, "its end")
        assert [(run["status"], run["died"]) for run in later.json["runs"]] == [("failed", False)]
        assert eventually(lambda: not get(f"{base}/api/runs/{run['id']}/live").json["died"], "its end on its page")


def test_nothing_is_said_where_nothing_is_known(killed: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals are on another host, somebody else's, or away."""
    with open_reader(killed.url, state_dir=str(killed.directory / "elsewhere")) as reader:
        assert [run.died for run in reader.runs()] == [False]
    directory = state_directory(settings_of(killed))
    opened, listed = os.open, os.listdir

    def not_for_you(real: Callable[..., Any], forbidden: Callable[[str], bool]) -> Callable[..., Any]:
        def ask(path: Any, *more: Any, **named: Any) -> Any:
            if isinstance(path, str) and forbidden(path):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *more, **named)

        return ask

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", not_for_you(opened, lambda path: path.endswith("/lock")))
        with reading(killed) as reader:
            assert [run.died for run in reader.runs()] == [False]
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", not_for_you(listed, lambda path: path == directory))
        with reading(killed) as reader:
            assert [run.died for run in reader.runs()] == [False]
    with reading(killed) as reader:
        assert [run.died for run in reader.runs()] == [True]
    shutil.rmtree(killed.state)
    with reading(killed) as reader:
        assert [run.died for run in reader.runs()] == [False]
        assert reader.died(reader.run(reader.resolve("latest"))) is False


def test_what_ended_while_the_database_was_locked_has_not_died(shell: Shell) -> None:
    """The end of the run waits in the journal, which is nobody's: the next process stores it."""
    shell.program("""
        import sqlite3, otel_cmb
        from otel_cmb.pipeline import current_pipeline
        otel_cmb.configure(instrument=False, shutdown_timeout=0.2)
        with otel_cmb.run(run_id="run-1"):
            assert current_pipeline().flush(10)
            other = sqlite3.connect("otel_cmb.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
        current_pipeline().shutdown(0.2)
    """)
    done = shell.run("python", "program.py")
    assert done.returncode == 0, done.stderr
    [path] = journals(state_directory(settings_of(shell)))
    summary = read_only_summary(path)
    assert (summary.alive, "run-1" in summary.ids("run")) == (False, True)
    assert [(run.status, run.died) for run in opened_runs(shell)] == [("executing", False)]
    code, found = asked(shell)
    assert (code, check(found, "executing")["whose"]) == (1, {"died": 1})
    assert "or could not write their end: `otel-cmb parked replay` ends them" in check(found, "executing")["advice"]
    assert shell.run("otel-cmb", "parked", "replay").returncode == 0
    assert [(run.status, run.died) for run in opened_runs(shell)] == [("completed", False)]


def opened_runs(shell: Shell) -> list[Any]:
    with reading(shell) as reader:
        return reader.runs()


def test_who_took_it_over_and_has_not_finished_it_does_not_make_it_live(killed: Shell) -> None:
    """What closes the rows is parked first, and may stay there: the database was away."""
    adoption = Adoption(None, None)  # type: ignore[arg-type]
    taken = list(adoptable(state_directory(settings_of(killed))))
    for journal in taken:
        adoption.close_rows(journal)
    assert not any(journal.opened_things() for journal in taken)
    assert [run.died for run in opened_runs(killed)] == [True]
    for journal in taken:
        journal.close()
    assert [run.died for run in opened_runs(killed)] == [True]
    code, found = asked(killed)
    assert (code, check(found, "executing")["whose"], check(found, "running")["whose"]) == (1, {"died": 1}, {"died": 1})
    killed.run("otel-cmb", "parked", "replay")
    assert asked(killed)[0] == 0


def test_the_journals_are_looked_at_once_for_a_page_and_not_at_all_where_all_have_ended(
    killed: Shell, monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []
    real = journal_files.is_owned
    monkeypatch.setattr(journal_files, "is_owned", lambda path: looks.append(path) or real(path))
    with reading(killed) as reader:
        for _ in range(20):
            assert [run.died for run in reader.runs()] == [True]
        assert len(looks) == len(set(looks))
    connection = sqlite3.connect(killed.database)
    with connection:
        connection.execute("UPDATE workflow_runs SET status = 'completed', completed_at = started_at")
    connection.close()
    looks.clear()
    with reading(killed) as reader:
        assert [run.died for run in reader.runs()] == [False]
    assert looks == []


def test_a_run_that_ended_since_it_was_read_has_not_died(killed: Shell) -> None:
    """Its journal is nobody's then too, and may know it as its automatic run for good."""
    with reading(killed) as reader:
        [stale] = reader.runs()
        assert reader.died(stale)
        connection = sqlite3.connect(killed.database)
        with connection:
            connection.execute("UPDATE workflow_runs SET status = 'completed', completed_at = started_at")
        connection.close()
        assert Owners(lambda: settings_of(killed)).died([stale.id]) == [stale.id]
        assert not reader.died(stale)
