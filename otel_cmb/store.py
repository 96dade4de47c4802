"""The one writing transaction: spans and commands in, rows out, all or nothing.

Order of things inside it (DESIGN sections 4 and 5), the same for every door:

1. commands (`run_start`, `node_start`, ...) make their rows;
2. every span's run is named, looked up, checked, or made;
3. the runs are locked, in sorted order, so that one writer at a time decides orders and links;
4. the traces' known spans are read, the new ones admitted, pass 2 run over each trace;
5. what differs from what is stored is written: new rows take the next numbers, the rows of a trace permute the numbers they
   hold so that parents come before children and siblings by start.

`write` sets `outcome` on each item and raises what the database raises; the caller sorts that (`dialects.classify`).
Nothing here sleeps, retries or logs.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from otel_cmb import mapper, rebuild
from otel_cmb.binding import Binding, bind
from otel_cmb.bulk import insert_rows
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import (
    begin_write,
    in_list,
    insert_sql,
    list_param,
    lock_runs,
    make_engine,
    mark,
    qualified,
    update_sql,
)
from otel_cmb.errors import RunNotFoundError
from otel_cmb.event import Event, Span, Stamp, trace_id_range
from otel_cmb.history import HistoryWriter
from otel_cmb.items import (
    COMMITTED,
    DEFERRED,
    ENDED,
    ID_CONFLICT,
    IGNORED,
    MERGED,
    NO_RUN,
    NO_SPAN,
    PARKED,
    REFUSED,
    RUN_NOT_FOUND,
    SESSION_MISMATCH,
    UNSETTLED,
    Item,
    Outcome,
)
from otel_cmb.known import Known
from otel_cmb.rows import EventRows, Placement, side_rows
from otel_cmb.traces import CONFLICT, DUPLICATE, Trace, TraceCache
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Item", "Outcome", "Store"]

@dataclass(slots=True)
class _Place:
    """Run, node and step names of a span, run resolved."""

    run: RunRow
    named: Stamp


@dataclass(slots=True)
class _Change:
    """What one trace's writing comes to."""

    trace: Trace
    before: dict[str, Event]
    after: dict[str, Event]
    new: list[Event] = field(default_factory=list)


class Store:
    """Writes to one database with an engine of its own. Not thread-safe: one writer calls it."""

    def __init__(self, settings: Settings, directory: str, *, per_trace_runs: bool = False):
        self._settings = settings
        self._directory = directory
        self.per_trace_runs = per_trace_runs
        self._engine: Engine | None = None
        self._binding: Binding | None = None
        self._writer = secrets.token_hex(8)
        self._cache = TraceCache()
        self._nodes: dict[tuple[str, str], str] = {}
        self._steps: dict[tuple[str, str], str] = {}
        self._unlinked: dict[str, tuple[str, str]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._interned: set[str] = set()
        self._to_intern: dict[str, str] = {}
        self._anonymous: set[str] = set()
        self._enriched: set[tuple[str, str]] = set()

    # -- connection ----------------------------------------------------------------------------------------------------

    @property
    def binding(self) -> Binding | None:
        """What the database turned out to be; `None` before the first connection."""
        return self._binding

    def connect(self) -> Binding:
        """Connect, and find out (or make) what is there. Raises the database's error or :class:`SchemaError`."""
        if self._engine is None:
            self._engine = make_engine(self._settings)
        if self._binding is None:
            with self._engine.connect() as connection:
                binding = bind(connection, self._settings, create=True)
            self._workflow = Workflow(binding)
            self._history = HistoryWriter(binding.dialect, binding.schema)
            if binding.owned:
                self._rows = EventRows(binding, self._intern, self._history.shorten)
            else:
                self._rows = EventRows(binding)
            self._known = Known(binding, self._settings, self._directory)
            self._mark = mark(binding.dialect)
            self._events = binding.tables["execution_events"]
            self._events_table = self._events.qualified
            self._binding = binding
        return self._binding

    def close(self) -> None:
        """Dispose of the engine; the next use connects again."""
        self.forget()
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        self._binding = None

    def abandon(self) -> object:
        """In a forked child: let go of the parent's connections without closing them. Returns what holds them; it must
        never be finalized in this process."""
        pool = self._engine.pool if self._engine is not None else None
        if self._engine is not None:
            self._engine.dispose(close=False)
        self._engine, self._binding = None, None
        self._writer = secrets.token_hex(8)
        return pool

    def forget(self) -> None:
        """Trust nothing remembered about the database: after an error, and when it may have been replaced."""
        self._cache.clear()
        self._nodes.clear()
        self._steps.clear()
        self._interned.clear()
        self._enriched.clear()
        if self._binding is not None:
            self._history.forget()
        if self._binding is not None:
            self._known.forget()

    def made_run(self, run_id: str) -> bool:
        """Whether this automatic run has come into use."""
        return run_id in self._anonymous

    def check_run(self, name: str, session_id: str | None = None) -> RunRow:
        """The run of that name. Raises :class:`RunNotFoundError`; database errors pass through."""
        self.connect()
        assert self._engine is not None
        with self._engine.connect() as connection:
            found = self._workflow.find_runs(connection, [name])
        if name not in found:
            raise RunNotFoundError(
                f"run {name!r} is not in workflow_runs of {safe_url(self._settings.database_url)}; expected the id of a committed "
                "run (see `otel-cmb runs`); make one with otel_cmb.run(), or commit the application's first")
        return found[name]

    # -- the transaction -----------------------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        """Write the items in one transaction and set each one's outcome; all of it, or none (an exception)."""
        self.connect()
        assert self._engine is not None
        extra: set[str] = set()
        try:
            while True:
                with self._engine.connect() as connection:
                    begin_write(connection)
                    try:
                        changes, needed = self._prepare(connection, items, extra)
                        if needed <= extra:
                            self._apply(connection, changes)
                            connection.commit()
                            break
                        extra |= needed  # rows of other runs are touched: their locks too, from the start, in order
                    except BaseException:
                        connection.rollback()
                        raise
                    connection.rollback()
                    self.forget()
        except BaseException:
            self.forget()
            self._to_intern.clear()
            raise
        self._history.committed()
        self._interned.update(self._to_intern)
        self._to_intern.clear()
        for change in changes:
            change.trace.events, change.trace.dirty = change.after, False
            self._cache.put(change.trace)
        self._cache.shrink()

    def _prepare(self, connection: Connection, items: Sequence[Item], locked: set[str]) -> tuple[list[_Change], set[str]]:
        for item in items:
            item.outcome = None
            if item.command is not None and item.command["do"] != "run_end":
                item.outcome = self._command(connection, item.command)
        spans = [item for item in items if item.span is not None]
        places = self._place(connection, spans)
        for item in items:  # after the spans: they may have made the run that ends here
            if item.command is not None and item.command["do"] == "run_end":
                item.outcome = self._command(connection, item.command)
        runs = {place.run.id for place in places.values()}
        lock_runs(connection, runs | locked, self._workflow.table("workflow_runs"))
        by_trace: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            span = item.span or item.content
            if item.outcome is None and span is not None:
                by_trace[span.trace_id].append(item)
        self._run_rows = {place.run.id: place.run for place in places.values()}
        changes, touched = [], set(runs)
        for trace in self._traces(connection, by_trace):
            changes.append(self._admit(connection, trace, by_trace[trace.trace_id], places))
            touched.update(event.run_id for event in changes[-1].before.values() if event.run_id)
        missing = touched - set(self._run_rows)
        if missing:
            self._run_rows.update(self._workflow.find_runs(connection, missing))
        return changes, touched - runs

    def _admit(
        self, connection: Connection, trace: Trace, items: Sequence[Item], places: dict[int, _Place]
    ) -> _Change:
        """Take the spans into their trace, run pass 2 over it, and say what became of each."""
        settings = self._settings
        before = trace.events
        admitted: list[tuple[Item, str, str]] = []
        for item in items:
            if item.span is None:
                continue
            place = places[item.seq]
            item.span.stamp = _resolved(item.span.stamp, place)
            admission = trace.admit(
                item.span, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
            if admission.verdict == CONFLICT:
                item.outcome = Outcome(
                    PARKED, ID_CONFLICT, "a span with the same ids belongs to another run", place.run.id)
            elif admission.verdict == DUPLICATE:
                known = trace.facts[admission.id].span
                item.outcome = Outcome(MERGED, ENDED if known.end_ns is not None else "")
            else:
                admitted.append((item, admission.verdict, admission.id))
        for item in items:
            if item.content is not None:  # after the spans: the one it belongs to may be in this very batch
                if self._foreign(connection, trace, item.content):
                    item.outcome = Outcome(REFUSED, SESSION_MISMATCH, "its span belongs to another session than the token")
                    continue
                joined = trace.join(
                    item.content, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
                item.outcome = Outcome(COMMITTED) if joined else Outcome(PARKED, NO_SPAN, "its span has not come yet")
        after = trace.assembled(settings.record) if trace.dirty else before
        survivors = {(span.span_id, span.start_ns) for event in after.values() for span in event.spans[1:]}
        for item, verdict, id_ in admitted:
            assert item.span is not None
            if id_ in after:
                # The end of a span whose start row is ours is the same span arriving, not a duplicate.
                item.outcome = Outcome(COMMITTED)
            elif (item.span.span_id, item.span.start_ns) in survivors:
                item.outcome = Outcome(MERGED)
            else:
                item.outcome = Outcome(IGNORED)
            del verdict
        return _Change(trace, before, after)

    def _foreign(self, connection: Connection, trace: Trace, content: Span) -> bool:
        """Whether content came with a token bound to a session, for a span of another one."""
        bound = content.stamp.bound_session_id
        if bound is None:
            return False
        spans = [trace.facts[id_].span for id_ in trace.by_span.get(content.span_id, ())]
        found = self._workflow.find_runs(connection, {span.stamp.run_id for span in spans if span.stamp.run_id})
        return any(run.session_id != bound for run in found.values())

    # -- which run -----------------------------------------------------------------------------------------------------

    def _place(self, connection: Connection, items: Sequence[Item]) -> dict[int, _Place]:
        """The run of every span, found, checked or made; items without one get their outcome here."""
        named: dict[int, Stamp] = {}
        of_trace: dict[str, str] = {}
        for item in items:
            assert item.span is not None
            stamp = named[item.seq] = mapper.named(item.span)
            if stamp.run_id:
                of_trace.setdefault(item.span.trace_id, stamp.run_id)
        unnamed = [item for item in items if not named[item.seq].run_id]
        if unnamed:
            self._name_by_trace(connection, unnamed, named, of_trace)
        found = self._workflow.find_runs(connection, {stamp.run_id for stamp in named.values() if stamp.run_id})
        places: dict[int, _Place] = {}
        for item in items:
            assert item.span is not None
            stamp = named[item.seq]
            if item.outcome is not None:
                continue
            run = found.get(stamp.run_id or "")
            if run is None:
                run = self._missing_run(connection, item, stamp)
                if run is None:
                    continue
                found[run.id] = run
            refusal = self._session_refusal(item.span, stamp, run)
            if refusal is not None:
                item.outcome = refusal
                continue
            places[item.seq] = _Place(run, stamp)
        return places

    def _name_by_trace(
        self, connection: Connection, items: Sequence[Item], named: dict[int, Stamp], of_trace: dict[str, str],
    ) -> None:
        """Spans that name no run take that of their trace; else the process's own; else they wait, or are parked."""
        assert self._binding is not None
        unknown = {item.span.trace_id for item in items if item.span is not None} - set(of_trace)
        of_trace.update(self._known.runs_of_traces(connection, unknown))
        roots = {item.span.trace_id for item in items if item.span is not None and not item.span.parent_span_id}
        for item in items:
            span, stamp = item.span, named[item.seq]
            assert span is not None
            run_id = of_trace.get(span.trace_id)
            if run_id is None and self._binding.owned:
                if self.per_trace_runs:
                    if item.settle or span.trace_id in roots:
                        run_id = of_trace[span.trace_id] = _run_of_trace(span)
                        self._anonymous.add(run_id)
                else:
                    run_id = span.stamp.automatic_run_id
                    if run_id:
                        self._anonymous.add(run_id)
            if run_id is not None:
                stamp.run_id = run_id
            elif self.per_trace_runs and not item.settle:
                item.outcome = Outcome(DEFERRED, UNSETTLED)
            else:
                item.outcome = Outcome(
                    PARKED, NO_RUN, "the span names no run and the database belongs to the application: set cmb.run.id, use "
                    "attach(), or OTEL_CMB_RUN_ID")

    def _missing_run(self, connection: Connection, item: Item, stamp: Stamp) -> RunRow | None:
        """The run is not in the database: make it where that is the rule, else the item's outcome says so."""
        assert item.span is not None and stamp.run_id
        own = stamp.run_id in self._anonymous
        if own or self._settings.on_missing_run == "create":
            session = item.span.stamp.bound_session_id or stamp.session_id
            meta = {"automatic": True} if own else None
            return self._workflow.create_run(
                connection, stamp.run_id, session=session, started_ns=item.span.start_ns, meta=meta, exact_session=True)
        item.outcome = Outcome(PARKED, RUN_NOT_FOUND, missing_run(stamp.run_id, self._settings), stamp.run_id)
        return None

    @staticmethod
    def _session_refusal(span: Span, stamp: Stamp, run: RunRow) -> Outcome | None:
        bound = span.stamp.bound_session_id
        if bound is not None and bound != run.session_id:
            return Outcome(REFUSED, SESSION_MISMATCH, f"run {run.id} belongs to another session than the token", run.id)
        if stamp.session_id and stamp.session_id != run.session_id:
            return Outcome(
                PARKED, SESSION_MISMATCH,
                f"the span names session {stamp.session_id!r}, run {run.id} belongs to {run.session_id!r}", run.id)
        return None

    # -- traces --------------------------------------------------------------------------------------------------------

    def _traces(self, connection: Connection, trace_ids: Iterable[str]) -> list[Trace]:
        """The traces as they are known now: from memory where nobody else wrote them since, else read."""
        wanted = list(trace_ids)
        markers = self._known.markers(connection, wanted)
        traces, stale = [], []
        for trace_id in wanted:
            cached = self._cache.get(trace_id)
            marker = markers.get(trace_id)
            if cached is not None and not cached.dirty and cached.marker == marker:
                traces.append(cached)
            elif marker is None:
                traces.append(Trace(trace_id))
            else:
                stale.append(trace_id)
        for trace in self._known.load(connection, stale):
            trace.events = trace.assembled(self._settings.record)
            trace.events = {id_: event for id_, event in trace.events.items() if id_ in trace.orders}
            traces.append(trace)
        for trace in traces:
            self._cache.drop(trace.trace_id)  # back in after the commit; a failure must find nothing half done
        return traces

    # -- writing -------------------------------------------------------------------------------------------------------

    def _apply(self, connection: Connection, changes: Sequence[_Change]) -> None:
        changes = [change for change in changes if change.trace.dirty]
        for change in changes:
            change.new = [event for id_, event in change.after.items() if id_ not in change.trace.orders]
        orders = self._number(connection, changes)
        parents = self._outside_parents(connection, changes)
        inserts: list[tuple[Any, ...]] = []
        updates: list[tuple[Any, ...]] = []
        links: list[tuple[Any, ...]] = []
        late: list[tuple[Any, ...]] = []
        side: list[tuple[str, dict[str, Any]]] = []
        gone: list[str] = []
        stored_here = {event.id for change in changes for event in change.new}
        for change in changes:
            gone += [id_ for id_ in change.trace.orders if id_ not in change.after]
            lift = self._lifted(change, parents)
            for event in change.after.values():
                id_, held = event.id, change.trace.orders.get(event.id)
                old = change.before.get(id_)
                order = orders[id_]
                if held is not None and order == held and old is not None and old == event:
                    continue
                place = self._placement(connection, event, order, event.depth + lift.get(id_, 0), parents)
                if held is None:
                    if not event.parent_known and place.parent_id in stored_here:
                        late.append(self._rows.link_values(event, place))
                        place.parent_id = None
                    inserts.append(self._rows.insert_values(event, place))
                    side += side_rows(event, place)
                elif old is None or not _same_content(old, event):
                    updates.append(self._rows.update_values(event, place))
                    side += side_rows(event, place)
                else:
                    links.append(self._rows.link_values(event, place))
        self._write_interned(connection)
        self._history.write(connection)
        self._delete(connection, gone)
        insert_rows(connection, self._events, self._rows.inserted, inserts)
        _many(connection, self._rows.update, updates)
        _many(connection, self._rows.update_links, links + late)
        self._write_side(connection, side)
        self._link_waiting(connection, changes)
        self._known.save(connection, [(change.trace, change.after) for change in changes], self._writer)
        self._enrich(connection, changes)
        for change in changes:
            change.trace.orders = {id_: orders[id_] for id_ in change.after}

    def _number(self, connection: Connection, changes: Sequence[_Change]) -> dict[str, int]:
        """The order number of every event of the changed traces (DESIGN section 4).

        New rows of a run take its next numbers, by start over all traces of the batch. Then each trace gives its numbers
        out again in the order of pass 2. Numbers of rows that were merged away are free again.
        """
        numbers: dict[str, int] = {}
        fresh: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for c, change in enumerate(changes):
            latest = 0
            for position, event in enumerate(change.after.values()):
                latest = max(latest, event.started_ns)
                if event.id not in change.trace.orders and event.run_id is not None:
                    fresh[event.run_id].append((latest, c, position))
        held: dict[tuple[int, str], list[int]] = defaultdict(list)
        for c, change in enumerate(changes):
            for id_, order in change.trace.orders.items():
                event = change.after.get(id_) or change.before.get(id_)
                if event is not None and event.run_id is not None:
                    held[c, event.run_id].append(order)
        for run_id, waiting in fresh.items():
            free: dict[int, int] = {
                c: len(held[c, run_id]) - sum(
                    1 for id_, event in change.after.items() if event.run_id == run_id and id_ in change.trace.orders)
                for c, change in enumerate(changes) if held.get((c, run_id))}
            following: int | None = None
            for _, c, _ in sorted(waiting):
                if free.get(c, 0) > 0:
                    free[c] -= 1
                    continue
                if following is None:
                    following = self._next_order(connection, run_id)
                held[c, run_id].append(following)
                following += 1
        for (c, run_id), values in held.items():
            values.sort()
            mine = [id_ for id_, event in changes[c].after.items() if event.run_id == run_id]
            numbers.update(zip(mine, values, strict=False))
        return numbers

    def _next_order(self, connection: Connection, run_id: str) -> int:
        value = connection.exec_driver_sql(
            f"SELECT max(execution_order) FROM {self._events_table} WHERE run_id = {self._mark}", (run_id,)).scalar()
        return 1 if value is None else int(value) + 1

    def _placement(
        self, connection: Connection, event: Event, order: int, depth: int, parents: dict[str, tuple[str, int]],
    ) -> Placement:
        assert event.run_id is not None
        run = self._run_rows[event.run_id]
        node_id = self._node(connection, run, event) if event.node_id else None
        step_id = self._step(connection, run, event) if event.step_id else None
        parent_id = event.parent_event_id
        if parent_id is not None and not event.parent_known:
            if parents.get(parent_id, ("", 0))[0] != run.id:
                self._waiting.setdefault(parent_id, set()).add(event.id)
                parent_id = None
        return Placement(run.session_id, node_id, step_id, parent_id, order, depth)

    def _node(self, connection: Connection, run: RunRow, event: Event) -> str | None:
        assert self._binding is not None and event.node_id is not None
        key = (run.id, event.node_id)
        if key not in self._nodes:
            found = self._workflow.find_node(connection, *key)
            if found is None and self._binding.owned:
                found = self._workflow.create_node(connection, run, event.node_id, agent=event.agent_name)
            if found is None:
                self._unlinked[event.id] = key
                return None
            self._nodes[key] = found
        return self._nodes[key]

    def _step(self, connection: Connection, run: RunRow, event: Event) -> str | None:
        assert self._binding is not None and event.step_id is not None
        key = (run.id, event.step_id)
        if key not in self._steps:
            found = self._workflow.find_created_step(connection, *key)
            if found is None and self._binding.owned:
                found = self._workflow.create_step(connection, run, event.step_id, goal=None, at_ns=event.started_ns)
            if found is None:
                return None
            self._steps[key] = found
        return self._steps[key]

    def _outside_parents(self, connection: Connection, changes: Sequence[_Change]) -> dict[str, tuple[str, int]]:
        """Events outside their trace that are named as parents and exist: id to run and depth."""
        wanted = {
            event.parent_event_id for change in changes for event in change.after.values()
            if event.parent_event_id is not None and not event.parent_known}
        here = {
            event.id: (event.run_id or "", event.depth)
            for change in changes for event in change.after.values() if event.id in wanted}
        missing = wanted - set(here)
        if missing:
            assert self._binding is not None
            here.update((row[0], (row[1], row[2])) for row in connection.exec_driver_sql(
                f"SELECT id, run_id, depth FROM {self._events_table} WHERE {in_list(self._binding.dialect, 'id')}",
                (list_param(self._binding.dialect, missing),)))
        return here

    @staticmethod
    def _lifted(change: _Change, parents: dict[str, tuple[str, int]]) -> dict[str, int]:
        """How much deeper than in their own trace events lie, because it hangs below an event of another."""
        if not parents:
            return {}
        lift: dict[str, int] = {}
        for id_, event in change.after.items():  # parents first
            if event.parent_event_id is None:
                continue
            if event.parent_known:
                above = lift.get(event.parent_event_id, 0)
            else:
                run_id, depth = parents.get(event.parent_event_id, ("", -1))
                above = depth + 1 if run_id == event.run_id else 0
            if above:
                lift[id_] = above
        return lift

    def _link_waiting(self, connection: Connection, changes: Sequence[_Change]) -> None:
        """Link children in other traces whose parent has come; remember those whose parent has not.

        An owned database remembers them in a table, so that the parent may come by another process; beside an attached one
        this process does (:meth:`link_late`).
        """
        assert self._binding is not None
        if not self._binding.owned:
            while len(self._waiting) > 10_000:
                self._waiting.pop(next(iter(self._waiting)))
            return
        table = qualified("otel_cmb_waiting", self._binding.schema)
        if self._waiting:
            _many(connection, insert_sql(
                self._binding.dialect, table, ("parent_id", "child_id"), conflict=("parent_id", "child_id")),
                sorted((parent, child) for parent, children in self._waiting.items() for child in children))
            self._waiting.clear()
        new = {event.id: event for change in changes for event in change.new}
        if not new or connection.exec_driver_sql(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
            return
        bound = (list_param(self._binding.dialect, new),)
        where = in_list(self._binding.dialect, "parent_id")
        for parent_id, child_id in connection.exec_driver_sql(
                f"SELECT parent_id, child_id FROM {table} WHERE {where}", bound).fetchall():
            self._link(connection, child_id, new[parent_id].id, new[parent_id].depth, new[parent_id].run_id)
        connection.exec_driver_sql(f"DELETE FROM {table} WHERE {where}", bound)

    def _link(self, connection: Connection, child: str, parent: str, depth: int, run_id: str | None) -> None:
        linked = connection.exec_driver_sql(
            f"UPDATE {self._events_table} SET parent_event_id = {self._mark} "
            f"WHERE id = {self._mark} AND run_id = {self._mark} AND parent_event_id IS NULL", (parent, child, run_id))
        if linked.rowcount:  # and all that lies below it lies deeper now
            connection.exec_driver_sql(
                f"UPDATE {self._events_table} SET depth = depth + {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
                f"SELECT id FROM {self._events_table} WHERE id = {self._mark} UNION ALL "
                f"SELECT e.id FROM {self._events_table} e JOIN below ON e.parent_event_id = below.id) SELECT id FROM below)",
                (depth + 1, child))

    def _delete(self, connection: Connection, ids: Sequence[str]) -> None:
        """Rows that were merged into another, with their files and messages. Their children were linked anew."""
        assert self._binding is not None
        if not ids:
            return
        bound = list_param(self._binding.dialect, ids)
        for table in ("files", "messages"):
            info = self._binding.tables.get(table)
            if info is not None and "event_id" in info.columns:
                connection.exec_driver_sql(
                    f"DELETE FROM {info.qualified} WHERE {in_list(self._binding.dialect, 'event_id')}", (bound,))
        connection.exec_driver_sql(f"DELETE FROM {self._events_table} WHERE {in_list(self._binding.dialect, 'id')}", (bound,))

    def _write_side(self, connection: Connection, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
        assert self._binding is not None
        held: dict[str, set[str]] = {}
        for table, values in rows:
            info = self._binding.tables.get(table)
            if info is None or not info.writable:
                continue  # the event row says it all; `db check` says what is missing
            if values["event_id"] not in self._numbered(connection, table, rows, held):
                self._workflow.insert(connection, table, values, conflict=("id",))

    def _numbered(
        self, connection: Connection, table: str, rows: Sequence[tuple[str, dict[str, Any]]], held: dict[str, set[str]]
    ) -> set[str]:
        """Events that have their rows already, in a table that the application numbers itself: there no id of ours
        makes redelivery harmless."""
        assert self._binding is not None
        if table not in held:
            info, ids = self._binding.tables[table], [row["event_id"] for name, row in rows if name == table]
            held[table] = set() if info.columns["id"].kind == "text" else set(connection.exec_driver_sql(
                f"SELECT event_id FROM {info.qualified} WHERE {in_list(self._binding.dialect, 'event_id')}",
                (list_param(self._binding.dialect, ids),)).scalars())
        return held[table]

    def _enrich(self, connection: Connection, changes: Sequence[_Change]) -> None:
        """Runs that did not know their agent or model learn them; a receiver's runs end with their trace's root."""
        assert self._binding is not None
        if not self._binding.owned:
            return
        for change in changes:
            for event in (event for event in change.after.values() if event is not change.before.get(event.id)):
                # The agent that thinks, or one that has answered: a group's manager starts first and does neither.
                acts = event.event_type == "llm_call" or (
                    event.event_type == "agent_call" and event.event_subtype != "message" and event.completed_ns is not None)
                for column, value in (("agent", event.agent_name if acts else None), ("model", event.meta.get("model"))):
                    if value and event.run_id and (event.run_id, column) not in self._enriched:
                        if len(self._enriched) > 10_000:
                            self._enriched.clear()
                        self._enriched.add((event.run_id, column))
                        self._workflow.enrich_run(connection, event.run_id, column, str(value))
            if self.per_trace_runs and self._anonymous:
                for facts in change.trace.facts.values():
                    span = facts.span
                    if not span.parent_span_id and span.end_ns is not None and span.stamp.run_id in self._anonymous:
                        self._workflow.end_run(
                            connection, span.stamp.run_id, status="failed" if span.status_code == 2 else "completed",
                            at_ns=span.end_ns)

    def _intern(self, body: dict[str, Any]) -> str:
        """Content id of a resource or scope, stored once (owned databases)."""
        digest, text = rebuild.content_id(body)
        if digest not in self._interned:
            self._to_intern[digest] = text
        return digest

    def _write_interned(self, connection: Connection) -> None:
        if self._to_intern:
            assert self._binding is not None
            table = qualified("otel_cmb_resources", self._binding.schema)
            _many(connection, insert_sql(self._binding.dialect, table, ("id", "body"), conflict=("id",)),
                  sorted(self._to_intern.items()))

    # -- commands ------------------------------------------------------------------------------------------------------

    def _command(self, connection: Connection, command: dict[str, Any]) -> Outcome:
        """Rows of `run()`, `node()` and `step()`."""
        assert self._binding is not None
        action = command["do"]
        if action == "run_start":
            self._workflow.create_run(
                connection, command["id"], session=command.get("session"), started_ns=command["at"],
                mode=command.get("mode") or "one_shot", agent=command.get("agent") or "unknown",
                model=command.get("model") or "unknown", task=command.get("task"), meta=command.get("meta"))
            return Outcome(COMMITTED)
        if action == "run_end":
            self._workflow.end_run(
                connection, command["id"], status=command["status"], at_ns=command["at"], error=command.get("error"))
            return Outcome(COMMITTED)
        run_id = command.get("run") or (command.get("automatic") if self._binding.owned else None)
        if not run_id:
            return Outcome(IGNORED)
        if not command.get("run"):
            self._anonymous.add(run_id)
        found = self._workflow.find_runs(connection, [run_id])
        if run_id not in found:
            if run_id not in self._anonymous and self._settings.on_missing_run != "create":
                return Outcome(PARKED, RUN_NOT_FOUND, missing_run(run_id, self._settings), run_id)
            found[run_id] = self._workflow.create_run(
                connection, run_id, session=None, started_ns=command["at"],
                meta={"automatic": True} if run_id in self._anonymous else None)
        if self._binding.owned:
            self._node_or_step(connection, found[run_id], action, command)
        return Outcome(COMMITTED)

    def _node_or_step(self, connection: Connection, run: RunRow, action: str, command: dict[str, Any]) -> None:
        name = str(command["id"])
        lock_runs(connection, [run.id], self._workflow.table("workflow_runs"))
        if action == "node_start":
            if self._workflow.find_node(connection, run.id, name) is None:
                self._workflow.create_node(
                    connection, run, name, node_type=command.get("node_type") or "agent", agent=command.get("agent"),
                    parent=command.get("parent"))
            else:
                self._workflow.update(connection, "dag_nodes", {"run_id": run.id, "id": name}, {"status": "running"})
        elif action == "node_end":
            self._workflow.update(
                connection, "dag_nodes", {"run_id": run.id, "id": name}, {"status": command["status"]})
        elif action == "step_start":
            if self._workflow.find_created_step(connection, run.id, name) is None:
                self._workflow.create_step(connection, run, name, goal=command.get("goal"), at_ns=command["at"])
        elif action == "step_end":
            found = self._workflow.find_created_step(connection, run.id, name)
            if found is not None:
                self._workflow.update(connection, "workflow_steps", {"id": found}, {
                    "status": command["status"], "completed_at": command["at"], "error_message": command.get("error"),
                    "progress_percentage": 100 if command["status"] == "completed" else 0})

    def remap(self, run_id: str) -> dict[str, int]:
        """Apply today's tables to the traces of a run, each in a transaction of its own: rows may be retyped, merged, made
        or deleted; ids and order numbers of those that stay do not change. Returns counts of traces, rows, rows made and rows deleted. Raises :class:`RunNotFoundError`."""
        run = self.check_run(run_id)
        self.forget()
        assert self._engine is not None and self._binding is not None
        with self._engine.connect() as connection:
            trace_ids = self._known.traces_of_run(connection, run.id)
        result = {"traces": len(trace_ids), "rows": 0, "made": 0, "deleted": 0}
        for trace_id in trace_ids:
            with self._engine.connect() as connection:
                begin_write(connection)
                lock_runs(connection, [run.id], self._workflow.table("workflow_runs"))
                for trace in self._known.load(connection, [trace_id]):
                    trace.dirty = True
                    change = _Change(trace, {}, trace.assembled(self._settings.record))
                    runs = {event.run_id for event in change.after.values() if event.run_id}
                    self._run_rows = self._workflow.find_runs(connection, runs)
                    result["rows"] += len(change.after)
                    result["made"] += len(change.after.keys() - trace.orders.keys())
                    result["deleted"] += len(trace.orders.keys() - change.after.keys())
                    self._apply(connection, [change])
                connection.commit()
            self.forget()
        return result

    def link_late(self) -> int:
        """In an attached database: link events whose node or parent (in another trace) was not there when they were
        written; how many were linked."""
        if not (self._unlinked or self._waiting) or self._engine is None or self._binding is None:
            return 0
        linked = 0
        with self._engine.connect() as connection:
            begin_write(connection)
            for id_, (run_id, name) in list(self._unlinked.items()):
                found = self._workflow.find_node(connection, run_id, name)
                if found is not None:
                    connection.exec_driver_sql(
                        update_sql(self._binding.dialect, self._events_table, ("node_id",)), (found, id_))
                    del self._unlinked[id_]
                    linked += 1
            if self._waiting:
                for parent_id, depth, run_id in connection.exec_driver_sql(
                        f"SELECT id, depth, run_id FROM {self._events_table} WHERE {in_list(self._binding.dialect, 'id')}",
                        (list_param(self._binding.dialect, self._waiting),)).fetchall():
                    for child in self._waiting.pop(parent_id, ()):
                        self._link(connection, child, parent_id, depth, run_id)
                        linked += 1
            connection.commit()
        while len(self._unlinked) > 10_000:
            self._unlinked.pop(next(iter(self._unlinked)))
        return linked


def missing_run(name: str, settings: Settings) -> str:
    """One line for a person: which id, which database, what to do."""
    return (
        f"run {name!r} is not in workflow_runs of {safe_url(settings.database_url)}; its spans are kept in the journal: commit the "
        "run, then `otel-cmb parked replay` (or wait: it is tried again by itself), or set on_missing_run=create"
    )


def _resolved(stamp: Stamp, place: _Place) -> Stamp:
    """The stamp as it is stored: the run by its id, names of node and step as given."""
    named = place.named
    return Stamp(
        run_id=place.run.id, node_id=named.node_id, step_id=named.step_id,
        parent_event_id=named.parent_event_id, bound_session_id=stamp.bound_session_id)


def _run_of_trace(span: Span) -> str:
    """The run a receiver makes for a trace that names none: the same from every server that sees the trace."""
    return trace_id_range(span.trace_id)[0]


def _same_content(old: Event, new: Event) -> bool:
    """Whether only links and order differ."""
    return (
        old.event_type == new.event_type and old.event_subtype == new.event_subtype and old.status == new.status
        and old.agent_name == new.agent_name and old.completed_ns == new.completed_ns and old.started_ns == new.started_ns
        and old.node_id == new.node_id and old.step_id == new.step_id and old.agent_role == new.agent_role
        and old.error_message == new.error_message and old.inputs == new.inputs and old.outputs == new.outputs
        and old.meta == new.meta and old.spans == new.spans and old.files == new.files and old.messages == new.messages
    )


def _many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        connection.exec_driver_sql(sql, list(rows))
