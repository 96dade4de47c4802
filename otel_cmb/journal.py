"""The local durable store of what is not committed yet: one journal per process.

    <state_dir>/<database>/<journal>/lock          flock'ed by the owner while it lives             journal_files
                                    /log-00000001  appended records, oldest segment first           journal_log
                                    /state.db      how far the log is done, what is parked,         journal_state
                                                   what is open, counts

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
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from otel_cmb import journal_files
from otel_cmb.errors import JournalError
from otel_cmb.journal_files import database_directory, journals
from otel_cmb.journal_log import READ_BYTES, SEGMENT_BYTES, Log
from otel_cmb.journal_records import END, JournalFullError, Parked, Progress, Record
from otel_cmb.journal_state import State

__all__ = [
    "Journal", "JournalFullError", "Parked", "Progress", "Record", "Summary", "adoptable", "database_directory", "journals",
    "left_behind", "log_of", "read_only_summary",
]

FIRST_PARKED = 100
"""What whoever takes over a journal parks, to close its rows, comes before all else that is parked, its runs first."""

SEGMENTS_UNDER_CAP = 8
"""A segment is at most this part of the size cap: what is done is given back long before the cap is reached."""


def adoptable(directory: str) -> Iterator[Journal]:
    """Journals whose owner is gone, locked for the caller."""
    for path in journals(directory):
        if journal_files.is_mine(path):
            continue
        journal = Journal.adopt(path)
        if journal is not None:
            yield journal


class Journal:
    """One process's journal, or an adopted one. Thread-safe. `append` is not to be re-entered: the pipeline sees to that.

    `run_id`: the automatic run of the process that owns the journal; whoever adopts it ends that run. Nothing is on the
    disk before the first `append`. The log's lock is taken before the state's where both are.
    """

    def __init__(
        self, directory: str, *, max_bytes: int, path: str | None = None, lock_fd: int | None = None, run_id: str = "",
    ):
        self._directory = directory
        self.max_bytes = max_bytes
        self.run_id = run_id
        self.path = path or ""
        self.adopted = path is not None
        self._lock_fd = lock_fd
        self._log = Log(min(SEGMENT_BYTES, max(4096, max_bytes // SEGMENTS_UNDER_CAP)), path=self.path)
        self._state = State(self.path, self._log.unseek)
        self._taken_away = False
        self.gone = False
        """Another process has it: nothing of it may be used any more."""

    # -- life ----------------------------------------------------------------------------------------------------------

    @classmethod
    def adopt(cls, path: str) -> Journal | None:
        """Take a journal whose owner is gone; `None` if the owner lives (or another adopter was faster)."""
        fd = journal_files.take(path)
        if fd is None:
            return None
        return cls(
            os.path.dirname(path), max_bytes=2**62, path=path, lock_fd=fd, run_id=journal_files.owner_of(path)[1])

    def _open(self) -> None:
        """Make directory, lock and first segment. Called under the lock by the first append."""
        self.path, self._lock_fd = journal_files.make(self._directory, self.run_id)
        self._state.path = self.path
        self._log.begin(self.path)

    @property
    def opened(self) -> bool:
        """Whether there is anything on the disk."""
        return bool(self.path)

    def taken_away(self) -> bool:
        """Whether somebody closed our files since this was asked last: they are open again, or the journal is `gone`; the
        connections of others may be closed likewise. Whoever uses them asks first."""
        with self._log.lock:
            self._look_whether_ours()
            taken, self._taken_away = self._taken_away, False
        return taken

    def _look_whether_ours(self) -> None:
        with self._log.lock:
            if not self.gone and not self._log.holds():
                with contextlib.suppress(OSError):
                    self._take_back()

    def abandon(self) -> None:
        """Its files were closed under our hands: nothing of it is used any more, and who can take it may."""
        self._state.forget()
        journal_files.let_go(self.path, self._lock_fd)
        self._lock_fd = None
        journal_files.release(self.path)

    def _take_back(self) -> None:
        """Open again what was closed under our hands. Raises `OSError`: another process was faster, or removed it."""
        self._taken_away = self.gone = True
        self._lock_fd = journal_files.take_again(self.path, self._lock_fd)  # first: nothing of another's is touched
        self._log.open_again()
        self._state.open_again()
        self.gone = False

    def forget(self) -> None:
        """In a forked child: the files belong to the parent; close what was inherited and touch nothing."""
        holds = self._log.holds()
        self._log.forget()
        if self._lock_fd is not None and holds:
            with contextlib.suppress(OSError):
                os.close(self._lock_fd)
        self._state.forget()
        journal_files.release(self.path)

    def close(self) -> bool:
        """Release the journal. Removed when nothing is left in it (True), kept for the next process otherwise."""
        with self._log.lock, self._state.lock:
            if not self.path:
                return True
            try:
                empty = self.backlog() == 0 and self._state.empty
            except sqlite3.Error:
                empty = False
            path, self.path = self.path, ""
            holds = self._log.holds()
            self._state.close()
            self._state.path = ""
            self._log.close()
            if empty:
                shutil.rmtree(path, ignore_errors=True)
            if self._lock_fd is not None:
                if holds:
                    os.close(self._lock_fd)
                self._lock_fd = None
            journal_files.release(path)
            return empty

    # -- the log -------------------------------------------------------------------------------------------------------

    def append(self, bodies: Sequence[bytes]) -> int:
        """Write the records; returns the number of the last one. They survive SIGKILL when this returns.

        Raises :class:`JournalError` when they cannot be written (disk full, read-only), :class:`JournalFullError` at the
        size cap; then none of them is in the journal.
        """
        log = self._log
        with log.lock:
            try:
                if self.gone:
                    raise JournalError(f"the journal in {self.path} is another process's by now")
                if log.begun:
                    if not log.probably_holds():
                        self._take_back()
                    log.roll_if_full()
                else:
                    self._open()
                data = log.packed(bodies)
                if log.size + self._state.size + len(data) > self.max_bytes:
                    raise JournalFullError(
                        f"the journal in {self.path} has reached its cap of {self.max_bytes} bytes "
                        "(OTEL_EXPORTER_CMB_JOURNAL_MAX_BYTES)"
                    )
                return log.write(data, len(bodies))
            except OSError as error:
                raise JournalError(
                    f"the journal in {self.path or self._directory} cannot be written: {error.strerror or error}; "
                    "make room or set OTEL_EXPORTER_CMB_STATE_DIR to a writable directory"
                ) from error

    def sync(self) -> None:
        """Return when everything appended and parked is on the disk. Raises :class:`JournalError`."""
        with self._log.lock:
            try:
                self._log.sync()
            except OSError as error:
                raise JournalError(f"the journal in {self.path} cannot be synced: {error.strerror}") from error

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._log.last_seq

    @property
    def size(self) -> int:
        """Bytes of log and of what is parked, on the disk."""
        return self._log.size + self._state.size

    def read(self, limit: int, max_bytes: int = READ_BYTES) -> list[Record]:
        """The next records that were not read yet, in order. :meth:`rewind` makes them readable again."""
        if not self.path:
            return []
        if not self._log.positioned:
            self.rewind()
        return self._log.read(limit, max_bytes)

    def rewind(self) -> None:
        """Read again from the cursor: what was in flight was not committed."""
        self._log.seek(self._state.cursor())

    def backlog(self) -> int:
        """How many appended records the cursor has not passed."""
        if not self.path:
            return 0
        if self.adopted:
            return self._log.count_from(self._state.cursor())
        return self.last_seq - self.cursor_seq()

    def cursor_seq(self) -> int:
        """Number of the last record that is done."""
        cursor = self._state.cursor()
        return cursor[2] if cursor is not None else 0

    # -- the state -----------------------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> None:
        """Note what a committed batch changed, all or nothing. What is parked here is on the disk when this returns.

        A disk that cannot take it now (full, read-only) delays the note: it is kept in memory and written with the next
        one. A crash before that does the records again, which is harmless.
        """
        if self._state.advance(progress) and progress.done is not None:
            self._log.drop_before(progress.done.end[0])

    def parked(self, *, due_before: float | None = None, limit: int = 1_000_000) -> list[Parked]:
        """What is parked, oldest first; with `due_before` only what is to be tried again by then."""
        return self._state.parked(due_before=due_before, limit=limit)

    def parked_counts(self) -> dict[str, int]:
        """Parked spans by reason (a parked row of `run()` or `node()` is no span)."""
        return self._state.parked_counts() if self._may_be_asked() else {}

    def any_parked(self, spans: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        return self._may_be_asked() and self._state.any_parked(spans)

    def _may_be_asked(self) -> bool:
        """Asked by any thread, perhaps before the writer has seen that somebody closed our files: SQLite would take the
        program's for its own, wait for their locks, or find them damaged and close them."""
        if not self._log.probably_holds():
            self._look_whether_ours()
        return not self.gone

    def opened_things(self) -> list[tuple[str, str, bytes]]:
        """Rows (kind, id, body) that this process wrote as running and that have not ended."""
        return self._state.opened_things()

    def counts(self) -> dict[str, int]:
        """Counters noted by :meth:`advance`."""
        return self._state.counts()


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
    run_id: str = ""
    """The automatic run of the process that made it."""
    open: list[tuple[str, str]] = field(default_factory=list)
    """Rows (kind, id) that go on as far as it knows."""

    def ids(self, kind: str) -> set[str]:
        """What goes on of this kind; of runs also the automatic one."""
        found = {identifier for of, identifier in self.open if of == kind}
        return found | {self.run_id} if kind == "run" and self.run_id else found


def read_only_summary(path: str, *, waiting: bool = True) -> Summary:
    """Look at a journal without taking or changing anything of it. Without `waiting` only at what is open in it, and at the
    first of what is parked: that costs the same however much waits."""
    pid, run_id = journal_files.owner_of(path)
    summary = Summary(path, journal_files.is_owned(path), pid, [], {}, 0, run_id)
    state = State(path, lambda: None, look_only=True)
    try:
        with contextlib.suppress(sqlite3.DatabaseError):
            summary.parked = state.parked() if waiting else state.parked(limit=FIRST_PARKED)
            summary.counts = state.counts()
            summary.open = [(kind, identifier) for kind, identifier, _ in state.opened_things()]
    finally:
        state.close()
    if waiting:
        with contextlib.suppress(sqlite3.DatabaseError), log_of(path) as records:
            summary.pending = sum(1 for record in records if record.body[:1] == END)
    return summary


@contextlib.contextmanager
def log_of(path: str) -> Iterator[Iterator[Record]]:
    """The records of a journal's log that are not done yet, read without taking or changing anything of it."""
    log = Log(path=path)
    state = State(path, log.unseek, look_only=True)

    def records() -> Iterator[Record]:
        log.seek(state.cursor())
        while batch := log.read(1024):
            yield from batch

    try:
        yield records()
    finally:
        state.close()
        log.close()


def left_behind(directory: str) -> dict[str, int]:
    """Spans in any journal under a database's directory that are not stored: by reason, `pending` for the rest."""
    found: dict[str, int] = {}
    for path in journals(directory):
        summary = read_only_summary(path)
        for parked in summary.parked:
            if parked.span_id is not None:
                found[parked.reason] = found.get(parked.reason, 0) + 1
        if summary.pending:
            found["pending"] = found.get("pending", 0) + summary.pending
    return found
