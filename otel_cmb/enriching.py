"""What runs learn from their events: who acts in them and with which model, that they go on, when a receiver's run is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from otel_cmb.event import Event
from otel_cmb.placing import Placing
from otel_cmb.traces import Change
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Enriching"]

REMEMBERED = 10_000
"""Most runs of which is remembered what they were told."""


class Enriching:
    """Tells runs, inside the store's transaction. Each is told each thing once, as far as this process remembers."""

    def __init__(self, workflow: Workflow, placing: Placing):
        self._workflow = workflow
        self._placing = placing
        self._told: dict[str, tuple[str, ...]] = {}
        """What runs were told: agent, model, or both."""

    def forget(self) -> None:
        """The transaction failed, or the database may be another."""
        self._told.clear()

    def tell(self, connection: Connection, changes: Sequence[Change], runs: Mapping[str, RunRow]) -> None:
        """Agent and model for runs that did not know them; that a run goes on which was taken for ended; the end for runs
        that a receiver made for a trace."""
        ended: set[str] = set()
        going: set[str] = set()
        for change in changes:
            for event in change.after.values():
                if event.run_id and event is not change.before.get(event.id):
                    self._tell_agent_and_model(connection, event, event.run_id)
                    over = runs[event.run_id].completed_ns
                    if over is not None and (
                            event.status == "running" or (event.completed_ns or event.started_ns) // 1_000 > over // 1_000):
                        going.add(event.run_id)
        for run_id in sorted(going):
            self._workflow.go_on(connection, run_id)
        for change in changes:
            if self._placing.per_trace and change.after:
                self._end_with_root(connection, change, ended)

    def _tell_agent_and_model(self, connection: Connection, event: Event, run_id: str) -> None:
        known = self._told.get(run_id, ())
        if len(known) == 2:
            return
        # The agent that thinks, or one that has answered: a group's manager starts first and does neither.
        acts = event.event_type == "llm_call" or (
            event.event_type == "agent_call" and event.event_subtype != "message" and event.completed_ns is not None)
        for column, value in (("agent", event.agent_name if acts else None), ("model", event.meta.get("model"))):
            if value and column not in known:
                if len(self._told) > REMEMBERED:
                    self._told.clear()
                known = self._told[run_id] = (*known, column)
                self._workflow.enrich_run(connection, run_id, column, str(value))

    def _end_with_root(self, connection: Connection, change: Change, ended: set[str]) -> None:
        """A run made for a trace ends with the trace's root. Once: a trace may have thousands of roots, and the first one's
        end counts."""
        for facts in change.trace.facts.values():
            span, run_id = facts.span, facts.span.stamp.run_id
            if run_id is None or run_id in ended or span.parent_span_id or span.end_ns is None:
                continue
            if self._placing.made_for_trace(run_id, span):
                ended.add(run_id)
                self._workflow.end_run(
                    connection, run_id, status="failed" if span.status_code == 2 else "completed", at_ns=span.end_ns,
                    began_ns=span.start_ns)
