"""Links that the trace itself does not give: parents in other traces, and what was not there when its event was written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from otel_cmb.beside import Beside
from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified, update_sql
from otel_cmb.event import Event
from otel_cmb.traces import Change
from otel_cmb.workflow import Workflow

__all__ = ["Links", "Outside"]

REMEMBERED = 10_000
"""Most events without a node that one process remembers beside an attached database."""


Pair = tuple[str, str]
"""(parent, child)"""


class _Row(NamedTuple):
    run_id: str
    depth: int
    parent: str | None


class Outside(NamedTuple):
    """How events hang below others that their trace does not have."""

    parents: dict[str, str | None]
    """Event to the parent its row can name now."""
    lift: dict[str, int]
    """Event to how much deeper than in its own trace it lies."""


def _moved(changes: Sequence[Change], gone: Collection[str]) -> list[str]:
    """Events that came, went, or lie deeper or less deep in their trace than before."""
    return [*gone, *(
        event.id for change in changes for event in change.after.values()
        if (before := change.before.get(event.id)) is None or before.depth != event.depth)]


class Links:
    """Parents of other traces, and nodes of an attached database that come late."""

    def __init__(self, binding: Binding, workflow: Workflow, beside: Beside | None):
        self._beside = beside
        self._binding = binding
        self._workflow = workflow
        self._mark = mark(binding.dialect)
        self._events = binding.tables["execution_events"].qualified
        self._columns = binding.tables["execution_events"].columns
        self._named: set[Pair] = set()
        """Names given in this transaction: (parent, child)."""
        self._stale: set[Pair] = set()
        """Names that are given no more."""
        self._unsure: set[Pair] = set()
        """Names of rows that do not show them yet; an empty one: its row shows one that is given no more."""
        self._unlinked: dict[str, tuple[str, str]] = {}

    def await_node(self, event: str, run_id: str, name: str) -> None:
        """The event's node is not in the application's graph yet."""
        self._unlinked[event] = (run_id, name)

    def outside(self, connection: Connection, changes: Sequence[Change], gone: Collection[str]) -> Outside:
        """What the rows say now of parents in other traces that events of the changed ones name.

        Rows that do not change and rows that do have to agree on the depth of what they hang below: so all of them are
        written with the depths before this transaction, and :meth:`settle` moves whole subtrees afterwards. `gone` are
        the rows that this transaction deletes.
        """
        self._named, self._stale, self._unsure = set(), set(), set()
        naming = [event for change in changes for event in change.after.values() if not event.parent_known]
        before = {
            event.id: event.parent_event_id for change in changes for event in change.before.values()
            if not event.parent_known and event.parent_event_id is not None and event.id in change.trace.orders}
        found = Outside({}, {})
        if not naming and not before:
            return found
        names = {event.id: event.parent_event_id for event in naming if event.parent_event_id is not None}
        self._stale = {(was, id_) for id_, was in before.items() if names.get(id_) != was}
        rows = self._rows(connection, {*names.values(), *names, *before})
        for change in changes:
            for event in change.after.values():
                name, was = names.get(event.id), before.get(event.id)
                if name is not None or (was is not None and event.parent_event_id is None):
                    self._hang(event, name, was, change.before.get(event.id), rows, gone, found)
        return found

    def _hang(
        self, event: Event, name: str | None, was: str | None, old: Event | None, rows: dict[str, _Row],
        gone: Collection[str], found: Outside,
    ) -> None:
        """`name` is the parent that the event names, `was` the one that its row was written with."""
        row, parent = rows.get(event.id), rows.get(name or "")
        if row is None or old is None or old.depth:  # what is below it is written in this transaction too
            direct = parent is not None and parent.run_id == event.run_id and name not in gone
            lift = parent.depth + 1 if parent is not None and direct else 0
        else:  # what is below it may stay as it is: it counts from the depth that the row has
            direct, lift = row.parent is not None and row.parent == name and name not in gone, row.depth
            if was != name or (parent is not None and not direct):
                self._unsure.add((name or "", event.id))
        found.parents[event.id], found.lift[event.id] = name if direct else None, lift
        if name is not None and was != name:
            self._named.add((name, event.id))

    def _rows(self, connection: Connection, ids: Collection[str]) -> dict[str, _Row]:
        depth, parent = (name if name in self._columns else "NULL" for name in ("depth", "parent_event_id"))
        return {row[0]: _Row(row[1], row[2] or 0, row[3]) for row in connection.exec_driver_sql(
            f"SELECT id, run_id, {depth}, {parent} FROM {self._events} WHERE {in_list(self._binding.dialect, 'id')}",
            (list_param(self._binding.dialect, ids),))}

    def settle(self, connection: Connection, changes: Sequence[Change], gone: Collection[str]) -> None:
        """After the rows were written: events below one of another trace are linked when it comes, follow it when it
        moves, and are let go when it is deleted.

        Who names whom is remembered in a table of an owned database, so that the parent may be written by any process;
        beside an attached one in a file that the processes of this host share.
        """
        if self._beside is not None:
            self._beside.wait(sorted(self._named), sorted(self._stale))
            pairs: Sequence[Pair] = self._beside.waiting_for(_moved(changes, gone))
        else:
            pairs = self._through_table(connection, changes, gone)
        affected = self._unsure.union(pairs) - self._stale
        if affected:
            self._relink(connection, sorted(affected))

    def _through_table(
        self, connection: Connection, changes: Sequence[Change], gone: Collection[str],
    ) -> Sequence[Pair]:
        dialect, table = self._binding.dialect, qualified("otel_cmb_waiting", self._binding.schema)
        key = ("parent_id", "child_id")
        for pair in sorted(self._stale):
            connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE parent_id = {self._mark} AND child_id = {self._mark}", pair)
        if self._named:
            connection.exec_driver_sql(insert_sql(dialect, table, key, conflict=key), sorted(self._named))
        elif connection.exec_driver_sql(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
            return []
        found = connection.exec_driver_sql(
            f"SELECT parent_id, child_id FROM {table} WHERE {in_list(dialect, 'parent_id')}",
            (list_param(dialect, _moved(changes, gone)),))
        return [(row[0], row[1]) for row in found]

    def _relink(self, connection: Connection, pairs: Sequence[Pair]) -> None:
        """Give each child the parent it names and the depth below it, or neither where there is no such parent. What lies
        below the child, in whatever trace, moves with it."""
        if "parent_event_id" not in self._columns:
            return
        ids = {id_ for pair in pairs for id_ in pair}
        rows = self._rows(connection, ids)
        for name, child_id in pairs:
            child, parent = rows.get(child_id), rows.get(name)
            if child is None or child.parent not in (None, name):
                continue
            if parent is not None and (parent.run_id != child.run_id or self._below(connection, child_id, name)):
                parent = None
            above, depth = (None, 0) if parent is None else (name, parent.depth + 1)
            if child.parent != above:
                connection.exec_driver_sql(
                    f"UPDATE {self._events} SET parent_event_id = {self._mark} WHERE id = {self._mark}", (above, child_id))
                rows[child_id] = _Row(child.run_id, child.depth, above)
            if child.depth != depth and "depth" in self._columns:
                connection.exec_driver_sql(
                    f"UPDATE {self._events} SET depth = depth + {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
                    f"SELECT id FROM {self._events} WHERE id = {self._mark} UNION "
                    f"SELECT e.id FROM {self._events} e JOIN below ON e.parent_event_id = below.id) SELECT id FROM below)",
                    (depth - child.depth, child_id))
                rows = self._rows(connection, ids)

    def _below(self, connection: Connection, above: str, id_: str) -> bool:
        """Whether an event is another one or lies below it: it cannot be its parent."""
        return connection.exec_driver_sql(
            f"WITH RECURSIVE up(id) AS (SELECT id FROM {self._events} WHERE id = {self._mark} UNION "
            f"SELECT e.parent_event_id FROM {self._events} e JOIN up ON e.id = up.id WHERE e.parent_event_id IS NOT NULL) "
            f"SELECT 1 FROM up WHERE id = {self._mark}", (id_, above)).fetchone() is not None

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
