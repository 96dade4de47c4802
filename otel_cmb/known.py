"""What the database (and, beside an attached one, the state directory) remembers of a trace.

Owned: rows of `execution_events`, skeletons of spans without a row in `otel_cmb_spans`, and in `otel_cmb_traces` who wrote
the trace last: a copy in memory is good while that is ourselves. Attached: the rows, and the skeletons in a SQLite file
of the state directory that all processes of this host share; a copy in memory is good while the rows' ids and states are
the ones it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection

from otel_cmb import clock, mapper, rebuild
from otel_cmb.beside import KEPT_NS, Beside, prefix_of
from otel_cmb.binding import Binding
from otel_cmb.bulk import ManyRows
from otel_cmb.config import Settings
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, qualified, timestamp
from otel_cmb.event import Event, Span, event_id, trace_id_range
from otel_cmb.few import Few
from otel_cmb.history import whole
from otel_cmb.search_index import Found, IndexWriter
from otel_cmb.traces import Trace, further_spans, held_by
from otel_cmb.values import as_dict

__all__ = ["Known", "Saving"]

_LAST_NS = 2**63 - 1
"""The year 2262: a row has later times (of clocks gone wild), what is kept of its trace has not."""
_CHUNK = 100
"""Traces asked for in one statement: keeps it under SQLite's limits on terms and expression depth."""


class Saving(NamedTuple):
    """What is to be written of traces beside their rows, see :meth:`Known.gather`."""

    traces: list[Trace]
    put: list[tuple[str, str]]
    drop: list[str]
    found: Found | None
    signed: list[tuple[str, str, int, int]]


class Known:
    """Reads and saves what is known of traces, inside the store's transaction."""

    def __init__(self, binding: Binding, settings: Settings, directory: str):
        self._binding = binding
        self._settings = settings
        self._mark = mark(binding.dialect)
        self._events = binding.tables["execution_events"].qualified
        self._bodies: Few[str, dict[str, Any]] = Few(4096)
        self.beside = None if binding.owned else Beside(directory)
        self._search = IndexWriter(binding.dialect, binding.schema) if binding.owned else None
        self._sign = ManyRows.insert(
            binding.dialect, self._own("otel_cmb_traces"),
            {"trace_id": "text", "writer": "text", "start_ns": "bigint", "end_ns": "bigint"},
            ("trace_id",), ("writer", "start_ns", "end_ns"))
        self._cleaned = 0

    def _own(self, table: str) -> str:
        return qualified(table, self._binding.schema)

    def forget(self) -> None:
        """Trust nothing remembered about what is stored: the last transaction failed."""
        if self._search is not None:
            self._search.forget()

    # -- asking --------------------------------------------------------------------------------------------------------

    def markers(self, connection: Connection, trace_ids: Sequence[str]) -> dict[str, object]:
        """For each trace that is known at all, something that changes when somebody else writes it."""
        if not trace_ids:
            return {}
        if self._binding.owned:
            table = self._own("otel_cmb_traces")
            rows = connection.exec_driver_sql(
                f"SELECT trace_id, writer FROM {table} WHERE {in_list(self._binding.dialect, 'trace_id')}",
                (list_param(self._binding.dialect, trace_ids),))
            return {row[0]: row[1] for row in rows}
        found: dict[str, set[tuple[Any, ...]]] = {trace_id: set() for trace_id in trace_ids}
        by_prefix = {prefix_of(trace_id): trace_id for trace_id in trace_ids}
        # A span merged into another's row changes nothing but the length of its meta.
        for row in self._ranged(connection, trace_ids, self._events, "id, status, length(CAST(meta AS TEXT))"):
            found[by_prefix[row[0][:18]]].add(tuple(row))
        assert self.beside is not None
        for id_, body in self.beside.load(trace_ids):
            found[by_prefix[id_[:18]]].add((id_, len(body)))
        return {trace_id: frozenset(rows) for trace_id, rows in found.items() if rows}

    def runs_of_traces(self, connection: Connection, trace_ids: Iterable[str]) -> dict[str, str]:
        """The run of any stored event of each trace."""
        found: dict[str, str] = {}
        for chunk in _chunks(list(trace_ids)):
            parts, values = [], []
            for trace_id in chunk:
                parts.append(
                    f"SELECT * FROM (SELECT {self._mark} AS trace, run_id FROM {self._events} "
                    f"WHERE id BETWEEN {self._mark} AND {self._mark} ORDER BY id LIMIT 1) AS one")
                values += [trace_id, *trace_id_range(trace_id)]
            found.update(tuple(row) for row in connection.exec_driver_sql(" UNION ALL ".join(parts), tuple(values)))
        return found

    def traces_of_run(self, connection: Connection, run_id: str) -> list[str]:
        """Trace ids of the run's events, in no order. Reads every event's `meta`."""
        found: dict[str, str] = {}
        rows = connection.exec_driver_sql(
            f"SELECT id, meta FROM {self._events} WHERE run_id = {self._mark}", (run_id,))
        for id_, meta in rows:
            if id_[:18] not in found:
                trace_id = as_dict(as_dict(meta).get("otel")).get("trace_id")
                if trace_id:
                    found[id_[:18]] = trace_id
        return list(found.values())

    def load(self, connection: Connection, trace_ids: Sequence[str]) -> list[Trace]:
        """The traces as stored: facts of all their spans and the order numbers their rows hold."""
        if not trace_ids:
            return []
        traces = {prefix_of(trace_id): Trace(trace_id) for trace_id in trace_ids}
        markers = self.markers(connection, trace_ids)
        resolve = self._resolver(connection)
        columns = ("id", "run_id", "execution_order", "inputs", "outputs", "error_message", "meta")
        merged = []
        for row in self._ranged(connection, trace_ids, self._events, ", ".join(columns)):
            values = dict(zip(columns, row, strict=True))
            trace = traces[values["id"][:18]]
            trace.orders[values["id"]] = values["execution_order"]
            for name in ("inputs", "outputs", "meta"):
                values[name] = as_dict(values[name])
            if self._binding.owned:
                whole(connection, values, self._binding.schema)
            spans = rebuild.unpack(values, resolve)
            if spans:
                trace.know(values["id"], self._facts(spans[0], values["id"]))
                trace.size += sum(map(held_by, spans))
                merged += [(trace, span) for span in spans[1:]]
            else:
                trace.unread.add(values["id"])
        skeletons: Iterable[Any]
        if self._binding.owned:
            skeletons = self._ranged(connection, trace_ids, self._own("otel_cmb_spans"), "id, body")
        else:
            assert self.beside is not None
            skeletons = self.beside.load(trace_ids)
        for id_, body in skeletons:
            trace = traces[id_[:18]]
            facts = mapper.from_skeleton(orjson.loads(body))
            trace.know(facts.id, facts)
            trace.skeletons.add(facts.id)
            trace.size += len(body)
        for trace, span in merged:
            id_ = event_id(span.trace_id, span.span_id)
            if id_ in trace.facts:
                id_ = event_id(span.trace_id, span.span_id, span.start_ns)
            trace.know(id_, self._facts(span, id_))
        for trace in traces.values():
            trace.marker = markers.get(trace.trace_id)
            trace.dirty = False
            trace.touched.clear()
        return list(traces.values())

    def _facts(self, span: Any, id_: str) -> mapper.Facts:
        settings = self._settings
        return mapper.read(
            span, id=id_, code_tools=settings.code_tools, record=settings.record, capture=settings.capture)

    def _ranged(self, connection: Connection, trace_ids: Sequence[str], table: str, columns: str) -> Iterator[Any]:
        for chunk in _chunks(trace_ids):
            where = " OR ".join([f"id BETWEEN {self._mark} AND {self._mark}"] * len(chunk))
            values = tuple(bound for trace_id in chunk for bound in trace_id_range(trace_id))
            yield from connection.exec_driver_sql(f"SELECT {columns} FROM {table} WHERE {where}", values).fetchall()

    def _resolver(self, connection: Connection) -> Any:
        def resolve(digest: str) -> dict[str, Any]:
            found = self._bodies.get(digest)
            if found is None:
                row = connection.exec_driver_sql(
                    f"SELECT body FROM {self._own('otel_cmb_resources')} WHERE id = {self._mark}",
                    (digest,)).fetchone()
                if row is None:
                    raise KeyError(digest)
                found = self._bodies.keep(digest, orjson.loads(row[0]), 2 * len(row[0]))
            return found

        return resolve if self._binding.owned else None

    # -- saving --------------------------------------------------------------------------------------------------------

    def gather(self, changes: Sequence[tuple[Trace, Mapping[str, Event]]], writer: str) -> Saving:
        """What :meth:`save` is to write: skeletons of new spans without a row, what makes the others findable, and who
        wrote the traces. Asks the database nothing."""
        put: list[tuple[str, str]] = []
        drop: list[str] = []
        stored: list[Span] = []
        for trace, after in changes:
            merged = further_spans(after.values())
            for id_ in trace.touched:
                facts = trace.facts[id_]
                if id_ in after or (merged and (facts.span.span_id, facts.span.start_ns) in merged):
                    stored.append(facts.span)
                    if id_ in trace.skeletons:
                        drop.append(id_)
                        trace.skeletons.discard(id_)
                else:
                    put.append((id_, orjson.dumps(mapper.skeleton(facts)).decode()))
                    trace.skeletons.add(id_)
            trace.touched.clear()
        traces = [trace for trace, _ in changes]
        found = None if self._search is None else self._search.gather(stored)
        return Saving(traces, put, drop, found, [] if self.beside is not None else _signed(traces, writer))

    def save(self, connection: Connection, saving: Saving) -> None:
        """Write what was gathered."""
        if self.beside is not None:
            self.beside.save(saving.put, saving.drop)
            markers = self.markers(connection, [trace.trace_id for trace in saving.traces])
            for trace in saving.traces:
                trace.marker = markers.get(trace.trace_id)
            return
        self._save_owned(connection, saving.put, saving.drop)
        if self._search is not None and saving.found is not None:
            self._search.write(connection, saving.found)
        self._sign.write(connection, saving.signed)

    def _save_owned(self, connection: Connection, put: Sequence[tuple[str, str]], drop: Sequence[str]) -> None:
        table, dialect = self._own("otel_cmb_spans"), self._binding.dialect
        now = clock.now_ns()
        if put:
            seen = timestamp(dialect, "timestamp", now)
            connection.exec_driver_sql(
                insert_sql(dialect, table, ("id", "seen_at", "body"), conflict=("id",), update=("body",)),
                [(id_, seen, body) for id_, body in sorted(put)])
        if drop:
            connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE {in_list(dialect, 'id')}", (list_param(dialect, drop),))
        if put and now - self._cleaned > KEPT_NS // 24:
            self._cleaned = now
            connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE seen_at < {self._mark}",
                (timestamp(dialect, "timestamp", now - KEPT_NS),))


def _signed(traces: Sequence[Trace], writer: str) -> list[tuple[str, str, int, int]]:
    """Rows that say who wrote the traces and when they were, where that is not what the database says already."""
    rows = []
    for trace in traces:
        spans = [facts.span for facts in trace.facts.values()]
        start = min([_LAST_NS, *(span.start_ns for span in spans)])
        end = min(_LAST_NS, max([span.end_ns or span.start_ns for span in spans]))
        signature = (start, end)
        if trace.marker == writer and trace.signed == signature:
            continue
        trace.marker, trace.signed = writer, signature
        rows.append((trace.trace_id, writer, start, end))
    rows.sort()
    return rows


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
