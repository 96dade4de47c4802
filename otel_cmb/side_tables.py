"""The tables beside the events, `files` and `messages`: rows that come with an event and go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, list_param
from otel_cmb.event import Event, derived_id
from otel_cmb.rows import Placement
from otel_cmb.workflow import Workflow

__all__ = ["SideRow", "SideTables", "side_rows"]

SideRow = tuple[str, dict[str, Any]]
"""Table and values."""

_TABLES = ("files", "messages")


def side_rows(event: Event, place: Placement) -> list[SideRow]:
    """The rows that go with an event."""
    rows: list[SideRow] = []
    for n, file in enumerate(event.files):
        rows.append(("files", {
            "id": derived_id(event.trace_id, event.span_id, f"file-row:{event.id}", n), "run_id": event.run_id,
            "session_id": place.session_id, "step_id": place.step_id, "event_id": event.id, "node_id": place.node_id,
            "file_path": file.file_path, "file_type": file.file_type, "size_bytes": file.size_bytes,
            "created_at": event.completed_ns or event.started_ns, "generating_agent": event.agent_name,
        }))
    for n, message in enumerate(event.messages):
        rows.append(("messages", {
            "id": derived_id(event.trace_id, event.span_id, f"message-row:{event.id}", n), "run_id": event.run_id,
            "session_id": place.session_id, "step_id": place.step_id, "event_id": event.id, "node_id": place.node_id,
            "sender": message.sender, "recipient": message.recipient, "content": message.content,
            "timestamp": event.started_ns, "tokens": message.tokens,
        }))
    return rows


class SideTables:
    """Writes and deletes them, for one database."""

    def __init__(self, binding: Binding, workflow: Workflow):
        self._binding = binding
        self._workflow = workflow

    def write(self, connection: Connection, rows: Sequence[SideRow]) -> None:
        """Insert the rows that are not there yet, as far as the database has the tables."""
        for table in _TABLES:
            wanted = [values for name, values in rows if name == table]
            info = self._binding.tables.get(table)
            if not wanted or info is None or not info.writable:
                continue  # the event row says it all; `db check` says what is missing
            there = self._there(connection, table, [values["event_id"] for values in wanted])
            for values in wanted:
                if values["event_id"] not in there:
                    self._workflow.insert(connection, table, values, conflict=("id",))

    def _there(self, connection: Connection, table: str, event_ids: Sequence[str]) -> set[str]:
        """Events that have their rows already, in a table that the application numbers itself: there no id of ours
        makes redelivery harmless."""
        info, dialect = self._binding.tables[table], self._binding.dialect
        if info.columns["id"].kind == "text":
            return set()
        return set(connection.exec_driver_sql(
            f"SELECT event_id FROM {info.qualified} WHERE {in_list(dialect, 'event_id')}",
            (list_param(dialect, event_ids),)).scalars())

    def delete(self, connection: Connection, event_ids: Sequence[str]) -> None:
        """Delete the rows of these events."""
        dialect = self._binding.dialect
        for table in _TABLES:
            info = self._binding.tables.get(table)
            if info is not None and "event_id" in info.columns:
                connection.exec_driver_sql(
                    f"DELETE FROM {info.qualified} WHERE {in_list(dialect, 'event_id')}", (list_param(dialect, event_ids),))
