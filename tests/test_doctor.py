"""`otel-cmb doctor`: the questions of somebody whose events are missing, asked of real databases."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from commands import Shell
from sqlalchemy import create_engine, text
from support import application_schema

LOST_RUN = "task_1768904279349_a64oayyk2"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    directory = tmp_path / "work"
    directory.mkdir()
    return Shell(directory)


@pytest.fixture
def stored(shell: Shell) -> Shell:
    """A run with two events, in a database of ours."""
    shell.program("""
        import otel_cmb
        otel_cmb.configure()
        with otel_cmb.run(run_id="run-1", agent="planner"), otel_cmb.node("step_1"):
            with agent("planner"):
                with agent("engineer"):
                    pass
    """)
    shell.prepare()
    return shell


def asked(shell: Shell, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = shell.run("otel-cmb", "doctor", "--json", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def check(found: dict[str, Any], name: str) -> dict[str, Any]:
    [one] = [check for check in found["checks"] if check["check"] == name]
    return one


def test_a_healthy_database_is_answered_with_exit_code_0(stored: Shell) -> None:
    code, found = asked(stored)
    assert code == 0
    assert found["healthy"] is True
    assert {check["check"] for check in found["checks"]} >= {
        "database", "foreign_keys", "started_at", "orphans_run", "orphans_session", "orphans_node", "running", "accounting"}
    accounting = found["accounting"]
    assert accounting["committed"] == 2
    assert accounting["lost"] == accounting["parked"] == {}
    assert accounting["pending"] == 0
    assert accounting["received"] == accounting["committed"] + accounting["merged"] + accounting["ignored"]


def test_the_text_form_says_the_same_in_lines(stored: Shell) -> None:
    done = stored.run("otel-cmb", "doctor")
    assert done.returncode == 0
    first, *lines = done.stdout.splitlines()
    assert first == "sqlite:///otel_cmb.db"
    assert all(line.startswith("ok   ") for line in lines)
    assert "lost 0" in lines[-1]


def test_a_run_that_exists_is_described(stored: Shell) -> None:
    code, found = asked(stored, "run-1")
    assert code == 0
    assert found["run"] == {"exists": True, "id": "run-1", "status": "completed", "events": 2, "types": {"agent_call": 2},
                            "statuses": {"completed": 2}, "parked": {}}


def test_the_newest_run_has_the_name_it_has_everywhere(stored: Shell) -> None:
    assert asked(stored, "latest") == asked(stored, "run-1")


def test_there_is_no_newest_run_in_an_empty_database(shell: Shell) -> None:
    assert shell.run("otel-cmb", "db", "init").returncode == 0
    code, found = asked(shell, "latest")
    assert code == 1
    assert check(found, "run")["ok"] is False


def test_a_run_that_does_not_exist_says_which_are_near_and_what_waits_for_it(stored: Shell) -> None:
    stored.program("with agent('engineer'):\n    pass\n")
    stored.run("opentelemetry-instrument", "python", "program.py", OTEL_TRACES_EXPORTER="cmb", OTEL_CMB_RUN_ID="run-2",
               OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none", OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT="30")
    code, found = asked(stored, "run-2")
    assert code == 1
    assert found["run"]["exists"] is False
    assert found["run"]["parked"] == {"run_not_found": 1}
    assert "run-1" in check(found, "run")["answer"], "the id that is near"
    assert check(found, "run")["advice"]
    assert found["accounting"]["parked"] == {"run_not_found": 1}
    assert "otel-cmb parked" in check(found, "accounting")["advice"]


@pytest.mark.parametrize(("wrong", "name"), [
    ("UPDATE workflow_runs SET started_at = NULL", "started_at"),
    ("UPDATE execution_events SET run_id = 'gone'", "orphans_run"),
    ("UPDATE execution_events SET session_id = 'gone'", "orphans_session"),
    ("UPDATE execution_events SET node_id = 'gone'", "orphans_node"),
    ("UPDATE execution_events SET status = 'running', completed_at = NULL", "running"),
])
def test_what_a_program_without_foreign_keys_left_is_found(stored: Shell, wrong: str, name: str) -> None:
    """As the application wrote it: SQLite does not enforce foreign keys on a connection that does not ask."""
    with sqlite3.connect(stored.database) as connection:
        changed = connection.execute(wrong).rowcount
    connection.close()
    code, found = asked(stored)
    assert code == 1
    one = check(found, name)
    assert one["ok"] is False
    assert one["count"] == changed
    assert one["advice"]
    text_form = stored.run("otel-cmb", "doctor").stdout
    assert "BAD  " in text_form
    assert one["answer"] in text_form


def test_doctor_changes_nothing(stored: Shell) -> None:
    """Not even a file: what it looks at is as it was."""
    def seen() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for top in (stored.directory, stored.state) for path in top.rglob("*")
                if path.is_file() and not path.name.endswith(("-shm", "-wal"))}

    before = seen()
    assert asked(stored, "run-1")[0] == 0
    assert seen() == before


def test_a_database_that_is_not_there_is_an_answer_and_is_not_made(shell: Shell) -> None:
    done = shell.run("otel-cmb", "doctor")
    assert done.returncode != 0
    assert "otel_cmb.db" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not shell.database.exists()


def test_a_server_that_is_away_is_an_answer_without_the_password(shell: Shell) -> None:
    code, found = asked(shell, "--database-url", "postgresql://user:secret-word@127.0.0.1:1/agents")
    assert code == 1
    assert check(found, "database")["ok"] is False
    assert "secret-word" not in json.dumps(found)


def test_postgresql_is_asked_the_same(shell: Shell, postgresql_url: str) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    assert shell.run("otel-cmb", "run", "--database-url", postgresql_url, "--", "python", "program.py").returncode == 0
    code, found = asked(shell, "--database-url", postgresql_url)
    assert code == 0, found
    assert check(found, "foreign_keys")["ok"] is True
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE workflow_runs SET started_at = NULL"))
    engine.dispose()
    code, found = asked(shell, "--database-url", postgresql_url)
    assert (code, check(found, "started_at")["count"]) == (1, 1)


def test_an_attached_database_answers_with_the_run_that_has_the_name_as_its_alias(shell: Shell) -> None:
    """The original failure: events carried the task's id, the run had another."""
    url = f"sqlite:///{shell.directory}/application.db"
    application = application_schema.make(url)
    session = application.add_session()
    run_id = application.add_run(session, task_id=LOST_RUN)
    application.engine.dispose()
    code, found = asked(shell, LOST_RUN, "--database-url", url)
    assert check(found, "database")["owned"] is False
    assert run_id in check(found, "run")["answer"] + check(found, "run")["advice"]
    assert code == 1, "the run has no started_at"
    assert check(found, "started_at")["examples"] == [run_id]
