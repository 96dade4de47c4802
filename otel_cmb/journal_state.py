"""The state of a journal, `state.db`: how far its log is done, what is parked, what is open, counts.

Everything a batch changes is one transaction. A damaged file is put aside and begun anew with what can be read of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from otel_cmb.journal_files import make_private, never_again
from otel_cmb.journal_records import LATEST_DUE, NO_SPAN, Parked, Progress

__all__ = ["State", "keep_for_ever"]

_log = logging.getLogger("otel_cmb")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursor (one INTEGER PRIMARY KEY CHECK (one = 1), segment INTEGER, offset INTEGER, seq INTEGER);
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY, reason TEXT, detail TEXT, run_id TEXT, trace_id TEXT, span_id TEXT, name TEXT,
    since REAL, attempts INTEGER, due REAL, body BLOB);
CREATE INDEX IF NOT EXISTS parked_due ON parked (due);
CREATE TABLE IF NOT EXISTS open (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
"""
_TABLES = ("parked", "open", "counts", "cursor")


class State:
    """`state.db` in the journal's directory `path`, made by the first note. Thread-safe.

    `cursor_lost` is called when the log must be read again from its start. `look_only`: nothing is made or changed.
    """

    def __init__(self, path: str, cursor_lost: Callable[[], None], *, look_only: bool = False):
        self.path = path
        self.size = 0
        """Bytes in use in the file, as far as they are known: since the last note of this process."""
        self.lock = threading.RLock()
        self._cursor_lost = cursor_lost
        self._look_only = look_only
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Which file that is of."""
        self._unsaved: list[Progress] = []
        """What could not be written yet (the disk is full); without it a crash does these records again."""
        self._full: bool | None = None
        """Whether the connection's commits are on the disk when they return; `None`: as it was opened."""

    # -- notes ---------------------------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> bool:
        """Note what a batch changed, all or nothing, with everything not noted yet. False when it cannot be written now:
        then it is kept in memory."""
        with self.lock:
            self._unsaved.append(progress)
            try:
                self._save()
            except sqlite3.OperationalError as error:
                if len(self._unsaved) in (1, 1000):
                    _log.warning("otel-cmb: the state of the journal in %s cannot be written now: %s", self.path, error)
                if len(self._unsaved) > 1:
                    _join(self._unsaved)
                return False
        return True

    def _save(self) -> None:
        """Write everything that is not written yet, in one transaction."""
        state = self.connect()
        full = any(one.park for one in self._unsaved)
        try:
            if full is not self._full:
                state.execute("PRAGMA synchronous=" + ("FULL" if full else "NORMAL"))
                self._full = full
            with _transaction(state):
                for progress in self._unsaved:
                    _put(state, progress)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # damaged under our hands
            self._replace()
            with _transaction(self.connect()):
                for progress in self._unsaved:
                    _put(self.connect(), progress)
        grown = not self.size or any(one.park or one.unpark or one.opened or one.closed for one in self._unsaved)
        self._unsaved = []
        if not grown:
            return
        pages = [
            self.connect().execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")]
        self.size = (pages[0] - pages[1]) * pages[2]

    # -- questions -----------------------------------------------------------------------------------------------------

    def cursor(self) -> tuple[int, int, int] | None:
        """How far the log is done: segment, offset, number of the last record; `None` when nothing is."""
        for progress in reversed(self._unsaved):
            if progress.done is not None:
                return (*progress.done.end, progress.done.seq)
        rows = self._query("SELECT segment, offset, seq FROM cursor")
        return tuple(rows[0]) if rows else None

    def parked(self, *, due_before: float | None = None, limit: int = 1_000_000) -> list[Parked]:
        """What is parked, oldest first; with `due_before` only what is to be tried again by then."""
        where, values = ("", ()) if due_before is None else (  # the other two: the clock went backwards
            " WHERE due <= ? OR (due > ? AND reason <> ?) OR (since > ? AND due IS NOT NULL)",
            (due_before, due_before + LATEST_DUE, NO_SPAN, due_before))
        rows = self._query(
            f"SELECT seq, reason, body, detail, run_id, trace_id, span_id, name, since, attempts, due FROM parked{where} "
            "ORDER BY seq LIMIT ?", (*values, limit))
        return [Parked(*row) for row in rows]

    def parked_counts(self) -> dict[str, int]:
        """Parked spans by reason (a parked row of `run()` or `node()` is no span)."""
        with self.lock:
            counts = dict(self._query("SELECT reason, count(*) FROM parked WHERE span_id IS NOT NULL GROUP BY reason"))
            for progress in self._unsaved:
                for parked in progress.park:
                    if parked.span_id is not None:
                        counts[parked.reason] = counts.get(parked.reason, 0) + 1
        return counts

    def any_parked(self, spans: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        if not self._any("parked"):
            return bool(self._unsaved)
        return any(
            self._query("SELECT 1 FROM parked WHERE trace_id = ? AND span_id = ? LIMIT 1", span) for span in spans)

    def opened_things(self) -> list[tuple[str, str, bytes]]:
        """Rows (kind, id, body) that were written as running and have not ended."""
        return self._query("SELECT kind, id, body FROM open")

    def counts(self) -> dict[str, int]:
        """Counters noted by :meth:`advance`."""
        with self.lock:
            counts = dict(self._query("SELECT name, n FROM counts"))
            for progress in self._unsaved:
                for name, n in progress.counts.items():
                    counts[name] = counts.get(name, 0) + n
        return counts

    @property
    def empty(self) -> bool:
        """Nothing is parked or open, noted or not: what is done is done, also where the disk has no room to note it. Raises
        :class:`sqlite3.Error`."""
        with self.lock:
            if not self._unsaved:
                return not self._any("parked") and not self._any("open")
            parked = {seq for seq, in self._query("SELECT seq FROM parked")}
            running = set(self._query("SELECT kind, id FROM open"))
            for progress in self._unsaved:
                parked.update(one.seq for one in progress.park)
                parked.difference_update(progress.unpark)
                running.update((kind, id_) for kind, id_, _ in progress.opened)
                running.difference_update(progress.closed)
            return not parked and not running

    def _query(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        """Rows; none when there is no file. Raises :class:`sqlite3.OperationalError`."""
        with self.lock:
            if not self._exists():  # asked under the lock: a question must not make a file for a journal just closed
                return []
            try:
                return self.connect().execute(sql, tuple(values)).fetchall()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._replace()
                return self.connect().execute(sql, tuple(values)).fetchall()

    def _any(self, table: str) -> bool:
        return bool(self._query(f"SELECT 1 FROM {table} LIMIT 1"))

    # -- the file ------------------------------------------------------------------------------------------------------

    def _exists(self) -> bool:
        return self._connection is not None or (bool(self.path) and os.path.exists(os.path.join(self.path, "state.db")))

    def connect(self) -> sqlite3.Connection:
        """The connection; opened, and the file made, when there is none."""
        if self._connection is None:
            path = os.path.join(self.path, "state.db")
            try:
                self._connection = _open_to_read(path) if self._look_only else self._open(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._replace()
        assert self._connection is not None
        return self._connection

    def _open(self, path: str) -> sqlite3.Connection:
        state = _open(path)
        found = os.stat(path)
        self._file = found.st_dev, found.st_ino
        return state

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._full = None

    def forget(self) -> None:
        """In a forked child. The connection is kept for ever: closing it here would end the parent's, and may wait for a
        lock that a thread of the parent held."""
        if self._connection is not None:
            keep_for_ever(self._connection)
            never_again(self._file)
        self._connection = self._full = None

    def open_again(self) -> None:
        """The descriptors were closed under our hands. SQLite shares them, by file, among all connections of a process: so the
        old connection is kept for ever, and its files become others of the same names. Raises `OSError`."""
        with self.lock:
            if self._connection is None:
                return
            self.forget()
            path = os.path.join(self.path, "state.db")
            for file in (path, path + "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(file, file + ".copy")
                    os.chmod(file + ".copy", 0o600)
                    os.replace(file + ".copy", file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + "-shm")

    def _replace(self) -> None:
        """Begin a new `state.db` with what can be read of a damaged one, which is put aside, never deleted. Where the
        parked rows cannot all be read, the log is done again from its start: harmless, and it still has most of them."""
        path = os.path.join(self.path, "state.db")
        if self._look_only:
            raise sqlite3.DatabaseError(f"{path} is damaged")
        self.close()
        self.size = 0  # found out by the next note
        aside = f"{path}.damaged-{time.time_ns()}"
        os.replace(path, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(path + suffix, aside + suffix)
        self._connection = self._open(path)
        saved, whole = _salvage(aside, self._connection)
        if not whole:
            with _transaction(self._connection):
                self._connection.execute("DELETE FROM cursor")
            self._cursor_lost()
        _log.error(
            "otel-cmb: %s was damaged and is kept as %s; %d parked record(s) were saved from it%s", path, aside, saved,
            "" if whole else ", the log is read again from its start")


def _open(path: str) -> sqlite3.Connection:
    make_private(path)
    state = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        state.execute("PRAGMA journal_mode=WAL")
        state.executescript(_SCHEMA)
        for table in _TABLES:
            state.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    except sqlite3.DatabaseError:
        state.close()
        raise
    return state


def _open_to_read(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=5, check_same_thread=False)


def _put(state: sqlite3.Connection, progress: Progress) -> None:
    if progress.done is not None:
        segment, offset = progress.done.end
        state.execute(
            "INSERT INTO cursor VALUES (1, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET segment=excluded.segment, "
            "offset=excluded.offset, seq=excluded.seq", (segment, offset, progress.done.seq))
    for sql, rows in (
        ("INSERT OR REPLACE INTO parked VALUES (?,?,?,?,?,?,?,?,?,?,?)", [
            (p.seq, p.reason, p.detail, p.run_id, p.trace_id, p.span_id, p.name, p.since, p.attempts, p.due, p.body)
            for p in progress.park]),
        ("DELETE FROM parked WHERE seq = ?", [(seq,) for seq in progress.unpark]),
        ("INSERT OR REPLACE INTO open VALUES (?,?,?)", progress.opened),
        ("DELETE FROM open WHERE kind = ? AND id = ?", progress.closed),
        ("INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", list(progress.counts.items())),
    ):
        if rows:
            state.executemany(sql, rows)


def _join(unsaved: list[Progress]) -> None:
    """Progress that only moves the cursor and counts is one, so that a long time without room costs little memory."""
    last = unsaved[-1]
    before = unsaved[-2]
    if not (before.park or before.unpark or before.opened or before.closed):
        for name, n in before.counts.items():
            last.counts[name] = last.counts.get(name, 0) + n
        last.done = last.done or before.done
        del unsaved[-2]


def _salvage(path: str, state: sqlite3.Connection) -> tuple[int, bool]:
    """Copy what can be read of a damaged state: how many parked rows, and whether it was everything."""
    whole, saved = True, 0
    damaged = sqlite3.connect(path, isolation_level=None)
    try:
        for table in _TABLES:
            try:
                for row in damaged.execute(f"SELECT * FROM {table}"):
                    state.execute(f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(row))})", row)
                    saved += table == "parked"
            except sqlite3.DatabaseError:
                whole = False
    finally:
        damaged.close()
    return saved, whole


def keep_for_ever(thing: object) -> None:
    """Never finalize this, not even at the end of the interpreter: it belongs to the parent process."""
    if thing is None:
        return
    _inherited.append(thing)
    with contextlib.suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_inherited: list[object] = []


@contextlib.contextmanager
def _transaction(state: sqlite3.Connection) -> Iterator[None]:
    state.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        state.execute("ROLLBACK")
        raise
    state.execute("COMMIT")


