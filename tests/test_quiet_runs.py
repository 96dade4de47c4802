"""The run of a trace whose root never comes ends when nothing has come for long; a root that comes after all is right."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from commands import Shell, eventually
from receiver_support import make_request, make_span

from otel_cmb import config
from otel_cmb.event import STATUS_ERROR, Span, Stamp
from otel_cmb.journal_records import START
from otel_cmb.pipeline import forget_pipelines, get_pipeline
from otel_cmb.quiet_runs import end_quiet_runs
from otel_cmb.reader import open_reader

SECOND = 1_000_000_000
ROOT = f"{99:016x}"


def agent(n: int, trace: int, ended: float, *, parent: str | None = ROOT, **changes: Any) -> Span:
    """A call of one second that ended so many seconds ago."""
    end = time.time_ns() - int(ended * SECOND)
    return make_span(
        n, trace_id=f"{trace:032x}", parent_span_id=parent, name=f"invoke_agent a{n}", start_ns=end - SECOND, end_ns=end,
        attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{n}"}, **changes)


@pytest.fixture
def take(tmp_path: Path, database_url: str):
    """Spans into a database as a receiver takes them; the runs by their agent."""
    settings = config.load(database_url=database_url, state_dir=str(tmp_path / "state"))

    def taken(*spans: Span) -> dict[str, Any]:
        pipeline = get_pipeline(settings, per_trace_runs=True)
        if spans:
            pipeline.accept(list(spans))
            assert pipeline.flush(20)
        with open_reader(database_url) as reader:
            return {run.agent: run for run in reader.runs()}

    taken.settings = settings
    yield taken
    forget_pipelines()


def test_a_run_that_is_quiet_for_long_ends_with_the_last_that_is_known(take) -> None:
    before = take(
        agent(1, 1, 7300), agent(2, 1, 7200), agent(3, 2, 7200, status_code=STATUS_ERROR), agent(4, 3, 7200), agent(5, 3, 60),
        agent(6, 4, 60))
    assert {run.status for run in before.values()} == {"executing"}
    ended = end_quiet_runs(take.settings)
    runs = take()
    assert {agent: run.status for agent, run in runs.items()} == {
        "a1": "completed", "a3": "failed", "a4": "executing", "a6": "executing"}
    assert set(ended) == {runs["a1"].id, runs["a3"].id}
    assert abs(time.time() - 7200 - runs["a1"].completed_at.timestamp()) < 30
    assert runs["a6"].completed_at is None
    assert end_quiet_runs(take.settings) == []


def test_a_root_that_comes_after_all_is_right(take) -> None:
    take(agent(1, 1, 7200))
    assert len(end_quiet_runs(take.settings)) == 1
    runs = take(agent(99, 1, 10, parent=None, status_code=STATUS_ERROR))
    assert [run.status for run in runs.values()] == ["failed"]
    [run] = runs.values()
    assert abs(time.time() - 10 - run.completed_at.timestamp()) < 30


def test_runs_that_somebody_else_ends_are_left(take) -> None:
    pipeline = get_pipeline(take.settings, per_trace_runs=True)
    pipeline.accept_command({"do": "run_start", "id": "named", "agent": "theirs", "at": time.time_ns() - 7200 * SECOND})
    take(agent(1, 1, 7200, stamp=Stamp(run_id="named")))
    assert end_quiet_runs(take.settings) == []
    assert take()["theirs"].status == "executing"


def test_a_run_that_was_made_because_it_was_missing_ends_too(take, database_url: str) -> None:
    """Its traces' roots do not end it: further traces may come."""
    take.settings = config.load(
        database_url=database_url, state_dir=take.settings.state_dir, on_missing_run="create")
    pipeline = get_pipeline(take.settings, per_trace_runs=True)
    pipeline.accept([
        agent(1, 1, 7300, parent=None, stamp=Stamp(door_run_id="quiet")),
        agent(2, 2, 7200, parent=None, status_code=STATUS_ERROR, stamp=Stamp(door_run_id="broken")),
        agent(3, 3, 7200, parent=None, stamp=Stamp(door_run_id="at work")),
        agent(4, 4, 60, parent=None, stamp=Stamp(door_run_id="at work"))])
    assert pipeline.flush(20)
    assert sorted(end_quiet_runs(take.settings)) == ["broken", "quiet"]
    with open_reader(database_url) as reader:
        assert {run.id: run.status for run in reader.runs()} == {
            "quiet": "completed", "broken": "failed", "at work": "executing"}
    pipeline.accept_command({"do": "run_end", "id": "quiet", "status": "failed", "at": time.time_ns()})
    assert pipeline.flush(20)
    with open_reader(database_url) as reader:
        assert reader.run("quiet").status == "failed"  # the program's own word outranks what was assumed


def test_a_run_in_which_something_happens_after_its_assumed_end_goes_on(take, database_url: str) -> None:
    take(agent(1, 1, 7300), agent(2, 2, 7300))
    assert len(end_quiet_runs(take.settings)) == 2
    runs = take(agent(3, 1, 7400, parent=f"{1:016x}"))  # came late, and happened before the end that was assumed
    assert runs["a1"].status == "completed"
    runs = take(agent(4, 1, 10))
    assert (runs["a1"].status, runs["a1"].completed_at) == ("executing", None)
    assert runs["a2"].status == "completed"
    assert end_quiet_runs(config.load(database_url=database_url, quiet_time=5)) == [runs["a1"].id]
    assert abs(time.time() - 10 - take()["a1"].completed_at.timestamp()) < 30


def test_a_run_in_which_something_runs_goes_on(take) -> None:
    """Whenever it began: nothing ran when the run was taken for ended."""
    take(agent(1, 1, 7300))
    assert len(end_quiet_runs(take.settings)) == 1
    running = agent(2, 1, 7400, parent=f"{1:016x}")
    running.end_ns = None
    pipeline = get_pipeline(take.settings, per_trace_runs=True)
    pipeline._intake.append([pipeline._intake.body(START, running)])
    assert pipeline.flush(20)
    assert take()["a1"].status == "executing"


def test_what_comes_after_the_end_that_a_program_told_changes_nothing(take) -> None:
    pipeline = get_pipeline(take.settings, per_trace_runs=True)
    at = time.time_ns() - 7200 * SECOND
    pipeline.accept_command({"do": "run_start", "id": "named", "agent": "theirs", "at": at})
    pipeline.accept_command({"do": "run_end", "id": "named", "status": "failed", "at": at + SECOND})
    run = take(agent(1, 1, 60, stamp=Stamp(run_id="named")))["theirs"]
    assert (run.status, run.completed_at.timestamp()) == ("failed", pytest.approx((at + SECOND) / SECOND, abs=0.001))


def test_quiet_time_0_ends_none(take, monkeypatch: pytest.MonkeyPatch) -> None:
    take(agent(1, 1, 7200))
    monkeypatch.setenv("OTEL_EXPORTER_CMB_QUIET_TIME", "0")
    assert end_quiet_runs(config.load(database_url=take.settings.database_url)) == []


def test_a_server_ends_them_by_itself(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work")
    server = shell.start("otel-cmb", "serve", "--grpc", "off", "--http", "127.0.0.1:0", OTEL_EXPORTER_CMB_QUIET_TIME="3")
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("http="))
        address = line.strip().removeprefix("http=")
        answer = requests.post(
            f"http://{address}/v1/traces", data=make_request(agent(1, 1, 0)).SerializeToString(),
            headers={"content-type": "application/x-protobuf"}, timeout=20)
        assert answer.status_code == 200
        assert eventually(lambda: [run.status for run in shell.runs()] == ["executing"], "its run is there")
        assert eventually(lambda: [run.status for run in shell.runs()] == ["completed"], "its run is ended")
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_an_import_ends_the_runs_of_old_traces_without_a_root(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work")
    (shell.directory / "a.bin").write_bytes(make_request(agent(1, 1, 7200)).SerializeToString())
    done = shell.run("otel-cmb", "import", "a.bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [run.status for run in shell.runs()] == ["completed"]
    connection = sqlite3.connect(shell.database)
    try:
        [(meta,)] = connection.execute("SELECT meta FROM workflow_runs")
    finally:
        connection.close()
    assert '"ended":"nothing had come for long"' in meta
