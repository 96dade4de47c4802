"""Links that the trace itself does not give: parents in other traces, and what was not there when its event was written."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified, update_sql
from otel_cmb.traces import Change
from otel_cmb.workflow import Workflow

__all__ = ["Links"]

REMEMBERED = 10_000
"""Most children and events without a node that one process remembers beside an attached database."""


class Links:
    """Parents of other traces, and nodes of an attached database that come late."""

    def __init__(self, binding: Binding, workflow: Workflow):
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

        An owned database remembers them in a table, so that the parent may come by another process; beside an attached one
        this process does (:meth:`link_late`).
        """
        if not self._binding.owned:
            while len(self._waiting) > REMEMBERED:
                self._waiting.pop(next(iter(self._waiting)))
            return
        table = qualified("otel_cmb_waiting", self._binding.schema)
        if self._waiting:
            connection.exec_driver_sql(
                insert_sql(self._binding.dialect, table, ("parent_id", "child_id"), conflict=("parent_id", "child_id")),
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
        """Whether something waits for :meth:`link_late`."""
        return bool(self._unlinked or self._waiting)

    def link_late(self, connection: Connection) -> int:
        """In an attached database: link events whose node or parent (in another trace) was not there when they were
        written; how many were linked. The caller's transaction."""
        linked = 0
        for id_, (run_id, name) in list(self._unlinked.items()):
            found = self._workflow.find_node(connection, run_id, name)
            if found is not None:
                connection.exec_driver_sql(update_sql(self._binding.dialect, self._events, ("node_id",)), (found, id_))
                del self._unlinked[id_]
                linked += 1
        if self._waiting:
            for parent_id, depth, run_id in connection.exec_driver_sql(
                    f"SELECT id, depth, run_id FROM {self._events} WHERE {in_list(self._binding.dialect, 'id')}",
                    (list_param(self._binding.dialect, self._waiting),)).fetchall():
                for child in self._waiting.pop(parent_id, ()):
                    self._link(connection, child, parent_id, depth, run_id)
                    linked += 1
        while len(self._unlinked) > REMEMBERED:
            self._unlinked.pop(next(iter(self._unlinked)))
        return linked
