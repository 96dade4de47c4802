"""Parents in other traces: which row an event hangs below where its own trace does not have its parent, and how deep it lies.

Such an event *names* its parent (`parent_event_id` with `parent_known` false): by `cmb.parent_event_id`, by baggage that came
with a request, or by a link of its span. The parent comes before it or after it, written by any process; it may go deeper
when its own trace grows, and go away when it is merged into another row. A batch writes few of the rows concerned: children,
and what is below them, are mostly in the database already.

An example (`tests/test_links.py` plays it): `plan > ask` in one trace, `work > search` and later `work > read` in another;
`work` names `ask`. What arrives, and the depths of all rows then:

    1. work, search     work 0, search 1                          there is no `ask`: `work` is a root, and waits for it
    2. ask              ask 0, work 1, search 2                   `ask` is new and awaited: `work` is linked to it and becomes
                                                                  deeper, and with it all that is below it
    3. read             ask 0, work 1, search 2, read 2           `work` is not written: `read` lies below the depth of its row
    4. plan             plan 0, ask 1, work 2, search 3, read 3   `ask` moved, and what waits for it follows
    5. plan takes       plan 0, work 0, search 1, read 1          `ask` is gone: what waits for it is a root again
       `ask` in

A transaction does this in two steps. :meth:`Links.outside`, before the rows are written, says from which depth each trace
counts. Some rows of a trace are written now and others stay, and they have to agree (step 3): so that is the depth which the
named child's row has already. :meth:`Links.settle`, after the rows are written, looks for children that wait for what was made,
moved or deleted (steps 2, 4, 5), links them, and moves whole subtrees by what the depth of their top changed. Only a child that
is new, or was below something in its own trace, goes to its final place at once: all that lies below it in its trace is written
in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from otel_cmb.beside import Beside
from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified
from otel_cmb.event import Event
from otel_cmb.traces import Change

__all__ = ["Links", "Outside"]

Pair = tuple[str, str]
"""A child names a parent: (parent, child)."""

NO_PARENT = ""
"""In a pair: the child names none any more, but its row lies as deep as if it did."""


class _Row(NamedTuple):
    run_id: str
    depth: int
    parent: str | None


@dataclass(slots=True)
class Outside:
    """How the events of a transaction hang below others that their trace does not have."""

    parents: dict[str, str | None] = field(default_factory=dict)
    """Event to the parent that its row is written with."""
    lift: dict[str, int] = field(default_factory=dict)
    """Event to how much deeper than in its own trace its row, and what is below it, is written."""
    named: set[Pair] = field(default_factory=set)
    """Names that are new."""
    stale: set[Pair] = field(default_factory=set)
    """Names that were given, and are no more."""
    unsure: set[Pair] = field(default_factory=set)
    """Names that the child's row does not show as it is written: to be looked at when all rows are."""


class Links:
    """Parents of other traces, for one database."""

    def __init__(self, binding: Binding, beside: Beside | None):
        self._beside = beside
        self._dialect = binding.dialect
        self._mark = mark(binding.dialect)
        self._events = binding.tables["execution_events"].qualified
        self._columns = binding.tables["execution_events"].columns
        self._waiting = qualified("otel_cmb_waiting", binding.schema)
        self._longest = self._columns["id"].length if binding.owned else None

    # -- before the rows are written -----------------------------------------------------------------------------------

    def outside(self, connection: Connection, changes: Sequence[Change], gone: Collection[str]) -> Outside:
        """What the rows of the changed traces are to be written with. `gone` are the rows that this transaction deletes."""
        found = Outside()
        names = {
            id_: name for change in changes for id_, event in change.after.items()
            if (name := self._named(event)) is not None}
        had = {
            id_: name for change in changes for id_, event in change.before.items()
            if (name := self._named(event)) is not None and id_ in change.trace.orders}
        if not names and not had:
            return found
        found.named = {(name, id_) for id_, name in names.items() if had.get(id_) != name}
        found.stale = {(name, id_) for id_, name in had.items() if names.get(id_) != name}
        rows = self._rows(connection, {*names, *names.values(), *had})
        for change in changes:
            for id_, event in change.after.items():
                if id_ in names or (id_ in had and (event.parent_event_id is None or not event.parent_known)):
                    old, row, name = change.before.get(id_), rows.get(id_), names.get(id_, NO_PARENT)
                    if row is None or old is None or old.depth:
                        _hang_anew(event, name, rows.get(name), gone, found)
                    else:
                        _leave(event, name, row, gone, found)
                        if had.get(id_, NO_PARENT) != name or (name in rows and found.parents[id_] is None):
                            found.unsure.add((name, id_))
        return found

    def _named(self, event: Event) -> str | None:
        """The parent that the event names, unless that is longer than any row's id: then there is none to wait for, and the
        name stays in the event's span."""
        name = None if event.parent_known else event.parent_event_id
        return name if name is None or self._longest is None or len(name) <= self._longest else None

    def _rows(self, connection: Connection, ids: Collection[str]) -> dict[str, _Row]:
        depth, parent = (name if name in self._columns else "NULL" for name in ("depth", "parent_event_id"))
        return {row[0]: _Row(row[1], row[2] or 0, row[3]) for row in connection.exec_driver_sql(
            f"SELECT id, run_id, {depth}, {parent} FROM {self._events} WHERE {in_list(self._dialect, 'id')}",
            (list_param(self._dialect, ids),))}

    # -- after the rows were written -----------------------------------------------------------------------------------

    def settle(
        self, connection: Connection, changes: Sequence[Change], gone: Collection[str], outside: Outside
    ) -> None:
        """Link, move and let go what hangs below the rows that came, moved or were deleted. `outside`: what :meth:`outside`
        gave for these changes.

        Who names whom is remembered in a table of an owned database, so that the parent may be written by any process;
        beside an attached one in a file that the processes of this host share.
        """
        if self._beside is not None:
            self._beside.wait(sorted(outside.named), sorted(outside.stale))
            waiting: Sequence[Pair] = self._beside.waiting_for(_moved(changes, gone))
        else:
            self._remember(connection, outside)
            waiting = self._waiting_for(connection, changes, gone) if outside.named or self._any_waits(connection) else []
        affected = outside.unsure.union(waiting) - outside.stale
        if affected:
            self._relink(connection, sorted(affected))

    def _remember(self, connection: Connection, outside: Outside) -> None:
        for pair in sorted(outside.stale):
            connection.exec_driver_sql(
                f"DELETE FROM {self._waiting} WHERE parent_id = {self._mark} AND child_id = {self._mark}", pair)
        if outside.named:
            key = ("parent_id", "child_id")
            connection.exec_driver_sql(
                insert_sql(self._dialect, self._waiting, key, conflict=key), sorted(outside.named))

    def _any_waits(self, connection: Connection) -> bool:
        """Mostly none does, and it need not be found out what moved."""
        return connection.exec_driver_sql(f"SELECT 1 FROM {self._waiting} LIMIT 1").fetchone() is not None

    def _waiting_for(self, connection: Connection, changes: Sequence[Change], gone: Collection[str]) -> list[Pair]:
        found = connection.exec_driver_sql(
            f"SELECT parent_id, child_id FROM {self._waiting} WHERE {in_list(self._dialect, 'parent_id')}",
            (list_param(self._dialect, _moved(changes, gone)),))
        return [(row[0], row[1]) for row in found]

    def _relink(self, connection: Connection, pairs: Sequence[Pair]) -> None:
        """Give each child the parent it names and the depth below it, or neither where there is no such parent. What lies
        below the child, in whatever trace, moves with it: so the order of the pairs does not matter."""
        if "parent_event_id" not in self._columns:
            return
        ids = {id_ for pair in pairs for id_ in pair}
        rows = self._rows(connection, ids)
        for name, child_id in pairs:
            child, parent = rows.get(child_id), rows.get(name)
            if child is None or child.parent not in (None, name):
                continue  # it is not there yet, or hangs elsewhere by now
            if parent is not None and (parent.run_id != child.run_id or self._below(connection, child_id, name)):
                parent = None
            above, depth = (None, 0) if parent is None else (name, parent.depth + 1)
            if child.parent != above:
                connection.exec_driver_sql(
                    f"UPDATE {self._events} SET parent_event_id = {self._mark} WHERE id = {self._mark}", (above, child_id))
                rows[child_id] = child._replace(parent=above)
            if child.depth != depth and "depth" in self._columns:
                self._move(connection, child_id, depth - child.depth)
                rows = self._rows(connection, ids)

    def _move(self, connection: Connection, id_: str, by: int) -> None:
        """Make an event and all that lies below it deeper."""
        connection.exec_driver_sql(
            f"UPDATE {self._events} SET depth = depth + {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
            f"SELECT id FROM {self._events} WHERE id = {self._mark} UNION "
            f"SELECT e.id FROM {self._events} e JOIN below ON e.parent_event_id = below.id) SELECT id FROM below)",
            (by, id_))

    def _below(self, connection: Connection, above: str, id_: str) -> bool:
        """Whether an event is another one or lies below it: it cannot be its parent."""
        return connection.exec_driver_sql(
            f"WITH RECURSIVE up(id) AS (SELECT id FROM {self._events} WHERE id = {self._mark} UNION "
            f"SELECT e.parent_event_id FROM {self._events} e JOIN up ON e.id = up.id WHERE e.parent_event_id IS NOT NULL) "
            f"SELECT 1 FROM up WHERE id = {self._mark}", (id_, above)).fetchone() is not None


def _hang_anew(event: Event, name: str, parent: _Row | None, gone: Collection[str], found: Outside) -> None:
    """All that is below the event in its trace is written now, so it goes where it belongs: below the parent it names, or to
    the top where that is not there, is of another run, or goes away."""
    if parent is not None and parent.run_id == event.run_id and name not in gone:
        found.parents[event.id], found.lift[event.id] = name, parent.depth + 1
    else:
        found.parents[event.id], found.lift[event.id] = None, 0


def _leave(event: Event, name: str, row: _Row, gone: Collection[str], found: Outside) -> None:
    """What is below the event may stay as it is, so the event stays as deep as its row is, and below whom its row is if that
    is still the parent it names."""
    found.parents[event.id] = name if row.parent == name and name not in gone else None
    found.lift[event.id] = row.depth


def _moved(changes: Sequence[Change], gone: Collection[str]) -> list[str]:
    """Events that came, went, or lie deeper or less deep in their trace than before."""
    return [*gone, *(
        event.id for change in changes for event in change.after.values()
        if (before := change.before.get(event.id)) is None or before.depth != event.depth)]
