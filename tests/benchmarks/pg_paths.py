"""Which way of writing event rows to PostgreSQL is fastest? Measured, so that the store need not guess.

    python tests/benchmarks/pg_paths.py [--rows 8192] [--rounds 5] [--driver psycopg|psycopg2] [--durable]

Each way writes the same rows (1.5 to 2.5 kB, foreign keys and all indexes of the owned schema) in transactions of 256
and of 512 and must leave the same table: a row that is there already is completed (`ON CONFLICT DO UPDATE`) or left
alone. Reported: rows per second of the median round. Uses OTEL_CMB_TEST_POSTGRESQL_URL or an embedded server.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import postgres

from otel_cmb import config, dialects, engines, event, migrations, transactions

COLUMNS = (
    "id", "run_id", "session_id", "event_type", "event_subtype", "agent_name", "timestamp", "started_at",
    "completed_at", "duration_ms", "inputs", "outputs", "meta", "execution_order", "depth", "status",
)
KEPT = ("event_subtype", "completed_at", "duration_ms", "outputs", "meta", "status")
TABLE = '"execution_events"'


def rows(count: int, runs: list[str], session: str) -> list[tuple[Any, ...]]:
    """Rows like those of agent calls: mostly JSON."""
    chance = random.Random(7)
    words = [f"word{number}" for number in range(500)]
    made = []
    start = 1_766_000_000_000_000_000
    trace = ""
    for number in range(count):
        if number % 20 == 0:
            trace = f"{chance.getrandbits(128):032x}"
        ns = start + number * 1_000_000
        when = dialects.timestamp("postgresql", "timestamp", ns)
        text = " ".join(chance.choices(words, k=chance.randint(60, 130)))
        otel = {"trace_id": trace, "name": "invoke_agent x", "attributes": text[:300]}
        meta = {"model": "gpt-4.1", "tokens": number, "otel": otel}
        made.append((
            event.event_id(trace, f"{number + 1:016x}"), runs[number % len(runs)], session, "agent_call", "complete",
            "engineer", when, when, when, 12, orjson.dumps({"message": text}).decode(),
            orjson.dumps({"response": text[::-1]}).decode(), orjson.dumps(meta).decode(), number, 1, "completed",
        ))
    return made


def executemany(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    sql = dialects.insert_sql("postgresql", TABLE, COLUMNS, conflict=("id",), update=KEPT)
    connection.exec_driver_sql(sql, batch)


def executemany_nothing(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    connection.exec_driver_sql(dialects.insert_sql("postgresql", TABLE, COLUMNS, conflict=("id",)), batch)


def many_values(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    one = f"({', '.join(['%s'] * len(COLUMNS))})"
    names = ", ".join(map(dialects.identifier, COLUMNS))
    for part in (batch[at:at + 128] for at in range(0, len(batch), 128)):
        sql = f"INSERT INTO {TABLE} ({names}) VALUES {', '.join([one] * len(part))} ON CONFLICT (id) DO NOTHING"
        connection.exec_driver_sql(sql, tuple(value for row in part for value in row))


def unnest(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    """One statement of constant text: a column is one array."""
    kinds = ["text"] * 6 + ["timestamp"] * 3 + ["int", "json", "json", "json", "int", "int", "text"]
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    names = ", ".join(map(dialects.identifier, COLUMNS))
    updates = ", ".join(f"{name} = excluded.{name}" for name in KEPT)
    sql = f"INSERT INTO {TABLE} ({names}) SELECT * FROM unnest({arrays}) ON CONFLICT (id) DO UPDATE SET {updates}"
    connection.exec_driver_sql(sql, tuple(list(column) for column in zip(*batch, strict=True)))


def _copy(connection: Any, table: str, batch: list[tuple[Any, ...]]) -> None:
    names = ", ".join(map(dialects.identifier, COLUMNS))
    with (
        connection.connection.driver_connection.cursor() as cursor,
        cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy,
    ):
        for row in batch:
            copy.write_row(row)


def copy(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    """Cannot complete a row that is there: a lower bound only."""
    _copy(connection, TABLE, batch)


def copy_staging(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    connection.exec_driver_sql(
        f"CREATE TEMP TABLE staging ON COMMIT DROP AS SELECT {', '.join(COLUMNS)} FROM {TABLE} WITH NO DATA"
    )
    _copy(connection, "staging", batch)
    updates = ", ".join(f"{name} = excluded.{name}" for name in KEPT)
    connection.exec_driver_sql(
        f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) SELECT * FROM staging ON CONFLICT (id) DO UPDATE SET {updates}"
    )


def copy_kept_staging(connection: Any, batch: list[tuple[Any, ...]]) -> None:
    """The temporary table lives as long as the session: not for pgbouncer in transaction mode."""
    connection.exec_driver_sql(
        f"CREATE TEMP TABLE IF NOT EXISTS kept_staging ON COMMIT DELETE ROWS AS SELECT {', '.join(COLUMNS)} "
        f"FROM {TABLE} WITH NO DATA"
    )
    _copy(connection, "kept_staging", batch)
    updates = ", ".join(f"{name} = excluded.{name}" for name in KEPT)
    insert = f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) SELECT * FROM kept_staging"
    connection.exec_driver_sql(f"{insert} ON CONFLICT (id) DO UPDATE SET {updates}")


WAYS = {
    "psycopg": (executemany, executemany_nothing, many_values, unnest, copy, copy_staging, copy_kept_staging),
    "psycopg2": (executemany, executemany_nothing, many_values, unnest),
}


@contextmanager
def server(*, durable: bool) -> Any:
    url = os.environ.get(postgres.URL_ENV)
    found = postgres.Server.running(url) if url else postgres.Server.embedded(durable=durable)
    try:
        yield found
    finally:
        if not url:
            found.close()


def measure(engine: Any, way: Any, data: list[tuple[Any, ...]], commit: int) -> tuple[float, float]:
    """Rows per second, and microseconds of this process's CPU per row."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {TABLE} CASCADE")
    spent, cpu = 0.0, time.process_time()
    with engine.connect() as connection:
        for at in range(0, len(data), commit):
            start = time.perf_counter()
            transactions.begin_write(connection)
            way(connection, data[at:at + commit])
            connection.commit()
            spent += time.perf_counter() - start
        cpu = time.process_time() - cpu
        count = connection.exec_driver_sql(f"SELECT count(*) FROM {TABLE}").scalar()
    if count != len(data):
        raise AssertionError(f"{way.__name__} left {count} rows of {len(data)}")
    return len(data) / spent, cpu / len(data) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--driver", choices=sorted(WAYS), default="psycopg")
    parser.add_argument("--durable", action="store_true", help="the embedded server with fsync, as in earnest")
    options = parser.parse_args()
    with server(durable=options.durable) as found, found.database() as url:
        settings = config.load(database_url=postgres.text(url, options.driver))
        engine = engines.make_engine(settings)
        migrations.upgrade(engine, settings)
        session, runs = "s" * 36, [f"run-{number}" for number in range(4)]
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO sessions (id, name, created_at, last_active_at) VALUES (%s, 'x', now(), now())", (session,)
            )
            connection.exec_driver_sql(
                "INSERT INTO workflow_runs (id, session_id, mode, agent, model) VALUES (%s, %s, 'm', 'a', 'm')",
                [(run, session) for run in runs],
            )
        data = rows(options.rows, runs, session)
        size = statistics.mean(sum(len(str(value)) for value in row) for row in data)
        print(f"{options.driver}, {len(data)} rows of {size:.0f} bytes, median of {options.rounds} rounds, rows/s")
        for commit in (256, 512):
            measured: dict[str, list[tuple[float, float]]] = {way.__name__: [] for way in WAYS[options.driver]}
            for _ in range(options.rounds):  # in turns, so that a noisy moment of the machine hits all ways alike
                for way in WAYS[options.driver]:
                    measured[way.__name__].append(measure(engine, way, data, commit))
            for name, found_speeds in measured.items():
                speed = statistics.median(item[0] for item in found_speeds)
                cpu = statistics.median(item[1] for item in found_speeds)
                print(f"  {commit:4d} per commit  {name:22s} {speed:8.0f}   {cpu:5.0f} us/row of our process's CPU")
        engine.dispose()


if __name__ == "__main__":
    main()
