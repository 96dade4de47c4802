"""Events to rows: the values of `execution_events` in the order of the statement's columns.

This is the hot path of the writer: what depends on the database only is decided once, in the constructor.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import orjson

from otel_cmb import rebuild, tagged
from otel_cmb.binding import Binding
from otel_cmb.bulk import ManyRows
from otel_cmb.dialects import SQLITE, update_sql
from otel_cmb.event import Event
from otel_cmb.history import MIN_BYTES
from otel_cmb.sanitize import clean, clean_text, fit

__all__ = ["EventRows", "Placement", "json_fit", "json_text"]

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - rows hold naive UTC
_INT32 = 2**31 - 1
_BACKSLASH = ord("\\")


def json_fit(value: Any) -> tuple[str, Any]:
    """JSON text that every database takes (no NUL, no lone surrogate, no NaN), and the value it is the text of."""
    try:
        data = orjson.dumps(value)
        if _BACKSLASH not in data or b"\\u0000" not in data:
            return data.decode(), value
    except (TypeError, ValueError, RecursionError):
        pass
    value = clean(value)
    return orjson.dumps(value).decode(), value


def json_text(value: Any) -> str:
    """JSON text that every database takes."""
    return json_fit(value)[0]


class Placement:
    """What the transaction decided for one event."""

    __slots__ = ("depth", "node_id", "order", "parent_id", "session_id", "step_id")

    def __init__(
        self, session_id: str, node_id: str | None, step_id: str | None, parent_id: str | None, order: int, depth: int,
    ):
        self.session_id, self.node_id, self.step_id = session_id, node_id, step_id
        self.parent_id, self.order, self.depth = parent_id, order, depth


class EventRows:
    """Statements and values for one database's `execution_events`."""

    def __init__(
        self, binding: Binding, intern: Callable[[dict[str, Any]], str] | None = None,
        shorten: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self._intern = intern
        self._shorten = shorten
        info = binding.tables["execution_events"]
        kinds = {info.columns[name].kind for name in ("inputs", "outputs", "meta") if name in info.columns}
        self._ordered = "jsonb" not in kinds
        self.columns = tuple(name for name in _EVENT_COLUMNS if name in info.columns)
        fill = {name: value for name, value in binding.fill.get("execution_events", {}).items() if name not in self.columns}
        self._fill = tuple(fill.values())
        self._lengths = tuple(
            info.columns[name].length or length if name in info.columns else length for name, length in _NAMES.items())
        self._time = _time_maker(binding, "execution_events", "timestamp")
        self._wants = [name in info.columns for name in _EVENT_COLUMNS]
        self._all = all(self._wants)
        self.inserted = (*self.columns, *fill)
        self._changing = tuple(name for name in self.columns if name != "id")
        self.update = update_sql(binding.dialect, info.qualified, self._changing)
        self._deep = "depth" in info.columns
        links = {name: kind for name, kind in _LINKS.items() if name in info.columns}
        self.links = ManyRows.update(binding.dialect, info.qualified, links, "id", exact=binding.owned)

    def insert_values(self, event: Event, place: Placement) -> tuple[Any, ...]:
        return (*self._values(event, place), *self._fill)

    def update_values(self, event: Event, place: Placement) -> tuple[Any, ...]:
        values = self._values(event, place)
        return (*values[1:], values[0])

    def link_values(self, event: Event, place: Placement) -> tuple[Any, ...]:
        if self._deep:
            return (place.parent_id, place.depth, place.order, event.id)
        return (place.parent_id, place.order, event.id)

    def _values(self, event: Event, place: Placement) -> tuple[Any, ...]:
        started, completed = event.started_ns, event.completed_ns
        start_time = self._time(started)
        inputs = outputs = None
        if event.inputs is not None:
            inputs, event.inputs = json_fit(event.inputs)
        if event.outputs is not None:
            outputs, event.outputs = json_fit(event.outputs)
        if event.error_message is not None and "\0" in event.error_message:
            event.error_message = clean_text(event.error_message)
        meta = dict(event.meta)
        if event.spans:
            # when the columns it refers to are final
            meta["otel"] = rebuild.collect(event, self._intern, ordered=self._ordered)
        if self._shorten is not None:
            inputs = self._shortened(event.run_id, event.inputs, inputs)
            outputs = self._shortened(event.run_id, event.outputs, outputs)
        if event.node_id is not None and place.node_id is None:
            meta["node"] = event.node_id
        if event.step_id is not None and place.step_id is None:
            meta["step"] = event.step_id
        type_length, subtype_length, name_length, role_length = self._lengths
        values = (
            event.id, event.run_id, place.node_id, place.step_id, place.session_id, place.parent_id,
            fit(event.event_type, type_length), fit(event.event_subtype, subtype_length),
            fit(event.agent_name, name_length), fit(event.agent_role, role_length),
            start_time, start_time, None if completed is None else self._time(completed),
            None if completed is None else min(max((completed - started) // 1_000_000, 0), _INT32),
            inputs, outputs, event.error_message, self._meta_text(meta) if meta else None,
            place.order, place.depth, event.status,
        )
        if self._all:
            return values
        return tuple(value for value, wanted in zip(values, self._wants, strict=True) if wanted)

    def _meta_text(self, meta: dict[str, Any]) -> str:
        """JSON text of the column, `otel` tagged in it where needed: nearly always written and looked through once."""
        try:
            data = orjson.dumps(meta)
            if self._ordered and tagged.holds(data):  # all of it, so also `otel`
                return data.decode()
        except orjson.JSONEncodeError:
            pass
        otel = meta.get("otel")
        if not otel:
            return json_text(meta)
        # Only the rest is made fit: cleaning would change the spans (an integer beyond 64 bits becomes a text).
        rest = json_fit({**meta, "otel": None})[1]
        if type(rest) is not dict:  # too much of it
            rest = {}
        rest["otel"] = rebuild.tagged_where_needed(otel, ordered=self._ordered)
        try:
            return orjson.dumps(rest).decode()
        except orjson.JSONEncodeError:  # nested deeper than any span that came through a door
            return json_text(rest)

    def _shortened(self, run_id: str | None, value: dict[str, Any] | None, written: str | None) -> str | None:
        if value is None or run_id is None or written is None or len(written) < MIN_BYTES or "messages" not in value:
            return written
        assert self._shorten is not None
        kept = self._shorten(run_id, value)
        return written if kept is value else json_text(kept)


_EVENT_COLUMNS = (
    "id", "run_id", "node_id", "step_id", "session_id", "parent_event_id", "event_type", "event_subtype", "agent_name",
    "agent_role", "timestamp", "started_at", "completed_at", "duration_ms", "inputs", "outputs", "error_message", "meta",
    "execution_order", "depth", "status",
)
_LINKS = {"parent_event_id": "text", "depth": "bigint", "execution_order": "bigint", "id": "text"}
"""What changes of a row when only its place does, with PostgreSQL's types. An application's table may have no `depth`."""
_NAMES = {"event_type": 50, "event_subtype": 50, "agent_name": 100, "agent_role": 50}
"""Characters of the text columns that could be too short, where the column says nothing."""


def _time_maker(binding: Binding, table: str, column: str) -> Callable[[int], str]:
    """Nanoseconds to the text of a time in UTC, as SQLite keeps it and PostgreSQL reads it whatever its settings are."""
    zone = "+00" if binding.dialect != SQLITE and binding.tables[table].columns[column].kind == "timestamptz" else ""
    last: list[Any] = [None, ""]

    def as_text(ns: int) -> str:
        seconds = ns // 1_000_000_000
        if seconds != last[0]:  # most events of a batch share a second
            last[1] = (_EPOCH + timedelta(seconds=seconds)).isoformat(" ") + "."
            last[0] = seconds
        return f"{last[1]}{str(1_000_000 + ns // 1000 % 1_000_000)[1:]}{zone}"

    return as_text
