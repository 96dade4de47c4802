"""How long Jaeger's questions take at a million events: `python tests/benchmarks/jaeger_search.py [sqlite|postgresql]`.

All of them lie in the last hour and belong to one service: the worst case. Rows are written directly, in the form the
store writes, because making them is not what is measured.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import create_engine, text
from support import postgres

from otel_cmb import config
from otel_cmb.binding import bind
from otel_cmb.dialects import timestamp
from otel_cmb.engines import make_engine
from otel_cmb.event import Resource, Scope, Span, event_id
from otel_cmb.jaeger.match import TraceQuery
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.search_index import Facts, Part

TRACES, SPANS = 50_000, 20
HOUR = 3600 * 10**9
COLUMNS = (
    "id", "run_id", "session_id", "event_type", "event_subtype", "agent_name", "timestamp", "started_at",
    "completed_at", "duration_ms", "inputs", "outputs", "meta", "execution_order", "depth", "status",
)
RESOURCE, SCOPE = Resource({"service.name": "svc", "host": "h"}), Scope("agents", "1")


def spans_of(n: int, now: int) -> list[Span]:
    start = now - HOUR + n * (HOUR // TRACES)
    trace = f"{random.getrandbits(128):032x}"
    made = []
    for i in range(SPANS):
        attributes = {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4.1", "n": n, "i": i, "bucket": n % 100,
            "gen_ai.response.id": f"{random.getrandbits(96):024x}", "gen_ai.usage.input_tokens": random.randrange(5000),
            "gen_ai.usage.output_tokens": random.randrange(500), "agent": f"agent{i % 5}",
        }
        made.append(Span(trace, f"{random.getrandbits(64):016x}", f"op{i}", start + i * 1000, start + i * 1000 + 10**6,
                         parent_span_id=made[0].span_id if made else None, attributes=attributes, resource=RESOURCE,
                         scope=SCOPE))
    return made


def rows(spans: list[Span], order: int, dialect: str) -> Iterator[tuple[Any, ...]]:
    for i, span in enumerate(spans):
        moment = timestamp(dialect, "timestamp", span.start_ns)
        meta = json.dumps({"tokens": 3, "otel": {
            "trace_id": span.trace_id, "span_id": span.span_id, "parent_span_id": span.parent_span_id or "0" * 16,
            "name": span.name, "start_ns": span.start_ns, "end_ns": span.end_ns, "attributes": span.attributes,
            "refs": {"gen_ai.input.messages": "inputs.message"}, "resource": "r" * 32, "scope": "s" * 32}})
        yield (event_id(span.trace_id, span.span_id), "run", "session", "llm_call", "complete", "agent", moment, moment,
               moment, 1, json.dumps({"message": "please " * 80}), json.dumps({"response": "answer " * 50}), meta,
               order + i, 0, "completed")


def fill(settings: config.Settings) -> None:
    engine = make_engine(settings)
    with engine.connect() as connection:
        dialect = bind(connection, settings, create=True).dialect
        now = time.time_ns()
        connection.execute(text("INSERT INTO sessions (id, name, created_at, last_active_at) VALUES ('session', 's', "
                                "CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"))
        connection.execute(text("INSERT INTO workflow_runs (id, session_id, mode, agent, model, status) VALUES "
                                "('run', 'session', 'one_shot', 'a', 'm', 'completed')"))
        connection.execute(text("INSERT INTO otel_cmb_resources VALUES (:a, :b)"), [
            {"a": "r" * 32, "b": json.dumps({"attributes": RESOURCE.attributes})},
            {"a": "s" * 32, "b": json.dumps({"name": "agents", "version": "1"})}])
        connection.execute(text("INSERT INTO otel_cmb_operations VALUES ('svc', :o, 1, 1)"),
                           [{"o": f"op{i}"} for i in range(SPANS)])
        connection.commit()
        events, parts = [], []
        facts = Facts()
        for n in range(TRACES):
            spans = spans_of(n, now)
            events += rows(spans, n * SPANS, dialect)
            part = Part(spans[0].start_ns, n, spans[0].trace_id, spans[0].start_ns, spans[0].start_ns)
            for span in spans:
                part.add(span, facts)
            parts.append(part.row())
            if len(parts) == 1000:
                if dialect == "sqlite":
                    connection.exec_driver_sql("BEGIN")
                put(connection, dialect, "execution_events", COLUMNS, events)
                put(connection, dialect, "otel_cmb_search", (
                    "key_ns", "part", "trace_id", "first_ns", "last_ns", "shortest_ns", "longest_ns", "tags"), parts)
                connection.commit()
                connection.connection.commit()  # COPY went past SQLAlchemy
                events, parts = [], []
    engine.dispose()
    if "postgresql" in settings.database_url:
        engine = create_engine(settings.database_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ANALYZE"))
        engine.dispose()


def put(connection: Any, dialect: str, table: str, columns: tuple[str, ...], values: list[tuple[Any, ...]]) -> None:
    names = ", ".join(columns)
    if dialect == "sqlite":
        connection.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", values)
        return
    with connection.connection.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
        for value in values:
            copy.write_row(value)


def timed(title: str, ask: Callable[[], Any]) -> None:
    ask()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        answer = ask()
        times.append(time.perf_counter() - start)
    print(f"{title:60} {sorted(times)[2] * 1000:8.1f} ms   {answer}", flush=True)


def ask(settings: config.Settings) -> None:
    query = JaegerQuery(settings)
    now = time.time_ns()
    hour = {"start_min_ns": now - 2 * HOUR, "start_max_ns": now}
    count = lambda **wanted: len(list(query.find(TraceQuery(service="svc", **hour, **wanted))))  # noqa: E731
    some = next(iter(query.find(TraceQuery(service="svc", limit=1))))[0].trace_id
    timed("services", query.services)
    timed("operations", lambda: len(query.operations("svc")))
    timed("GetTraces, one", lambda: len(query.trace(some)))
    timed("FindTraces, service", lambda: count(limit=20))
    timed("FindTraces, service and common attribute", lambda: count(limit=20, attributes={"agent": "agent1"}))
    timed("FindTraces, attribute of one trace in a hundred", lambda: count(limit=20, attributes={"bucket": "42"}))
    timed("FindTraces, attribute of one trace", lambda: count(limit=20, attributes={"n": "7"}))
    timed("FindTraces, attribute of none", lambda: count(limit=20, attributes={"n": "no"}))
    timed("FindTraces, duration of none", lambda: count(limit=20, duration_min_ns=10**12))
    timed("summaries, service and attribute",
          lambda: len(list(query.summaries(TraceQuery(service="svc", limit=20, **hour, attributes={"bucket": "42"})))))
    timed("dependencies", lambda: query.dependencies(now - HOUR, now))
    query.close()


def main(kind: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        start = time.time()
        if kind == "sqlite":
            settings = config.load({}, database_url=f"sqlite:///{directory}/x.db")
            fill(settings)
            print(f"filled in {time.time() - start:.0f} s, {Path(directory, 'x.db').stat().st_size / 1e6:.0f} MB")
            ask(settings)
            return
        server = postgres.Server.embedded()
        try:
            with server.database() as url:
                settings = config.load({}, database_url=postgres.text(url))
                fill(settings)
                print(f"filled in {time.time() - start:.0f} s")
                ask(settings)
        finally:
            server.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite")
