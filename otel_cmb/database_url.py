"""Database URLs, checked before anything connects: what can never work is one clear sentence at once."""

from __future__ import annotations

import importlib
import os
import sqlite3
import stat
from contextlib import suppress
from urllib.parse import quote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import POSTGRESQL, SQLITE
from otel_cmb.errors import ConfigurationError, DatabaseURLError

__all__ = ["check_url"]

_POSTGRESQL_DRIVERS = ("psycopg", "psycopg2")


def check_url(settings: Settings, *, read_only: bool = False) -> URL:
    """The database URL, checked as far as that goes without a server; a SQLite path comes back absolute.

    Raises :class:`DatabaseURLError` for a URL that can never work: malformed, an unknown dialect, a missing driver, an
    in-memory SQLite, a place where no file can be written (or, with `read_only`, where no database is). A SQLite path
    that is no text in UTF-8 is a :class:`ConfigurationError`: nothing can be kept for it, not even a journal. Touches
    the disk, creates nothing, connects to nothing.
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
    if "@" in (url.host or ""):
        raise DatabaseURLError(
            f"database URL {shown!r} has an `@` in its password or host name; write it as %40 (and other special characters "
            "of a password as %XX, see urllib.parse.quote)"
        )
    backend, _, driver = url.drivername.partition("+")
    if backend == SQLITE and driver in {"", "pysqlite"}:
        return URL.create(SQLITE, database=_check_file(url, text, shown, read_only=read_only))
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


def _check_file(url: URL, text: str, shown: str, *, read_only: bool) -> str:
    path = url.database or ""
    if path in {"", ":memory:"} or "mode=memory" in text or path.startswith("file::memory:"):
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
    if (readable := path.encode("utf-8", "backslashreplace").decode()) != path:
        raise ConfigurationError(
            f"database {shown!r}: the name of its file or directory, {readable}, is no text in UTF-8 (or Python was told "
            "another encoding of file names, by LC_ALL=C with PYTHONUTF8=0 for example); rename it, or name another file: "
            "--database-url sqlite:////absolute/file.db, or OTEL_EXPORTER_CMB_DATABASE_URL"
        )
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
    found = _asked(path) if status.st_size else None  # an empty file is an empty database
    if found is not None and not isinstance(found, sqlite3.OperationalError):  # locked: a database all the same
        raise DatabaseURLError(f"database {shown!r}: {path} is not a SQLite database; name another file")
    if os.access(os.path.dirname(path), os.W_OK):
        return path
    if not read_only:
        raise DatabaseURLError(
            f"database {shown!r}: directory {os.path.dirname(path)} is not writable, and SQLite keeps its journal there"
        )
    if found is not None and any(words in str(found) for words in ("readonly", "unable to open")):
        raise DatabaseURLError(
            f"database {shown!r}: directory {os.path.dirname(path)} is not writable, where SQLite reads a WAL file only while "
            "another program has it open for writing; copy the file (with its -wal, if there is one) to a directory that is "
            "writable and name the copy"
        )
    return path


def _asked(path: str) -> sqlite3.DatabaseError | None:
    """What SQLite says about the file; `None` where it can read it.

    Asked of SQLite itself: opening and closing the file here would drop the locks that other connections of this process
    hold on it (POSIX advisory locks; sqlite.org/howtocorrupt.html, section 2.2).
    """
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=0)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        return error
    finally:
        connection.close()
    return None


def _check_directory(path: str, shown: str, *, read_only: bool) -> None:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise DatabaseURLError(f"database {shown!r}: directory {directory} does not exist; create it or name another")
    if read_only:
        raise DatabaseURLError(f"database {shown!r}: there is no file {path}; nothing has been recorded there yet. Another "
                               "database is named by --database-url or OTEL_EXPORTER_CMB_DATABASE_URL")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DatabaseURLError(f"database {shown!r}: directory {directory} is not writable; name another")
