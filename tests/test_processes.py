"""Processes that are killed, that fork, that end: what `on_end` took is in the database afterwards, exactly once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from fault_support import check_orders, events, pipeline_of, query, start_program

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
        for number in range(kills):
            program.stdin.write(f"{seed * 1000 + number}\n")
            program.stdin.flush()
            pid = int(program.stdout.readline())
            time.sleep(chance.choice((0.03, 0.1, 0.2, 0.4)) + chance.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
        program.stdin.close()
        assert program.wait(30) == 0, program.stderr.read()
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
