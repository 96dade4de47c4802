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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from otel_cmb import mapper, rebuild
from otel_cmb.assemble_payload import payload_of
from otel_cmb.binding import Binding, bind
from otel_cmb.bulk import inserting
from otel_cmb.checkpoints import Checkpoints
from otel_cmb.commands import Commands
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import (
    SQLITE,
    begin_write,
    in_list,
    insert_sql,
    list_param,
    lock_mode,
    lock_runs,
    make_engine,
    mark,
    qualified,
)
from otel_cmb.errors import RunNotFoundError
from otel_cmb.event import Event, Span
from otel_cmb.faults import Fault, classify
from otel_cmb.history import HistoryWriter
from otel_cmb.items import (
    COMMITTED,
    ENDED,
    ID_CONFLICT,
    IGNORED,
    MERGED,
    NO_SPAN,
    PARKED,
    REFUSED,
    SESSION_MISMATCH,
    Item,
    Outcome,
)
from otel_cmb.known import Known
from otel_cmb.links import Links
from otel_cmb.ordering import lifted, number
from otel_cmb.placing import Place, Placing, names_of
from otel_cmb.rows import EventRows, Placement, side_rows
from otel_cmb.sanitize import clean_text
from otel_cmb.traces import CONFLICT, DUPLICATE, Change, Trace, TraceCache, further_spans
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Item", "Outcome", "Store"]

_COMMITTED = Outcome(COMMITTED)
"""Nearly every item's: one object less for Python's collector to look at."""


class Store:
    """Writes to one database with an engine of its own. Not thread-safe: one writer calls it."""

    def __init__(self, settings: Settings, directory: str, *, per_trace_runs: bool = False):
        self._settings = settings
        self._directory = directory
        self.per_trace_runs = per_trace_runs
        self._engine: Engine | None = None
        self._checkpoints: Checkpoints | None = None
        self._binding: Binding | None = None
        self._writer = secrets.token_hex(8)
        self._cache = TraceCache()
        self._interner = rebuild.Interner()
        self._enriched: dict[str, tuple[str, ...]] = {}
        """What runs were told: agent, model, or both."""
        self._remembering = False
        """Something was learnt from the database that somebody may have deleted since."""

    # -- connection ----------------------------------------------------------------------------------------------------

    @property
    def binding(self) -> Binding | None:
        """What the database turned out to be; `None` before the first connection."""
        return self._binding

    def connect(self) -> Binding:
        """Connect, and find out (or make) what is there. Raises the database's error or :class:`SchemaError`."""
        if self._engine is None:
            self._engine = make_engine(self._settings)
            path = self._engine.url.database
            self._checkpoints = Checkpoints(path) if self._engine.dialect.name == SQLITE and path else None
        if self._binding is None:
            with self._engine.connect() as connection:
                binding = bind(connection, self._settings, create=True)
            self._workflow = Workflow(binding)
            self._history = HistoryWriter(binding.dialect, binding.schema)
            if binding.owned:
                self._rows = EventRows(binding, self._interner, self._history.shorten)
            else:
                self._rows = EventRows(binding)
            self._known = Known(binding, self._settings, self._directory)
            self._links = Links(binding, self._workflow, self._known.beside)
            self._placing = Placing(self._settings, self._workflow, self._known, self._links, owned=binding.owned,
                                    per_trace_runs=self.per_trace_runs)
            self._commands = Commands(self._settings, self._workflow, self._placing, owned=binding.owned)
            self._mark = mark(binding.dialect)
            self._events = binding.tables["execution_events"]
            self._events_table = self._events.qualified
            self._binding = binding
        return self._binding

    def close(self) -> None:
        """Dispose of the engine; the next use connects again."""
        self.forget()
        if self._checkpoints is not None:
            self._checkpoints.wait()
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
        self._remembering = False
        self._cache.clear()
        self._interner.forget()
        self._enriched.clear()
        if self._binding is not None:
            self._history.forget()
            self._known.forget()
            self._placing.forget()

    def made_run(self, run_id: str) -> bool:
        """Whether this automatic run has come into use."""
        return self._binding is not None and run_id in self._placing.anonymous

    def check_run(self, name: str) -> RunRow:
        """The run of that name. Raises :class:`RunNotFoundError`; database errors pass through."""
        self.connect()
        assert self._engine is not None
        asked = clean_text(str(name))
        with self._engine.connect() as connection:
            found = self._workflow.find_runs(connection, [asked])
        if asked not in found:
            raise RunNotFoundError(
                f"run {name!r} is not in workflow_runs of {safe_url(self._settings.database_url)}; expected the id of a "
                "committed run (see `otel-cmb runs`); make one with otel_cmb.run(), or commit the application's first")
        return found[asked]

    # -- the transaction -----------------------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        """Write the items in one transaction and set each one's outcome; all of it, or none (an exception)."""
        self.connect()
        self._read_ahead(items)
        remembering = self._remembering
        try:
            self._transact(items)
        except Exception as error:
            if not remembering or classify(error).fault is not Fault.POISON:
                raise
            self._transact(items)  # a node, step or event that was remembered may have been deleted since: look again
        self._remembering = True

    def _read_ahead(self, items: Sequence[Item]) -> None:
        """What spans say does not depend on the database: it is read before that is locked, and other writers wait less."""
        settings = self._settings
        for item in items:
            if item.span is not None:
                facts = item.facts = mapper.read(
                    item.span, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
                if mapper.is_event(facts):
                    payload_of(facts, facts.kind)

    def _transact(self, items: Sequence[Item]) -> None:
        assert self._engine is not None
        extra: set[str] = set()
        try:
            while True:
                with self._engine.connect() as connection:
                    begin_write(connection)
                    try:
                        changes, needed = self._prepare(connection, items, extra)
                        if not needed:
                            self._apply(connection, changes)
                            connection.commit()
                            break
                        extra |= needed  # other runs are touched than were named: their locks too, from the start, in order
                    except BaseException:
                        connection.rollback()
                        raise
                    connection.rollback()
                    self.forget()
        except BaseException:
            self.forget()
            raise
        if self._checkpoints is not None:
            self._checkpoints.after_commit(len(items))
        self._history.committed()
        self._interner.committed()
        for change in changes:
            change.trace.events, change.trace.dirty = change.after, False
            self._cache.put(change.trace)
        self._cache.shrink()

    def _prepare(self, connection: Connection, items: Sequence[Item], locked: set[str]) -> tuple[list[Change], set[str]]:
        """What the items come to, and the runs it touches that are not locked yet."""
        named = names_of(items)
        held = self._placing.candidates(items, named) | locked
        lock_runs(connection, held, self._workflow.table("workflow_runs"))
        for item in items:
            item.outcome = None
            if item.command is not None and item.command["do"] != "run_end":
                item.outcome = self._commands.execute(connection, item.command)
        places = self._placing.place(connection, [item for item in items if item.span is not None], named)
        if lock_mode(connection) == "rows":  # a run that came between the locks and the look had no row to be locked by
            lock_runs(connection, {place.run.id for place in places.values()}, self._workflow.table("workflow_runs"))
        for item in items:  # after the spans: they may have made the run that ends here
            if item.command is not None and item.command["do"] == "run_end":
                item.outcome = self._commands.execute(connection, item.command)
        by_trace: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            span = item.span or item.content
            if item.outcome is None and span is not None:
                by_trace[span.trace_id].append(item)
        self._run_rows = {place.run.id: place.run for place in places.values()}
        changes = []
        touched = set(self._run_rows)
        for trace in self._traces(connection, by_trace):
            changes.append(self._admit(connection, trace, by_trace[trace.trace_id], places))
            touched.update(event.run_id for event in changes[-1].before.values() if event.run_id)
        missing = touched - set(self._run_rows)
        if missing:
            self._run_rows.update(self._workflow.find_runs(connection, missing))
        self._placing.make(connection, (event for change in changes for event in change.after.values()))
        return changes, set() if connection.dialect.name == SQLITE else touched - held

    def _admit(
        self, connection: Connection, trace: Trace, items: Sequence[Item], places: dict[int, Place]
    ) -> Change:
        """Take the spans into their trace, run pass 2 over it, and say what became of each."""
        settings = self._settings
        before = trace.events
        admitted: list[tuple[Item, str]] = []
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
                trace.size += item.size
                admitted.append((item, id_))
        for item in items:
            if item.content is not None:  # after the spans: the one it belongs to may be in this very batch
                if self._foreign(connection, trace, item.content):
                    item.outcome = Outcome(REFUSED, SESSION_MISMATCH, "its span belongs to another session than the token")
                    continue
                joined = trace.join(
                    item.content, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)
                trace.size += item.size
                item.outcome = _COMMITTED if joined else Outcome(PARKED, NO_SPAN, "its span has not come yet")
        after = trace.assembled(settings.record) if trace.dirty else before
        survivors = further_spans(after.values())
        for item, id_ in admitted:
            assert item.span is not None
            if id_ in after:
                # The end of a span whose start row is ours is the same span arriving, not a duplicate.
                item.outcome = _COMMITTED
            elif (item.span.span_id, item.span.start_ns) in survivors:
                item.outcome = Outcome(MERGED)
            else:
                item.outcome = Outcome(IGNORED)
        return Change(trace, before, after)

    def _foreign(self, connection: Connection, trace: Trace, content: Span) -> bool:
        """Whether content came with a token bound to a session, for a span of another one."""
        bound = content.stamp.bound_session_id
        if bound is None:
            return False
        spans = [trace.facts[id_].span for id_ in trace.by_span.get(content.span_id, ())]
        found = self._workflow.find_runs(connection, {span.stamp.run_id for span in spans if span.stamp.run_id})
        return any(run.session_id != bound for run in found.values())

    # -- traces --------------------------------------------------------------------------------------------------------

    def _traces(self, connection: Connection, trace_ids: Iterable[str]) -> list[Trace]:
        """The traces as they are known now: from memory where nobody else wrote them since, else read."""
        assert self._binding is not None
        wanted = list(trace_ids)
        markers = self._known.markers(connection, wanted)
        traces, stale = [], []
        for trace_id in wanted:
            cached = self._cache.get(trace_id)
            marker = markers.get(trace_id)
            # The marker of an owned database is the last writer: only our own says that nobody wrote since.
            if cached is not None and not cached.dirty and cached.marker == marker and (
                    not self._binding.owned or marker == self._writer):
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

    def _apply(self, connection: Connection, changes: Sequence[Change]) -> None:
        changes = [change for change in changes if change.trace.dirty]
        for change in changes:
            change.new = [event for id_, event in change.after.items() if id_ not in change.trace.orders]
        orders = number(changes, lambda run_id: self._next_order(connection, run_id))
        for change in changes:
            change.trace.unread.difference_update(change.after)
        gone = [
            id_ for change in changes for id_ in change.trace.orders
            if id_ not in change.after and id_ not in change.trace.unread]
        outside = self._links.outside(connection, changes, gone)
        contents: list[tuple[Event, Placement, bool]] = []  # what is written whole, and whether it is a new row
        links: list[tuple[Any, ...]] = []
        side: list[tuple[str, dict[str, Any]]] = []
        for change in changes:
            lift = lifted(change, outside.lift)
            for event in change.after.values():
                id_, held = event.id, change.trace.orders.get(event.id)
                old = change.before.get(id_)
                order = orders[id_]
                if held is not None and order == held and old is not None and (old is event or old == event):
                    continue
                place = self._placement(connection, event, order, event.depth + lift.get(id_, 0), outside.parents)
                if held is None or old is None or not _same_content(old, event):
                    contents.append((event, place, held is None))
                    side += side_rows(event, place)
                else:
                    links.append(self._rows.link_values(event, place))
        self._delete(connection, gone)
        updates: list[tuple[Any, ...]] = []
        with inserting(
            connection, self._events, self._rows.inserted, self._made(contents, updates), sum([new for _, _, new in contents])
        ):  # PostgreSQL checks the rows' keys meanwhile
            saving = self._known.gather([(change.trace, change.after) for change in changes], self._writer)
        self._write_interned(connection)  # what the rows turned out to refer to
        self._history.write(connection)
        _many(connection, self._rows.update, updates)
        self._rows.links.write(connection, links)
        self._write_side(connection, side)
        self._links.settle(connection, changes, gone)
        self._known.save(connection, saving)
        self._enrich(connection, changes)
        for change in changes:
            unread = {id_: change.trace.orders[id_] for id_ in change.trace.unread}
            change.trace.orders = {**unread, **{id_: orders[id_] for id_ in change.after}}

    def _made(
        self, contents: Sequence[tuple[Event, Placement, bool]], updates: list[tuple[Any, ...]]
    ) -> Iterator[tuple[Any, ...]]:
        """The new rows; those that change are added to `updates`. In one go: how a row is packed depends on those before."""
        for event, place, new in contents:
            if new:
                yield self._rows.insert_values(event, place)
            else:
                updates.append(self._rows.update_values(event, place))

    def _next_order(self, connection: Connection, run_id: str) -> int:
        value = connection.exec_driver_sql(
            f"SELECT max(execution_order) FROM {self._events_table} WHERE run_id = {self._mark}", (run_id,)).scalar()
        return 1 if value is None else int(value) + 1

    def _placement(
        self, connection: Connection, event: Event, order: int, depth: int, outside: dict[str, str | None],
    ) -> Placement:
        assert event.run_id is not None
        run = self._run_rows[event.run_id]
        node_id = self._placing.node(connection, run, event) if event.node_id else None
        step_id = self._placing.step(connection, run, event) if event.step_id else None
        parent_id = event.parent_event_id if event.parent_known else outside.get(event.id)
        return Placement(run.session_id, node_id, step_id, parent_id, order, depth)

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

    def _enrich(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Runs that did not know their agent or model learn them; a receiver's runs end with their trace's root."""
        ended: set[str] = set()
        for change in changes:
            for event in change.after.values():
                run_id = event.run_id
                if not run_id or event is change.before.get(event.id):
                    continue
                known = self._enriched.get(run_id, ())
                if len(known) == 2:
                    continue
                # The agent that thinks, or one that has answered: a group's manager starts first and does neither.
                acts = event.event_type == "llm_call" or (
                    event.event_type == "agent_call" and event.event_subtype != "message" and event.completed_ns is not None)
                for column, value in (("agent", event.agent_name if acts else None), ("model", event.meta.get("model"))):
                    if value and column not in known:
                        if len(self._enriched) > 10_000:
                            self._enriched.clear()
                        known = self._enriched[run_id] = (*known, column)
                        self._workflow.enrich_run(connection, run_id, column, str(value))
            if self._placing.per_trace and change.after:
                for facts in change.trace.facts.values():
                    span, run_id = facts.span, facts.span.stamp.run_id
                    if run_id is None or run_id in ended or span.parent_span_id or span.end_ns is None:
                        continue
                    if self._placing.made_for_trace(run_id, span):
                        ended.add(run_id)  # once: a trace may have thousands of roots, and the first one's end counts
                        self._workflow.end_run(
                            connection, run_id, status="failed" if span.status_code == 2 else "completed",
                            at_ns=span.end_ns)

    def _write_interned(self, connection: Connection) -> None:
        """Resources, scopes and shapes that rows refer to, each once (owned databases)."""
        if self._interner.new:
            assert self._binding is not None
            table = qualified("otel_cmb_resources", self._binding.schema)
            _many(connection, insert_sql(self._binding.dialect, table, ("id", "body"), conflict=("id",)),
                  sorted(self._interner.new.items()))

    def remap(self, run_id: str) -> dict[str, int]:
        """Apply today's tables to the traces of a run, each in a transaction of its own: rows may be retyped, merged, made
        or deleted; ids and order numbers of those that stay do not change. Returns counts of traces, rows, rows made and
        rows deleted. Raises :class:`RunNotFoundError`."""
        run = self.check_run(run_id)
        self.forget()
        assert self._engine is not None
        with self._engine.connect() as connection:
            trace_ids = self._known.traces_of_run(connection, run.id)
        result = {"traces": len(trace_ids), "rows": 0, "made": 0, "deleted": 0}
        for trace_id in trace_ids:
            with self._engine.connect() as connection:
                begin_write(connection)
                lock_runs(connection, [run.id], self._workflow.table("workflow_runs"))
                for trace in self._known.load(connection, [trace_id]):
                    trace.dirty = True
                    change = Change(trace, {}, trace.assembled(self._settings.record))
                    runs = {event.run_id for event in change.after.values() if event.run_id}
                    self._run_rows = self._workflow.find_runs(connection, runs)
                    result["rows"] += len(change.after)
                    result["made"] += len(change.after.keys() - trace.orders.keys())
                    result["deleted"] += len(trace.orders.keys() - change.after.keys() - trace.unread)
                    self._apply(connection, [change])
                connection.commit()
            self.forget()
        return result

    def link_late(self) -> int:
        """See :meth:`Links.link_late`; in a transaction of its own."""
        if self._engine is None or self._binding is None or not self._links.any_late:
            return 0
        with self._engine.connect() as connection:
            begin_write(connection)
            linked = self._links.link_late(connection)
            connection.commit()
        return linked


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
