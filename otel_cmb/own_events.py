"""Deleting our own old events, with their files and messages, from an application's database; nothing of the application's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from otel_cmb import deleting
from otel_cmb.deleting import Deleting
from otel_cmb.dialects import in_list, list_param
from otel_cmb.event import OWN_ID
from otel_cmb.transactions import lock_runs

__all__ = ["OwnEvents"]

SIDE_TABLES = {"files": "created_at", "messages": "timestamp"}
"""What events made, and the column with its time."""


class OwnEvents(Deleting):
    """The statements about events of ours."""

    _OUR_ID = f"id LIKE '{OWN_ID}'"
    _OURS = "timestamp < {mark} AND " + _OUR_ID + " AND status <> 'running'"

    def _own(self) -> str:
        return f"FROM {self._events} WHERE {self._OURS.format(mark=self._mark)}"

    def count_own_events(self) -> int:
        with self._engine.connect() as connection:
            value = self._cutoff("execution_events", "timestamp")
            return int(connection.exec_driver_sql(f"SELECT count(*) {self._own()}", (value,)).scalar() or 0)

    def delete_own_events(self) -> dict[str, int]:
        """The next part of them; empty when there is none."""
        return self._transaction(self._delete_own_part)

    def _delete_own_part(self, connection: Connection) -> dict[str, int]:
        rows = connection.exec_driver_sql(
            f"SELECT id, run_id {self._own()} ORDER BY timestamp LIMIT {deleting.CHUNK}",
            (self._cutoff("execution_events", "timestamp"),),
        ).all()
        if not rows:
            return {}
        lock_runs(connection, {row[1] for row in rows}, self._tables["workflow_runs"])
        ids = [row[0] for row in rows]
        deleted: dict[str, int] = {}
        for table in SIDE_TABLES:
            if table in self._tables:
                deleted[table] = self._delete(connection, self._tables[table], "event_id", ids, self._our_side_rows(table))
        self._make_roots(connection, ids, {row[1] for row in rows})
        deleted["execution_events"] = self._delete(connection, self._events, "id", ids)
        return deleted

    def _make_roots(self, connection: Connection, ids: Sequence[str], runs: Collection[str]) -> None:
        """Events of ours that stay although what they hang below goes become roots, and what is below them moves with them.
        The application's are its own: what its foreign key says of them happens."""
        deep = "depth" in self._binding.tables["execution_events"].columns
        in_runs, in_ids = in_list(self._dialect, "run_id"), in_list(self._dialect, "parent_event_id")
        kept = f"{self._OUR_ID} AND (timestamp >= {self._mark} OR status = 'running')"
        found = connection.exec_driver_sql(
            f"SELECT id, {'depth' if deep else '0'} FROM {self._events} WHERE {in_runs} AND {in_ids} AND {kept}",
            (list_param(self._dialect, runs), list_param(self._dialect, ids), self._cutoff("execution_events", "timestamp")),
        ).all()
        if not found:
            return
        connection.exec_driver_sql(  # all of them, before any moves: one may have lain below another
            f"UPDATE {self._events} SET parent_event_id = NULL WHERE {in_list(self._dialect, 'id')}",
            (list_param(self._dialect, [row[0] for row in found]),))
        by_depth: defaultdict[int, list[str]] = defaultdict(list)
        for id_, depth in found:
            by_depth[depth or 0].append(id_)
        for depth, tops in by_depth.items():
            if depth:
                self._move_up(connection, tops, depth)

    def _move_up(self, connection: Connection, tops: Sequence[str], by: int) -> None:
        """Make events, and those of ours that lie below them, less deep."""
        connection.exec_driver_sql(
            f"UPDATE {self._events} SET depth = depth - {self._mark} WHERE id IN (WITH RECURSIVE below(id) AS ("
            f"SELECT id FROM {self._events} WHERE {in_list(self._dialect, 'id')} UNION "
            f"SELECT e.id FROM {self._events} e JOIN below ON e.parent_event_id = below.id WHERE e.id LIKE '{OWN_ID}') "
            "SELECT id FROM below)", (by, list_param(self._dialect, tops)))

    def count_own_side_rows(self, table: str) -> int:
        """How many files, or messages, go with the events that :meth:`count_own_events` counts."""
        if table not in self._tables:
            return 0
        sql = (f"SELECT count(*) FROM {self._tables[table]} WHERE event_id IN (SELECT id {self._own()})"
               f"{self._our_side_rows(table)}")
        with self._engine.connect() as connection:
            value = self._cutoff("execution_events", "timestamp")
            return int(connection.exec_driver_sql(sql, (value,)).scalar() or 0)

    def _our_side_rows(self, table: str) -> str:
        """Which rows with an event of ours are ours too; the application may have added others. Where it numbers the rows
        itself, ours are told by their time: it is their event's to the microsecond."""
        columns, time_column = self._binding.tables[table].columns, SIDE_TABLES[table]
        if columns["id"].kind == "text":
            return f" AND {self._OUR_ID}"
        if time_column not in columns:
            return ""
        name = self._tables[table]
        return (
            f" AND EXISTS (SELECT 1 FROM {self._events} e WHERE e.id = {name}.event_id "
            f"AND {name}.{time_column} IN (e.started_at, e.completed_at))")
