"""The raw limit: the same finished rows into the same table with the same indexes, by the fastest plain statement.

SQLite: `executemany` in WAL mode, synchronous=NORMAL, foreign keys on. PostgreSQL: COPY into a temporary table, then
INSERT ... ON CONFLICT DO NOTHING. 512 rows a transaction, rows built beforehand.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

BATCH = 512
_COPY_FIRST = ("sessions", "workflow_runs", "dag_nodes")


def sqlite_rows(path: Path) -> tuple[list[str], dict[str, list[tuple[Any, ...]]]]:
    """DDL of the application's tables and all rows of a file that otel-cmb wrote."""
    source = sqlite3.connect(path)
    wanted = (*_COPY_FIRST, "projects", "workflow_steps", "execution_events")
    ddl = [row[0] for row in source.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name NOT LIKE 'otel_cmb_%' "
        "AND name NOT LIKE 'sqlite_%' ORDER BY type DESC")]
    rows = {table: source.execute(f"SELECT * FROM {table}").fetchall() for table in wanted}
    source.close()
    return ddl, rows


def sqlite_limit(path: Path, ddl: list[str], rows: dict[str, list[tuple[Any, ...]]]) -> float:
    """Rows per second of the plain insert into a new file at `path`."""
    target = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        target.execute(f"PRAGMA {pragma}")
    for statement in ddl:
        target.execute(statement)
    for table in _COPY_FIRST:
        for row in rows[table]:
            target.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
    events = sorted(rows["execution_events"], key=lambda row: row[18])  # by execution_order: parents first
    statement = f"INSERT INTO execution_events VALUES ({','.join('?' * len(events[0]))})"
    begun = time.perf_counter()
    for start in range(0, len(events), BATCH):
        target.execute("BEGIN IMMEDIATE")
        target.executemany(statement, events[start:start + BATCH])
        target.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    target.close()
    return len(events) / elapsed


def postgresql_limit(source_url: str, target_url: str) -> float:
    """Rows per second of staged COPY into the owned schema at `target_url`, of the rows that are at `source_url`."""
    import psycopg

    with psycopg.connect(source_url) as source:
        first = {table: source.execute(f"SELECT * FROM {table}").fetchall() for table in ("sessions", "workflow_runs")}
        cursor = source.execute("SELECT * FROM execution_events ORDER BY execution_order")
        names = [column.name for column in cursor.description or ()]
        plain = [tuple(_text(value) for value in row) for row in cursor.fetchall()]
    with psycopg.connect(target_url) as target:
        for table, found in first.items():
            for row in found:
                target.execute(f"INSERT INTO {table} VALUES ({','.join(['%s'] * len(row))})", [_text(value) for value in row])
        target.execute("CREATE TEMP TABLE staged (LIKE execution_events)")
        target.commit()
        columns = ", ".join(names)
        begun = time.perf_counter()
        for start in range(0, len(plain), BATCH):
            with target.cursor() as cursor2:
                with cursor2.copy(f"COPY staged ({columns}) FROM STDIN") as copy:
                    for row in plain[start:start + BATCH]:
                        copy.write_row(row)
                cursor2.execute(
                    f"INSERT INTO execution_events ({columns}) SELECT {columns} FROM staged ON CONFLICT DO NOTHING")
                cursor2.execute("TRUNCATE staged")
            target.commit()
        elapsed = time.perf_counter() - begun
    return len(plain) / elapsed


def _text(value: Any) -> Any:
    import orjson

    return orjson.dumps(value).decode() if isinstance(value, (dict, list)) else value
