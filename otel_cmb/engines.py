"""Engines of our own, and connections that can be trusted: what is set on each, and which are not used again.

An engine made here is ours alone: it is never the application's engine, so that no commit of ours can commit work of
the application.
"""

from __future__ import annotations

import os
import select
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from otel_cmb.checkpoints import ITSELF_PAGES
from otel_cmb.config import Settings, safe_url
from otel_cmb.database_url import check_url
from otel_cmb.dialects import SQLITE
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError
from otel_cmb.faults import Fault, classify
from otel_cmb.sqlite_rows import insert_rows

__all__ = ["clear_errors", "connect", "make_engine"]

PING_AFTER = 1.0
"""Seconds after which a connection of the pool is asked whether it is alive before it is used again."""


def make_engine(settings: Settings, *, read_only: bool = False) -> Engine:
    """A new engine of our own; the caller disposes of it. Does not connect.

    Transactions are begun by :func:`begin_write` or :func:`begin_read` and ended by the connection's `commit()` or
    `rollback()`; on SQLite a statement outside of them commits by itself. `read_only` never creates a file and never
    writes. Raises :class:`DatabaseURLError` like :func:`check_url`. A connection inherited by a forked child is never
    used there.
    """
    url = check_url(settings, read_only=read_only)
    if url.drivername == SQLITE:
        engine = _sqlite_engine(url, url.database or "", settings, read_only)
    else:
        engine = _postgresql_engine(url, settings)
    _refuse_inherited_connections(engine)
    if url.drivername != SQLITE:
        _refuse_lost_connections(engine)
    return engine


def _sqlite_engine(url: URL, path: str, settings: Settings, read_only: bool) -> Engine:
    uri = f"file:{quote(path)}?mode={'ro' if read_only else 'rwc'}"

    def connect() -> sqlite3.Connection:
        # isolation_level=None: the driver begins nothing by itself, on any Python (3.12's `autocommit` keeps its
        # default, under which this holds).
        connection = sqlite3.connect(
            uri, uri=True, timeout=settings.busy_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            if not read_only:
                connection.execute("PRAGMA synchronous=FULL")  # a commit that was reported survives a power cut
                connection.execute(f"PRAGMA wal_autocheckpoint={ITSELF_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine(
        url, creator=connect, poolclass=QueuePool, pool_size=2, max_overflow=8, pool_timeout=settings.connect_timeout
    )
    _refuse_removed_files(engine, path)

    @event.listens_for(engine, "do_executemany")
    def _in_few_steps(cursor: sqlite3.Cursor, statement: str, parameters: Sequence[Any], _context: Any) -> bool:
        insert_rows(cursor, statement, parameters)
        return True

    return engine


def _refuse_removed_files(engine: Engine, path: str) -> None:
    """SQLite goes on writing into a file that was deleted or replaced, and commits rows that nobody will ever see."""

    def identity() -> tuple[int, int] | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @event.listens_for(engine, "connect")
    def _remember_file(_connection: Any, record: Any) -> None:
        record.info["file"] = identity()

    @event.listens_for(engine, "checkout")
    def _check_file(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["file"] != identity():
            raise DisconnectionError(f"{path} was deleted or replaced")


def _postgresql_engine(url: URL, settings: Settings) -> Engine:
    defaults: dict[str, Any] = {
        "connect_timeout": max(2, round(settings.connect_timeout)),  # libpq knows no shorter one
        "application_name": "otel-cmb",
        "client_encoding": "utf8",
        "keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    arguments = {name: value for name, value in defaults.items() if name not in url.query}
    if url.drivername.endswith("+psycopg"):
        # A prepared statement lives in a session; behind pgbouncer in transaction mode there is no session.
        arguments["prepare_threshold"] = None
        options: dict[str, Any] = {}
    else:
        # psycopg2 sends row by row otherwise, a round trip each (psycopg 3 sends them in a pipeline by itself).
        options = {"executemany_mode": "values_plus_batch", "executemany_batch_page_size": 256}
    engine = create_engine(
        url, connect_args=arguments, **options, poolclass=QueuePool, pool_size=2, max_overflow=8,
        pool_recycle=1800, pool_timeout=settings.connect_timeout, use_native_hstore=False,
        pool_use_lifo=True,  # the connection that was used last: its server process has everything at hand
        # Under REPEATABLE READ the snapshot would be older than the lock we waited for. Sent with each BEGIN.
        isolation_level="READ COMMITTED",
    )
    _accept_any_version(engine)
    return engine


def _accept_any_version(engine: Engine) -> None:
    """SQLAlchemy stops at a version text it does not know; engines that only speak PostgreSQL count as 14."""
    dialect: Any = engine.dialect
    known = dialect._get_server_version_info

    def version(connection: Connection) -> tuple[int, ...]:
        try:
            found: tuple[int, ...] = known(connection)
        except AssertionError:
            return (14,)
        return found

    dialect._get_server_version_info = version


_inherited: list[Any] = []
"""Connections of the parent found in a forked child: kept from the garbage collector, which would close them."""


def _refuse_inherited_connections(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _remember_process(_connection: Any, record: Any) -> None:
        record.info["pid"] = os.getpid()

    @event.listens_for(engine, "checkout")
    def _check_process(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["pid"] != os.getpid():
            _inherited.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("this connection belongs to the parent process")


def _refuse_lost_connections(engine: Engine) -> None:
    """A connection that was used a moment ago, and on which nothing came since, is not asked whether it is alive: that is a
    round trip of each transaction (`pool_pre_ping`). A server that goes away says so, or its host closes the connection."""

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkin")
    def _remember_use(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _check_alive(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info["used"] < PING_AFTER and not _has_news(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError(str(error)) from error


def _has_news(connection: Any) -> bool:
    """Whether something came on a connection nobody uses: most likely its end."""
    if connection.closed or not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def connect(engine: Engine) -> Connection:
    """A connection, or one clear error: :class:`DatabaseUnavailableError` for an outage,
    :class:`ConfigurationError` where trying again would not help (wrong password, no such database)."""
    with clear_errors(engine):
        return engine.connect()


@contextmanager
def clear_errors(engine: Engine) -> Iterator[None]:
    """What the driver raises inside, as one clear error with the database's name and no password, see
    :func:`connect`."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        fault, reason = classify(error)
        message = f"{safe_url(engine.url.render_as_string(hide_password=True))}: {reason}"
        raise (DatabaseUnavailableError if fault is Fault.OUTAGE else ConfigurationError)(message) from error
