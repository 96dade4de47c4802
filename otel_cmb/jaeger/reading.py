"""One question's reading of traces, in a transaction that sees one state of the database.

Reads `execution_events` and, in an owned database, the search tables (:mod:`otel_cmb.search_index`). A trace is one
primary-key range in any database. In an attached database, which has no tables of ours, a search reads the events of its time
range, newest first, up to a bound.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from otel_cmb import rebuild
from otel_cmb.binding import Binding
from otel_cmb.dialects import SQLITE, mark, qualified, timestamp
from otel_cmb.event import Span, trace_id_range
from otel_cmb.history import whole
from otel_cmb.jaeger.genai import presented
from otel_cmb.jaeger.match import TraceQuery, matches, tags_wanted
from otel_cmb.refs import MISSING
from otel_cmb.search_index import SERVICE, SPREAD_NS, service_of, tag

__all__ = ["Reading"]

_LOG = logging.getLogger("otel_cmb.jaeger")

_COLUMNS = (
    "id", "run_id", "event_type", "agent_name", "status", "inputs", "outputs", "meta", "error_message",
)
_CHUNK = 20
"""Traces loaded by one statement."""
_MAX_LOOKED_AT = 2000
"""Traces a search loads in vain at most: their parts hold all facts asked for, but no span holds them all."""
_MAX_SCANNED = 20_000
"""Events a search looks at in a database without an index of ours."""
_MAX_DEPENDENCY_TRACES = 2000
_DEADLINE_S = 8.0
"""A search gives what it has by then: Jaeger's page waits 10 seconds."""


class Reading:
    """One question's reading."""

    def __init__(self, connection: Connection, binding: Binding, bodies: dict[str, dict[str, Any]]) -> None:
        self._connection = connection
        self.binding = binding
        self._bodies = bodies
        self._mark = mark(binding.dialect)
        events = binding.tables["execution_events"]
        self._events = events.qualified
        json_columns = {"inputs", "outputs", "meta"}
        text = "" if binding.dialect == SQLITE else "::text"
        self._names = [name for name in _COLUMNS if name in events.columns]
        self._select = ", ".join(f'"{name}"{text if name in json_columns else ""}' for name in self._names)
        self._light_names = [name for name in self._names if name not in {"inputs", "outputs"}]
        self._light_select = ", ".join(
            f'"{name}"{text if name in json_columns else ""}' for name in self._light_names)

    # -- rows to spans -----------------------------------------------------------------------------------------------

    def _row(self, values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        row = dict(zip(names, values, strict=True))
        for name in ("inputs", "outputs", "meta"):
            row[name] = _parsed(row.get(name))
        return row

    def _spans(self, row: dict[str, Any]) -> list[Span]:
        if self.binding.owned:
            whole(self._connection, row, self.binding.schema)
        try:
            spans = rebuild.unpack(row, self._resolve if self.binding.owned else None)
        except (LookupError, TypeError, ValueError) as error:
            _LOG.warning("event %s has a meta.otel nobody here wrote: %s", row.get("id"), type(error).__name__)
            return []
        return presented(spans, row)

    def _resolve(self, key: str) -> dict[str, Any]:
        found = self._bodies.get(key)
        if found is None:
            table = qualified("otel_cmb_resources", self.binding.schema)
            values = self._connection.exec_driver_sql(
                f"SELECT body FROM {table} WHERE id = {self._mark}", (key,)).fetchone()
            if values is None:
                raise KeyError(key)
            found = self._bodies[key] = orjson.loads(values[0])
        return found

    def traces(self, trace_ids: Sequence[str], *, light: bool = False) -> Iterator[list[Span]]:
        """The traces that exist. `light`: without what the columns `inputs` and `outputs` hold of them."""
        names, select = (self._light_names, self._light_select) if light else (self._names, self._select)
        for start in range(0, len(trace_ids), _CHUNK):
            chunk = trace_ids[start : start + _CHUNK]
            where = " OR ".join([f"id BETWEEN {self._mark} AND {self._mark}"] * len(chunk))
            values = tuple(bound for trace_id in chunk for bound in trace_id_range(trace_id))
            found: dict[str, list[Span]] = {trace_id: [] for trace_id in chunk}
            for row in self._connection.exec_driver_sql(
                f"SELECT {select} FROM {self._events} WHERE {where}", values
            ):
                for span in self._spans(self._row(row, names)):
                    if span.trace_id in found:
                        found[span.trace_id].append(span)
            for spans in found.values():
                if spans:
                    spans.sort(key=lambda span: (span.start_ns, span.span_id))
                    yield spans

    # -- search ------------------------------------------------------------------------------------------------------

    def find(self, query: TraceQuery, *, light: bool = False) -> Iterator[list[Span]]:
        deadline = time.monotonic() + _DEADLINE_S
        found = looked_at = 0
        for chunk in _chunks(self._candidates(query), query.limit):
            for spans in self.traces(chunk, light=light):
                looked_at += 1
                if any(matches(span, query) for span in spans) or (light and self._matches_whole(spans, query)):
                    yield spans
                    found += 1
                    if found >= query.limit:
                        return
            if looked_at - found >= _MAX_LOOKED_AT or time.monotonic() > deadline:
                return

    def _matches_whole(self, spans: list[Span], query: TraceQuery) -> bool:
        """Whether a trace that was read without its content matches with it: only where a value asked for is there."""
        if not any(
            str(held.get(key, "")).startswith(MISSING) for key in query.attributes for span in spans
            for held in (span.attributes, *(event.attributes for event in span.events))
        ):
            return False
        return any(matches(span, query) for whole_trace in self.traces([spans[0].trace_id]) for span in whole_trace)

    def _candidates(self, query: TraceQuery) -> Iterator[str]:
        """Ids of traces that may match, newest first, each once."""
        seen: set[str] = set()
        source = self._indexed(query, tags_wanted(query)) if self.binding.owned else self._scanned(query)
        for trace_id in source:
            if trace_id not in seen:
                seen.add(trace_id)
                yield trace_id

    def _indexed(
        self, query: TraceQuery, tags: Sequence[bytes], extra: str = "", bound: Sequence[Any] = (),
    ) -> Iterator[str]:
        one = self._mark
        where = [f"key_ns <= {one}"]
        values: list[Any] = [_top(query.start_max_ns, SPREAD_NS)]
        if query.start_min_ns is not None:
            where += [f"key_ns >= {one}", f"last_ns >= {one}"]
            values += [max(query.start_min_ns - SPREAD_NS, 0), query.start_min_ns]
        if query.start_max_ns is not None:
            where.append(f"first_ns <= {one}")
            values.append(_top(query.start_max_ns, 0))
        if query.duration_min_ns:
            where.append(f"longest_ns >= {one}")
            values.append(_top(query.duration_min_ns, 0))
        if query.duration_max_ns:
            where.append(f"shortest_ns <= {one}")
            values.append(_top(query.duration_max_ns, 0))
        where += [self._holds()] * len(tags)
        values += tags
        if extra:
            where.append(extra)
            values += bound
        table = qualified("otel_cmb_search", self.binding.schema)
        sql = f"SELECT key_ns, part, trace_id FROM {table} WHERE {' AND '.join(where)}"
        page = max(2 * query.limit, 50)
        after = ""
        tail: tuple[Any, ...] = ()
        while True:
            rows = self._connection.exec_driver_sql(
                f"{sql}{after} ORDER BY key_ns DESC, part DESC LIMIT {page}", (*values, *tail)).fetchall()
            for row in rows:
                yield row[2]
            if len(rows) < page:
                return
            after = f" AND (key_ns < {one} OR (key_ns = {one} AND part < {one}))"
            tail = (rows[-1][0], rows[-1][0], rows[-1][1])
            values[0] = rows[-1][0]
            page = min(page * 2, 1000)

    def _holds(self) -> str:
        if self.binding.dialect == SQLITE:
            return f"instr(tags, {self._mark}) > 0"
        return f"position({self._mark} in tags) > 0"

    def _scanned(self, query: TraceQuery) -> Iterator[str]:
        for row in self._recent(query.start_min_ns, query.start_max_ns):
            for span in self._spans(row):
                if matches(span, query):
                    yield span.trace_id

    def _recent(self, start_ns: int | None, end_ns: int | None) -> Iterator[dict[str, Any]]:
        """Events of a time range, newest first, up to a bound."""
        columns = self.binding.tables["execution_events"].columns
        name = "started_at" if "started_at" in columns else "timestamp"
        where = ["meta IS NOT NULL"]
        values: list[Any] = []
        for bound, sign in ((start_ns, ">="), (end_ns, "<=")):
            if bound is not None:
                where.append(f'"{name}" {sign} {self._mark}')
                values.append(timestamp(self.binding.dialect, columns[name].kind, _top(bound, 0) // 1000 * 1000))
        sql = (f'SELECT {self._select} FROM {self._events} WHERE {" AND ".join(where)} ORDER BY "{name}" DESC '
               f"LIMIT {_MAX_SCANNED}")
        deadline = time.monotonic() + _DEADLINE_S
        for row in self._connection.exec_driver_sql(
            sql, tuple(values), execution_options={"stream_results": True, "max_row_buffer": 200}
        ):
            yield self._row(row, self._names)
            if time.monotonic() > deadline:
                return

    def operations(self, service: str = "") -> Iterator[tuple[str, str, int]]:
        """Service, name and kind of the spans there are."""
        if not self.binding.owned:
            for row in self._recent(None, None):
                yield from ((service_of(span), span.name, span.kind) for span in self._spans(row))
            return
        table = qualified("otel_cmb_operations", self.binding.schema)
        where, values = (f" WHERE service = {self._mark}", (service,)) if service else ("", ())
        yield from (tuple(row) for row in self._connection.exec_driver_sql(
            f"SELECT service, name, kind FROM {table}{where}", values))

    def crossing(self, start_ns: int, end_ns: int) -> Iterator[list[Span]]:
        """Traces with spans of more than one service."""
        query = TraceQuery(start_min_ns=start_ns, start_max_ns=end_ns, limit=_MAX_DEPENDENCY_TRACES)
        if not self.binding.owned:
            yield from self.find(query)
            return
        services = sorted({service for service, _, _ in self.operations()})
        if len(services) < 2:
            return
        extra, bound = "", []
        if len(services) <= 50:  # beyond that the sum costs more than it saves
            extra = "(" + " + ".join([f"CASE WHEN {self._holds()} THEN 1 ELSE 0 END"] * len(services)) + ") > 1"
            bound = [tag(SERVICE, service) for service in services]
        deadline = time.monotonic() + _DEADLINE_S
        ids = dict.fromkeys(self._indexed(query, (), extra, bound))
        for chunk in _chunks(iter(list(ids)[:_MAX_DEPENDENCY_TRACES]), _CHUNK):
            yield from self.traces(chunk)
            if time.monotonic() > deadline:
                return


def _parsed(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            try:
                value = json.loads(value)  # the application's own rows may hold NaN
            except ValueError:
                return None
    return value if isinstance(value, dict) else None


def _top(value: int | None, slack: int) -> int:
    """Within 64 bits, whatever a client asks for."""
    limit = 2**63 - 1
    return limit if value is None else max(min(value + slack, limit), 0)


def _chunks(ids: Iterator[str], limit: int) -> Iterator[list[str]]:
    """As many as are still wanted at first, then more at a time."""
    size = max(min(limit, _CHUNK), 1)
    chunk: list[str] = []
    for trace_id in ids:
        chunk.append(trace_id)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
