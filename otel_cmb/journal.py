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
import logging
import os
import secrets
import shutil
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_cmb.errors import JournalError

__all__ = [
    "Journal", "JournalFullError", "Parked", "Progress", "Record", "Summary", "adoptable", "database_directory", "journals",
    "read_only_summary",
]

_log = logging.getLogger("otel_cmb")

MAGIC = b"\xc5CMB"
HEADER = struct.Struct("<4sQII")
SEGMENT_BYTES = 8 * 1024 * 1024
MAX_RECORD = 256 * 1024 * 1024
SEGMENTS_UNDER_CAP = 8
"""A segment is at most this part of the size cap: what is done is given back long before the cap is reached."""

LATEST_DUE = 60.0
"""Seconds: nothing is due later than this from now, unless the clock went backwards."""

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


class JournalFullError(JournalError):
    """The journal has reached its size cap."""


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
    """One process's journal, or an adopted one. Thread-safe. `append` is not to be re-entered: the pipeline sees to that.

    `run_id`: the automatic run of the process that owns the journal; whoever adopts it ends that run.
    """

    def __init__(
        self, directory: str, *, max_bytes: int, path: str | None = None, lock_fd: int | None = None, run_id: str = "",
    ):
        self._directory = directory
        self.max_bytes = max_bytes
        self.run_id = run_id
        self._segment_bytes = min(SEGMENT_BYTES, max(4096, max_bytes // SEGMENTS_UNDER_CAP))
        self.path = path or ""
        self.adopted = path is not None
        self._lock_fd = lock_fd
        self._lock = threading.RLock()
        self._state_lock = threading.RLock()
        self._fd: int | None = None
        self._segment = 0
        self._offset = 0
        self._seq = 0
        self._bytes = 0
        self._read: tuple[int, int] | None = None
        self._read_seq: int | None = None
        self._read_fd: tuple[int, int] | None = None
        self._state: sqlite3.Connection | None = None
        self._state_bytes = 0
        self._look_only = False
        self._unsaved: list[Progress] = []
        """What `state.db` could not take yet (its disk is full); without it a crash does these records again."""

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
        journal = cls(os.path.dirname(path), max_bytes=2**62, path=path, lock_fd=fd, run_id=_owner_of(path)[1])
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
                if os.path.exists(os.path.join(path, "lock")):
                    break
            except OSError:
                pass
            os.close(fd)  # an adopter was faster than the owner, and may have removed the empty journal already
        os.write(fd, f"{os.getpid()}\n{self.run_id}\n".encode())
        _mine.add(path)
        self.path, self._lock_fd = path, fd
        self._roll()

    def _roll(self) -> None:
        """Begin a new segment."""
        previous = self._fd
        path = self._segment_path(self._segment + 1)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segment += 1
        self._offset = 0
        if previous is not None:
            os.fdatasync(previous)
            os.close(previous)

    @property
    def opened(self) -> bool:
        return bool(self.path)

    def forget(self) -> None:
        """In a forked child: the files belong to the parent; close what was inherited and touch nothing.

        The SQLite connection is kept for ever: closing it here would end the parent's, and may wait for a lock that a
        thread of the parent held.
        """
        for fd in (self._fd, self._lock_fd, self._read_fd[1] if self._read_fd else None):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        keep_for_ever(self._state)
        _mine.discard(self.path)

    def close(self) -> bool:
        """Release the journal. Removed when nothing is left in it (True), kept for the next process otherwise."""
        with self._lock, self._state_lock:
            if not self.path:
                return True
            try:
                empty = self.backlog() == 0 and not self._any("parked") and not self._any("open") and not self._unsaved
            except sqlite3.Error:
                empty = False
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

        Raises :class:`JournalError` when they cannot be written (disk full, read-only), :class:`JournalFullError` at the
        size cap; then none of them is in the journal.
        """
        with self._lock:
            try:
                return self._write(bodies)
            except OSError as error:
                raise JournalError(
                    f"the journal in {self.path or self._directory} cannot be written: {error.strerror or error}; "
                    "make room or set OTEL_EXPORTER_CMB_STATE_DIR to a writable directory"
                ) from error

    def _write(self, bodies: Sequence[bytes]) -> int:
        if self._fd is None:
            self._open()
        elif self._offset >= self._segment_bytes:
            self._roll()
        assert self._fd is not None
        seq, parts = self._seq, []
        for body in bodies:
            seq += 1
            parts.append(HEADER.pack(MAGIC, seq, len(body), zlib.crc32(body)))
            parts.append(body)
        data = b"".join(parts)
        if self.size + len(data) > self.max_bytes:
            raise JournalFullError(
                f"the journal in {self.path} has reached its cap of {self.max_bytes} bytes "
                "(OTEL_EXPORTER_CMB_JOURNAL_MAX_BYTES)"
            )
        before = self._offset, self._bytes, self._seq
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a disk that is nearly full takes a part first, then says so
                written += os.write(self._fd, memoryview(data)[written:])
            self._offset += len(data)
            self._bytes += len(data)
            self._seq = seq
        except BaseException:  # also Ctrl-C between the write and its bookkeeping
            self._offset, self._bytes, self._seq = before
            try:
                os.ftruncate(self._fd, self._offset)
            except OSError:  # what cannot be taken back is skipped by the reader
                self._offset = os.fstat(self._fd).st_size
            raise
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
        """Bytes of log and of what is parked, on the disk."""
        return self._bytes + self._state_bytes

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
            last = segment == live
            stop = end if segment == live else self._size(segment)
            if offset >= stop:
                self._read = (segment + 1, 0)
                continue
            chunk = self._pread(segment, offset, min(stop - offset, max(65536, max_bytes - taken)))
            found, consumed = self._parse(chunk, segment, offset, stop, limit - len(records))
            if consumed == 0:
                consumed = stop - offset  # unreadable
            records += found
            taken += consumed
            self._read = (segment, offset + consumed)
            if last and offset + consumed >= stop and (missing := self._missing_at_end(found, segment, offset, stop)):
                records.append(missing)
        return records

    def _missing_at_end(self, found: list[Record], segment: int, offset: int, stop: int) -> Record | None:
        """Damage after the last whole record shows in no gap of the numbers. A record that is merely cut short was never
        accepted: its writer died in the middle of it."""
        seq = self._read_seq or 0
        if not self.adopted:
            with self._lock:
                if self._offset != stop or seq >= self._seq:
                    return None
                lost = self._seq - seq
        else:
            begin = found[-1].end[1] if found else offset
            if begin >= stop or self._is_cut_short(self._pread(segment, begin, stop - begin)):
                return None
            lost = 1
        self._read_seq = seq + lost
        return Record(seq + lost, b"", (segment, stop), lost - 1)

    @staticmethod
    def _is_cut_short(tail: bytes) -> bool:
        if len(tail) < HEADER.size:
            return MAGIC.startswith(tail[: len(MAGIC)])
        magic, _, length, _ = HEADER.unpack_from(tail)
        return bool(magic == MAGIC and HEADER.size + length > len(tail))

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
        cursor = self._cursor()
        seq: int | None
        if cursor is not None:
            segment, offset, seq = cursor
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
        cursor = self._cursor()
        return cursor[2] if cursor is not None else 0

    def _cursor(self) -> tuple[int, int, int] | None:
        for progress in reversed(self._unsaved):
            if progress.done is not None:
                return (*progress.done.end, progress.done.seq)
        rows = self._query("SELECT segment, offset, seq FROM cursor") if self._has_state() else []
        return tuple(rows[0]) if rows else None

    # -- state ---------------------------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> None:
        """Note what a committed batch changed, all or nothing. What is parked here is on the disk when this returns.

        A disk that cannot take it now (full, read-only) delays the note: it is kept in memory and written with the next
        one. A crash before that does the records again, which is harmless.
        """
        with self._state_lock:
            self._unsaved.append(progress)
            try:
                self._save()
            except sqlite3.OperationalError as error:
                if len(self._unsaved) in (1, 1000):
                    _log.warning("otel-cmb: the state of the journal in %s cannot be written now: %s", self.path, error)
                if len(self._unsaved) > 1:
                    _join(self._unsaved)
                return
        if progress.done is not None:
            self._drop_before(progress.done.end[0])

    def _save(self) -> None:
        """Write everything that is not written yet, in one transaction."""
        state = self._connect()
        try:
            state.execute("PRAGMA synchronous=" + ("FULL" if any(one.park for one in self._unsaved) else "NORMAL"))
            with _transaction(state):
                for progress in self._unsaved:
                    _put(state, progress)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # damaged under our hands
            self._replace_state()
            with _transaction(self._connect()):
                for progress in self._unsaved:
                    _put(self._connect(), progress)
        self._unsaved = []
        pages = [
            self._connect().execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")]
        self._state_bytes = (pages[0] - pages[1]) * pages[2]

    def parked(self, *, due_before: float | None = None, limit: int = 1_000_000) -> list[Parked]:
        """What is parked, oldest first; with `due_before` only what is to be tried again by then."""
        if not self._has_state():
            return []
        where, values = ("", ()) if due_before is None else (
            " WHERE due <= ? OR due > ?", (due_before, due_before + LATEST_DUE))
        rows = self._query(
            f"SELECT seq, reason, body, detail, run_id, trace_id, span_id, name, since, attempts, due FROM parked{where} "
            "ORDER BY seq LIMIT ?", (*values, limit))
        return [Parked(*row) for row in rows]

    def parked_counts(self) -> dict[str, int]:
        """Parked spans by reason (a parked row of `run()` or `node()` is no span)."""
        with self._state_lock:
            rows = self._query(
                "SELECT reason, count(*) FROM parked WHERE span_id IS NOT NULL GROUP BY reason") if self._has_state() else []
            counts = dict(rows)
            for progress in self._unsaved:
                for parked in progress.park:
                    if parked.span_id is not None:
                        counts[parked.reason] = counts.get(parked.reason, 0) + 1
        return counts

    def any_parked(self, spans: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        if not self._has_state() or not self._any("parked"):
            return bool(self._unsaved)
        return any(
            self._query("SELECT 1 FROM parked WHERE trace_id = ? AND span_id = ? LIMIT 1", span) for span in spans)

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
                with self._lock:
                    if self._fd is not None and segment == self._segment:  # readable also when somebody removed the file
                        fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 0)
                    else:
                        fd = os.open(self._segment_path(segment), os.O_RDONLY | os.O_CLOEXEC)
                self._read_fd = (segment, fd)
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
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._replace_state()
        assert self._state is not None
        return self._state

    def _replace_state(self) -> None:
        """Begin a new `state.db` with what can be read of a damaged one, which is put aside, never deleted. Where the
        parked rows cannot all be read, the log is done again from its start: harmless, and it still has most of them."""
        path = os.path.join(self.path, "state.db")
        if self._look_only:
            raise sqlite3.DatabaseError(f"{path} is damaged")
        if self._state is not None:
            self._state.close()
            self._state = None
        aside = f"{path}.damaged-{time.time_ns()}"
        os.replace(path, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(path + suffix, aside + suffix)
        self._state = _open_state(path)
        saved, whole = _salvage(aside, self._state)
        if not whole:
            with _transaction(self._state):
                self._state.execute("DELETE FROM cursor")
            self._read = None
        _log.error(
            "otel-cmb: %s was damaged and is kept as %s; %d parked record(s) were saved from it%s", path, aside, saved,
            "" if whole else ", the log is read again from its start")

    def _query(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._state_lock:
            try:
                return self._connect().execute(sql, tuple(values)).fetchall()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._replace_state()
                return self._connect().execute(sql, tuple(values)).fetchall()

    def _any(self, table: str) -> bool:
        return self._has_state() and bool(self._query(f"SELECT 1 FROM {table} LIMIT 1"))


def _open_state(path: str) -> sqlite3.Connection:
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


def _put(state: sqlite3.Connection, progress: Progress) -> None:
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
    journal._look_only = True
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
    return _owner_of(path)[0]


def _owner_of(path: str) -> tuple[int | None, str]:
    """The process that made the journal, and its automatic run."""
    try:
        with open(os.path.join(path, "lock"), encoding="ascii") as file:
            pid, _, run_id = file.read(200).partition("\n")
        return int(pid.strip() or 0) or None, run_id.strip()
    except (OSError, ValueError):
        return None, ""
