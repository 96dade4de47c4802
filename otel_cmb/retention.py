"""Deleting what is old, in transactions of bounded size: whole runs of an owned database, only our own events of an
attached one.

A run is old when it and everything in it is: started, ended and last written before the cutoff. Of a run that nobody has
ended, whether or not something runs in it, the last sign counts that any event began or ended: programs die, perhaps on hosts
that are gone. What a living process of this host has open is never old. Resources and scopes stay: they are few, shared, and
remembered by living writers.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from otel_cmb.binding import Binding, bind
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import SQLITE, in_list, list_param, mark, qualified, timestamp
from otel_cmb.engines import clear_errors, make_engine
from otel_cmb.errors import ConfigurationError
from otel_cmb.event import OWN_ID, trace_id_range
from otel_cmb.faults import Fault, classify
from otel_cmb.journal import journals, read_only_summary
from otel_cmb.state_paths import state_directory
from otel_cmb.transactions import begin_write, lock_runs

__all__ = ["Pruned", "duration_ns", "prune_events", "prune_runs"]

CHUNK = 500
"""Events, or traces, of one transaction."""

ATTEMPTS = 5

SIDE_TABLES = {"files": "created_at", "messages": "timestamp"}
"""What events made, and the column with its time."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

R = TypeVar("R")
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
        work = _Work(engine, binding, cutoff_ns)
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
        summary = read_only_summary(path)
        if summary.alive:
            runs |= summary.ids("run")
            events |= summary.ids("event")
    return runs, events


@contextmanager
def _opened(settings: Settings, dry_run: bool) -> Iterator[tuple[Engine, Binding]]:
    engine = make_engine(settings, read_only=dry_run)
    try:
        with clear_errors(engine):
            with engine.connect() as connection:
                binding = bind(connection, settings, create=False, read_only=dry_run)
            yield engine, binding
    finally:
        engine.dispose()


class _Work:
    """The statements, for one database and cutoff."""

    def __init__(self, engine: Engine, binding: Binding, cutoff_ns: int) -> None:
        self._engine, self._binding, self._cutoff_ns = engine, binding, cutoff_ns
        self._dialect, self._mark = binding.dialect, mark(binding.dialect)
        self._tables = {name: table.qualified for name, table in binding.tables.items()}
        self._events = self._tables["execution_events"]

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

    def count(self, table: str, run_id: str) -> int:
        with self._engine.connect() as connection:
            sql = f"SELECT count(*) FROM {self._tables[table]} WHERE run_id = {self._mark}"
            return int(connection.exec_driver_sql(sql, (run_id,)).scalar() or 0)

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
            f"SELECT id FROM {self._events} WHERE run_id = {self._mark} ORDER BY execution_order DESC LIMIT {CHUNK}",
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
                    f"ORDER BY trace_id LIMIT {CHUNK}", (last, self._cutoff_ns),
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

    _OUR_ID = f"id LIKE '{OWN_ID}'"
    _OURS = "timestamp < {mark} AND " + _OUR_ID + " AND status <> 'running'"

    def _own(self) -> str:
        return f"FROM {self._events} WHERE {self._OURS.format(mark=self._mark)}"

    def count_own_events(self) -> int:
        with self._engine.connect() as connection:
            value = self._cutoff("execution_events", "timestamp")
            return int(connection.exec_driver_sql(f"SELECT count(*) {self._own()}", (value,)).scalar() or 0)

    def delete_own_events(self) -> dict[str, int]:
        """The next part of them; empty when there is none."""
        return self._transaction(self._delete_own_part)

    def _delete_own_part(self, connection: Connection) -> dict[str, int]:
        rows = connection.exec_driver_sql(
            f"SELECT id, run_id {self._own()} ORDER BY timestamp LIMIT {CHUNK}",
            (self._cutoff("execution_events", "timestamp"),),
        ).all()
        if not rows:
            return {}
        lock_runs(connection, {row[1] for row in rows}, self._tables["workflow_runs"])
        ids = [row[0] for row in rows]
        deleted: dict[str, int] = {}
        for table in SIDE_TABLES:
            if table in self._tables:
                deleted[table] = self._delete(connection, self._tables[table], "event_id", ids, self._our_side_rows(table))
        self._make_roots(connection, ids, {row[1] for row in rows})
        deleted["execution_events"] = self._delete(connection, self._events, "id", ids)
        return deleted

    def _make_roots(self, connection: Connection, ids: Sequence[str], runs: Collection[str]) -> None:
        """Events of ours that stay although what they hang below goes become roots, and what is below them moves with them.
        The application's are its own: what its foreign key says of them happens."""
        deep = "depth" in self._binding.tables["execution_events"].columns
        in_runs, in_ids = in_list(self._dialect, "run_id"), in_list(self._dialect, "parent_event_id")
        kept = f"{self._OUR_ID} AND (timestamp >= {self._mark} OR status = 'running')"
        found = connection.exec_driver_sql(
            f"SELECT id, {'depth' if deep else '0'} FROM {self._events} WHERE {in_runs} AND {in_ids} AND {kept}",
            (list_param(self._dialect, runs), list_param(self._dialect, ids), self._cutoff("execution_events", "timestamp")),
        ).all()
        if not found:
            return
        connection.exec_driver_sql(  # all of them, before any moves: one may have lain below another
            f"UPDATE {self._events} SET parent_event_id = NULL WHERE {in_list(self._dialect, 'id')}",
            (list_param(self._dialect, [row[0] for row in found]),))
        by_depth: defaultdict[int, list[str]] = defaultdict(list)
        for id_, depth in found:
            by_depth[depth or 0].append(id_)
        for depth, tops in by_depth.items():
            if depth:
                self._move_up(connection, tops, depth)

    def _move_up(self, connection: Connection, tops: Sequence[str], by: int) -> None:
        """Make events, and those of ours that lie below them, less deep."""
        connection.exec_driver_sql(
            f"UPDATE {self._events} SET depth = depth - {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
            f"SELECT id FROM {self._events} WHERE {in_list(self._dialect, 'id')} UNION "
            f"SELECT e.id FROM {self._events} e JOIN below ON e.parent_event_id = below.id WHERE e.id LIKE '{OWN_ID}') "
            "SELECT id FROM below)", (by, list_param(self._dialect, tops)))

    def count_own_side_rows(self, table: str) -> int:
        """How many files, or messages, go with the events that :meth:`count_own_events` counts."""
        if table not in self._tables:
            return 0
        sql = (f"SELECT count(*) FROM {self._tables[table]} WHERE event_id IN (SELECT id {self._own()})"
               f"{self._our_side_rows(table)}")
        with self._engine.connect() as connection:
            value = self._cutoff("execution_events", "timestamp")
            return int(connection.exec_driver_sql(sql, (value,)).scalar() or 0)

    def _our_side_rows(self, table: str) -> str:
        """Which rows with an event of ours are ours too; the application may have added others. Where it numbers the rows
        itself, ours are told by their time: it is their event's to the microsecond."""
        columns, time_column = self._binding.tables[table].columns, SIDE_TABLES[table]
        if columns["id"].kind == "text":
            return f" AND {self._OUR_ID}"
        if time_column not in columns:
            return ""
        name = self._tables[table]
        return (
            f" AND EXISTS (SELECT 1 FROM {self._events} e WHERE e.id = {name}.event_id "
            f"AND {name}.{time_column} IN (e.started_at, e.completed_at))")

    def free_bytes(self) -> int:
        if self._dialect != SQLITE:
            return 0
        with self._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0
            return int(pages * (connection.exec_driver_sql("PRAGMA page_size").scalar() or 0))

    def _delete(
        self, connection: Connection, table: str, column: str, values: Sequence[str], condition: str = "",
    ) -> int:
        if not values:
            return 0
        sql = f"DELETE FROM {table} WHERE {in_list(self._dialect, column)}{condition}"
        return int(connection.exec_driver_sql(sql, (list_param(self._dialect, values),)).rowcount)

    def _cutoff(self, table: str, column: str) -> Any:
        return timestamp(self._dialect, self._binding.tables[table].columns[column].kind, self._cutoff_ns)

    def _transaction(self, work: Callable[[Connection], R]) -> R:
        """One short transaction; tried again when another writer was in the way."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._engine.connect() as connection:
                    begin_write(connection)
                    result = work(connection)
                    connection.commit()
                    return result
            except DBAPIError as error:
                if classify(error).fault is not Fault.OUTAGE or attempt == ATTEMPTS:
                    raise
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")
