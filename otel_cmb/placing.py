"""Which run, node and step a span belongs to: who says, who checks (DESIGN section 5). Inside the store's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from otel_cmb import mapper
from otel_cmb.config import Settings, safe_url
from otel_cmb.event import Event, Span, Stamp, trace_id_range
from otel_cmb.items import DEFERRED, NO_RUN, PARKED, REFUSED, RUN_NOT_FOUND, SESSION_MISMATCH, UNSETTLED, Item, Outcome
from otel_cmb.known import Known
from otel_cmb.links import Links
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Place", "Placing", "missing_run", "resolved"]


@dataclass(slots=True)
class Place:
    """Run, node and step names of a span, run resolved."""

    run: RunRow
    named: Stamp


class Placing:
    """Finds, checks or makes what spans name. Remembers nodes and steps until :meth:`forget`."""

    def __init__(
        self, settings: Settings, workflow: Workflow, known: Known, links: Links, *, owned: bool, per_trace_runs: bool,
    ):
        self._settings = settings
        self._workflow = workflow
        self._known = known
        self._links = links
        self._owned = owned
        self.per_trace = per_trace_runs
        """Runs may be made for traces here: by this process's doors, or for the journal of one that is gone."""
        self._nodes: dict[tuple[str, str], str] = {}
        self._steps: dict[tuple[str, str], str] = {}
        self.anonymous: set[str] = set()
        """The processes' own runs, which nobody named."""
        self._planned: dict[str, tuple[RunRow, int]] = {}
        """Runs of traces that are not in the database yet, and when they started: see :meth:`make`."""

    def forget(self) -> None:
        """The transaction failed, or the database may be another."""
        self._nodes.clear()
        self._steps.clear()

    def nobody_named(self, run_id: str, span: Span) -> bool:
        """Whether this is an automatic run: the process's own, or the one that any server makes for the span's trace."""
        return run_id in self.anonymous or self.made_for_trace(run_id, span)

    def made_for_trace(self, run_id: str, span: Span) -> bool:
        """Whether this is the run that any server makes for the span's trace; it ends with the trace's root."""
        return self._owned and self._per_trace(span) and run_id == _run_of_trace(span)

    def _per_trace(self, span: Span) -> bool:
        """Whether the span came through a door that makes runs per trace, whoever writes it now: a process stamps its own
        run on what it journals, and may finish the journal of a receiver that died, or the other way round."""
        return span.stamp.automatic_run_id is None

    def candidates(self, items: Sequence[Item]) -> set[str]:
        """Every run these items can turn out to belong to, as far as that is known before asking the database."""
        found: set[str] = set()
        for item in items:
            if item.span is not None:
                run_id = mapper.named_run(item.span)
                if run_id is None:
                    run_id = item.span.stamp.automatic_run_id or _run_of_trace(item.span)
            elif item.command is not None:
                run_id = item.command.get("run") or item.command.get("automatic")
                if item.command["do"] in ("run_start", "run_end"):
                    run_id = item.command["id"]
            else:
                continue
            if run_id:
                found.add(run_id)
        return found

    def place(self, connection: Connection, items: Sequence[Item]) -> dict[int, Place]:
        """The run of every span, found, checked or made; items without one get their outcome here. A trace's own run is only
        planned: :meth:`make` makes it."""
        self._planned.clear()
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
        places: dict[int, Place] = {}
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
            places[item.seq] = Place(run, stamp)
        return places

    def _name_by_trace(
        self, connection: Connection, items: Sequence[Item], named: dict[int, Stamp], of_trace: dict[str, str],
    ) -> None:
        """Spans that name no run take that of their trace; else the process's own; else they wait, or are parked."""
        unknown = {item.span.trace_id for item in items if item.span is not None} - set(of_trace)
        of_trace.update(self._known.runs_of_traces(connection, unknown))
        roots = {item.span.trace_id for item in items if item.span is not None and not item.span.parent_span_id}
        for item in items:
            span, stamp = item.span, named[item.seq]
            assert span is not None
            run_id = of_trace.get(span.trace_id)
            if run_id is None and self._owned:
                if self._per_trace(span):
                    self.per_trace = True
                    if item.settle or span.trace_id in roots:
                        run_id = of_trace[span.trace_id] = _run_of_trace(span)
                else:
                    run_id = span.stamp.automatic_run_id
                    if run_id:
                        self.anonymous.add(run_id)
            if run_id is not None:
                stamp.run_id = run_id
            elif self._per_trace(span) and not item.settle:
                item.outcome = Outcome(DEFERRED, UNSETTLED)
            else:
                item.outcome = Outcome(
                    PARKED, NO_RUN, "the span names no run and the database belongs to the application: set cmb.run.id, use "
                    "attach(), or OTEL_CMB_RUN_ID")

    def _missing_run(self, connection: Connection, item: Item, stamp: Stamp) -> RunRow | None:
        """The run is not in the database: make it where that is the rule, else the item's outcome says so."""
        assert item.span is not None
        assert stamp.run_id
        own = self.nobody_named(stamp.run_id, item.span)
        if own or self._settings.on_missing_run == "create":
            session = item.span.stamp.bound_session_id or stamp.session_id
            if own and stamp.run_id not in self.anonymous:
                run = RunRow(stamp.run_id, self._workflow.session_id(connection, session, exact=True))
                self._planned[run.id] = (run, item.span.start_ns)
                return run
            meta = {"automatic": True} if own else None
            return self._workflow.create_run(
                connection, stamp.run_id, session=session, started_ns=item.span.start_ns, meta=meta, exact_session=True)
        item.outcome = Outcome(PARKED, RUN_NOT_FOUND, missing_run(stamp.run_id, self._settings), stamp.run_id)
        return None

    def make(self, connection: Connection, events: Iterable[Event]) -> None:
        """Make the planned runs that these events belong to. A trace without any event gets no run: a service that is asked
        for its health every second would fill the list of runs."""
        if not self._planned:
            return
        for event in events:
            run, started_ns = self._planned.pop(event.run_id or "", (None, 0))
            if run is not None:
                self._workflow.create_run(
                    connection, run.id, session=run.session_id, started_ns=started_ns, meta={"automatic": True},
                    exact_session=True)

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

    def node(self, connection: Connection, run: RunRow, event: Event) -> str | None:
        """The key of the event's node; an owned database gets the node, beside an attached one it is awaited."""
        assert event.node_id is not None
        key = (run.id, event.node_id)
        if key not in self._nodes:
            found = self._workflow.find_node(connection, *key)
            if found is None and self._owned:
                found = self._workflow.create_node(connection, run, event.node_id, agent=event.agent_name)
            if found is None:
                self._links.await_node(event.id, *key)
                return None
            self._nodes[key] = found
        return self._nodes[key]

    def step(self, connection: Connection, run: RunRow, event: Event) -> str | None:
        """The id of the event's step, made in an owned database."""
        assert event.step_id is not None
        key = (run.id, event.step_id)
        if key not in self._steps:
            found = self._workflow.find_created_step(connection, *key)
            if found is None and self._owned:
                found = self._workflow.create_step(connection, run, event.step_id, goal=None, at_ns=event.started_ns)
            if found is None:
                return None
            self._steps[key] = found
        return self._steps[key]


def missing_run(name: str, settings: Settings) -> str:
    """One line for a person: which id, which database, what to do."""
    return (
        f"run {name!r} is not in workflow_runs of {safe_url(settings.database_url)}; its spans are kept in the journal: commit "
        "the run, then `otel-cmb parked replay` (or wait: it is tried again by itself), or set on_missing_run=create"
    )


def resolved(stamp: Stamp, place: Place) -> Stamp:
    """The stamp as it is stored: the run by its id, names of node and step as given."""
    named = place.named
    return Stamp(
        run_id=place.run.id, node_id=named.node_id, step_id=named.step_id,
        parent_event_id=named.parent_event_id, bound_session_id=stamp.bound_session_id)


def _run_of_trace(span: Span) -> str:
    """The run a receiver makes for a trace that names none: the same from every server that sees the trace."""
    return trace_id_range(span.trace_id)[0]
