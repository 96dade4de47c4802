"""Live rows, flushing, re-entry, cost of `on_end`; the processor and the exporter on real SDK providers."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import logging
import os
import pickle
import signal
import sqlite3
import statistics
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import agent_span, check_orders, events, lawful, pipeline_of, query, tracing, wait_for
from opentelemetry import trace
from opentelemetry.baggage import set_baggage
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from support import application_schema

import otel_cmb
from otel_cmb import clock, config
from otel_cmb.config import Settings
from otel_cmb.diagnosis import diagnose
from otel_cmb.draining import Drainer
from otel_cmb.errors import DatabaseURLError, RunNotFoundError
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.exporter import CMBSpanExporter
from otel_cmb.journal import Journal, journals
from otel_cmb.otlp_clean import SpanContent
from otel_cmb.pipeline import current_pipeline, forget_pipelines, state_directory, use_pipeline
from otel_cmb.processor import CMBSpanProcessor
from otel_cmb.reader import open_reader

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "ann"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_pipelines()


# Rows of runs, nodes and steps.

KEY = "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3gH5jK7m"


def test_what_runs_and_steps_say_is_cleaned_and_redacted_before_it_touches_the_disk(database_url: str, state_dir: Path) -> None:
    url = "postgresql://ann:hunter2@host/db"
    with pipeline_of(database_url, state_dir) as pipeline:
        with pipeline._drainer.store_lock:
            pipeline.accept_command({
                "do": "run_start", "id": "r", "session": "a\0\ud800", "agent": "b\0", "task": f"with {KEY}\0\udcff", "at": clock.now_ns(),
                "meta": {"command": ["--key", KEY, url], "password": "hunter2", "nan": float("nan"), 3: b"\xff", "odd": object}})
            pipeline.accept_command({"do": "step_start", "run": "r", "id": "s\ud800", "goal": f"use {KEY}", "at": clock.now_ns()})
            pipeline.accept_command({
                "do": "run_end", "id": "r", "status": "failed", "error": f"no answer of {url}", "at": clock.now_ns()})
            assert pipeline._intake.journal is not None
            said = (Path(pipeline._intake.journal.path) / "log-00000001").read_bytes()
            assert KEY.encode() not in said and b"hunter2" not in said
        assert pipeline.flush(10)
        assert not lawful(pipeline.stats()).parked
    (row,) = query(database_url, "SELECT agent, status, task_description, meta FROM workflow_runs")
    assert row[:3] == ("b\ufffd", "failed", "with [redacted: API key]\ufffd\ufffd")
    meta = json.loads(row[3]) if isinstance(row[3], str) else row[3]
    assert meta["command"] == ["--key", "[redacted: API key]", "postgresql://ann:[redacted: password]@host/db"]
    assert meta["password"] == "[redacted: password]"
    assert meta["error"] == "no answer of postgresql://ann:[redacted: password]@host/db"
    assert query(database_url, "SELECT goal FROM workflow_steps") == [("use [redacted: API key]",)]


def test_a_runs_id_may_look_like_a_secret(sqlite_url: str, state_dir: Path) -> None:
    """It is a key, not content: said by the context or by an attribute, it is the same run."""
    app = application_schema.make(sqlite_url)
    run_id = app.add_run(app.add_session(), id=f"sk-{'a1' * 15}")
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        span = agent_span()
        span.attributes["cmb.run.id"] = run_id
        pipeline.accept([span, agent_span(2, run=run_id)])
        assert pipeline.flush(10)
        assert not pipeline.stats().parked
    assert query(sqlite_url, "SELECT DISTINCT run_id FROM execution_events") == [(run_id,)]


def test_ids_that_look_like_secrets_name_their_rows(database_url: str, state_dir: Path) -> None:
    run_id, session = f"sk-{'a1' * 15}", f"sk-{'b1' * 15}"
    with tracing(database_url, state_dir) as (tracer, processor):
        use_pipeline(processor.pipeline)
        with otel_cmb.run(f"with {KEY}", f"ann {KEY}", f"m {KEY}", session=session, run_id=run_id), otel_cmb.node(
                "password=step_1", agent=f"ben {KEY}"):
            tracer.start_span("invoke_agent ann", attributes=AGENT).end()
        assert processor.force_flush(10_000)
    assert query(database_url, "SELECT id, mode, agent, model FROM workflow_runs") == [
        (run_id, "with [redacted: API key]", "ann [redacted: API key]", "m [redacted: API key]")]
    assert query(database_url, "SELECT name FROM sessions") == [(session,)]
    ((node, status),) = query(database_url, "SELECT id, status FROM dag_nodes")
    assert (node.startswith("password=step_1"), status) == (True, "completed")
    assert query(database_url, "SELECT node_id FROM execution_events") == [(node,)]


def test_names_that_no_column_takes(database_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A node's long name is cut; a run's id cannot be, and it is said why its spans are parked."""
    long = "measure the expansion " * 20
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept_command({"do": "run_start", "id": "r", "at": clock.now_ns()})
        pipeline.accept_command({"do": "node_start", "run": "r", "id": long, "at": clock.now_ns()})
        span = agent_span(run="r")
        span.stamp.node_id = long
        pipeline.accept([span])
        pipeline.accept_command({"do": "node_end", "run": "r", "id": long, "status": "completed", "at": clock.now_ns()})
        assert pipeline.flush(10)
        assert not pipeline.stats().parked
        pipeline.accept_command({"do": "run_start", "id": "x" * 40, "at": clock.now_ns()})
        assert pipeline.flush(10)
        pipeline.accept_command({"do": "run_start", "id": "odd\udcff", "at": clock.now_ns()})
        pipeline.remember_open("run", "odd\udcff")  # the journal's own database takes no more than others
        pipeline.accept([agent_span(run="r")])
        assert pipeline.flush(10)
        for name in ("\udcff", "a\0b", 5, b"x"):
            with pytest.raises(RunNotFoundError, match="is not in workflow_runs"):
                pipeline.check_run(name)  # type: ignore[arg-type]
    (node,) = query(database_url, "SELECT id, status FROM dag_nodes")
    assert node[1] == "completed"
    assert node[0].startswith(long[:200])
    assert query(database_url, "SELECT node_id FROM execution_events WHERE node_id IS NOT NULL") == [(node[0],)]
    assert query(database_url, "SELECT id, status FROM workflow_runs WHERE id LIKE 'odd%%'") == [("odd\ufffd", "executing")]
    assert "its id has 40 characters, workflow_runs.id takes 36" in caplog.text
    with open_reader(database_url) as reader:
        with pytest.raises(RunNotFoundError):
            reader.resolve("\udcff")
        assert reader.events_of_node("\udcff") == []


# Live rows.


def test_the_time_between_two_looks_is_part_of_the_rest(
    sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that worked for long rests before the next step, but not after it waited for work anyway."""
    steps: list[tuple[float, float]] = []

    def work(self: Drainer) -> None:
        begun = time.monotonic()
        time.sleep(0.05)
        steps.append((begun, time.monotonic()))

    with tracing(sqlite_url, state_dir) as (tracer, processor):
        with tracer.start_as_current_span("invoke_agent", attributes=AGENT):
            with monkeypatch.context() as patch:
                patch.setattr(Drainer, "guarded_step", work)
                wait_for(lambda: len(steps) >= 8, 10, 0.05)
        assert processor.force_flush(10_000)
    rests = [later[0] - sooner[1] for sooner, later in itertools.pairwise(steps)]
    assert min(rests) < 0.22, rests  # 0.1 between two looks and 0.15 of rest, one after the other, were 0.25


def test_a_running_span_is_a_row_within_a_moment(database_url: str, state_dir: Path) -> None:
    with tracing(database_url, state_dir) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()  # tables are made
        assert processor.force_flush(10_000)
        started = time.monotonic()
        span = tracer.start_span("invoke_agent", attributes=AGENT)
        (row,) = wait_for(lambda: query(
            database_url, "SELECT status, event_subtype, completed_at FROM execution_events WHERE status = 'running'"), 3, 0.01)
        print(f"visible after {1000 * (time.monotonic() - started):.0f} ms")
        assert row == ("running", "start", None)
        span.end()
        assert processor.force_flush(10_000)
        assert query(database_url, "SELECT DISTINCT status, event_subtype FROM execution_events") == [("completed", "complete")]
        assert lawful(processor.stats()).committed == 2
        assert processor.stats().live == 0


def test_a_span_that_starts_and_ends_within_a_moment_is_one_write(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert processor.force_flush(10_000)
        query(sqlite_url, "CREATE TABLE changes (n INTEGER)")
        query(sqlite_url, "CREATE TRIGGER seen AFTER UPDATE ON execution_events BEGIN INSERT INTO changes VALUES (1); END")
        for _ in range(20):
            tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert processor.force_flush(10_000)
        assert query(sqlite_url, "SELECT count(*) FROM changes") == [(0,)]
        assert len(events(sqlite_url)) == 21


def test_rows_of_a_dead_process_are_closed_and_a_late_end_outranks_that(database_url: str, state_dir: Path) -> None:
    for order in ("died first", "ended first"):
        span = agent_span(run=None)
        started = copy.deepcopy(span)
        started.end_ns = None
        with pipeline_of(database_url, state_dir) as pipeline:
            from otel_cmb import journal_spans
            from otel_cmb.journal_records import START

            started.stamp.automatic_run_id = span.stamp.automatic_run_id = pipeline.automatic_run_id
            pipeline._intake.append([START + journal_spans.encode(started)])
            assert pipeline.flush(10)
            if order == "ended first":
                pipeline.accept([span])
                assert pipeline.flush(10)
            died = copy.deepcopy(started)
            died.died = True
            pipeline._intake.append([START + journal_spans.encode(died)])
            assert pipeline.flush(10)
            if order == "died first":
                assert query(database_url, "SELECT status, error_message FROM execution_events WHERE status = 'failed'") == [
                    ("failed", "process ended before the span did")]
                pipeline.accept([span])
                assert pipeline.flush(10)
        rows = events(database_url)
        assert {(row["status"], row["error_message"]) for row in rows.values()} == {("completed", None)}, order
    assert len(rows) == 2


def test_a_start_that_comes_after_its_end_leaves_nothing_open(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        from otel_cmb import journal_spans
        from otel_cmb.journal_records import START

        span = agent_span()
        pipeline.accept([span])
        assert pipeline.flush(10)
        pipeline._intake.append([START + journal_spans.encode(replace(span, end_ns=None))])
        assert pipeline.flush(10)
        directory = state_directory(pipeline.settings)
    assert journals(directory) == []


def test_a_span_keeps_its_run_through_a_fork_of_a_fork(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        span = TracerProvider().get_tracer("test").start_span("invoke_agent", attributes=AGENT)
        stamp = Stamp(run_id="the run it began in")
        running, context = pipeline._running, span.get_span_context()
        running.begin(context, span, stamp)
        running.after_fork_in_child()
        running.after_fork_in_child()
        assert len(running) == 0
        assert running.end(context) is stamp
        assert running.end(context) is None


def test_a_bare_database_gets_one_run_for_the_process(database_url: str, state_dir: Path) -> None:
    with tracing(database_url, state_dir) as (tracer, processor):
        for _ in range(3):
            tracer.start_span("invoke_agent", attributes=AGENT).end()
    runs = query(database_url, "SELECT id, status, mode, agent, completed_at IS NOT NULL FROM workflow_runs")
    assert [tuple(run[1:]) for run in runs] in ([("completed", "one_shot", "ann", 1)], [("completed", "one_shot", "ann", True)])
    assert {row["run_id"] for row in events(database_url).values()} == {runs[0][0]}
    assert query(database_url, "SELECT name FROM sessions") == [("default",)]


def test_an_applications_database_gets_none(database_url: str, state_dir: Path) -> None:
    application = application_schema.make(database_url)
    with tracing(database_url, state_dir) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert processor.force_flush(10_000)
        assert lawful(processor.stats()).parked == {"no_run": 1}
    assert application.rows("workflow_runs") == []
    application.engine.dispose()


# Cost, flushing, shutting down.


def test_on_end_costs_tens_of_microseconds(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir, shutdown_timeout=30.0) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert processor.force_flush(10_000)
        spans = [tracer.start_span("invoke_agent", attributes=AGENT) for _ in range(1000)]
        took = []
        for span in spans:
            readable = span._readable_span()
            began = time.perf_counter_ns()
            processor.on_end(readable)
            took.append((time.perf_counter_ns() - began) / 1000)
        print(f"on_end: median {statistics.median(took):.0f} µs, 99 % {sorted(took)[990]:.0f} µs")
        assert processor.force_flush(30_000)
        assert lawful(processor.stats()).received == 1001


def test_flush_before_anything_and_after_a_shutdown(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        assert pipeline.flush(0)
        assert pipeline.shutdown()
        for _ in range(3):
            pipeline.accept([agent_span()])
            assert pipeline.flush(10)
            assert pipeline.shutdown()
            assert pipeline.shutdown()
        assert lawful(pipeline.stats()).committed == 3
    assert len(events(sqlite_url)) == 3


def test_threads_end_spans_while_the_pipeline_is_shut_down_again_and_again(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        stop = threading.Event()
        counts = [0] * 4

        def work(n: int) -> None:
            while not stop.is_set():
                tracer.start_span("invoke_agent", attributes=AGENT).end()
                counts[n] += 1
                time.sleep(0.001)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            time.sleep(0.05)
            processor.shutdown()
        stop.set()
        for thread in threads:
            thread.join()
        work_after = tracer.start_span("invoke_agent", attributes=AGENT)  # begins anew: the last shutdown may have run out of time
        work_after.end()
        counts[0] += 1
        wait_for(lambda: processor.force_flush(1_000))
        processor.pipeline.replay()
        stats = lawful(processor.stats())
        assert stats.received == stats.committed == sum(counts)
    assert len(events(sqlite_url)) == sum(counts)
    check_orders(sqlite_url)
    assert journals(state_directory(processor.pipeline.settings)) == []


def test_a_flush_after_a_shutdown_that_ran_out_of_time_tells_the_truth(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir, busy_timeout=0.1) as pipeline:
        pipeline.connect()
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            pipeline.accept([agent_span()])
            assert not pipeline.shutdown(0.5)
            wait_for(lambda: pipeline._intake.idle)
        assert pipeline.stats().pending == 1
        assert not pipeline.flush(1)
        pipeline.replay()
        assert lawful(pipeline.stats()).committed == 1
        assert pipeline.flush(1)


def test_nothing_is_left_open_after_a_shutdown(no_leaks: None, database_url: str, state_dir: Path) -> None:
    with tracing(database_url, state_dir) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert processor.force_flush(10_000)


# Re-entry.


class Ends:
    """Ends a span when it is collected."""

    def __init__(self, tracer: Any) -> None:
        self.span = tracer.start_span("invoke_agent", attributes=AGENT)
        self.me = self

    def __del__(self) -> None:
        self.span.end()


def test_the_garbage_collector_ends_spans(sqlite_url: str, state_dir: Path) -> None:
    before = gc.get_threshold()
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        gc.set_threshold(7, 1, 1)
        try:
            for _ in range(150):
                Ends(tracer)
                tracer.start_span("invoke_agent", attributes=AGENT).end()
                processor.stats()
        finally:
            gc.set_threshold(*before)
        gc.collect()
        assert processor.force_flush(10_000)
        stats = lawful(processor.stats())
        assert stats.received == stats.committed == 300
    assert len(events(sqlite_url)) == 300


def test_signal_handlers_end_spans_flush_and_count(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        caught = []

        def handler(_number: int, _frame: object) -> None:
            tracer.start_span("invoke_agent", attributes=AGENT).end()
            caught.append(processor.stats().received)
            if len(caught) % 10 == 0:
                processor.force_flush(20)

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.004, 0.004)  # the handler flushes for at most half of that time
        ended = 0
        try:
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                tracer.start_span("invoke_agent", attributes=AGENT).end()
                ended += 1
                if ended % 50 == 0:
                    processor.force_flush(10)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert processor.force_flush(20_000)
        stats = lawful(processor.stats())
        assert stats.received == stats.committed == ended + len(caught)
        assert len(caught) > 20
    assert len(events(sqlite_url)) == stats.received


def test_any_number_of_spans_from_within_one_append(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk under a busy signal handler: they wait for the append they interrupted, and a flush there does not."""
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        append, within = Journal.append, []

        def interrupted(self: Journal, bodies: list[bytes]) -> int:
            if not within:
                within.append(time.monotonic())
                for _ in range(1_500):
                    tracer.start_span("invoke_agent", attributes=AGENT).end()
                assert not processor.force_flush(30_000)
                within.append(time.monotonic())
            return append(self, bodies)

        monkeypatch.setattr(Journal, "append", interrupted)
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        assert within[1] - within[0] < 20
        assert processor.force_flush(30_000)
        stats = lawful(processor.stats())
        assert stats.received == stats.committed == 1_502
    assert len(events(sqlite_url)) == 1_502


def test_a_writer_nobody_waits_for_rests_longer_than_it_works(
    sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One trace of thousands of spans makes each step slow; the program must not pay for that with a core."""
    steps = []
    step = Drainer.guarded_step

    def slow(self: Drainer) -> None:
        steps.append(time.monotonic())
        time.sleep(0.1)
        step(self)

    monkeypatch.setattr(Drainer, "guarded_step", slow)
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            tracer.start_span("invoke_agent", attributes=AGENT).end()
            time.sleep(0.005)
        assert len([at for at in steps if at < until]) <= 10  # at once after each other they would be 19
        assert processor.force_flush(20_000)
        assert not processor.stats().pending


def test_a_logging_handler_makes_spans(sqlite_url: str, state_dir: Path) -> None:
    """Also of our own log lines, in the writer too."""
    application = application_schema.make(sqlite_url)
    run = application.add_run(application.add_session())
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        made = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                span = tracer.start_span("invoke_agent", attributes={**AGENT, "cmb.run.id": run})
                span.end()
                made.append(record)
                processor.stats()

        handler = Handler()
        logging.getLogger("otel_cmb").addHandler(handler)
        try:
            for n in range(10):
                tracer.start_span("invoke_agent", attributes={**AGENT, "cmb.run.id": f"not there {n}"}).end()
            assert processor.force_flush(10_000)
            time.sleep(0.5)  # tried again
            assert processor.force_flush(10_000)
        finally:
            logging.getLogger("otel_cmb").removeHandler(handler)
        assert len(made) == 10
        stats = lawful(processor.stats())
        assert stats.parked == {"run_not_found": 10}
        assert stats.committed == 10
    application.engine.dispose()


def test_an_instrumented_database_driver_does_not_trace_us(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        seen = []

        def statement(*_: Any) -> None:
            if not get_value(_SUPPRESS_INSTRUMENTATION_KEY):
                seen.append(threading.current_thread().name)
                tracer.start_span("SELECT", attributes=AGENT).end()

        sa.event.listen(sa.engine.Engine, "before_cursor_execute", statement)
        try:
            tracer.start_span("invoke_agent", attributes=AGENT).end()
            assert processor.force_flush(10_000)
            pipeline = processor.pipeline
            pipeline.connect()
            (run,) = query_quietly(sqlite_url, "SELECT id FROM workflow_runs")
            pipeline.check_run(run[0])
            pipeline.replay()
            processor.shutdown()
            ours = list(seen)
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", statement)
        assert ours == []
        assert lawful(processor.stats()).received == 1


def query_quietly(url: str, sql: str) -> list[Any]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def test_an_attribute_that_cannot_be_read_is_counted(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_CMB_TESTING")
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        monkeypatch.setattr("otel_cmb.pipeline.span_from_sdk", lambda *_: 1 / 0)
        tracer.start_span("invoke_agent", attributes=AGENT).end()
        lawful(processor.stats(), lost={"interrupted": 1})


# The doors as objects.


def test_processors_and_exporters_are_pickled_as_their_settings(sqlite_url: str, state_dir: Path) -> None:
    processor = CMBSpanProcessor(sqlite_url, state_dir=str(state_dir))
    again = pickle.loads(pickle.dumps(processor))
    assert again.pipeline is processor.pipeline
    assert copy.deepcopy(processor).pipeline is processor.pipeline
    exporter = pickle.loads(pickle.dumps(CMBSpanExporter(sqlite_url, state_dir=str(state_dir))))
    assert exporter.pipeline is processor.pipeline
    forget_pipelines()
    gone = weakref.ref(processor.pipeline)
    del processor, again, exporter
    wait_for(lambda: gc.collect() is not None and gone() is None)
    assert current_pipeline() is None


def test_two_processors_of_one_database_store_each_span_once(
    sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tracing(sqlite_url, state_dir) as (_, processor):
        processor.pipeline.accept_command({"do": "run_start", "id": "of-the-environment", "at": clock.now_ns()})
        monkeypatch.setenv("OTEL_CMB_RUN_ID", "of-the-environment")
        provider = TracerProvider(shutdown_on_exit=False)
        for _ in range(2):
            provider.add_span_processor(CMBSpanProcessor(sqlite_url, state_dir=str(state_dir)))
        for _ in range(5):
            provider.get_tracer("test").start_span("invoke_agent", attributes=AGENT).end()
        assert provider.force_flush(10_000)
        stats = lawful(processor.stats())
        assert (stats.received, stats.committed, stats.merged, stats.parked) == (10, 5, 5, {})
        provider.shutdown()
    assert {row["run_id"] for row in events(sqlite_url).values()} == {"of-the-environment"}


@pytest.mark.parametrize("kind", ["processor", "exporter"])
def test_the_resource_outranks_the_environment_and_the_context_the_resource(
    kind: str, sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN section 5: context, resource, environment; also for the rows of `node()` and `step()`."""
    for name in ("RUN", "SESSION", "NODE", "STEP"):
        monkeypatch.setenv(f"OTEL_CMB_{name}_ID", f"env-{name.lower()}")
    settings: dict[str, Any] = {"database_url": sqlite_url, "state_dir": str(state_dir), "on_missing_run": "create"}
    door = CMBSpanProcessor(**settings) if kind == "processor" else SimpleSpanProcessor(CMBSpanExporter(**settings))
    named = {f"cmb.{name}.id": f"res-{name}" for name in ("run", "session", "node", "step")}
    provider = TracerProvider(resource=Resource(named), shutdown_on_exit=False)
    bare = TracerProvider(resource=Resource({"cmb.node.id": "res-node"}), shutdown_on_exit=False)
    for one in (provider, bare):
        one.add_span_processor(door)
    provider.get_tracer("t").start_span("invoke_agent", attributes=AGENT).end()
    bare.get_tracer("t").start_span("invoke_agent", attributes=AGENT).end()
    context = set_baggage("cmb.run.id", "context-run")
    if kind == "processor":
        provider.get_tracer("t").start_span("invoke_agent", context=context, attributes={**AGENT, "cmb.run.id": ""}).end()
    assert provider.force_flush(10_000)
    rows = {row["run_id"]: (row["node_id"], row["session_id"]) for row in events(sqlite_url).values()}
    if kind == "processor":
        [default] = query(sqlite_url, "SELECT id FROM sessions WHERE name = 'default'")[0]
        assert rows.pop("context-run") == ("res-node", default)
    assert rows == {"res-run": ("res-node", "res-session"), "env-run": ("res-node", "env-session")}
    if kind == "processor":
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        with otel_cmb.node("inner"):
            pass
        assert provider.force_flush(10_000)
        assert query(sqlite_url, "SELECT run_id FROM dag_nodes WHERE id = 'inner'") == [("res-run",)]
    provider.shutdown()


def test_a_run_of_the_program_has_its_own_session_whatever_run_the_resource_names(sqlite_url: str, state_dir: Path) -> None:
    """The resource's session is that of the resource's run; everything in `run()` was parked for it."""
    processor = CMBSpanProcessor(sqlite_url, state_dir=str(state_dir), on_missing_run="create")
    provider = TracerProvider(
        resource=Resource({"cmb.run.id": "res-run", "cmb.session.id": "res-session"}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("t")
    with otel_cmb.run() as run:
        tracer.start_span("invoke_agent", attributes=AGENT).end()
    tracer.start_span("invoke_agent", attributes=AGENT).end()
    assert provider.force_flush(10_000)
    sessions = dict(query(sqlite_url, "SELECT id, name FROM sessions"))
    rows = {row["run_id"]: row["session_id"] for row in events(sqlite_url).values()}
    assert sessions[rows.pop(run.id)] == "default"
    assert rows == {"res-run": "res-session"}
    assert processor.stats().parked == {}
    provider.shutdown()


def test_two_traces_with_the_same_span_ids_are_told_apart(sqlite_url: str, state_dir: Path) -> None:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Small(IdGenerator):
        traces = 0

        def generate_trace_id(self) -> int:
            Small.traces += 1
            return Small.traces

        def generate_span_id(self) -> int:
            return 1

    processor = CMBSpanProcessor(sqlite_url, state_dir=str(state_dir))
    provider = TracerProvider(id_generator=Small(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    one, two = (tracer.start_span("invoke_agent", attributes={**AGENT, "cmb.run.id": run}) for run in ("a", "b"))
    time.sleep(0.3)
    one.end()
    two.end()
    assert processor.force_flush(10_000)
    assert lawful(processor.stats()).parked == {"run_not_found": 2}
    provider.shutdown()


@pytest.mark.parametrize("kind", [BatchSpanProcessor, SimpleSpanProcessor])
def test_the_exporter_alone(database_url: str, state_dir: Path, kind: Any) -> None:
    exporter = CMBSpanExporter(database_url, state_dir=str(state_dir))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(kind(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("invoke_agent", attributes=AGENT):
        for _ in range(5):
            tracer.start_span("execute_tool", attributes={"gen_ai.operation.name": "execute_tool"}).end()
    assert provider.force_flush(20_000)
    stats = lawful(exporter.stats())
    assert stats.received == stats.committed == 6
    provider.shutdown()
    assert len(events(database_url)) == 6
    check_orders(database_url)


def _ended(attributes: dict[str, Any]) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    span = provider.get_tracer("test").start_span("invoke_agent", attributes=attributes)
    span.end()
    return span._readable_span()


def test_export_succeeds_only_for_what_is_committed(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir / "first") as pipeline:  # makes the tables, which may take longer than an export may
        pipeline.accept([agent_span()])
        assert pipeline.flush(60)
    exporter = CMBSpanExporter(sqlite_url, state_dir=str(state_dir), export_timeout=2, busy_timeout=0.1)
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.SUCCESS
    assert exporter.export([]) is SpanExportResult.SUCCESS
    assert exporter.export([_ended(AGENT), _ended({**AGENT, "cmb.run.id": "nobody's"})]) is SpanExportResult.FAILURE
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.SUCCESS
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.FAILURE
    assert time.monotonic() - started < 9, "less than the default"
    other.execute("ROLLBACK")
    other.close()
    assert exporter.force_flush(10_000)
    stats = lawful(exporter.stats())
    assert (stats.committed, stats.parked) == (4, {"run_not_found": 1})
    exporter.shutdown()
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.FAILURE


def test_an_exporter_beside_a_processor_answers_for_its_own_batch(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        exporter = CMBSpanExporter(sqlite_url, state_dir=str(state_dir))
        exporter.leave_to_processor()
        good = tracer.start_span("invoke_agent", attributes=AGENT)
        bad = tracer.start_span("invoke_agent", attributes={**AGENT, "cmb.run.id": "nobody's"})
        good.end()
        bad.end()
        assert exporter.export([good._readable_span()]) is SpanExportResult.SUCCESS
        assert exporter.export([bad._readable_span()]) is SpanExportResult.FAILURE
        assert lawful(processor.stats()).received == 2


@pytest.mark.parametrize("settings", [
    {"database_url": "no such thing"}, {"database_url": object()}, {"on_missing_run": "explode"}, {"nonsense": 1},
    {"batch_size": -1}, {"database_url": "sqlite://"}, {"database_url": "mysql://x/y"}, {"export_timeout": "soon"},
])
def test_an_exporter_with_wrong_settings_fails_at_export_not_before(
    settings: dict[str, Any], state_dir: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = CMBSpanExporter(**{"state_dir": str(state_dir), **settings})
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.FAILURE
    assert exporter.export([_ended(AGENT)]) is SpanExportResult.FAILURE
    assert len([record for record in caplog.records if "not stored" in record.message]) == 1
    assert exporter.force_flush(100)
    exporter.shutdown()
    assert not os.path.exists("no such thing")


@pytest.mark.parametrize("url", ["no such thing", "sqlite://", "mysql://x/y", "sqlite:////no/such/directory/x.db"])
def test_a_processor_says_at_once_that_its_url_cannot_work(url: str, state_dir: Path) -> None:
    with pytest.raises(DatabaseURLError):
        CMBSpanProcessor(url, state_dir=str(state_dir))
    assert not state_dir.exists() or not os.listdir(state_dir)


def test_doors_of_one_database_have_timeouts_of_their_own_and_hear_what_is_not_applied(
    sqlite_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    processor = CMBSpanProcessor(sqlite_url, state_dir=str(state_dir), on_missing_run="park", batch_size=10)
    patient = CMBSpanExporter(sqlite_url, state_dir=str(state_dir), batch_size=10)
    assert patient.export([_ended(AGENT)]) is SpanExportResult.SUCCESS
    assert caplog.records == []
    hasty = CMBSpanExporter(sqlite_url, state_dir=str(state_dir), export_timeout=0.2, on_missing_run="create")
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert hasty.export([_ended(AGENT)]) is SpanExportResult.FAILURE
        assert time.monotonic() - started < 5, "the pipeline's own would be ten seconds"
        other.execute("ROLLBACK")
    [said] = [record.getMessage() for record in caplog.records if "not applied" in record.getMessage()]
    assert "on_missing_run='create' is not applied, 'park' is" in said
    assert hasty.pipeline is processor.pipeline
    assert processor.force_flush(10_000)


def test_databases_that_only_the_query_of_the_url_tells_apart_have_journals_of_their_own() -> None:
    """Else the next process would write what is left of one into the other."""

    def place(query: str) -> str:
        return state_directory(config.load(database_url=f"postgresql+psycopg://u:p@h/db{query}", state_dir="/s"))

    apart = ["", "?options=-csearch_path%3Da", "?options=-csearch_path%3Db", "?host=/one", "?host=/two", "?service=a", "?port=5433"]
    assert len({place(query) for query in apart}) == len(apart)
    assert place("?sslmode=require&connect_timeout=3&application_name=x") == place("")


def content_of(span: Span) -> SpanContent:
    """What a log record carries for the span."""
    text = '[{"role": "user", "parts": [{"type": "text", "content": "what is it?"}]}]'
    return SpanContent(span.trace_id, span.span_id, 1, {"gen_ai.input.messages": text})


def test_content_whose_span_comes_long_after_it_is_joined(database_url: str, state_dir: Path) -> None:
    """Later than `park_retry`, by itself."""
    with pipeline_of(database_url, state_dir, park_retry=0) as pipeline:
        late, other = agent_span(), agent_span()
        pipeline.accept_logs([content_of(late)])
        pipeline.accept([other])
        assert pipeline.flush(20)
        time.sleep(1.0)
        pipeline.accept([late])
        assert pipeline.flush(20)
        wait_for(lambda: "what is it?" in str(events(database_url)[event_id(late.trace_id, late.span_id)]["inputs"]), 20)


def test_content_whose_span_never_comes_is_given_up_and_counted(
    database_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pipeline_of(database_url, state_dir, content_time=0.5) as pipeline:
        pipeline.accept_logs([content_of(agent_span())])
        pipeline.accept([agent_span()])
        assert pipeline.flush(20)
        settings, journal = pipeline.settings, pipeline._intake.journal
        assert journal is not None
        assert accounting_of(settings)["content_waiting"] == 1
        wait_for(lambda: not journal.parked(), 20)
        assert accounting_of(settings)["content_waiting"] == 0
        assert accounting_of(settings)["content_given_up"] == 1
    assert "content of a log record whose span did not come" in caplog.text
    assert not journals(state_directory(settings))
    assert accounting_of(settings)["content_given_up"] == 1


def accounting_of(settings: Settings) -> dict[str, Any]:
    """The sum that `otel-cmb doctor` shows."""
    [check] = [one for one in diagnose(settings).checks if one.name == "accounting"]
    return check.details


def test_spans_lose_what_was_said_when_the_journal_is_nearly_full_and_the_log_says_so(
    sqlite_url: str, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pipeline_of(sqlite_url, state_dir, journal_max_bytes=1_048_576) as pipeline, pipeline._drainer.store_lock:
        pipeline.accept([agent_span(text="x" * 9_000) for _ in range(100)])
        assert "without what was said" not in caplog.text
        pipeline.accept([agent_span() for _ in range(2)])
    assert caplog.text.count("without what was said") == 1
