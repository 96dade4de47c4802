"""Nodes of an attached database that come after the events that name them: the application writes its graph, not we."""

from __future__ import annotations

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.dialects import update_sql
from otel_cmb.workflow import Workflow

__all__ = ["LateNodes"]

REMEMBERED = 10_000
"""Most events without their node that one process remembers."""


class LateNodes:
    """Events that were written without their node, of one process, until the node is there."""

    def __init__(self, binding: Binding, workflow: Workflow):
        self._workflow = workflow
        self._sql = update_sql(binding.dialect, binding.tables["execution_events"].qualified, ("node_id",))
        self._awaited: dict[str, tuple[str, str]] = {}
        """Event to run and name of the node."""

    def wait(self, event_id: str, run_id: str, name: str) -> None:
        """The event's node is not in the application's graph yet."""
        self._awaited[event_id] = (run_id, name)

    def __bool__(self) -> bool:
        """Whether an event waits for its node."""
        return bool(self._awaited)

    def link(self, connection: Connection) -> int:
        """Link the events whose node is there now; how many were linked. The caller's transaction."""
        linked = 0
        for event_id, (run_id, name) in list(self._awaited.items()):
            found = self._workflow.find_node(connection, run_id, name)
            if found is not None:
                connection.exec_driver_sql(self._sql, (found, event_id))
                del self._awaited[event_id]
                linked += 1
        while len(self._awaited) > REMEMBERED:
            self._awaited.pop(next(iter(self._awaited)))
        return linked
