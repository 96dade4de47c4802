"""Which run, node and step a span belongs to: who says, who checks (DESIGN section 5). Inside the store's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from otel_cmb import mapper
from otel_cmb.config import Settings, safe_url
from otel_cmb.event import Event, Span, Stamp, trace_id_range
from otel_cmb.items import DEFERRED, NO_RUN, PARKED, REFUSED, RUN_NOT_FOUND, SESSION_MISMATCH, UNSETTLED, Item, Outcome
from otel_cmb.known import Known
from otel_cmb.late_nodes import LateNodes
from otel_cmb.workflow import MISSING, RunRow, Workflow

__all__ = ["Names", "Place", "Placing", "missing_run", "names_of"]


Names = tuple[str | None, str | None, str | None, str | None, str | None]
"""What a span and its door say it belongs to, see :func:`otel_cmb.mapper.named`: run, session, node, step, parent event."""


class Place(NamedTuple):
    """Where spans belong: the run, and the stamp as it is stored, with the run's id and the names of node and step as given.
    Spans that say the same have one: nobody changes it."""

    run: RunRow
    stamp: Stamp


class Placing:
    """Finds, checks or makes what spans name. Remembers nodes and steps until :meth:`forget`."""

    def __init__(
        self, settings: Settings, workflow: Workflow, known: Known, late_nodes: LateNodes, *, owned: bool,
        per_trace_runs: bool,
    ):
        self._settings = settings
        self._workflow = workflow
        self._known = known
        self._late_nodes = late_nodes
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

    def candidates(self, items: Sequence[Item], named: Mapping[int, Names]) -> set[str]:
        """Every run these items can turn out to belong to, as far as that is known before asking the database. `named`: see
        :func:`names_of`."""
        found: set[str] = set()
        run_id: str | None
        for item in items:
            if item.span is not None:
                run_id = named[item.seq][0] or item.span.stamp.automatic_run_id or _run_of_trace(item.span)
            elif item.command is not None:
                run_id = item.command.get("run") or item.command.get("automatic")
                if item.command["do"] in ("run_start", "run_end"):
                    run_id = item.command["id"]
            else:
                continue
            if run_id:
                found.add(run_id)
        return found

    def place(self, connection: Connection, items: Sequence[Item], named: Mapping[int, Names]) -> dict[int, Place]:
        """The run of every span, found, checked or made; items without one get their outcome here. A trace's own run is only
        planned: :meth:`make` makes it."""
        self._planned.clear()
        begun: dict[str, int] | None = None
        runs: dict[int, str | None] = {item.seq: _named_run(item, named[item.seq][0]) for item in items}
        if None in runs.values():
            self._name_by_trace(connection, items, runs)
        found = self._workflow.find_runs(connection, {run_id for run_id in runs.values() if run_id})
        places: dict[int, Place] = {}
        alike: dict[tuple[str | None, ...], Place] = {}
        for item in items:
            if item.outcome is not None:
                continue
            assert item.span is not None
            _, session_id, node_id, step_id, parent_id = named[item.seq]
            run_id, bound = runs[item.seq], item.span.stamp.bound_session_id
            run = found.get(run_id or "")
            if run is None:
                if begun is None:
                    begun = _beginnings(items, runs)
                run = self._missing_run(connection, item, run_id, session_id, begun)
                if run is None:
                    continue
                found[run.id] = run
            if (bound is not None and bound != run.session_id) or (session_id and session_id != run.session_id):
                item.outcome = _session_refusal(bound, session_id, run)
                continue
            key = run_id, bound, node_id, step_id, parent_id
            place = alike.get(key)
            if place is None:
                stamp = Stamp(run.id, None, node_id, step_id, parent_id, bound_session_id=bound)
                place = alike[key] = Place(run, stamp)
            places[item.seq] = place
        return places

    def _name_by_trace(self, connection: Connection, items: Sequence[Item], runs: dict[int, str | None]) -> None:
        """Spans that name no run take that of their trace; else the process's own; else they wait, or are parked."""
        of_trace: dict[str, str] = {}
        unnamed: list[tuple[Item, Span]] = []
        for item in items:
            assert item.span is not None
            run_id = runs[item.seq]
            if run_id is None:
                unnamed.append((item, item.span))
            else:
                of_trace.setdefault(item.span.trace_id, run_id)
        of_trace.update(self._known.runs_of_traces(connection, {span.trace_id for _, span in unnamed} - of_trace.keys()))
        roots = {span.trace_id for _, span in unnamed if not span.parent_span_id}
        for item, span in unnamed:
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
                runs[item.seq] = run_id
            elif self._per_trace(span) and not item.settle:
                item.outcome = Outcome(DEFERRED, UNSETTLED)
            else:
                item.outcome = Outcome(
                    PARKED, NO_RUN, "the span names no run and the database belongs to the application: set cmb.run.id, use "
                    "attach(), or OTEL_CMB_RUN_ID")

    def _missing_run(
        self, connection: Connection, item: Item, run_id: str | None, session_id: str | None, begun: Mapping[str, int],
    ) -> RunRow | None:
        """The run is not in the database: make it where that is the rule, else the item's outcome says so."""
        assert item.span is not None
        assert run_id
        started_ns = begun.get(run_id, item.span.start_ns)
        own = self.nobody_named(run_id, item.span)
        if own or self._settings.on_missing_run == "create":
            session = item.span.stamp.bound_session_id or session_id
            if own and run_id not in self.anonymous:
                run = RunRow(run_id, self._workflow.session_id(connection, session, exact=True))
                self._planned[run.id] = (run, started_ns)
                return run
            meta = {"automatic": True} if own else MISSING
            return self._workflow.create_run(
                connection, run_id, session=session, started_ns=started_ns, meta=meta, exact_session=True)
        item.outcome = Outcome(PARKED, RUN_NOT_FOUND, missing_run(run_id, self._settings), run_id)
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

    def node(self, connection: Connection, run: RunRow, event: Event) -> str | None:
        """The key of the event's node; an owned database gets the node, beside an attached one it is awaited."""
        assert event.node_id is not None
        key = (run.id, event.node_id)
        if key not in self._nodes:
            found = self._workflow.find_node(connection, *key)
            if found is None and self._owned:
                found = self._workflow.create_node(connection, run, event.node_id, agent=event.agent_name)
            if found is None:
                self._late_nodes.wait(event.id, *key)
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


def _beginnings(items: Sequence[Item], runs: Mapping[int, str | None]) -> dict[str, int]:
    """When the first span of each run began, of those that say when: children end, and come, before their parents."""
    found: dict[str, int] = {}
    for item in items:
        run_id = runs[item.seq]
        if run_id and item.span is not None and item.span.start_ns > 0:
            found[run_id] = min(found.get(run_id, item.span.start_ns), item.span.start_ns)
    return found


def _named_run(item: Item, run_id: str | None) -> str | None:
    """A door that knows no run of this database for a span names the process's own: then nobody has named one."""
    assert item.span is not None
    return None if run_id is not None and run_id == item.span.stamp.automatic_run_id else run_id


def missing_run(name: str, settings: Settings) -> str:
    """One line for a person: which id, which database, what to do."""
    return (
        f"run {name!r} is not in workflow_runs of {safe_url(settings.database_url)}; its spans are kept in the journal: commit "
        "the run, then `otel-cmb parked replay` (or wait: it is tried again by itself), or set on_missing_run=create"
    )


def _session_refusal(bound: str | None, named: str | None, run: RunRow) -> Outcome:
    if bound is not None and bound != run.session_id:
        return Outcome(REFUSED, SESSION_MISMATCH, f"run {run.id} belongs to another session than the token", run.id)
    return Outcome(
        PARKED, SESSION_MISMATCH, f"the span names session {named!r}, run {run.id} belongs to {run.session_id!r}", run.id)


_OURS = frozenset(("cmb.run.id", "cmb.session.id", "cmb.node.id", "cmb.step.id", "cmb.parent_event_id"))


def names_of(items: Iterable[Item]) -> dict[int, Names]:
    """What the items' spans say, by number. Nearly all name a run, in an attribute or their stamp, and nothing else but in
    their stamp."""
    found: dict[int, Names] = {}
    resource, silent = None, True
    for item in items:
        span = item.span
        if span is None:
            continue
        if span.resource is not resource:
            resource, silent = span.resource, _OURS.isdisjoint(span.resource.attributes)
        attributes, stamp = span.attributes, span.stamp
        run_id = attributes.get("cmb.run.id")
        if (
            silent and (run_id is None or type(run_id) is str) and "cmb.session.id" not in attributes
            and "cmb.node.id" not in attributes and "cmb.step.id" not in attributes
            and "cmb.parent_event_id" not in attributes
        ):
            found[item.seq] = (
                stamp.door_run_id or run_id or stamp.run_id or None, stamp.session_id or None, stamp.node_id or None,
                stamp.step_id or None, stamp.parent_event_id or None)
        else:
            named = mapper.named(span)
            found[item.seq] = named.run_id, named.session_id, named.node_id, named.step_id, named.parent_event_id
    return found


def _run_of_trace(span: Span) -> str:
    """The run a receiver makes for a trace that names none: the same from every server that sees the trace."""
    return trace_id_range(span.trace_id)[0]
