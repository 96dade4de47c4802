"""A question to a database that stands still is given up in time, keeps nobody else waiting, and costs nothing afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import agent_span, events, lawful, pipeline_of, tracing
from sqlalchemy.orm import Session
from support import application_schema, postgres

import otel_cmb
from otel_cmb import questions
from otel_cmb.compat.cmbagent import EventCaptureManager
from otel_cmb.errors import DatabaseUnavailableError, RunNotFoundError
from otel_cmb.pipeline import forget_pipelines, use_pipeline


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_pipelines()


def test_an_answer_or_an_error_comes_back() -> None:
    asking = questions.Questions()
    assert asking.ask(lambda: 5, 5) == 5

    def fail() -> None:
        raise RunNotFoundError("no")

    with pytest.raises(RunNotFoundError):
        asking.ask(fail, 5)


def test_questions_without_an_answer_are_few_and_give_their_place_back() -> None:
    asking, answered = questions.Questions(), threading.Event()
    before = threading.active_count()
    for _ in range(questions.MOST + 2):
        with pytest.raises(questions.NoAnswerError):
            asking.ask(answered.wait, 0.05)
    assert threading.active_count() == before + questions.MOST
    answered.set()
    assert asking.ask(lambda: 5, 5) == 5


def test_without_threads_the_caller_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert questions.Questions().ask(threading.current_thread, 5) is threading.current_thread()


def seconds_of(question: Any) -> float:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match=r"did not answer within [\d.]+ s; try again when it is back"):
        question()
    return time.monotonic() - began


def test_a_postgresql_that_hangs_keeps_no_attach_waiting(
    private_postgresql: postgres.Server, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(questions, "MOST", 2)
    url = postgres.text(private_postgresql.url)
    app = application_schema.make(url)
    run_id = app.add_run(app.add_session())
    with tracing(url, state_dir, connect_timeout=1, shutdown_timeout=1) as (tracer, processor):
        pipeline = processor.pipeline
        use_pipeline(pipeline)

        def attach() -> None:
            with otel_cmb.attach(run_id):
                tracer.start_span("invoke_agent ann", attributes={"gen_ai.operation.name": "invoke_agent"}).end()

        attach()
        assert processor.force_flush(10_000)
        time.sleep(1.2)  # a connection is asked whether it is alive before it is used again
        with private_postgresql.hanging():
            assert seconds_of(attach) < 3
            pipeline.accept([agent_span(run=run_id)])
            assert not pipeline.flush(0.5)
            assert max(seconds_of(attach) for _ in range(questions.MOST)) < 3
        attach()
        assert processor.force_flush(10_000)
        assert not lawful(pipeline.stats()).parked
        with pytest.raises(RunNotFoundError):
            pipeline.check_run("nope")
    assert len(events(url)) == 3
    app.engine.dispose()


def test_a_postgresql_that_hangs_from_the_start(
    private_postgresql: postgres.Server, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_CMB_STATE_DIR", str(state_dir))
    monkeypatch.setenv("OTEL_EXPORTER_CMB_CONNECT_TIMEOUT", "1")
    app = application_schema.make(postgres.text(private_postgresql.url))
    run_id = app.add_run(session := app.add_session())
    with Session(app.engine) as db, private_postgresql.hanging():
        assert seconds_of(lambda: EventCaptureManager(db, run_id, session)) < 3
    with Session(app.engine) as db:
        manager = EventCaptureManager(db, run_id, session)
        assert manager.capture_agent_call("ann", "hello")
        manager.flush()
        manager.close()
    assert len(events(postgres.text(private_postgresql.url))) == 1
    app.engine.dispose()


def test_the_end_does_not_wait_for_a_question(private_postgresql: postgres.Server, state_dir: Path) -> None:
    url = postgres.text(private_postgresql.url)
    with pipeline_of(url, state_dir, connect_timeout=1, shutdown_timeout=1) as pipeline:
        pipeline.accept([agent_span()])
        assert pipeline.flush(10)
        with private_postgresql.hanging():
            seconds_of(lambda: pipeline.check_run("nope"))
            pipeline.accept([agent_span()])
            began = time.monotonic()
            assert not pipeline.shutdown()
            assert time.monotonic() - began < 4


def test_a_run_made_a_moment_ago_is_found_and_one_that_is_locked_too(database_url: str, state_dir: Path) -> None:
    """A run that is there is found although what waits cannot be written now: the application's own transaction has it."""
    with tracing(database_url, state_dir, busy_timeout=0.2) as (_, processor):
        pipeline = processor.pipeline
        use_pipeline(pipeline)
        for _ in range(3):
            with otel_cmb.run() as run:
                assert pipeline.check_run(run.id)[0] == run.id
        engine = sa.create_engine(database_url)
        with engine.connect() as connection:
            connection.execute(sa.text("UPDATE workflow_runs SET status = 'executing' WHERE id = :id"), {"id": run.id})
            pipeline.accept([agent_span(run=run.id)])
            began = time.monotonic()
            assert pipeline.check_run(run.id)[0] == run.id
            assert time.monotonic() - began < 2
            connection.rollback()
        engine.dispose()
        assert processor.force_flush(10_000)
