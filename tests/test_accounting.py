"""The counts: the law, tickets, totals of journals that are gone, metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_support import agent_span, events, lawful, pipeline_of, query, wait_for
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support import application_schema

from otel_cmb import config, metrics
from otel_cmb.accounting import Stats, Ticket, Totals
from otel_cmb.journal import journals
from otel_cmb.pipeline import Pipeline, state_directory


def test_every_result_is_counted_once(database_url: str, state_dir: Path) -> None:
    application = application_schema.make(database_url)
    run = application.add_run(application.add_session())
    with pipeline_of(database_url, state_dir) as pipeline:
        first = agent_span(run=run)
        plain = agent_span(run=run)
        plain.attributes, plain.name = {}, "GET /"
        first_again = agent_span(run=run, number=int(first.span_id, 16))
        spans = [first, first_again, plain, agent_span(), agent_span(run="not-there"), agent_span(run=run)]
        outcome = pipeline.accept(spans).wait(10)
        assert (outcome.committed, outcome.merged, outcome.ignored) == (2, 1, 1)
        assert outcome.parked == {"no_run": 1, "run_not_found": 1}
        assert not outcome.stored
        stats = lawful(pipeline.stats())
        assert (stats.received, stats.committed, stats.merged, stats.ignored, stats.pending) == (6, 2, 1, 1, 0)
        assert stats.parked == {"no_run": 1, "run_not_found": 1}
    assert len(events(database_url)) == 2
    application.engine.dispose()


def test_a_parked_span_that_waits_for_its_trace_again_is_pending_again(sqlite_url: str, state_dir: Path) -> None:
    settings = config.load(database_url=sqlite_url, state_dir=str(state_dir), batch_size=2, settle_time=2.5)
    pipeline = Pipeline(settings, per_trace_runs=True)
    try:
        unnamed, named = agent_span(2), agent_span(2, run="not-there")
        unnamed.parent_span_id = named.parent_span_id = "9" * 16
        assert pipeline.accept([unnamed, named]).wait(10).parked == {"run_not_found": 2}
        object.__setattr__(settings, "batch_size", 1)  # each is tried again by itself
        wait_for(lambda: pipeline.stats().pending == 1)
        lawful(pipeline.stats())
        wait_for(lambda: pipeline.stats().committed == 1)
        stats = lawful(pipeline.stats())
        assert (stats.pending, stats.parked) == (0, {"run_not_found": 1})
    finally:
        pipeline.shutdown(10)


def test_a_ticket_says_what_is_known() -> None:
    ticket = Ticket(3)
    ticket.settle("committed", "")
    ticket.settle("parked", "no_run")
    assert ticket.wait(0.01).pending == 1
    ticket.settle("deferred", "unsettled")
    outcome = ticket.wait(0)
    assert (outcome.pending, outcome.committed, outcome.parked, outcome.stored) == (1, 1, {"no_run": 1}, False)
    assert Ticket(0).wait(0).stored


def test_a_ticket_is_answered_early_in_an_outage() -> None:
    ticket = Ticket(1)
    ticket.outage()
    assert ticket.wait(60).pending == 1


def test_refused_spans_were_never_received() -> None:
    stats = Stats(received=2, pending=2)
    stats.count("refused", "session_mismatch")
    stats.pending -= 1
    assert (stats.received, stats.refused, stats.balanced) == (1, 1, True)


def test_totals_of_all_processes_add_up(database_url: str, state_dir: Path) -> None:
    for count in (3, 4):
        with pipeline_of(database_url, state_dir) as pipeline:
            pipeline.accept([agent_span() for _ in range(count)])
            assert pipeline.flush(10)
            directory = state_directory(pipeline.settings)
    assert journals(directory) == []
    assert Totals(directory).read() == {"committed": 7}


def test_totals_that_are_damaged_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "totals.db").write_bytes(b"rubbish" * 1000)
    assert Totals(str(tmp_path)).read() == {}
    Totals(str(tmp_path)).add({"committed": 2})
    assert Totals(str(tmp_path)).read() == {"committed": 2}
    assert list(tmp_path.glob("totals.db.damaged-*"))


def test_counts_go_on_after_a_shutdown_and_what_was_left_is_ours_again(database_url: str, state_dir: Path) -> None:
    application = application_schema.make(database_url)
    session = application.add_session()
    run = application.add_run(session)
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept([agent_span(run=run), agent_span(run="late"), agent_span(run="late")])
        assert pipeline.flush(10)
        pipeline.shutdown()
        assert lawful(pipeline.stats()).parked == {"run_not_found": 2}
        pipeline.accept([agent_span(run=run)])
        assert pipeline.flush(10)
        stats = lawful(pipeline.stats())
        assert (stats.received, stats.committed, stats.parked) == (4, 2, {"run_not_found": 2})
        application.add_run(session, id="late")
        assert pipeline.replay() == 0
        stats = lawful(pipeline.stats())
        assert (stats.received, stats.committed, stats.parked) == (4, 4, {})
    assert len(events(database_url)) == 4
    application.engine.dispose()


def test_what_another_process_left_is_not_ours(database_url: str, state_dir: Path) -> None:
    with pipeline_of(database_url, state_dir, on_missing_run="park") as pipeline:
        pipeline.accept([agent_span(run="late") for _ in range(3)])
        assert pipeline.flush(10)
    with pipeline_of(database_url, state_dir) as pipeline:
        pipeline.accept([agent_span()])
        assert pipeline.flush(10)
        query(database_url, "INSERT INTO workflow_runs (id, session_id, mode, agent, model, status) "
                            "SELECT 'late', id, 'one_shot', 'a', 'm', 'executing' FROM sessions")
        assert pipeline.replay() == 0
        stats = lawful(pipeline.stats())
        assert (stats.received, stats.committed, stats.parked) == (1, 1, {})
    assert len(events(database_url)) == 4


def test_metrics_tell_the_counts(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(api, "get_meter", provider.get_meter)
    monkeypatch.setattr(metrics, "_installed", [])
    pipeline = Pipeline(config.load(database_url=sqlite_url, state_dir=str(state_dir)))
    metrics.watch(lambda: [pipeline])
    pipeline.accept([agent_span(), agent_span(), agent_span(run="late")])
    assert pipeline.flush(10)
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        (metric.name, point.attributes.get("result"), point.attributes.get("reason")): point.value
        for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        for point in metric.data.data_points}
    assert found["otel.sdk.exporter.span.exported", None, None] == 2
    assert found["otel.sdk.exporter.span.inflight", None, None] == 0
    assert found["otel_cmb.spans", "received", None] == 3
    assert found["otel_cmb.spans", "committed", None] == 2
    assert found["otel_cmb.spans", "parked", "run_not_found"] == 1
    pipeline.shutdown()
    provider.shutdown()


def test_no_meter_provider_is_needed(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_installed", [])
    with pipeline_of(sqlite_url, state_dir) as pipeline:
        metrics.watch(lambda: [pipeline])
        metrics.watch(lambda: [pipeline])
        pipeline.accept([agent_span()])
        assert pipeline.flush(10)


def test_replaced_secrets_are_counted(database_url: str, state_dir: Path) -> None:
    application = application_schema.make(database_url)
    run = application.add_run(application.add_session())
    with pipeline_of(database_url, state_dir) as pipeline:
        span = agent_span(run=run)
        span.attributes = {**span.attributes, "note": "Authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789"}
        assert pipeline.accept([span]).wait(10).committed == 1
        assert lawful(pipeline.stats()).redacted == 1
        assert pipeline.stats().as_dict()["redacted"] == 1
    application.engine.dispose()
