"""From items to changes: what a batch comes to, found out inside the transaction that will write it.

Runs are named and locked, commands make their rows, every span gets its place, the traces' known spans are read, the new ones
admitted, pass 2 run over each trace. The only rows written here are those around the events (runs, nodes, steps);
:mod:`otel_cmb.applying` writes the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from otel_cmb import mapper
from otel_cmb.assemble_payload import payload_of
from otel_cmb.binding import Binding
from otel_cmb.commands import Commands
from otel_cmb.config import Settings
from otel_cmb.dialects import SQLITE
from otel_cmb.event import Event, Span
from otel_cmb.items import (
    COMMITTED,
    ENDED,
    ID_CONFLICT,
    IGNORED,
    MERGED,
    PARKED,
    REFUSED,
    SESSION_MISMATCH,
    Item,
    Outcome,
)
from otel_cmb.journal_records import NO_SPAN
from otel_cmb.known import Known
from otel_cmb.placing import Place, Placing, names_of
from otel_cmb.traces import CONFLICT, DUPLICATE, Change, Trace, TraceCache, further_spans, held_by
from otel_cmb.transactions import lock_mode, lock_runs
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Prepared", "Preparing", "read_ahead"]

_COMMITTED = Outcome(COMMITTED)
"""Nearly every item's: one object less for Python's collector to look at."""


class Prepared(NamedTuple):
    """What a batch comes to."""

    changes: list[Change]
    runs: dict[str, RunRow]
    """The runs of its events, by id."""
    unlocked: set[str]
    """Runs that it touches without having locked them: nothing may be written before they are."""


def read_ahead(items: Sequence[Item], settings: Settings) -> None:
    """What spans say does not depend on the database: it is read before that is locked, and other writers wait less."""
    for item in items:
        if item.span is not None:
            facts = item.facts = mapper.read(
                item.span, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
            if mapper.is_event(facts):
                payload_of(facts, facts.kind)


class Preparing:
    """Prepares batches for one database, and remembers the traces that may grow."""

    def __init__(
        self, settings: Settings, binding: Binding, workflow: Workflow, known: Known, placing: Placing, *, writer: str
    ):
        self._settings = settings
        self._owned = binding.owned
        self._workflow = workflow
        self._runs_table = workflow.table("workflow_runs")
        self._known = known
        self._placing = placing
        self._commands = Commands(settings, workflow, placing, owned=binding.owned)
        self._writer = writer
        self._cache = TraceCache()

    def forget(self) -> None:
        """The transaction failed, or the database may be another."""
        self._cache.clear()

    def committed(self, changes: Sequence[Change]) -> None:
        """The changes are in the database: their traces are remembered as they are now."""
        for change in changes:
            change.trace.events, change.trace.dirty = change.after, False
            self._cache.put(change.trace)
        self._cache.shrink()

    def prepare(self, connection: Connection, items: Sequence[Item], locked: set[str]) -> Prepared:
        """What the items come to; sets the outcome of each. `locked`: runs to lock besides those that the items name."""
        named = names_of(items)
        held = self._placing.candidates(items, named) | locked
        lock_runs(connection, held, self._runs_table)
        for item in items:
            item.outcome = None
        self._execute(connection, items, ends=False)
        places = self._placing.place(connection, [item for item in items if item.span is not None], named)
        if lock_mode(connection) == "rows":  # a run that came between the locks and the look had no row to be locked by
            lock_runs(connection, {place.run.id for place in places.values()}, self._runs_table)
        self._execute(connection, items, ends=True)  # after the spans: they may have made the run that ends here
        changes = self._changes(connection, items, places)
        runs = {place.run.id: place.run for place in places.values()}
        touched = {event.run_id for change in changes for event in change.before.values() if event.run_id}.union(runs)
        if missing := touched - runs.keys():
            runs.update(self._workflow.find_runs(connection, missing))
        self._placing.make(connection, (event for change in changes for event in change.after.values()))
        return Prepared(changes, runs, set() if connection.dialect.name == SQLITE else touched - held)

    def again(self, connection: Connection, trace_id: str, run_id: str) -> Prepared:
        """What a stored trace comes to by today's tables. Locks the run."""
        lock_runs(connection, [run_id], self._runs_table)
        changes = []
        for trace in self._known.load(connection, [trace_id]):
            trace.dirty = True
            changes.append(Change(trace, {}, trace.assembled(self._settings.record)))
        touched = {event.run_id for change in changes for event in change.after.values() if event.run_id}
        return Prepared(changes, self._workflow.find_runs(connection, touched), set())

    def _execute(self, connection: Connection, items: Sequence[Item], *, ends: bool) -> None:
        """The commands that end runs, or all others."""
        for item in items:
            if item.command is not None and (item.command["do"] == "run_end") == ends:
                item.outcome = self._commands.execute(connection, item.command)

    # -- traces --------------------------------------------------------------------------------------------------------

    def _changes(self, connection: Connection, items: Sequence[Item], places: Mapping[int, Place]) -> list[Change]:
        """The traces of all items that have no outcome yet, with their spans taken in."""
        by_trace: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            span = item.span or item.content
            if item.outcome is None and span is not None:
                by_trace[span.trace_id].append(item)
        return [
            self._change(connection, trace, by_trace[trace.trace_id], places)
            for trace in self._traces(connection, list(by_trace))]

    def _traces(self, connection: Connection, wanted: Sequence[str]) -> list[Trace]:
        """The traces as they are known now: from memory where nobody else wrote them since, else read."""
        markers = self._known.markers(connection, wanted)
        traces, stale = [], []
        for trace_id in wanted:
            cached, marker = self._cache.get(trace_id), markers.get(trace_id)
            if cached is not None and self._is_current(cached, marker):
                traces.append(cached)
            elif marker is None:
                traces.append(Trace(trace_id))
            else:
                stale.append(trace_id)
        for trace in self._known.load(connection, stale):
            events = trace.assembled(self._settings.record)
            trace.events = {id_: event for id_, event in events.items() if id_ in trace.orders}
            traces.append(trace)
        for trace in traces:
            self._cache.drop(trace.trace_id)  # back in after the commit; a failure must find nothing half done
        return traces

    def _is_current(self, cached: Trace, marker: object) -> bool:
        """The marker of an owned database is the last writer: only our own says that nobody wrote since."""
        return not cached.dirty and cached.marker == marker and (not self._owned or marker == self._writer)

    def _change(
        self, connection: Connection, trace: Trace, items: Sequence[Item], places: Mapping[int, Place]
    ) -> Change:
        """Take what the items bring into their trace, run pass 2 over it, and say what became of each."""
        before = trace.events
        admitted = self._admit(trace, items, places)
        for item in items:
            if item.content is not None:  # after the spans: the one it belongs to may be in this very batch
                trace.size += item.size
                item.outcome = self._join(connection, trace, item.content)
        after = trace.assembled(self._settings.record) if trace.dirty else before
        _tell(admitted, after)
        return Change(trace, before, after)

    def _admit(self, trace: Trace, items: Sequence[Item], places: Mapping[int, Place]) -> list[tuple[Item, Span, str]]:
        """The spans that said something new, with the ids of their events; the others have their outcome."""
        settings = self._settings
        admitted: list[tuple[Item, Span, str]] = []
        for item in items:
            if item.span is None:
                continue
            place = places[item.seq]
            item.span.stamp = place.stamp
            facts, item.facts = item.facts, None  # once: what a failed transaction made of them is not for the next
            verdict, id_ = trace.admit(
                item.span, facts, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
            if verdict == CONFLICT:
                item.outcome = Outcome(
                    PARKED, ID_CONFLICT, "a span with the same ids belongs to another run", place.run.id)
            elif verdict == DUPLICATE:
                known = trace.facts[id_].span
                item.outcome = Outcome(MERGED, ENDED if known.end_ns is not None else "")
            else:
                trace.size += held_by(item.span)
                admitted.append((item, item.span, id_))
        return admitted

    def _join(self, connection: Connection, trace: Trace, content: Span) -> Outcome:
        """Give content from log records to the span it belongs to."""
        settings = self._settings
        if self._is_foreign(connection, trace, content):
            return Outcome(REFUSED, SESSION_MISMATCH, "its span belongs to another session than the token")
        joined = trace.join(content, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
        return _COMMITTED if joined else Outcome(PARKED, NO_SPAN, "its span has not come yet")

    def _is_foreign(self, connection: Connection, trace: Trace, content: Span) -> bool:
        """Whether content came with a token bound to a session, for a span of another one."""
        bound = content.stamp.bound_session_id
        if bound is None:
            return False
        spans = [trace.facts[id_].span for id_ in trace.by_span.get(content.span_id, ())]
        found = self._workflow.find_runs(connection, {span.stamp.run_id for span in spans if span.stamp.run_id})
        return any(run.session_id != bound for run in found.values())


def _tell(admitted: Sequence[tuple[Item, Span, str]], after: Mapping[str, Event]) -> None:
    """What became of the spans: a row of their own, a part of another's, or none."""
    merged = further_spans(after.values())
    for item, span, id_ in admitted:
        if id_ in after:
            # The end of a span whose start row is ours is the same span arriving, not a duplicate.
            item.outcome = _COMMITTED
        elif (span.span_id, span.start_ns) in merged:
            item.outcome = Outcome(MERGED)
        else:
            item.outcome = Outcome(IGNORED)
