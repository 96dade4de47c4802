"""Deleting what is old, in transactions of bounded size: whole runs of an owned database, only our own events of an
attached one.

A run is old when it and everything in it is: started, ended and last written before the cutoff. Of a run that nobody has
ended, whether or not something runs in it, the last sign counts that any event began or ended: programs die, perhaps on hosts
that are gone. What a living process of this host has open is never old. Resources and scopes stay: they are few, shared, and
remembered by living writers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection, Engine

from otel_cmb import deleting
from otel_cmb.binding import Binding, bind
from otel_cmb.config import Settings, safe_url
from otel_cmb.database_url import check_url
from otel_cmb.deleting import Deleting
from otel_cmb.dialects import in_list, list_param, qualified
from otel_cmb.engines import clear_errors, make_engine
from otel_cmb.errors import ConfigurationError
from otel_cmb.event import trace_id_range
from otel_cmb.journal import journals, read_only_summary
from otel_cmb.own_events import OwnEvents
from otel_cmb.state_paths import state_directory
from otel_cmb.transactions import lock_runs

__all__ = ["Pruned", "duration_ns", "prune_events", "prune_runs"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


@dataclass
class Pruned:
    """What was deleted, or would be."""

    runs: list[str] = field(default_factory=list)
    events: int = 0
    files: int = 0
    messages: int = 0
    traces: int = 0
    free_bytes: int = 0
    """SQLite: bytes inside the file that hold nothing now."""


def duration_ns(text: str) -> int:
    """`90d`, `12h`, `4w`, `30m`, `10s` in nanoseconds. Raises :class:`ConfigurationError` for anything else."""
    match = re.fullmatch(r"(\d{1,6})\s*([smhdw])", text.strip().lower())
    if match is None:
        raise ConfigurationError(f"found {text!r}, expected a number and a unit: 90d, 12h, 4w, 30m or 10s")
    return int(match[1]) * _UNITS[match[2]] * 1_000_000_000


def prune_runs(
    settings: Settings, cutoff_ns: int, *, keep: int = 0, dry_run: bool = False, progress: Progress | None = None
) -> Pruned:
    """Delete whole runs that are older than the cutoff, but none of the `keep` newest, and none that a living process of this
    host has open (known by its journal in the state directory). Owned databases only.

    Interrupted, it leaves a run with fewer events; the next call goes on. Raises
    :class:`~otel_cmb.errors.ConfigurationError` for an attached database.
    """
    with _opened(settings, dry_run) as (engine, binding):
        if not binding.owned:
            raise ConfigurationError(
                f"the runs of {safe_url(settings.database_url)} belong to the application and are its to delete; "
                "otel-cmb's own events are deleted with --events"
            )
        work = _Work(engine, binding, cutoff_ns)
        going_on = work.going_on(*_open_here(settings))
        pruned = Pruned(runs=[run_id for run_id in work.old_runs(keep) if run_id not in going_on])
        for number, run_id in enumerate(pruned.runs):
            if progress is not None:
                progress(number, len(pruned.runs))
            pruned.files += work.count("files", run_id)
            pruned.messages += work.count("messages", run_id)
            pruned.events += work.count("execution_events", run_id) if dry_run else work.delete_run(run_id)
        if not dry_run:
            pruned.traces = work.delete_traces()
            pruned.free_bytes = work.free_bytes()
        if progress is not None:
            progress(len(pruned.runs), len(pruned.runs))
        return pruned


def prune_events(
    settings: Settings, cutoff_ns: int, *, dry_run: bool = False, progress: Progress | None = None
) -> Pruned:
    """Delete otel-cmb's own events that are older than the cutoff, with their files and messages, from an attached
    database. The application's rows, runs and events are left alone. Raises
    :class:`~otel_cmb.errors.ConfigurationError` for an owned database."""
    with _opened(settings, dry_run) as (engine, binding):
        if binding.owned:
            raise ConfigurationError(
                f"{safe_url(settings.database_url)} is otel-cmb's own: whole runs are deleted there, without --events"
            )
        work = OwnEvents(engine, binding, cutoff_ns)
        pruned, total = Pruned(), work.count_own_events()
        if dry_run:
            pruned.events = total
            pruned.files, pruned.messages = work.count_own_side_rows("files"), work.count_own_side_rows("messages")
            return pruned
        while found := work.delete_own_events():
            pruned.events += found["execution_events"]
            pruned.files += found.get("files", 0)
            pruned.messages += found.get("messages", 0)
            if progress is not None:
                progress(min(pruned.events, total), total)
        pruned.free_bytes = work.free_bytes()
        return pruned


def _open_here(settings: Settings) -> tuple[set[str], set[str]]:
    """Runs and events that living processes of this host have open."""
    runs: set[str] = set()
    events: set[str] = set()
    for path in journals(state_directory(settings)):
        summary = read_only_summary(path, waiting=False)
        if summary.alive:
            runs |= summary.ids("run")
            events |= summary.ids("event")
    return runs, events


@contextmanager
def _opened(settings: Settings, dry_run: bool) -> Iterator[tuple[Engine, Binding]]:
    check_url(settings, read_only=True)  # a file that is not there is not to be made
    engine = make_engine(settings, read_only=dry_run)
    try:
        with clear_errors(engine):
            with engine.connect() as connection:
                binding = bind(connection, settings, create=False, read_only=dry_run)
            yield engine, binding
    finally:
        engine.dispose()


class _Work(Deleting):
    """The statements about whole runs."""

    def old_runs(self, keep: int) -> list[str]:
        """Ids, oldest first."""
        run, event = self._cutoff("workflow_runs", "started_at"), self._cutoff("execution_events", "timestamp")
        end = self._cutoff("execution_events", "completed_at")
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(
                f"SELECT r.id FROM {self._tables['workflow_runs']} r "
                f"WHERE coalesce(r.completed_at, r.started_at) < {self._mark} AND r.started_at < {self._mark} "
                f"AND r.id NOT IN (SELECT id FROM {self._tables['workflow_runs']} WHERE started_at IS NOT NULL "
                f"ORDER BY started_at DESC, id DESC LIMIT {int(keep)}) "
                f"AND NOT EXISTS (SELECT 1 FROM {self._events} e "
                f"WHERE e.run_id = r.id AND (e.timestamp >= {self._mark} OR e.completed_at >= {self._mark})) "
                "ORDER BY r.started_at, r.id",
                (run, run, event, end),
            )
            return [row[0] for row in rows]

    def going_on(self, runs: set[str], events: set[str]) -> set[str]:
        """The runs, and those of the events."""
        if not events:
            return runs
        with self._engine.connect() as connection:
            found = connection.exec_driver_sql(
                f"SELECT DISTINCT run_id FROM {self._events} WHERE {in_list(self._dialect, 'id')}",
                (list_param(self._dialect, events),))
            return runs.union(row[0] for row in found)

    def delete_run(self, run_id: str) -> int:
        """The run's events, the last ones first (children before their parents), then the run with all that is left."""
        deleted = 0
        while part := self._transaction(lambda connection: self._delete_part(connection, run_id)):
            deleted += part
        self._transaction(lambda connection: self._delete_rest(connection, run_id))
        return deleted

    def _delete_part(self, connection: Connection, run_id: str) -> int:
        lock_runs(connection, [run_id], self._tables["workflow_runs"])
        ids = connection.exec_driver_sql(
            f"SELECT id FROM {self._events} WHERE run_id = {self._mark} ORDER BY execution_order DESC LIMIT {deleting.CHUNK}",
            (run_id,),
        ).scalars().all()
        if ids:
            self._delete(connection, self._events, "id", ids)
            self._delete(connection, qualified("otel_cmb_waiting", self._binding.schema), "child_id", ids)
        return len(ids)

    def _delete_rest(self, connection: Connection, run_id: str) -> None:
        lock_runs(connection, [run_id], self._tables["workflow_runs"])
        self._delete(connection, self._tables["workflow_runs"], "id", [run_id])

    def delete_traces(self) -> int:
        """What is kept of old traces that have no event any more: skeletons, marks, facts to search by."""
        traces = qualified("otel_cmb_traces", self._binding.schema)
        search = qualified("otel_cmb_search", self._binding.schema)
        operations = qualified("otel_cmb_operations", self._binding.schema)
        deleted, last = 0, ""
        while True:
            with self._engine.connect() as connection:
                found = connection.exec_driver_sql(
                    f"SELECT trace_id FROM {traces} WHERE trace_id > {self._mark} AND end_ns < {self._mark} "
                    f"ORDER BY trace_id LIMIT {deleting.CHUNK}", (last, self._cutoff_ns),
                ).scalars().all()
            if not found:
                break
            last = found[-1]
            deleted += self._transaction(partial(self._delete_empty, trace_ids=found))
        self._transaction(lambda connection: connection.exec_driver_sql(
            f"DELETE FROM {search} WHERE last_ns < {self._mark} AND trace_id NOT IN (SELECT trace_id FROM {traces})",
            (self._cutoff_ns,)))
        self._transaction(lambda connection: connection.exec_driver_sql(
            f"DELETE FROM {operations} WHERE last_ns < {self._mark}", (self._cutoff_ns,)))
        return deleted

    def _delete_empty(self, connection: Connection, trace_ids: Sequence[str]) -> int:
        skeletons = qualified("otel_cmb_spans", self._binding.schema)
        empty = []
        for trace_id in trace_ids:
            ends = trace_id_range(trace_id)
            between = f"BETWEEN {self._mark} AND {self._mark}"
            if not connection.exec_driver_sql(f"SELECT 1 FROM {self._events} WHERE id {between} LIMIT 1", ends).first():
                connection.exec_driver_sql(f"DELETE FROM {skeletons} WHERE id {between}", ends)
                empty.append(trace_id)
        self._delete(connection, qualified("otel_cmb_traces", self._binding.schema), "trace_id", empty)
        return len(empty)
