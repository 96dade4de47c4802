"""Links that the trace itself does not give: parents in other traces, and what was not there when its event was written."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from otel_cmb.beside import Beside
from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified, update_sql
from otel_cmb.traces import Change
from otel_cmb.workflow import Workflow

__all__ = ["Links"]

REMEMBERED = 10_000
"""Most events without a node that one process remembers beside an attached database."""


class Links:
    """Parents of other traces, and nodes of an attached database that come late."""

    def __init__(self, binding: Binding, workflow: Workflow, beside: Beside | None):
        self._beside = beside
        self._binding = binding
        self._workflow = workflow
        self._mark = mark(binding.dialect)
        self._events = binding.tables["execution_events"].qualified
        self._waiting: dict[str, set[str]] = {}
        self._unlinked: dict[str, tuple[str, str]] = {}

    def await_parent(self, child: str, parent: str) -> None:
        """The child's parent is not in the database yet."""
        self._waiting.setdefault(parent, set()).add(child)

    def await_node(self, event: str, run_id: str, name: str) -> None:
        """The event's node is not in the application's graph yet."""
        self._unlinked[event] = (run_id, name)

    def outside_parents(self, connection: Connection, changes: Sequence[Change]) -> dict[str, tuple[str, int]]:
        """Events outside their trace that are named as parents and exist: id to run and depth."""
        wanted = {
            event.parent_event_id for change in changes for event in change.after.values()
            if event.parent_event_id is not None and not event.parent_known}
        here = {
            event.id: (event.run_id or "", event.depth)
            for change in changes for event in change.after.values() if event.id in wanted}
        missing = wanted - set(here)
        if missing:
            here.update((row[0], (row[1], row[2])) for row in connection.exec_driver_sql(
                f"SELECT id, run_id, depth FROM {self._events} WHERE {in_list(self._binding.dialect, 'id')}",
                (list_param(self._binding.dialect, missing),)))
        return here

    def link_waiting(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Link children in other traces whose parent has come; remember those whose parent has not.

        Remembered in a table of an owned database, so that the parent may come by any process; beside an attached one in a
        file that the processes of this host share.
        """
        pairs = sorted((parent, child) for parent, children in self._waiting.items() for child in children)
        self._waiting.clear()
        new = {event.id: event for change in changes for event in change.new}
        found = self._through_file(pairs, list(new)) if self._beside is not None else (
            self._through_table(connection, pairs, list(new)))
        for parent_id, child_id in found:
            self._link(connection, child_id, parent_id, new[parent_id].depth, new[parent_id].run_id)

    def _through_file(self, pairs: Sequence[tuple[str, str]], new: Sequence[str]) -> Sequence[tuple[str, str]]:
        assert self._beside is not None
        self._beside.wait(pairs)
        return self._beside.waiting_for(new)

    def _through_table(
        self, connection: Connection, pairs: Sequence[tuple[str, str]], new: Sequence[str],
    ) -> Sequence[tuple[str, str]]:
        dialect, table = self._binding.dialect, qualified("otel_cmb_waiting", self._binding.schema)
        if pairs:
            key = ("parent_id", "child_id")
            connection.exec_driver_sql(insert_sql(dialect, table, key, conflict=key), list(pairs))
        if not new or connection.exec_driver_sql(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
            return []
        bound, where = (list_param(dialect, new),), in_list(dialect, "parent_id")
        found = connection.exec_driver_sql(f"SELECT parent_id, child_id FROM {table} WHERE {where}", bound).fetchall()
        if found:
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE {where}", bound)
        return [(row[0], row[1]) for row in found]

    def _link(self, connection: Connection, child: str, parent: str, depth: int, run_id: str | None) -> None:
        linked = connection.exec_driver_sql(
            f"UPDATE {self._events} SET parent_event_id = {self._mark} "
            f"WHERE id = {self._mark} AND run_id = {self._mark} AND parent_event_id IS NULL", (parent, child, run_id))
        if linked.rowcount:  # and all that lies below it lies deeper now
            connection.exec_driver_sql(
                f"UPDATE {self._events} SET depth = depth + {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
                f"SELECT id FROM {self._events} WHERE id = {self._mark} UNION ALL "
                f"SELECT e.id FROM {self._events} e JOIN below ON e.parent_event_id = below.id) SELECT id FROM below)",
                (depth + 1, child))

    @property
    def any_late(self) -> bool:
        """Whether an event waits for its node."""
        return bool(self._unlinked)

    def link_late(self, connection: Connection) -> int:
        """In an attached database: link events whose node was not there when they were written; how many were linked.
        The caller's transaction."""
        linked = 0
        for id_, (run_id, name) in list(self._unlinked.items()):
            found = self._workflow.find_node(connection, run_id, name)
            if found is not None:
                connection.exec_driver_sql(update_sql(self._binding.dialect, self._events, ("node_id",)), (found, id_))
                del self._unlinked[id_]
                linked += 1
        while len(self._unlinked) > REMEMBERED:
            self._unlinked.pop(next(iter(self._unlinked)))
        return linked
