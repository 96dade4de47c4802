"""Traces out of the database, by id and by search: the one query layer under Jaeger's gRPC and HTTP faces.

Every question is answered from one state of the database (:mod:`otel_cmb.jaeger.reading`). Never writes but for
:meth:`JaegerQuery.purge`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine

from otel_cmb.binding import Binding, bind, examine
from otel_cmb.config import Settings
from otel_cmb.dialects import qualified
from otel_cmb.engines import connect, make_engine
from otel_cmb.errors import DatabaseURLError
from otel_cmb.event import Span
from otel_cmb.jaeger.match import KINDS, TraceQuery, kind_name
from otel_cmb.jaeger.reading import Reading
from otel_cmb.jaeger.summary import Summary, dependencies_of, summarize
from otel_cmb.search_index import forget_everywhere
from otel_cmb.transactions import begin_read, begin_write

__all__ = ["JaegerQuery"]

_MAX_BODIES = 4096
"""Most resources and shapes that are remembered, for all questions."""
_PURGED = (
    "files", "messages", "execution_events", "otel_cmb_spans", "otel_cmb_traces", "otel_cmb_search",
    "otel_cmb_operations",
)


class JaegerQuery:
    """Answers Jaeger's questions from one database. Threads may share it. Connects on first use; a database that does
    not exist yet has no traces. Raises :class:`CMBError` when the database cannot be read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._binding: Binding | None = None
        self._bodies: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        """Dispose of the connections; the next question connects again."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine, self._binding = None, None

    # -- by id -------------------------------------------------------------------------------------------------------

    def trace(self, trace_id: str) -> list[Span]:
        """All spans of a trace, by start; empty if there is none."""
        return next(iter(self.traces([trace_id])), [])

    def traces(self, trace_ids: Iterable[str]) -> Iterator[list[Span]]:
        """The traces that exist, one by one, in the order asked for."""
        wanted = list(dict.fromkeys(trace_ids))
        with self._reading() as reading:
            if reading is not None:
                yield from reading.traces(wanted)

    # -- search ------------------------------------------------------------------------------------------------------

    def find(self, query: TraceQuery) -> Iterator[list[Span]]:
        """Whole traces of which one span matches, newest first, at most `query.limit`."""
        with self._reading() as reading:
            if reading is not None:
                yield from reading.find(query)

    def summaries(self, query: TraceQuery) -> Iterator[Summary]:
        """What a list of search results shows of each trace; prompts and answers are not even read for it."""
        with self._reading() as reading:
            if reading is not None:
                yield from (summarize(spans) for spans in reading.find(query, light=True))

    def services(self) -> list[str]:
        """Names of the services that have spans here."""
        with self._reading() as reading:
            return [] if reading is None else sorted({service for service, _, _ in reading.operations()} - {""})

    def operations(self, service: str, kind: str = "") -> list[tuple[str, str]]:
        """Names and kinds of a service's spans; of any service if it is empty."""
        with self._reading() as reading:
            if reading is None:
                return []
            wanted = KINDS.index(kind.lower()) if kind and kind.lower() in KINDS else None
            if kind and wanted is None:
                return []
            return sorted({
                (name, kind_name(number)) for owner, name, number in reading.operations(service)
                if (not service or owner == service) and (wanted is None or number == wanted)
            })

    def dependencies(self, start_ns: int, end_ns: int) -> list[tuple[str, str, int]]:
        """Calling service, called service and number of calls, of spans that start in the time range; from the newest
        2,000 traces of more than one service."""
        with self._reading() as reading:
            return [] if reading is None else dependencies_of(reading.crossing(start_ns, end_ns))

    def purge(self) -> None:
        """Delete every trace, and what is known of services and operations; runs stay. For tests of Jaeger's storage
        API. `PermissionError` for a database that belongs to the application."""
        with self._reading() as reading:
            if reading is None:
                return
            if not reading.binding.owned:
                raise PermissionError("the database belongs to the application; purge is for owned databases only")
            schema = reading.binding.schema
        engine = make_engine(self._settings)
        try:
            with engine.connect() as connection:
                begin_write(connection)
                for table in _PURGED:
                    connection.exec_driver_sql(f"DELETE FROM {qualified(table, schema)}")
                connection.commit()
        finally:
            engine.dispose()
        forget_everywhere()

    # -- connection --------------------------------------------------------------------------------------------------

    def _reading(self) -> _Session:
        return _Session(self._connected)

    def _connected(self) -> tuple[Connection, Binding, dict[str, dict[str, Any]]] | None:
        with self._lock:
            if self._engine is None:
                try:
                    self._engine = make_engine(self._settings, read_only=True)
                except DatabaseURLError as error:
                    if "nothing has been recorded" in str(error):
                        return None
                    raise
            engine = self._engine
        connection = connect(engine)
        try:
            if self._binding is None:
                if examine(connection, self._settings, read_only=True).empty:
                    connection.close()
                    return None
                connection.rollback()
                self._binding = bind(connection, self._settings, create=False, read_only=True)
            begin_read(connection)
        except BaseException:
            connection.close()
            raise
        if len(self._bodies) > _MAX_BODIES:
            self._bodies.clear()
        return connection, self._binding, self._bodies


class _Session:
    """`with`: a :class:`Reading` in a transaction that sees one state of the database, or `None` if there is none."""

    def __init__(self, opened: Callable[[], tuple[Connection, Binding, dict[str, dict[str, Any]]] | None]) -> None:
        self._opened = opened
        self._connection: Connection | None = None

    def __enter__(self) -> Reading | None:
        found = self._opened()
        if found is None:
            return None
        self._connection = found[0]
        return Reading(*found)

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None:
            try:
                self._connection.rollback()
            finally:
                self._connection.close()
