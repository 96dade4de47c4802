"""The local durable store of what is not committed yet: one journal per process.

    <state_dir>/<database>/<journal>/lock          flock'ed by the owner while it lives
                                    /log-00000001  appended records, oldest segment first
                                    /state.db      SQLite: how far the log is done, what is parked, what is open, counts

A record is appended with one `write(2)` before its door answers, so it survives SIGKILL; `sync()` makes it survive a power
cut. The log is read back by the writer; the cursor moves only in the transaction of `state.db` that also notes what was
parked and counted, after the database's commit. Doing a record twice is harmless (event ids are functions of the
span), so a crash between the two commits loses and doubles nothing.

    appended ──read──> in flight ──commit──> cursor moved
        ^                  │ outage: read again
        │                  └ cannot be stored yet ──> parked ──replay──> cursor-less, deleted after its commit
     crash: the next process that finds the lock free adopts the directory and goes on

Every record carries its number and a CRC. A damaged stretch is skipped to the next whole record; the gap in the numbers
says exactly how many were lost. Why a log and not one SQLite table: docs/adr/001-journal.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sqlite3
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_cmb.errors import JournalError

__all__ = [
    "Journal", "Parked", "Progress", "Record", "Summary", "adoptable", "database_directory", "journals", "read_only_summary",
]

MAGIC = b"\xc5CMB"
HEADER = struct.Struct("<4sQII")
SEGMENT_BYTES = 8 * 1024 * 1024
MAX_RECORD = 256 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursor (one INTEGER PRIMARY KEY CHECK (one = 1), segment INTEGER, offset INTEGER, seq INTEGER);
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY, reason TEXT, detail TEXT, run_id TEXT, trace_id TEXT, span_id TEXT, name TEXT,
    since REAL, attempts INTEGER, due REAL, body BLOB);
CREATE INDEX IF NOT EXISTS parked_due ON parked (due);
CREATE TABLE IF NOT EXISTS open (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Record:
    """One journaled thing: `body` begins with the byte that says what it is (see `pipeline`)."""

    seq: int
    body: bytes
    end: tuple[int, int] = (0, 0)
    """Where the cursor stands once this record is done: segment number, offset."""
    gap: int = 0
    """How many records before this one are missing: damaged on the disk."""


@dataclass(slots=True)
class Parked:
    """A record that could not be stored yet, and why."""

    seq: int
    reason: str
    body: bytes
    detail: str = ""
    run_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    name: str | None = None
    since: float = 0.0
    """Seconds since the epoch when it was parked first."""
    attempts: int = 0
    due: float | None = 0.0
    """When it is tried again by itself; `None`: only when asked (`parked replay`)."""


@dataclass(slots=True)
class Progress:
    """What one committed batch changes in the journal, in one transaction."""

    done: Record | None = None
    park: list[Parked] = field(default_factory=list)
    unpark: list[int] = field(default_factory=list)
    opened: list[tuple[str, str, bytes]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def database_directory(state_dir: str, key: str) -> str:
    """Where the journals of one database are; `key` names the database without its password."""
    return os.path.join(state_dir, key)


def journals(directory: str) -> list[str]:
    """Paths of all journals under a database's directory, oldest first."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [path for name in names if os.path.isfile(os.path.join(path := os.path.join(directory, name), "lock"))]


_mine: set[str] = set()
"""Paths this process owns or has adopted. A second descriptor on the same lock file would not conflict with itself after
a fork, so these are skipped by name."""


def adoptable(directory: str) -> Iterator[Journal]:
    """Journals whose owner is gone, locked for the caller."""
    for path in journals(directory):
        if path in _mine:
            continue
        journal = Journal.adopt(path)
        if journal is not None:
            yield journal


class Journal:
    """One process's journal, or an adopted one. Thread-safe; `append` may be re-entered by a signal handler or GC."""

    def __init__(self, directory: str, *, max_bytes: int, path: str | None = None, lock_fd: int | None = None):
        self._directory = directory
        self.max_bytes = max_bytes
        self.path = path or ""
        self.adopted = path is not None
        self._lock_fd = lock_fd
        self._lock = threading.RLock()
        self._state_lock = threading.RLock()
        self._busy = False
        self._deferred: deque[bytes] = deque()
        self._fd: int | None = None
        self._segment = 0
        self._offset = 0
        self._seq = 0
        self._bytes = 0
        self._read: tuple[int, int] | None = None
        self._read_seq: int | None = None
        self._read_fd: tuple[int, int] | None = None
        self._state: sqlite3.Connection | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    @classmethod
    def adopt(cls, path: str) -> Journal | None:
        """Take a journal whose owner is gone; `None` if the owner lives (or another adopter was faster)."""
        try:
            fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(os.path.join(path, "lock")):  # removed between open and lock
                raise OSError
        except OSError:
            os.close(fd)
            return None
        _mine.add(path)
        journal = cls(os.path.dirname(path), max_bytes=2**62, path=path, lock_fd=fd)
        segments = journal._segments()
        journal._segment = segments[-1] if segments else 0
        journal._offset = journal._size(journal._segment) if segments else 0
        journal._bytes = sum(journal._size(number) for number in segments)
        return journal

    def _open(self) -> None:
        """Make directory, lock and first segment. Called under the lock by the first append."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        while True:
            path = os.path.join(self._directory, f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}")
            os.mkdir(path, 0o700)
            fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # an adopter was faster than its owner: leave it the empty one
                os.close(fd)
                continue
            break
        os.write(fd, f"{os.getpid()}\n".encode())
        _mine.add(path)
        self.path, self._lock_fd = path, fd
        self._roll()

    def _roll(self) -> None:
        """Begin a new segment."""
        previous = self._fd
        self._segment += 1
        self._fd = os.open(self._segment_path(self._segment), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._offset = 0
        if previous is not None:
            os.fdatasync(previous)
            os.close(previous)

    @property
    def opened(self) -> bool:
        return bool(self.path)

    def forget(self) -> None:
        """In a forked child: the files belong to the parent; close what was inherited and touch nothing."""
        for fd in (self._fd, self._lock_fd, self._read_fd[1] if self._read_fd else None):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        _mine.discard(self.path)

    def close(self) -> bool:
        """Release the journal. Removed when nothing is left in it (True), kept for the next process otherwise."""
        with self._lock, self._state_lock:
            if not self.path:
                return True
            empty = self.backlog() == 0 and not self._any("parked") and not self._any("open")
            if self._state is not None:
                self._state.close()
                self._state = None
            if self._read_fd is not None:
                os.close(self._read_fd[1])
                self._read_fd = None
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            if empty:
                shutil.rmtree(self.path, ignore_errors=True)
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None
            _mine.discard(self.path)
            self.path = ""
            self._segment = self._offset = self._bytes = 0
            self._read, self._read_seq = None, None
            return empty

    # -- append --------------------------------------------------------------------------------------------------------

    def append(self, bodies: Sequence[bytes]) -> int:
        """Write the records; returns the number of the last one. They survive SIGKILL when this returns.

        Raises :class:`JournalError` when they cannot be written (disk full, read-only, size cap); then none of them is in
        the journal. A re-entrant call (a signal handler or the garbage collector inside an append) is written by
        the outer call, right after its own records.
        """
        with self._lock:
            if self._busy:
                self._deferred.extend(bodies)
                return self._seq + len(self._deferred)
            self._busy = True
            try:
                last = self._write(bodies)
                while self._deferred:
                    self._write([self._deferred.popleft()])
                return last
            except OSError as error:
                raise JournalError(
                    f"the journal in {self.path or self._directory} cannot be written: {error.strerror or error}; "
                    "make room or set OTEL_EXPORTER_CMB_STATE_DIR to a writable directory"
                ) from error
            finally:
                self._busy = False

    def _write(self, bodies: Sequence[bytes]) -> int:
        if self._fd is None:
            self._open()
        elif self._offset >= SEGMENT_BYTES:
            self._roll()
        assert self._fd is not None
        seq, parts = self._seq, []
        for body in bodies:
            seq += 1
            parts.append(HEADER.pack(MAGIC, seq, len(body), zlib.crc32(body)))
            parts.append(body)
        data = b"".join(parts)
        if self.size + len(data) > self.max_bytes:
            raise JournalError(
                f"the journal in {self.path} has reached its cap of {self.max_bytes} bytes (OTEL_EXPORTER_CMB_JOURNAL_MAX_BYTES)"
            )
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a disk that is nearly full takes a part first, then says so
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            raise
        self._offset += len(data)
        self._bytes += len(data)
        self._seq = seq
        return seq

    def sync(self) -> None:
        """Return when everything appended and parked is on the disk. Raises :class:`JournalError`."""
        with self._lock:
            try:
                if self._fd is not None:
                    os.fdatasync(self._fd)
            except OSError as error:
                raise JournalError(f"the journal in {self.path} cannot be synced: {error.strerror}") from error

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._seq

    @property
    def size(self) -> int:
        """Bytes of log on the disk."""
        return self._bytes

    # -- read ----------------------------------------------------------------------------------------------------------

    def read(self, limit: int, max_bytes: int = 8 * 1024 * 1024) -> list[Record]:
        """The next records that were not read yet, in order. :meth:`rewind` makes them readable again."""
        if not self.path:
            return []
        if self._read is None:
            self.rewind()
        assert self._read is not None
        records: list[Record] = []
        taken = 0
        while len(records) < limit and taken < max_bytes:
            segment, offset = self._read
            with self._lock:
                live, end = self._segment, self._offset
            if segment > live or (segment == live and offset >= end):
                break
            stop = end if segment == live else self._size(segment)
            if offset >= stop:
                self._read = (segment + 1, 0)
                continue
            chunk = self._pread(segment, offset, min(stop - offset, max(65536, max_bytes - taken)))
            found, consumed = self._parse(chunk, segment, offset, stop, limit - len(records))
            if consumed == 0:
                consumed = stop - offset  # the tail of a dead process's last write
            records += found
            taken += consumed
            self._read = (segment, offset + consumed)
        return records

    def _parse(self, chunk: bytes, segment: int, base: int, stop: int, limit: int) -> tuple[list[Record], int]:
        records: list[Record] = []
        position = 0
        while len(records) < limit and position + HEADER.size <= len(chunk):
            magic, seq, length, crc = HEADER.unpack_from(chunk, position)
            end = position + HEADER.size + length
            if magic == MAGIC and length <= MAX_RECORD and base + end > stop and base + len(chunk) >= stop:
                magic = b""  # says it is longer than what is there: damaged, or cut off by a crash
            if magic == MAGIC and length <= MAX_RECORD and end > len(chunk):
                if position == 0:  # one record larger than the chunk
                    chunk = self._pread(segment, base, end)
                    if len(chunk) >= end:
                        continue
                else:
                    break
            body = chunk[position + HEADER.size : end]
            if magic != MAGIC or length > MAX_RECORD or zlib.crc32(body) != crc:
                following = chunk.find(MAGIC, position + 1)
                if following < 0:
                    if base + len(chunk) >= stop:
                        position = len(chunk)
                    else:
                        position = max(position + 1, len(chunk) - len(MAGIC))
                    break
                position = following
                continue
            gap = seq - self._read_seq - 1 if self._read_seq is not None else 0
            self._read_seq = seq
            position = end
            records.append(Record(seq, body, (segment, base + end), max(gap, 0)))
        if position + HEADER.size > len(chunk) and base + len(chunk) >= stop:
            position = len(chunk)
        return records, position

    def rewind(self) -> None:
        """Read again from the cursor: what was in flight was not committed."""
        row = self._query("SELECT segment, offset, seq FROM cursor") if self._has_state() else []
        if row:
            segment, offset, seq = row[0]
        else:
            segments = self._segments()
            segment, offset = (segments[0] if segments else 1), 0
            seq = 0 if segment == 1 else None  # without a cursor only the first segment says where numbers begin
        self._read, self._read_seq = (segment, offset), seq

    def backlog(self) -> int:
        """How many appended records the cursor has not passed."""
        if not self.path:
            return 0
        if self.adopted:
            mark, seq = self._read, self._read_seq
            self.rewind()
            count = 0
            while batch := self.read(4096):
                count += len(batch)
            self._read, self._read_seq = mark, seq
            return count
        return self._seq - self.cursor_seq()

    def cursor_seq(self) -> int:
        """Number of the last record that is done."""
        rows = self._query("SELECT seq FROM cursor") if self._has_state() else []
        return int(rows[0][0]) if rows else 0

    # -- state ---------------------------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> None:
        """Note what a committed batch changed, all or nothing. What is parked here is on the disk when this returns."""
        with self._state_lock:
            state = self._connect()
            state.execute("PRAGMA synchronous=" + ("FULL" if progress.park else "NORMAL"))
            with _transaction(state):
                if progress.done is not None:
                    segment, offset = progress.done.end
                    state.execute(
                        "INSERT INTO cursor VALUES (1, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET segment=excluded.segment, "
                        "offset=excluded.offset, seq=excluded.seq", (segment, offset, progress.done.seq))
                state.executemany(
                    "INSERT OR REPLACE INTO parked VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                    [(p.seq, p.reason, p.detail, p.run_id, p.trace_id, p.span_id, p.name, p.since, p.attempts, p.due, p.body)
                     for p in progress.park])
                state.executemany("DELETE FROM parked WHERE seq = ?", [(seq,) for seq in progress.unpark])
                state.executemany("INSERT OR REPLACE INTO open VALUES (?,?,?)", progress.opened)
                state.executemany("DELETE FROM open WHERE kind = ? AND id = ?", progress.closed)
                state.executemany(
                    "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
                    list(progress.counts.items()))
        if progress.done is not None:
            self._drop_before(progress.done.end[0])

    def parked(self, *, due_before: float | None = None, limit: int = 1_000_000) -> list[Parked]:
        """What is parked, oldest first; with `due_before` only what is to be tried again by then."""
        if not self._has_state():
            return []
        where, values = ("", ()) if due_before is None else (" WHERE due <= ?", (due_before,))
        rows = self._query(
            f"SELECT seq, reason, body, detail, run_id, trace_id, span_id, name, since, attempts, due FROM parked{where} "
            "ORDER BY seq LIMIT ?", (*values, limit))
        return [Parked(*row) for row in rows]

    def parked_counts(self) -> dict[str, int]:
        """Parked spans by reason (a parked row of `run()` or `node()` is no span)."""
        rows = self._query(
            "SELECT reason, count(*) FROM parked WHERE span_id IS NOT NULL GROUP BY reason") if self._has_state() else []
        return dict(rows)

    def opened_things(self) -> list[tuple[str, str, bytes]]:
        """Rows (kind, id, body) that this process wrote as running and that have not ended."""
        return self._query("SELECT kind, id, body FROM open") if self._has_state() else []

    def counts(self) -> dict[str, int]:
        """Counters noted by :meth:`advance`."""
        return dict(self._query("SELECT name, n FROM counts")) if self._has_state() else {}

    # -- files ---------------------------------------------------------------------------------------------------------

    def _segment_path(self, number: int) -> str:
        return os.path.join(self.path, f"log-{number:08d}")

    def _segments(self) -> list[int]:
        try:
            return sorted(int(name[4:]) for name in os.listdir(self.path) if name.startswith("log-"))
        except (FileNotFoundError, ValueError):
            return []

    def _size(self, number: int) -> int:
        try:
            return os.stat(self._segment_path(number)).st_size
        except FileNotFoundError:
            return 0

    def _pread(self, segment: int, offset: int, length: int) -> bytes:
        if self._read_fd is None or self._read_fd[0] != segment:
            if self._read_fd is not None:
                os.close(self._read_fd[1])
                self._read_fd = None
            try:
                self._read_fd = (segment, os.open(self._segment_path(segment), os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                return b""
        return os.pread(self._read_fd[1], length, offset)

    def _drop_before(self, segment: int) -> None:
        for number in self._segments():
            if number < segment:
                size = self._size(number)
                with contextlib.suppress(OSError):
                    os.unlink(self._segment_path(number))
                    with self._lock:
                        self._bytes -= size

    def _has_state(self) -> bool:
        return self._state is not None or (bool(self.path) and os.path.exists(os.path.join(self.path, "state.db")))

    def _connect(self) -> sqlite3.Connection:
        if self._state is None:
            path = os.path.join(self.path, "state.db")
            try:
                self._state = _open_state(path)
            except sqlite3.DatabaseError:
                # Damaged beyond reading: put aside, never deleted; the log is done again from its start, which is harmless.
                os.replace(path, f"{path}.damaged-{time.time_ns()}")
                self._state = _open_state(path)
        return self._state

    def _query(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._state_lock:
            return self._connect().execute(sql, tuple(values)).fetchall()

    def _any(self, table: str) -> bool:
        return self._has_state() and bool(self._query(f"SELECT 1 FROM {table} LIMIT 1"))


def _open_state(path: str) -> sqlite3.Connection:
    state = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        state.execute("PRAGMA journal_mode=WAL")
        state.executescript(_SCHEMA)
        state.execute("SELECT count(*) FROM parked").fetchone()
    except sqlite3.DatabaseError:
        state.close()
        raise
    return state


@contextlib.contextmanager
def _transaction(state: sqlite3.Connection) -> Iterator[None]:
    state.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        state.execute("ROLLBACK")
        raise
    state.execute("COMMIT")


@dataclass(slots=True)
class Summary:
    """A journal as seen from outside, whoever owns it."""

    path: str
    alive: bool
    """A living process owns it."""
    pid: int | None
    parked: list[Parked]
    counts: dict[str, int]
    pending: int
    """Span records in the log that are not done yet."""


def read_only_summary(path: str) -> Summary:
    """Look at a journal without taking or changing anything of it."""
    journal = Journal(os.path.dirname(path), max_bytes=2**62, path=path)
    summary = Summary(path, _is_owned(path), _pid_of(path), [], {}, 0)
    database = os.path.join(path, "state.db")
    with contextlib.suppress(sqlite3.DatabaseError):
        if os.path.exists(database):
            journal._state = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5, check_same_thread=False)
            summary.parked, summary.counts = journal.parked(), journal.counts()
    segments = journal._segments()
    journal._segment = segments[-1] if segments else 0
    journal._offset = journal._size(journal._segment) if segments else 0
    try:
        journal.rewind()
        while batch := journal.read(1024):
            summary.pending += sum(1 for record in batch if record.body[:1] == b"e")
    except sqlite3.DatabaseError:
        pass
    finally:
        if journal._state is not None:
            journal._state.close()
        if journal._read_fd is not None:
            os.close(journal._read_fd[1])
    return summary


def _is_owned(path: str) -> bool:
    if path in _mine:
        return True
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _pid_of(path: str) -> int | None:
    try:
        with open(os.path.join(path, "lock"), encoding="ascii") as file:
            return int(file.read().strip() or 0) or None
    except (OSError, ValueError):
        return None
