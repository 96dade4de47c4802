"""The spans of a run, out of its rows: those that came in, exactly, and spans made of the application's own rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import orjson
from sqlalchemy import Connection

from otel_cmb.config import Settings
from otel_cmb.dialects import mark, qualified
from otel_cmb.engines import connect, make_engine
from otel_cmb.event import STATUS_ERROR, STATUS_UNSET, Resource, Scope, Span, is_own_id
from otel_cmb.history import EARLIER, whole
from otel_cmb.reader import Event, Reader
from otel_cmb.rebuild import unpack
from otel_cmb.transactions import begin_read

__all__ = ["RunSpans"]

PAGE = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_JSON = {"cmb.inputs": "inputs", "cmb.outputs": "outputs", "cmb.meta": "meta"}
_TEXT = {
    "cmb.run.id": "run_id", "cmb.session.id": "session_id", "cmb.node.id": "node_id", "cmb.step.id": "step_id",
    "cmb.event.type": "event_type", "cmb.event.subtype": "event_subtype", "cmb.agent.name": "agent_name",
    "cmb.agent.role": "agent_role", "cmb.error.message": "error_message",
}


def _hash(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def _nanoseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000


class RunSpans:
    """Pages of a run's spans in execution order. `with` it, or `close()` it."""

    def __init__(self, reader: Reader, run_id: str, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings
        self._connection: Connection | None = None
        self._run = reader.run(run_id, totals=False)
        self._bodies: dict[str, dict[str, Any]] = {}
        self._ids: dict[str, tuple[str, str]] = {}
        """event id -> (trace id, span id), for the children of the application's rows"""
        self._resource = Resource({"service.name": "otel-cmb", "cmb.run.id": run_id})
        self._scope = Scope("otel_cmb.application")

    def __enter__(self) -> RunSpans:  # noqa: PYI034 (Self comes with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection.engine.dispose()
            self._connection = None

    def _own(self) -> Connection:
        """A connection for what an owned database keeps beside its rows."""
        if self._connection is None:
            self._connection = connect(make_engine(self._settings, read_only=True))
            begin_read(self._connection)
        return self._connection

    def pages(self, after: str | None = None) -> Iterator[tuple[str, list[Span]]]:
        """(cursor, spans) of each page; the cursor given as `after` goes on behind the page."""
        while True:
            events = self._reader.events(self._run.id, limit=PAGE, after=after)
            if not events:
                return
            after = events[-1].cursor
            yield after, [span for event in events for span in self._spans(event)]

    def _spans(self, event: Event) -> list[Span]:
        row = {
            "inputs": event.inputs, "outputs": event.outputs, "meta": event.meta,
            "error_message": event.error_message, "run_id": event.run_id,
        }
        if any(isinstance(value, dict) and EARLIER in value for value in (event.inputs, event.outputs)):
            whole(self._own(), row, self._settings.schema)
        spans = unpack(row, self._resolve)
        if not spans and not is_own_id(event.id):  # one we derived from a span comes again from that span
            spans = [self._made(event)]
        if spans:
            self._ids[event.id] = (spans[0].trace_id, spans[0].span_id)
        return spans

    def _resolve(self, key: str) -> dict[str, Any]:
        """The body of a resource or scope, which an owned database stores once."""
        if key not in self._bodies:
            connection = self._own()
            table = qualified("otel_cmb_resources", self._settings.schema)
            sql = f"SELECT body FROM {table} WHERE id = {mark(connection.dialect.name)}"
            found = connection.exec_driver_sql(sql, (key,)).fetchone()
            if found is None:
                raise KeyError(key)
            self._bodies[key] = orjson.loads(found[0])
        return self._bodies[key]

    def _made(self, event: Event) -> Span:
        """A span of a row that no span made, with the attributes that would make the row again."""
        trace_id, parent = _hash(self._run.id, 16), None
        if event.parent_event_id is not None:
            trace_id, parent = self._ids.get(event.parent_event_id, (trace_id, _hash(event.parent_event_id, 8)))
        started = _nanoseconds(event.started_at) or _nanoseconds(event.timestamp) or 0
        ended = _nanoseconds(event.completed_at)
        if ended is None and event.duration_ms is not None:
            ended = started + event.duration_ms * 1_000_000
        if ended is None and event.status != "running":
            ended = started
        attributes = {key: str(value) for key, name in _TEXT.items() if (value := getattr(event, name)) is not None}
        attributes |= {
            key: orjson.dumps(value, default=str).decode()
            for key, name in _JSON.items() if (value := getattr(event, name)) is not None
        }
        return Span(
            trace_id=trace_id, span_id=_hash(event.id, 8), parent_span_id=parent,
            name=" ".join(part for part in (event.event_type, event.agent_name) if part) or "event",
            start_ns=started, end_ns=None if ended is None else max(ended, started),
            status_code=STATUS_ERROR if event.status == "failed" else STATUS_UNSET,
            status_message=event.error_message or "", attributes=attributes, resource=self._resource, scope=self._scope,
        )
