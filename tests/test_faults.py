"""One test per fault: what was accepted is in the database afterwards, or parked, and every span is accounted for."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import (
    PROGRAMS,
    agent_span,
    check_orders,
    events,
    ids_of,
    lawful,
    pipeline_of,
    query,
    run_program,
    tracing,
    wait_for,
)
from support import application_schema, postgres
from support.crowd import together
from support.proxy import Proxy

from otel_cmb import clock, config
from otel_cmb import running as running_spans
from otel_cmb.journal import journals
from otel_cmb.pipeline import Pipeline, state_directory

QUICK_RETRY = {"retry_max": 0.2, "busy_timeout": 0.2, "connect_timeout": 2.0}


def accept(pipeline: Pipeline, count: int = 5, **options: Any) -> set[str]:
    spans = [agent_span(**options) for _ in range(count)]
    pipeline.accept(spans)
    return ids_of(spans)


def abandon(pipeline: Pipeline) -> None:
    """What SIGKILL leaves of it in this very process."""
    writer, intake, drainer = pipeline._writer, pipeline._intake, pipeline._drainer
    if (thread := writer.thread) is not None:
        writer.close = lambda: None  # type: ignore[method-assign] # it ends, and gives nothing back
        writer.closed = writer._stopping = True
        writer.wake()
        thread.join(60)
        assert not thread.is_alive()
        del writer.close
        writer.closed = False
    if intake.journal is not None:
        intake.journal._state.close()
        intake.journal.forget()
    if drainer.store is not None:
        drainer.store.close()
    intake.journal = intake.standby = drainer.store = None
    pipeline._ledger.done_seq = pipeline._ledger.moved_seq = 0


@contextmanager
def locked(url: str) -> Iterator[None]:
    """The SQLite file is held by another writer."""
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


# The database is away.


def test_the_server_is_stopped_for_longer_than_any_timeout(
    private_postgresql: postgres.Server, state_dir: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    url = postgres.text(private_postgresql.url)
    with pipeline_of(url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline)
        assert pipeline.flush(20)
        private_postgresql.stop()
        ended |= accept(pipeline, 20)
        started = time.monotonic()
        assert not pipeline.flush(0.5)
        assert time.monotonic() - started < 10
        time.sleep(2.2)
        stats = wait_for(lambda: pipeline.stats() if pipeline.stats().last_error else None)
        stats = lawful(pipeline.stats())
        assert (stats.committed, stats.pending) == (5, 20)
        assert stats.last_error
        private_postgresql.start()
        ended |= accept(pipeline)
        assert pipeline.flush(20)
        stats = lawful(pipeline.stats())
        assert (stats.received, stats.committed, stats.last_error) == (30, 30, "")
    assert set(events(url)) == ended
    assert sum("is away" in record.message for record in caplog.records) == 1
    check_orders(url)


def test_the_file_is_locked_for_longer_than_the_busy_timeout(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline)
        assert pipeline.flush(10)
        with locked(sqlite_url):
            ended |= accept(pipeline, 20)
            assert not pipeline.flush(0.5)
            lawful(pipeline.stats())
        assert pipeline.flush(10)
        assert lawful(pipeline.stats()).committed == 25
    assert set(events(sqlite_url)) == ended


def test_shutdown_is_bounded_and_the_next_process_goes_on(sqlite_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline)
        pipeline.flush(10)
    with locked(sqlite_url), pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
        ended |= accept(pipeline, 7)
        started = time.monotonic()
        assert not pipeline.shutdown(0.5)
        assert time.monotonic() - started < 4.5, "less than the setting"
        assert lawful(pipeline.stats()).pending == 7
    assert "7 still in the journal" in caplog.text
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        assert pipeline.replay() == 0
        assert lawful(pipeline.stats()).received == 0, "another process's spans are not in our counts"
    assert set(events(sqlite_url)) == ended
    assert query(sqlite_url, "SELECT DISTINCT status FROM workflow_runs") == [("completed",)]


def test_commit_is_never_acknowledged(cuttable_postgresql: tuple[str, Proxy], state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, proxy = cuttable_postgresql
    with pipeline_of(url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline)
        assert pipeline.flush(20)
        cuts: list[int] = []
        real = sa.Connection.commit

        def commit(connection: sa.Connection) -> None:
            if len(cuts) < 2 and threading.current_thread().name == "otel-cmb-writer":
                cuts.append(1)
                real(connection)  # the server has committed;
                proxy.cut()  # its answer never came
                proxy.restore()
                raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
            real(connection)

        monkeypatch.setattr(sa.Connection, "commit", commit)
        ended |= accept(pipeline, 20)
        assert pipeline.flush(20)
        assert len(cuts) == 2
        stats = lawful(pipeline.stats())
        assert stats.received == stats.committed + stats.merged == 25
    assert set(events(url)) == ended
    check_orders(url)


def test_the_connection_is_cut_at_any_byte(cuttable_postgresql: tuple[str, Proxy], state_dir: Path) -> None:
    url, proxy = cuttable_postgresql
    ended: set[str] = set()
    with pipeline_of(url, state_dir, **QUICK_RETRY) as pipeline:
        for n in range(12):
            ended |= accept(pipeline, 20)
            time.sleep(0.011 * n)
            proxy.cut()
            proxy.restore()
        assert pipeline.flush(20)
        stats = lawful(pipeline.stats())
        assert stats.received == stats.committed + stats.merged == 240
    assert set(events(url)) == ended
    check_orders(url)


def test_commit_is_acknowledged_late(cuttable_postgresql: tuple[str, Proxy], state_dir: Path) -> None:
    url, proxy = cuttable_postgresql
    with pipeline_of(url, state_dir, **QUICK_RETRY) as pipeline:
        accept(pipeline)
        assert pipeline.flush(20)
        proxy.freeze()
        accept(pipeline, 20)
        started = time.monotonic()
        assert not pipeline.flush(0.5)
        assert time.monotonic() - started < 10
        proxy.restore()
        assert pipeline.flush(20)
        assert lawful(pipeline.stats()).committed == 25
    assert len(events(url)) == 25


def test_the_databases_disk_is_full(sqlite_url: str, state_dir: Path) -> None:
    limit: list[int] = []

    def full(connection: Any, _record: Any) -> None:
        if limit:
            connection.execute(f"PRAGMA max_page_count={limit[0]}")

    sa.event.listen(sa.engine.Engine, "connect", full)
    try:
        with pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
            ended = accept(pipeline)
            assert pipeline.flush(10)
            pipeline._drainer.store and pipeline._drainer.store.close()
            limit.append(query(sqlite_url, "PRAGMA page_count")[0][0] + 3)
            ended |= accept(pipeline, 200)
            wait_for(lambda: pipeline.stats().last_error)
            assert not pipeline.flush(0.2)
            assert lawful(pipeline.stats()).pending > 0
            limit[0] = 1_000_000
            assert pipeline.flush(10)
            lawful(pipeline.stats())
        assert set(events(sqlite_url)) == ended
    finally:
        sa.event.remove(sa.engine.Engine, "connect", full)


# The program takes our files away.


@pytest.mark.parametrize("when", ["written", "pending", "taken", "ends"])
def test_a_program_that_closes_all_descriptors_keeps_its_files_and_its_spans(
    database_url: str, state_dir: Path, tmp_path: Path, when: str
) -> None:
    flushed, counts = run_program("daemon", database_url, state_dir, when, cwd=tmp_path).splitlines()
    # SQLite gives the descriptors of a file to every connection of a process: only the next process can write.
    stuck = when in ("written", "taken") and database_url.startswith("sqlite")
    number = 20 if when == "ends" else 75
    assert (flushed, counts) == (("False", "75 20 55") if stuck else ("True", f"{number} {number} 0"))
    with pipeline_of(database_url, state_dir) as pipeline:
        assert pipeline.replay() == 0
    assert len(events(database_url)) == number
    assert not journals(state_directory(config.load(database_url=database_url, state_dir=str(state_dir))))


# The journal cannot be written.


def test_a_state_directory_that_cannot_be_made(database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with tracing(database_url, tmp_path / "file" / "state") as (tracer, processor):
        for n in range(20):
            with tracer.start_as_current_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", "n": n}):
                pass
        assert processor.force_flush(10_000)
        stats = lawful(processor.stats())
        assert (stats.received, stats.committed) == (20, 20)
        with pytest.raises(Exception, match="memory|cannot be written"):
            processor.pipeline.accept([agent_span()])
            processor.pipeline.sync()
    assert len(events(database_url)) == 21
    said = [record.message for record in caplog.records if "cannot be written" in record.message]
    assert len(said) == 1, said


def test_no_journal_and_no_database_is_counted_as_lost(sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with pipeline_of(sqlite_url, tmp_path / "state") as pipeline:
        accept(pipeline)
        pipeline.flush(10)
    with locked(sqlite_url), pipeline_of(sqlite_url, tmp_path / "file" / "state", **QUICK_RETRY) as pipeline:
        accept(pipeline, 3)
        assert lawful(pipeline.stats()).pending == 3
        assert not pipeline.shutdown(0.5)
        wait_for(lambda: pipeline._writer.thread is None)
        lawful(pipeline.stats(), lost={"journal": 3})
    assert "3 span(s) that waited in memory are lost" in caplog.text


def test_what_waits_in_memory_moves_to_the_journal_when_that_can_be_written(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pipeline_of(sqlite_url, tmp_path / "state") as pipeline:
        ended = accept(pipeline)
        pipeline.flush(10)
    with locked(sqlite_url):
        with pipeline_of(sqlite_url, tmp_path / "file" / "state", **QUICK_RETRY) as pipeline:
            ended |= accept(pipeline, 3)
            (tmp_path / "file").unlink()
            wait_for(lambda: pipeline._intake.journal is not None and pipeline._intake.journal.last_seq == 3)
            pipeline.sync()
            abandon(pipeline)
    with pipeline_of(sqlite_url, tmp_path / "file" / "state") as pipeline:
        assert pipeline.replay() == 0
    assert set(events(sqlite_url)) == ended


def test_the_journals_disk_is_full(postgresql_url: str, state_dir: Path) -> None:
    out = run_program("limited", postgresql_url, state_dir)
    assert out.split() == ["True", "True", "300", "300"]
    assert len(events(postgresql_url)) == 300


def test_the_journals_disk_stays_full(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What went through memory is counted with the rest, and its run's end is the journal's to know: nothing stays behind."""
    from otel_cmb.accounting import Totals

    with pipeline_of(sqlite_url, state_dir) as pipeline:
        pipeline.accept_command({"do": "run_start", "id": "r", "agent": "a", "at": clock.now_ns()})
        accept(pipeline)
        assert pipeline.flush(10)
        journal = pipeline._intake.journal
        assert journal is not None
        assert ("run", "r", b"") in journal.opened_things()
        journal._state.connect().execute("PRAGMA max_page_count=1")

        def no_room(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal._log, "write", no_room)
        accept(pipeline, 7)
        pipeline.accept_command({"do": "run_end", "id": "r", "status": "completed", "at": clock.now_ns()})
        assert pipeline.flush(10)
        directory = state_directory(pipeline.settings)
        assert pipeline.shutdown()
    assert len(events(sqlite_url)) == 12
    assert query(sqlite_url, "SELECT status FROM workflow_runs WHERE id = 'r'") == [("completed",)]
    assert list(journals(directory)) == []
    assert Totals(directory).read()["committed"] == 12


def test_damage_in_the_middle_of_a_dead_journal(database_url: str, state_dir: Path) -> None:
    with pipeline_of(database_url, state_dir) as pipeline:
        accept(pipeline, 1)
        assert pipeline.flush(10)
    journal = _undrained(database_url, state_dir, 50)
    path = Path(journal) / "log-00000001"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 10] = b"\0" * 10
    path.write_bytes(data)
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.replay()
        directory = state_directory(pipeline.settings)
    assert len(events(database_url)) == 50
    from otel_cmb.accounting import Totals

    assert Totals(directory).read()["lost:journal_damaged"] == 1
    assert Totals(directory).read()["committed"] == 50


def _undrained(url: str, state_dir: Path, count: int) -> str:
    """The journal of a process that died before it wrote anything."""
    with pipeline_of(url, state_dir) as pipeline:
        pipeline._writer.ensure = lambda: True  # type: ignore[method-assign] # the writer never runs
        for _ in range(count):
            pipeline.accept([agent_span()])
        assert pipeline._intake.journal is not None
        path = pipeline._intake.journal.path
        abandon(pipeline)
    return path


def test_damage_in_the_middle_of_a_living_journal(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
        accept(pipeline)
        pipeline.flush(10)
        with pipeline._drainer.store_lock:  # no step is under way: nothing was read before it is damaged
            accept(pipeline, 30)
            accept(pipeline, 30)
            assert pipeline._intake.journal is not None
            path = Path(pipeline._intake.journal.path) / "log-00000001"
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"\0\0\0\0")
        assert pipeline.flush(10)
        assert lawful(pipeline.stats(), lost={"journal_damaged": 1}).committed == 64
    assert len(events(sqlite_url)) == 64


@pytest.mark.parametrize("when", ["living", "dead"])
def test_the_journals_state_is_damaged(database_url: str, state_dir: Path, when: str) -> None:
    with pipeline_of(database_url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline, 10)
        ended_later = ids_of(parked := [agent_span(run="not-there-yet")])
        pipeline.accept(parked)
        assert pipeline.flush(10)
        assert pipeline._intake.journal is not None
        path = Path(pipeline._intake.journal.path) / "state.db"
        if when == "dead":
            abandon(pipeline)
        for name in (path, path.with_name("state.db-wal")):
            if name.exists():
                name.write_bytes(os.urandom(name.stat().st_size))
        ended |= accept(pipeline, 10)
        assert pipeline.flush(20)
        if when == "dead":
            pipeline.replay()
        else:
            assert lawful(pipeline.stats()).committed == 20
    query(database_url, "INSERT INTO workflow_runs (id, session_id, mode, agent, model, status) "
                        "SELECT 'not-there-yet', id, 'one_shot', 'a', 'm', 'executing' FROM sessions LIMIT 1")
    with pipeline_of(database_url, state_dir) as pipeline:
        assert pipeline.replay() == 0
    assert set(events(database_url)) == ended | ended_later
    check_orders(database_url)


def test_damaged_totals_and_skeletons_are_put_aside(sqlite_url: str, state_dir: Path) -> None:
    application = application_schema.make(sqlite_url)
    run = application.add_run(application.add_session())
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        directory = Path(state_directory(pipeline.settings))
        directory.mkdir(parents=True)
        (directory / "totals.db").write_bytes(b"rubbish" * 1000)
        (directory / "skeletons.db").write_bytes(b"rubbish" * 1000)
        plain = agent_span(50, 51, run=run)
        plain.attributes, plain.name = {}, "GET /"
        pipeline.accept([plain, agent_span(50, 52, run=run, parent=51)])
        assert pipeline.flush(5)
        assert lawful(pipeline.stats()).committed == 1
    assert journals(str(directory)) == []
    application.engine.dispose()


# Rows the database refuses.


def _refuse(url: str, condition: str) -> None:
    if url.startswith("sqlite"):
        query(url, f"CREATE TRIGGER poison BEFORE INSERT ON execution_events WHEN {condition.replace('agent_name', 'NEW.agent_name')} "
                   "BEGIN SELECT RAISE(ABORT, 'not here'); END")
    else:
        query(url, f"ALTER TABLE execution_events ADD CONSTRAINT poison CHECK (NOT ({condition}))")


def _allow(url: str) -> None:
    query(url, "DROP TRIGGER poison" if url.startswith("sqlite") else "ALTER TABLE execution_events DROP CONSTRAINT poison")


def test_poison_among_good_rows(database_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pipeline_of(database_url, state_dir) as pipeline:
        good = accept(pipeline, 1)
        assert pipeline.flush(10)
        _refuse(database_url, "agent_name = 'mallory'")
        spans = [agent_span(name="mallory" if n == 37 else "alice") for n in range(100)]
        ticket = pipeline.accept(spans)
        outcome = ticket.wait(10)
        assert (outcome.committed, outcome.parked) == (99, {"rejected_by_database": 1})
        stats = lawful(pipeline.stats())
        assert stats.parked == {"rejected_by_database": 1}
        assert pipeline.flush(5)
        good |= ids_of(spans) - ids_of([spans[37]])
        assert set(events(database_url)) == good
        _allow(database_url)
        assert pipeline.replay() == 0
        assert lawful(pipeline.stats()).committed == 101
    assert len(events(database_url)) == 101
    check_orders(database_url)


# Runs, sessions, ids.


def _application(url: str) -> tuple[application_schema.Application, str]:
    application = application_schema.make(url)
    return application, application.add_session()


def test_the_run_is_committed_after_its_spans(database_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    application, session = _application(database_url)
    with pipeline_of(database_url, state_dir) as pipeline:
        spans = [agent_span(run="late-run") for _ in range(5)]
        others = [agent_span(run=application.add_run(session)) for _ in range(2)]
        pipeline.accept([*spans, *others])
        assert pipeline.flush(10)
        assert lawful(pipeline.stats()).parked == {"run_not_found": 5}
        assert set(events(database_url)) == ids_of(others), "a parked span never delays another"
        application.add_run(session, id="late-run")
        wait_for(lambda: len(events(database_url)) == 7)
        stats = wait_for(lambda: pipeline.stats() if not pipeline.stats().parked else None)
        assert lawful(stats).committed == 7
    assert sum("late-run" in record.message for record in caplog.records) == 1, "said once per run"
    assert journals(state_directory(pipeline.settings)) == []
    application.engine.dispose()


def test_a_run_that_comes_after_the_process_is_found_by_replay(database_url: str, state_dir: Path) -> None:
    application, session = _application(database_url)
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept([agent_span(run="late-run") for _ in range(5)])
        assert pipeline.flush(10)
    with pipeline_of(database_url, state_dir) as pipeline:
        assert pipeline.replay() == 5
        application.add_run(session, id="late-run")
        assert pipeline.replay() == 0
        assert lawful(pipeline.stats()).received == 0
    assert len(events(database_url)) == 5
    application.engine.dispose()


def test_sessions_and_ids_that_do_not_fit_are_parked(database_url: str, state_dir: Path) -> None:
    application, session = _application(database_url)
    one, two = application.add_run(session), application.add_run(session)
    with pipeline_of(database_url, state_dir) as pipeline:
        first = agent_span(77, 1, run=one)
        pipeline.accept([first])
        assert pipeline.flush(10)
        pipeline.accept([
            agent_span(77, 1, run=two), agent_span(run=one, **{"cmb.session.id": "another"}), agent_span(),
            agent_span(run=one, **{"cmb.session.id": session})])
        assert pipeline.flush(10)
        stats = lawful(pipeline.stats())
        assert stats.parked == {"id_conflict": 1, "session_mismatch": 1, "no_run": 1}
        assert stats.committed == 2
    assert len(events(database_url)) == 2
    application.engine.dispose()


def test_four_processes_write_one_run(database_url: str, state_dir: Path) -> None:
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept_command({"do": "run_start", "id": "shared", "at": clock.now_ns()})
        assert pipeline.flush(10)
    program = (PROGRAMS / "shared_run.py").read_text(encoding="utf-8")
    for out in together(program, [(database_url, state_dir / str(n % 2), n) for n in range(4)]):
        assert out.split() == ["True", "60"]
    rows = events(database_url)
    assert len(rows) == 240
    assert {row["run_id"] for row in rows.values()} == {"shared"}
    assert sorted(row["execution_order"] for row in rows.values()) == list(range(1, 241))
    assert sum(row["parent_event_id"] is None for row in rows.values()) == 1, "every other one has its parent"
    check_orders(database_url)


# Clocks, other transactions, wrong set-ups.


def test_the_clock_goes_backwards(database_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application, session = _application(database_url)
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    with pipeline_of(database_url, state_dir) as pipeline:
        run = application.add_run(session)
        backwards = agent_span(run=run)
        backwards.end_ns = backwards.start_ns - 5_000_000_000
        pipeline.accept([backwards, agent_span(run="late-run")])
        assert pipeline.flush(10)
        shift[0] = -7200.0
        application.add_run(session, id="late-run")
        wait_for(lambda: not pipeline.stats().parked)
        assert lawful(pipeline.stats()).committed == 2
    assert {row["duration_ms"] for row in events(database_url).values()} == {0, 1}
    application.engine.dispose()


def test_what_was_parked_before_the_clock_went_back_is_not_tried_at_every_step(
    database_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    application, _ = _application(database_url)
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept([agent_span(run="late-run")])
        assert pipeline.flush(10)
        shift[0] = -7200.0
        for _ in range(20):
            pipeline._drainer.step()
        journal = pipeline._intake.journal
        assert journal is not None
        assert [parked.attempts < 10 for parked in journal.parked()] == [True]
    application.engine.dispose()


def test_the_application_has_a_transaction_open_on_the_same_tables(database_url: str, state_dir: Path) -> None:
    application, session = _application(database_url)
    run = application.add_run(session)
    with pipeline_of(database_url, state_dir, **QUICK_RETRY) as pipeline:
        pipeline.accept([agent_span(run=run)])
        assert pipeline.flush(10)
        with application.engine.connect() as connection:
            connection.execute(sa.text("UPDATE workflow_runs SET status = 'paused' WHERE id = :id"), {"id": run})
            connection.execute(sa.text(
                "INSERT INTO execution_events (id, run_id, session_id, event_type, timestamp, execution_order, depth, status) "
                "VALUES ('theirs', :run, :session, 'info', '2026-01-01', 99, 0, 'completed')"), {"run": run, "session": session})
            pipeline.accept([agent_span(run=run) for _ in range(5)])
            if database_url.startswith("postgresql"):
                assert pipeline.flush(30)
            else:
                assert not pipeline.flush(0.5)
            connection.commit()
        assert pipeline.flush(10)
        assert lawful(pipeline.stats()).committed == 6
    rows = events(database_url)
    assert len(rows) == 7
    assert rows["theirs"]["execution_order"] == 99
    application.engine.dispose()


@pytest.mark.parametrize("fault", ["dropped", "column"])
def test_tables_that_do_not_fit_keep_the_spans_until_they_do(
    database_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture, fault: str,
) -> None:
    with pipeline_of(database_url, state_dir, **QUICK_RETRY) as pipeline:
        ended = accept(pipeline)
        assert pipeline.flush(10)
        broken, mended = {
            "dropped": ("ALTER TABLE execution_events RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO execution_events"),
            "column": ("ALTER TABLE execution_events RENAME COLUMN status TO state",
                       "ALTER TABLE execution_events RENAME COLUMN state TO status"),
        }[fault]
        query(database_url, broken)
        ended |= accept(pipeline, 10)
        wait_for(lambda: pipeline.stats().last_error)
        assert not pipeline.flush(0.2)
        stats = lawful(pipeline.stats())
        assert stats.pending == 10
        assert stats.last_error
        query(database_url, mended)
        assert pipeline.flush(10)
        assert lawful(pipeline.stats()).committed == 15
    assert set(events(database_url)) == ended
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_rights_that_are_revoked_keep_the_spans_until_they_are_granted(
    postgresql_server: postgres.Server, state_dir: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    with postgresql_server.database() as url:
        owner = postgres.text(url)
        application, session = _application(owner)
        run = application.add_run(session)
        role = f"writer_{os.getpid()}"
        postgresql_server.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
            database=url.database)
        try:
            with pipeline_of(postgres.text(url.set(username=role, password="x")), state_dir, **QUICK_RETRY) as pipeline:
                pipeline.accept([agent_span(run=run)])
                assert pipeline.flush(10)
                postgresql_server.execute(f"REVOKE INSERT ON execution_events FROM {role}", database=url.database)
                pipeline.accept([agent_span(run=run)])
                wait_for(lambda: any("cannot be written" in record.message for record in caplog.records))
                assert not pipeline.flush(0.5)
                assert lawful(pipeline.stats()).pending == 1
                assert sum("cannot be written" in record.message for record in caplog.records) == 1
                postgresql_server.execute(f"GRANT INSERT ON execution_events TO {role}", database=url.database)
                assert pipeline.flush(10)
                assert lawful(pipeline.stats()).committed == 2
            application.engine.dispose()
        finally:
            postgresql_server.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}", database=url.database)


def test_the_databases_directory_comes_later(tmp_path: Path, state_dir: Path) -> None:
    url = f"sqlite:///{tmp_path}/later/events.db"
    with pipeline_of(url, state_dir, **QUICK_RETRY) as pipeline:
        accept(pipeline)
        assert not pipeline.flush(0.5)
        assert lawful(pipeline.stats()).pending == 5
        (tmp_path / "later").mkdir()
        assert pipeline.flush(10)
        assert lawful(pipeline.stats()).committed == 5
    assert len(events(url)) == 5


def test_a_file_that_is_deleted_meanwhile_is_not_written_any_more(sqlite_url: str, state_dir: Path) -> None:
    """SQLite commits into a deleted file without an error; what is accepted later is in the file that the path names."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with pipeline_of(sqlite_url, state_dir, **QUICK_RETRY) as pipeline:
        accept(pipeline, 3)
        assert pipeline.flush(10)
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)
        later = accept(pipeline, 4)
        assert pipeline.flush(10)
        stats = lawful(pipeline.stats())
    found = events(sqlite_url).keys()
    assert found <= later
    assert len(found) + sum(stats.parked.values()) == 4


# The size cap.


def test_a_full_journal_degrades_in_the_stated_order(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        accept(pipeline, 1)
        pipeline.flush(10)
    content = {"gen_ai.input.messages": "x" * 20_000}
    with locked(sqlite_url), tracing(
        sqlite_url, state_dir, journal_max_bytes=1_048_576, redact=False, shutdown_timeout=0.2, **QUICK_RETRY,
    ) as (tracer, processor):
        pipeline = processor.pipeline
        cap = pipeline.settings.journal_max_bytes

        def fill(share: float, attributes: dict[str, str]) -> None:
            while pipeline.stats().journal_bytes < share * cap:
                tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", **attributes}).end()

        with monkeypatch.context() as patched:
            patched.setattr(running_spans, "START_AGE", 60)  # also on a busy machine the next lines come before that
            running = tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent"})
            assert pipeline._intake.journal is None
        wait_for(lambda: pipeline._intake.journal is not None)  # a start is journaled while there is room
        running.end()
        fill(0.7, content)
        before = pipeline._intake.journal.last_seq
        running = tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent"})
        time.sleep(0.4)
        assert pipeline._intake.journal.last_seq == before, "no start rows above 70 %"
        fill(0.85, content)
        before = pipeline.stats().journal_bytes
        tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", **content}).end()
        assert pipeline.stats().journal_bytes - before < 2000, "no content above 85 %"
        accepted = pipeline.stats().received
        for _ in range(2000):
            tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent"}).end()
            accepted += 1
            if pipeline.stats().lost:
                break
        running.end()
        stats = lawful(pipeline.stats(), lost={"journal": 2})
        assert stats.received == accepted + 1
    wait_for(lambda: pipeline._writer.thread is None)  # its journal is given back
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        assert pipeline.replay() == 0
    assert len(events(sqlite_url)) == 1 + stats.received - 2


def test_accept_over_the_cap_takes_nothing(sqlite_url: str, state_dir: Path) -> None:
    """`accept` says so and takes nothing: its caller still has the spans."""
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        accept(pipeline, 1)
        pipeline.flush(10)
    with locked(sqlite_url), pipeline_of(sqlite_url, state_dir, journal_max_bytes=1_048_576, **QUICK_RETRY) as pipeline:
        big = "x" * 200_000
        with pytest.raises(Exception, match="cap"):
            for _ in range(100):
                pipeline.accept([agent_span(other=big)])
        stats = lawful(pipeline.stats())
        assert stats.received == stats.pending == 5
        pipeline.shutdown(0.1)
