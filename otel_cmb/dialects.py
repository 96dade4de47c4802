"""What SQLite and PostgreSQL do differently: URLs, engines, transactions, locks, SQL spelling.

An engine made here is ours alone: it is never the application's engine, so that no commit of ours can commit work of
the application. Elsewhere the SQL is one. What an error means is told by :mod:`otel_cmb.faults`, repeated here.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import select
import sqlite3
import stat
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote as quote_path

import orjson
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from otel_cmb.checkpoints import ITSELF_PAGES
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, DatabaseURLError
from otel_cmb.faults import Fault, Verdict, classify
from otel_cmb.sqlite_rows import insert_rows
from otel_cmb.sqlite_turns import begin_immediate

__all__ = [
    "POSTGRESQL", "SQLITE", "Fault", "Verdict", "begin_read", "begin_write", "check_url", "classify", "clear_errors",
    "connect", "identifier", "in_list", "insert_sql", "list_param", "lock_mode", "lock_runs", "make_engine", "mark",
    "qualified", "schema_identifier", "timestamp", "timestamp_ns", "update_sql",
]

SQLITE, POSTGRESQL = "sqlite", "postgresql"

_POSTGRESQL_DRIVERS = ("psycopg", "psycopg2")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

LOCK_WAIT = "10s"
"""Longest wait for one lock on PostgreSQL: then the attempt counts as an outage and is tried again."""

PING_AFTER = 1.0
"""Seconds after which a connection of the pool is asked whether it is alive before it is used again."""

ROW_LOCK_ENV = "OTEL_CMB_RUN_LOCKS"
"""`rows` in this variable takes the row-lock path on an engine that has advisory locks (for tests)."""


# -- URLs ---------------------------------------------------------------------------------------------------------


def check_url(settings: Settings, *, read_only: bool = False) -> URL:
    """The database URL, checked as far as that goes without a server; a SQLite path comes back absolute.

    Raises :class:`DatabaseURLError` for a URL that can never work: malformed, an unknown dialect, a missing driver, an
    in-memory SQLite, a place where no file can be written (or, with `read_only`, where no database is). Touches the
    disk, creates nothing, connects to nothing.
    """
    shown = safe_url(settings.database_url)
    text = settings.database_url.strip()
    if text.startswith("postgres://"):
        text = "postgresql" + text[len("postgres"):]
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise DatabaseURLError(
            f"database URL {shown!r} cannot be read; expected sqlite:///path/to/file.db or "
            "postgresql+psycopg://user:password@host:5432/database (special characters in a password as %XX)"
        ) from None
    backend, _, driver = url.drivername.partition("+")
    if backend == SQLITE and driver in {"", "pysqlite"}:
        return URL.create(SQLITE, database=_check_file(url, shown, read_only=read_only))
    if backend == POSTGRESQL and driver in {"", *_POSTGRESQL_DRIVERS}:
        return url.set(drivername=f"{POSTGRESQL}+{_check_driver(driver, shown)}")
    raise DatabaseURLError(
        f"database URL {shown!r} names {url.drivername!r}; supported are sqlite, postgresql+psycopg and "
        "postgresql+psycopg2"
    )


def _check_driver(driver: str, shown: str) -> str:
    wanted = (driver,) if driver else _POSTGRESQL_DRIVERS
    for name in wanted:
        with suppress(ImportError):  # not installed, or installed without a libpq
            importlib.import_module(name)
            return name
    raise DatabaseURLError(
        f"database URL {shown!r} needs the PostgreSQL driver {' or '.join(wanted)}, which cannot be imported; "
        "install it with: pip install 'otel-cmb[postgres]'"
    )


def _check_file(url: URL, shown: str, *, read_only: bool) -> str:
    path = url.database or ""
    if path in {"", ":memory:"} or "mode=memory" in shown or path.startswith("file::memory:"):
        raise DatabaseURLError(
            f"database URL {shown!r} is an in-memory SQLite database, which no other process or thread can see; "
            "name a file: sqlite:///otel_cmb.db"
        )
    if path.startswith("file:"):
        raise DatabaseURLError(f"database URL {shown!r} is a SQLite URI; write the plain path: sqlite:////absolute/file.db")
    if url.host:
        raise DatabaseURLError(
            f"database URL {shown!r} names a host ({url.host!r}), SQLite has none; write three slashes for a relative "
            "path (sqlite:///file.db), four for an absolute one (sqlite:////absolute/file.db)"
        )
    path = os.path.abspath(os.path.expanduser(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        _check_directory(path, shown, read_only=read_only)
        return path
    except OSError as error:
        raise DatabaseURLError(f"database {shown!r}: {path} cannot be looked at: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DatabaseURLError(f"database {shown!r}: {path} is a directory; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise DatabaseURLError(f"database {shown!r}: {path} is not a regular file")
    if not os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK):
        wanted = "read" if read_only else "written"
        raise DatabaseURLError(f"database {shown!r}: {path} cannot be {wanted}: Permission denied")
    if status.st_size and not _is_sqlite(path):  # an empty file is an empty database
        raise DatabaseURLError(f"database {shown!r}: {path} is not a SQLite database; name another file")
    if not read_only and not os.access(os.path.dirname(path), os.W_OK):
        raise DatabaseURLError(
            f"database {shown!r}: directory {os.path.dirname(path)} is not writable, and SQLite keeps its journal there"
        )
    return path


def _is_sqlite(path: str) -> bool:
    """Asked of SQLite itself: opening and closing the file here would drop the locks that other connections of this
    process hold on it (POSIX advisory locks; sqlite.org/howtocorrupt.html, section 2.2)."""
    connection = sqlite3.connect(f"file:{quote_path(path)}?mode=ro", uri=True, timeout=0)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        return True  # locked, or in a state only a writer can recover: a database all the same
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
    return True


def _check_directory(path: str, shown: str, *, read_only: bool) -> None:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise DatabaseURLError(f"database {shown!r}: directory {directory} does not exist; create it or name another")
    if read_only:
        raise DatabaseURLError(f"database {shown!r}: there is no file {path}; nothing has been recorded there yet")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DatabaseURLError(f"database {shown!r}: directory {directory} is not writable; name another")


# -- engines ------------------------------------------------------------------------------------------------------


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
    uri = f"file:{quote_path(path)}?mode={'ro' if read_only else 'rwc'}"

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


# -- transactions and locks ---------------------------------------------------------------------------------------


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


# -- spelling -----------------------------------------------------------------------------------------------------


def mark(dialect: str) -> str:
    """The placeholder of a bound value for `exec_driver_sql`."""
    return "?" if dialect == SQLITE else "%s"


def identifier(name: str) -> str:
    """The name, quoted for both dialects."""
    return '"' + name.replace('"', '""') + '"'


def schema_identifier(name: str) -> str:
    """A PostgreSQL schema's name, chosen by the user: quoted, and safe in a statement where `%s` marks a value."""
    return identifier(name).replace("%", "%%")


def qualified(table: str, schema: str | None = None) -> str:
    """The table's quoted name, with its schema where there is one."""
    return identifier(table) if schema is None else f"{schema_identifier(schema)}.{identifier(table)}"


def insert_sql(
    dialect: str, table: str, columns: Sequence[str], *, conflict: Sequence[str] = (), update: Sequence[str] = (),
) -> str:
    """`INSERT` for tuples in the order of `columns`; `table` is a qualified name. With `conflict` (key columns): a row
    that is there already is left alone, or gets the new values of the columns in `update`."""
    names = ", ".join(map(identifier, columns))
    marks = ", ".join([mark(dialect)] * len(columns))
    text = f"INSERT INTO {table} ({names}) VALUES ({marks})"
    if not conflict:
        return text
    changes = ", ".join(f"{identifier(name)} = excluded.{identifier(name)}" for name in update)
    action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
    return f"{text} ON CONFLICT ({', '.join(map(identifier, conflict))}) {action}"


def update_sql(dialect: str, table: str, columns: Sequence[str], key: Sequence[str] = ("id",)) -> str:
    """`UPDATE` by key for tuples in the order of `columns` followed by `key`."""
    changes = ", ".join(f"{identifier(name)} = {mark(dialect)}" for name in columns)
    where = " AND ".join(f"{identifier(name)} = {mark(dialect)}" for name in key)
    return f"UPDATE {table} SET {changes} WHERE {where}"


def in_list(dialect: str, column: str) -> str:
    """Condition that a text column (quoted here) is one of a list given as **one** bound value, see
    :func:`list_param`: the statement is the same for any length, and no limit on placeholders applies."""
    if dialect == SQLITE:
        return f"{identifier(column)} IN (SELECT value FROM json_each(?))"
    return f"{identifier(column)} = ANY(%s)"


def list_param(dialect: str, values: Iterable[str]) -> Any:
    """The bound value for :func:`in_list`."""
    items = list(values)
    return orjson.dumps(items).decode() if dialect == SQLITE else items


def timestamp(dialect: str, kind: str, ns: int) -> Any:
    """Nanoseconds since the epoch as the bound value of a column of `kind` (`timestamp` or `timestamptz`), in UTC
    whatever the server's time zone. On SQLite the text SQLAlchemy's own types read and write."""
    moment = _EPOCH + timedelta(microseconds=ns // 1000)
    if dialect == SQLITE:
        return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    return moment if kind == "timestamptz" else moment.replace(tzinfo=None)


def timestamp_ns(value: str | datetime) -> int:
    """The reverse of :func:`timestamp`, for what a driver returns; a value without a zone is UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
