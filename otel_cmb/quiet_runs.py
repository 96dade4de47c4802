"""Runs that nobody ends: ended when nothing has come for long.

A trace's own run ends with the trace's root. The root may stay away for good: it is exported elsewhere, sampled out, or its
process was killed. A run that was made because spans named it (`on_missing_run` = create) may get further traces at any
time, so no root ends it. Both are ended as of the last thing that is known of them: completed, or failed if something at
their top has failed. A root, or the word of a program that ends its run, outranks that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from otel_cmb import clock
from otel_cmb.binding import Binding, bind
from otel_cmb.config import Settings
from otel_cmb.dialects import mark, timestamp, timestamp_ns
from otel_cmb.engines import clear_errors, make_engine
from otel_cmb.event import OWN_ID
from otel_cmb.meta_names import json_member
from otel_cmb.transactions import begin_write, lock_runs
from otel_cmb.values import as_dict
from otel_cmb.workflow import MISSING, Workflow

__all__ = ["end_quiet_runs", "quiet_runs", "silent_runs"]

MOST = 1_000
"""Most runs of one call."""

_NOTHING_RUNS = "e.status = 'running' OR "

R = TypeVar("R")


def end_quiet_runs(settings: Settings) -> list[str]:
    """End the runs of an owned database that nobody ends and that are quiet for `quiet_time` (0: none); which they were. Raises
    :class:`~otel_cmb.errors.CMBError` where the database is away or not there."""
    if not settings.quiet_time:
        return []
    found = _in_database(settings, quiet_runs, read_only=True)

    def end(connection: Connection, binding: Binding, settings: Settings) -> list[str]:
        begin_write(connection)
        lock_runs(connection, found, binding.tables["workflow_runs"].qualified)
        ended = [run_id for run_id in quiet_runs(connection, binding, settings) if run_id in found]
        for run_id in ended:
            _end(connection, binding, run_id)
        connection.commit()
        return ended

    return _in_database(settings, end, read_only=False) if found else []


def quiet_runs(connection: Connection, binding: Binding, settings: Settings) -> list[str]:
    """The runs that nobody ends and that go on although nothing has come for `quiet_time`, oldest first."""
    if not binding.owned or not settings.quiet_time:
        return []
    rows = silent_runs(connection, binding, settings.quiet_time, nobodys=True)
    return [run_id for run_id, meta in rows if meta.get("automatic") or MISSING.items() <= meta.items()]


def silent_runs(
    connection: Connection, binding: Binding, seconds: float, *, nobodys: bool = False,
) -> list[tuple[str, dict[str, Any]]]:
    """Runs (id, meta) that go on although nothing has come for so long, oldest first; with `nobodys` only such as are made
    for traces, or because they were missing, and in which nothing runs."""
    runs, events = binding.tables["workflow_runs"], binding.tables["execution_events"]
    place = mark(binding.dialect)
    before = clock.now_ns() - int(seconds * 1_000_000_000)
    rows = connection.exec_driver_sql(
        f"SELECT r.id, r.meta FROM {runs.qualified} r WHERE r.status = 'executing' AND r.completed_at IS NULL"
        f"{_nobodys(binding) if nobodys else ''} AND r.started_at < {place} AND NOT EXISTS (SELECT 1 FROM {events.qualified} e "
        f"WHERE e.run_id = r.id AND ({_NOTHING_RUNS if nobodys else ''}coalesce(e.completed_at, e.started_at) >= {place})) "
        f"ORDER BY r.started_at LIMIT {MOST}",
        (timestamp(binding.dialect, runs.columns["started_at"].kind, before),
         timestamp(binding.dialect, events.columns["started_at"].kind, before)))
    return [(str(row[0]), as_dict(row[1])) for row in rows]


def _nobodys(binding: Binding) -> str:
    """A process makes version 4 for its own run, and ends that."""
    [(key, value)] = MISSING.items()
    return f" AND (r.id LIKE '{OWN_ID}' OR {json_member(binding.dialect, 'r.meta', key)} = '{value}')"


def _end(connection: Connection, binding: Binding, run_id: str) -> None:
    events, place = binding.tables["execution_events"].qualified, mark(binding.dialect)
    last = connection.exec_driver_sql(
        f"SELECT max(coalesce(e.completed_at, e.started_at)) FROM {events} e WHERE e.run_id = {place}", (run_id,)).scalar()
    failed = connection.exec_driver_sql(
        f"SELECT 1 FROM {events} e WHERE e.run_id = {place} AND e.depth = 0 AND e.status = 'failed' LIMIT 1",
        (run_id,)).first()
    Workflow(binding).end_run(
        connection, run_id, status="failed" if failed else "completed",
        at_ns=clock.now_ns() if last is None else timestamp_ns(last), quiet=True)


def _in_database(settings: Settings, work: Callable[[Connection, Binding, Settings], R], *, read_only: bool) -> R:
    engine: Engine = make_engine(settings, read_only=read_only)
    try:
        with clear_errors(engine), engine.connect() as connection:
            return work(connection, bind(connection, settings, create=False, read_only=read_only), settings)
    finally:
        engine.dispose()
