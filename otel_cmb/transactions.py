"""How transactions begin, and how runs are locked, so that one writer at a time decides the orders and links of a run."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from otel_cmb.dialects import SQLITE
from otel_cmb.faults import Fault, classify
from otel_cmb.sqlite_turns import begin_immediate

__all__ = ["begin_read", "begin_write", "lock_mode", "lock_runs"]

LOCK_WAIT = "10s"
"""Longest wait for one lock on PostgreSQL: then the attempt counts as an outage and is tried again."""

ROW_LOCK_ENV = "OTEL_CMB_RUN_LOCKS"
"""`rows` in this variable takes the row-lock path on an engine that has advisory locks (for tests)."""


def begin_write(connection: Connection) -> None:
    """Begin the writing transaction. SQLite: `BEGIN IMMEDIATE`, so that no other writer comes between what is read and
    what is written. PostgreSQL: `BEGIN` (READ COMMITTED) with a bound on lock waits, for this transaction only."""
    if connection.dialect.name == SQLITE:
        begin_immediate(connection)
    else:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")


def begin_read(connection: Connection) -> None:
    """Begin a transaction that sees one state of the database throughout and writes nothing."""
    if connection.dialect.name == SQLITE:
        connection.exec_driver_sql("BEGIN")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


_lock_modes: weakref.WeakKeyDictionary[Engine, str] = weakref.WeakKeyDictionary()


def lock_mode(connection: Connection) -> str:
    """How runs are locked here: `none` (SQLite: one writer anyway), `advisory`, or `rows` for engines that speak
    PostgreSQL but have no advisory locks, or accept them and lock nothing. Found out once per engine, by trying."""
    mode = _lock_modes.get(connection.engine)
    if mode is None:
        mode = _lock_modes[connection.engine] = _find_lock_mode(connection)
    return mode


def _find_lock_mode(connection: Connection) -> str:
    if connection.dialect.name == SQLITE:
        return "none"
    if os.environ.get(ROW_LOCK_ENV) == "rows":
        return "rows"
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(7021951342208137)")
            held = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            ).scalar()
    except DBAPIError as error:
        if classify(error).fault is Fault.OUTAGE:
            raise
        return "rows"
    return "advisory" if held else "rows"


def _lock_key(run_id: str) -> int:
    digest = hashlib.blake2b(b"otel-cmb run " + run_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def lock_runs(connection: Connection, run_ids: Iterable[str], runs_table: str = '"workflow_runs"') -> None:
    """Make this transaction the only writer of these runs until it ends.

    All writers lock in one order (keys or ids, sorted), so they cannot deadlock on each other. On PostgreSQL call it
    before anything of the runs is read. `runs_table` is the qualified name for the row-lock path; a run that does not
    exist has no row to lock, its insertion is what collides.
    """
    ids = sorted(set(run_ids))
    mode = lock_mode(connection)
    if not ids or mode == "none":
        return
    if mode == "advisory":
        # The sorted subquery is not flattened, so the locks are taken in its order.
        connection.exec_driver_sql(
            "SELECT count(pg_advisory_xact_lock(k)) FROM "
            "(SELECT k FROM unnest(%s::bigint[]) AS k ORDER BY k) AS keys",
            (sorted(map(_lock_key, ids)),),
        )
    else:
        # NO KEY UPDATE: writers exclude each other, the application's inserts (KEY SHARE by foreign key) go on.
        connection.exec_driver_sql(
            f'SELECT id FROM {runs_table} WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE', (ids,)
        )
