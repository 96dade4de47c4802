"""Processes that are killed, that fork, that end: what `on_end` took is in the database afterwards, exactly once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from fault_support import check_orders, events, pipeline_of, query, run_program, start_program, wait_for

from otel_cmb import processes
from otel_cmb.journal import journals
from otel_cmb.pipeline import state_directory

DIED = "process ended before the span did"


def _kill(url: str, state_dir: Path, tmp_path: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    side = tmp_path / "ended"
    side.touch()
    program = start_program("killed", url, state_dir, side, stdin=-1)
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stderr is not None
    try:
        for number in range(1, kills + 1):
            program.stdin.write(f"{seed * 1000 + number - 1}\n")
            program.stdin.flush()
            pid = int(program.stdout.readline())
            time.sleep(chance.choice((0.03, 0.1, 0.2, 0.4)) + chance.random() * 0.1)
            if number == kills:  # on a busy machine, too, there is something to be lost
                wait_for(lambda: len(side.read_text().split()) > kills)
            os.kill(pid, signal.SIGKILL)
        program.stdin.close()
        assert program.wait(60) == 0, program.stderr.read()
    finally:
        program.kill()
        program.wait(10)
        for stream in (program.stdin, program.stdout, program.stderr):
            stream.close()
    with pipeline_of(url, state_dir) as pipeline:
        assert pipeline.replay() == 0
        directory = state_directory(pipeline.settings)
    assert journals(directory) == []
    ended = side.read_text().split()
    rows = events(url)
    assert len(ended) == len(set(ended))
    missing = [id_ for id_ in ended if id_ not in rows]
    assert not missing, f"{len(missing)} of {len(ended)} spans are not in the database"
    assert {rows[id_]["status"] for id_ in ended} == {"completed"}
    left = [row for row in rows.values() if row["id"] not in set(ended)]
    assert {row["status"] for row in left} <= {"completed", "failed"}
    assert {row["error_message"] for row in left if row["status"] == "failed"} <= {DIED}
    open_runs = query(url, "SELECT id, status, completed_at FROM workflow_runs WHERE completed_at IS NULL OR status = 'executing'")
    assert open_runs == []
    check_orders(url)
    assert len(ended) > kills


def test_killed_at_random_moments(database_url: str, state_dir: Path, tmp_path: Path) -> None:
    _kill(database_url, state_dir, tmp_path, 12, 1)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_at_random_moments_long(database_url: str, state_dir: Path, tmp_path: Path, seed: int) -> None:
    _kill(database_url, state_dir, tmp_path, 60, seed)


WAYS = (
    "fork", "prefork", "process_fork", "process_spawn", "pool_fork", "pool_spawn", "at_exit", "daemon", "tasks", "raises",
    "provider_ends",
)
LEFT_FOR_THE_NEXT = ("fork", "pool_fork", "pool_spawn", "at_exit", "daemon")
"""Their last spans may end when nobody can write any more (`os._exit`, exit handlers, daemon threads)."""


@pytest.mark.parametrize("way", WAYS)
def test_however_a_process_begins_forks_and_ends(sqlite_url: str, state_dir: Path, tmp_path: Path, way: str) -> None:
    _way(sqlite_url, state_dir, tmp_path, way)


@pytest.mark.parametrize("way", ["fork", "daemon"])
def test_forks_and_ends_on_postgresql(postgresql_url: str, state_dir: Path, tmp_path: Path, way: str) -> None:
    _way(postgresql_url, state_dir, tmp_path, way)


def _way(url: str, state_dir: Path, tmp_path: Path, way: str) -> None:
    side = tmp_path / "ended"
    run_program("ways", url, state_dir, side, way, timeout=60)
    ended = side.read_text().split()
    at_once = set(events(url))
    with pipeline_of(url, state_dir) as pipeline:
        assert pipeline.replay() == 0
        directory = state_directory(pipeline.settings)
    rows = events(url)
    assert set(ended) <= set(rows)
    assert len(rows) - len(set(ended)) <= (1 if way == "daemon" else 0)
    assert {row["status"] for row in rows.values()} == {"completed"}
    if way not in LEFT_FOR_THE_NEXT:
        assert at_once == set(rows), "nothing was left for the next process"
    assert journals(directory) == []
    assert query(url, "SELECT id FROM workflow_runs WHERE completed_at IS NULL") == []
    check_orders(url)


def test_the_exit_waits_no_longer_than_it_may_when_the_database_is_away(sqlite_url: str, state_dir: Path, tmp_path: Path) -> None:
    side = tmp_path / "ended"
    run_program("ways", sqlite_url, state_dir, side, "raises")
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    program = start_program(
        "ways", sqlite_url, state_dir, side, "raises", env={"OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "1"})
    wait_for(lambda: len(side.read_text().split()) == 6)
    started = time.monotonic()
    _, err = program.communicate(timeout=30)
    assert time.monotonic() - started < 4
    assert program.returncode == 0
    assert "3 still in the journal" in err
    other.execute("ROLLBACK")
    other.close()
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        assert pipeline.replay() == 0
    assert len(events(sqlite_url)) == 6
    assert query(sqlite_url, "SELECT DISTINCT status FROM workflow_runs") == [("completed",)]


def test_a_module_half_imported_by_another_thread_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen when `otel-cmb serve` starts under load: one thread imports multiprocessing, another begins to write."""
    monkeypatch.setitem(sys.modules, "multiprocessing.util", ModuleType("multiprocessing.util"))
    monkeypatch.setattr(processes, "_exit_registered", set())
    registered: list[object] = []
    monkeypatch.setattr(processes.atexit, "register", registered.append)
    processes.register_exit()
    assert registered == [processes._shut_down_all]


def test_the_end_waits_once_for_all_databases_that_are_away(tmp_path: Path) -> None:
    program = """
import sys, time
from opentelemetry.sdk.trace import TracerProvider
from otel_cmb import CMBSpanProcessor

for number in range(4):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CMBSpanProcessor(
        database_url=f"postgresql+psycopg://127.0.0.1:1/away{number}", state_dir=sys.argv[1], shutdown_timeout=3))
    provider.get_tracer("test").start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
print(time.monotonic())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    assert time.monotonic() - float(done.stdout) < 9  # one after the other it would be 12
    assert done.stderr.count("1 still in the journal") == 4
