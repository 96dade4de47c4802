"""The rows of `run()`, `node()` and `step()`: they come the same way as spans, and go in the same transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from otel_cmb.config import Settings
from otel_cmb.items import COMMITTED, IGNORED, PARKED, RUN_NOT_FOUND, Outcome
from otel_cmb.placing import Placing, missing_run
from otel_cmb.workflow import MISSING, RunRow, Workflow

__all__ = ["Commands"]


class Commands:
    """Executes journaled commands inside the store's transaction, whose runs are locked."""

    def __init__(self, settings: Settings, workflow: Workflow, placing: Placing, *, owned: bool):
        self._settings = settings
        self._workflow = workflow
        self._placing = placing
        self._owned = owned

    def execute(self, connection: Connection, command: dict[str, Any]) -> Outcome:
        """Make or end the row a command names, and say what became of it."""
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
        run_id = command.get("run") or (command.get("automatic") if self._owned else None)
        if not run_id:
            return Outcome(IGNORED)
        if not command.get("run"):
            self._placing.anonymous.add(run_id)
        found = self._workflow.find_runs(connection, [run_id])
        if run_id not in found:
            if run_id not in self._placing.anonymous and self._settings.on_missing_run != "create":
                return Outcome(PARKED, RUN_NOT_FOUND, missing_run(run_id, self._settings), run_id)
            found[run_id] = self._workflow.create_run(
                connection, run_id, session=None, started_ns=command["at"],
                meta={"automatic": True} if run_id in self._placing.anonymous else MISSING)
        if self._owned:
            self._node_or_step(connection, found[run_id], action, command)
        return Outcome(COMMITTED)

    def _node_or_step(self, connection: Connection, run: RunRow, action: str, command: dict[str, Any]) -> None:
        name = str(command["id"])
        if action == "node_start":
            if self._workflow.find_node(connection, run.id, name) is None:
                self._workflow.create_node(
                    connection, run, name, node_type=command.get("node_type") or "agent", agent=command.get("agent"),
                    parent=command.get("parent"))
            else:
                self._workflow.update(
                    connection, "dag_nodes", {"run_id": run.id, "id": self._workflow.node_key(name)}, {"status": "running"})
        elif action == "node_end":
            self._workflow.update(
                connection, "dag_nodes", {"run_id": run.id, "id": self._workflow.node_key(name)}, {"status": command["status"]})
        elif action == "step_start":
            if self._workflow.find_created_step(connection, run.id, name) is None:
                self._workflow.create_step(connection, run, name, goal=command.get("goal"), at_ns=command["at"])
        elif action == "step_end":
            found = self._workflow.find_created_step(connection, run.id, name)
            if found is not None:
                self._workflow.update(connection, "workflow_steps", {"id": found}, {
                    "status": command["status"], "completed_at": command["at"], "error_message": command.get("error"),
                    "progress_percentage": 100 if command["status"] == "completed" else 0})
