"""Whose turn it is to write: waiting for SQLite's one writer.

SQLite waits in sleeps that grow to a tenth of a second (`sqlite3_busy_timeout`, src/main.c), so that who has waited long asks
more rarely than who has just come: 16 spans beside three programs that write all the time waited up to 0.8 to 2.1 s. Here
everybody asks every millisecond, 0.2 to 0.5 s; more rarely only after a second, when it is no turn of another writer but
somebody who holds the file.
"""

from __future__ import annotations

import sqlite3
import time

from sqlalchemy import Connection

from otel_cmb import clock

__all__ = ["begin_immediate"]

_BEGIN = "BEGIN IMMEDIATE"
_TURN = 1.0
"""Seconds in which a writer's turn is over."""
_SOON, _LATER = 0.001, 0.01


def begin_immediate(connection: Connection) -> None:
    """`BEGIN IMMEDIATE`, waiting up to the connection's busy timeout, which holds again afterwards. Raises what SQLAlchemy
    raises for the statement."""
    driver = connection.connection.driver_connection
    assert driver is not None
    milliseconds = driver.execute("PRAGMA busy_timeout").fetchone()[0]
    try:
        if milliseconds:
            driver.execute("PRAGMA busy_timeout=0")
        if not _has_begun(driver, milliseconds / 1000):
            connection.exec_driver_sql(_BEGIN)  # the last attempt, and the one whose error is told
        elif not connection.in_transaction():
            connection.begin()  # SQLAlchemy's part, which says nothing to the driver
    finally:
        if milliseconds:
            driver.execute(f"PRAGMA busy_timeout={milliseconds}")


def _has_begun(driver: sqlite3.Connection, seconds: float) -> bool:
    begun = clock.monotonic()
    while True:
        try:
            driver.execute(_BEGIN)
        except sqlite3.Error as error:
            waited = clock.monotonic() - begun
            if "database is locked" not in str(error) or waited >= seconds:
                return False
            time.sleep(_SOON if waited < _TURN else _LATER)
        else:
            return True
