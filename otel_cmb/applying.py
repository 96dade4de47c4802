"""From changes to rows: what differs from what is stored is written, all of it inside the caller's transaction.

New rows take the next numbers of their run, the rows of a trace permute the numbers they hold so that parents come before
children and siblings by start (:mod:`otel_cmb.ordering`). Rows that were merged into another are deleted. Then what goes
with the rows: what they refer to, files and messages, links across traces, what makes the traces known and findable, and
what their runs learn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from otel_cmb import rebuild
from otel_cmb.binding import Binding
from otel_cmb.bulk import inserting
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified
from otel_cmb.enriching import Enriching
from otel_cmb.event import Event
from otel_cmb.history import HistoryWriter
from otel_cmb.known import Known, Saving
from otel_cmb.links import Links, Outside
from otel_cmb.ordering import lifted, number
from otel_cmb.placing import Placing
from otel_cmb.preparing import Prepared
from otel_cmb.rows import EventRows, Placement
from otel_cmb.side_tables import SideRow, SideTables, side_rows
from otel_cmb.traces import Change
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Applying"]

Whole = tuple[Event, Placement, bool]
"""A row that is written with all its columns, and whether it is new."""


class _Due(NamedTuple):
    """What of the changed traces differs from what is stored."""

    wholes: list[Whole]
    links: list[tuple[Any, ...]]
    """Values of the rows in which only parent, depth and number differ."""
    side: list[SideRow]


class Applying:
    """Writes changes to one database."""

    def __init__(
        self, binding: Binding, workflow: Workflow, known: Known, links: Links, placing: Placing, *, writer: str
    ):
        self._dialect = binding.dialect
        self._known = known
        self._links = links
        self._placing = placing
        self._writer = writer
        self._interner = rebuild.Interner()
        self._history = HistoryWriter(binding.dialect, binding.schema)
        self._rows = EventRows(binding, self._interner, self._history.shorten) if binding.owned else EventRows(binding)
        self._side = SideTables(binding, workflow)
        self._enriching = Enriching(workflow, placing)
        self._events = binding.tables["execution_events"]
        self._last_order = (
            f"SELECT max(execution_order) FROM {self._events.qualified} WHERE run_id = {mark(binding.dialect)}")
        self._delete_events = f"DELETE FROM {self._events.qualified} WHERE {in_list(binding.dialect, 'id')}"
        self._insert_interned = insert_sql(
            binding.dialect, qualified("otel_cmb_resources", binding.schema), ("id", "body"), conflict=("id",))

    def forget(self) -> None:
        """Trust nothing remembered about what is stored: the transaction failed, or the database may be another."""
        self._interner.forget()
        self._history.forget()
        self._enriching.forget()

    def committed(self) -> None:
        """What was written is in the database: it need not be written again."""
        self._interner.committed()
        self._history.committed()

    def apply(self, connection: Connection, prepared: Prepared) -> None:
        """Write what was prepared; its runs are locked."""
        changes = [change for change in prepared.changes if change.trace.dirty]
        orders = number(changes, lambda run_id: self._next_order(connection, run_id))
        for change in changes:
            change.trace.unread.difference_update(change.after)
        gone = [
            id_ for change in changes for id_ in change.trace.orders
            if id_ not in change.after and id_ not in change.trace.unread]
        outside = self._links.outside(connection, changes, gone)
        due = self._due(connection, changes, prepared.runs, orders, outside)
        self._delete(connection, gone)
        if self._events.numbers:
            self._make_way(connection, changes, orders)
        saving = self._write_rows(connection, changes, due)
        self._side.write(connection, due.side)
        self._links.settle(connection, changes, gone, outside)
        self._known.save(connection, saving)
        self._enriching.tell(connection, changes, prepared.runs)
        for change in changes:
            unread = {id_: change.trace.orders[id_] for id_ in change.trace.unread}
            change.trace.orders = {**unread, **{id_: orders[id_] for id_ in change.after}}

    def _write_rows(self, connection: Connection, changes: Sequence[Change], due: _Due) -> Saving:
        """The rows, and what they refer to, which is known when they are packed. Gives what is to be written beside them."""
        changed: list[tuple[Any, ...]] = []
        with inserting(
            connection, self._events, self._rows.inserted, self._inserted(due.wholes, changed),
            sum([new for _, _, new in due.wholes]),
        ):  # PostgreSQL checks the rows' keys meanwhile
            saving = self._known.gather([(change.trace, change.after) for change in changes], self._writer)
        _write(connection, self._insert_interned, sorted(self._interner.new.items()))
        self._history.write(connection)
        _write(connection, self._rows.update, changed)
        self._rows.links.write(connection, due.links)
        return saving

    def _make_way(self, connection: Connection, changes: Sequence[Change], orders: Mapping[str, int]) -> None:
        """Where an application's index allows a number once in a run: the rows whose numbers change go beyond all that are
        taken or given now, by one distance, so that whatever is written next finds its number free."""
        moving = [id_ for change in changes for id_ in change.after
                  if (held := change.trace.orders.get(id_)) is not None and held != orders[id_]]
        if moving:
            runs = {event.run_id for change in changes for event in change.after.values() if event.run_id is not None}
            beyond = max(*(self._next_order(connection, run_id) for run_id in runs), *orders.values())
            connection.exec_driver_sql(
                f"UPDATE {self._events.qualified} SET execution_order = execution_order + {mark(self._dialect)} "
                f"WHERE {in_list(self._dialect, 'id')}", (beyond, list_param(self._dialect, moving)))

    def _next_order(self, connection: Connection, run_id: str) -> int:
        value = connection.exec_driver_sql(self._last_order, (run_id,)).scalar()
        return 1 if value is None else int(value) + 1

    def _due(
        self, connection: Connection, changes: Sequence[Change], runs: Mapping[str, RunRow], orders: Mapping[str, int],
        outside: Outside,
    ) -> _Due:
        """Compare the events with those that are stored, and decide what the transaction decides for each that differs."""
        due = _Due([], [], [])
        for change in changes:
            lift, stored = lifted(change, outside.lift), change.trace.orders
            for id_, event in change.after.items():
                held, old, order = stored.get(id_), change.before.get(id_), orders[id_]
                if held is not None and order == held and old is not None and (old is event or old == event):
                    continue
                assert event.run_id is not None
                run = runs[event.run_id]
                node_id = self._placing.node(connection, run, event) if event.node_id else None
                step_id = self._placing.step(connection, run, event) if event.step_id else None
                parent_id = event.parent_event_id if event.parent_known else outside.parents.get(id_)
                place = Placement(run.session_id, node_id, step_id, parent_id, order, event.depth + lift.get(id_, 0))
                if held is None or old is None or not _same_content(old, event):
                    due.wholes.append((event, place, held is None))
                    due.side.extend(side_rows(event, place))
                else:
                    due.links.append(self._rows.link_values(event, place))
        return due

    def _inserted(self, wholes: Sequence[Whole], changed: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Values of the new rows; those of rows that change are added to `changed`. In one go: how a row is packed depends
        on those before."""
        for event, place, new in wholes:
            if new:
                yield self._rows.insert_values(event, place)
            else:
                changed.append(self._rows.update_values(event, place))

    def _delete(self, connection: Connection, ids: Collection[str]) -> None:
        """Rows that were merged into another, with their files and messages. Their children were linked anew."""
        if ids:
            self._side.delete(connection, list(ids))
            connection.exec_driver_sql(self._delete_events, (list_param(self._dialect, ids),))


def _same_content(old: Event, new: Event) -> bool:
    """Whether only links and order differ."""
    return (
        old.event_type == new.event_type and old.event_subtype == new.event_subtype and old.status == new.status
        and old.agent_name == new.agent_name and old.completed_ns == new.completed_ns and old.started_ns == new.started_ns
        and old.node_id == new.node_id and old.step_id == new.step_id and old.agent_role == new.agent_role
        and old.error_message == new.error_message and old.inputs == new.inputs and old.outputs == new.outputs
        and old.meta == new.meta and old.spans == new.spans and old.files == new.files and old.messages == new.messages
    )


def _write(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        connection.exec_driver_sql(sql, list(rows))
