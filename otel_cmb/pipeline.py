"""Journal, writer thread, store and counts of one process: what every door calls.

    accept ──> journal (survives SIGKILL) ──> writer ──> store.write (one transaction) ──> journal.advance ──> counted
                                                │ outage: back off, read again          ├─> parked, with its reason
                                                │ poison: bisect, park the one          └─> tickets answered
                                                └ misconfigured: keep journaling, say so loudly

Never raises into a program through `on_start`/`on_end`; never blocks one on the database. After a fork the child begins
anew with its own journal; the parent's is the parent's.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import math
import os
import queue
import random
import sqlite3
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from otel_cmb import clock, metrics, rebuild
from otel_cmb.accounting import Stats, Ticket, Totals
from otel_cmb.capture import strip_content
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, DatabaseURLError, JournalError, SchemaError
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.faults import Fault, classify
from otel_cmb.items import (
    COMMITTED,
    DEFERRED,
    ENDED,
    MERGED,
    NO_SPAN,
    PARKED,
    UNSETTLED,
    Item,
)
from otel_cmb.items import (
    Outcome as Fate,
)
from otel_cmb.journal import (
    Journal,
    JournalFullError,
    Parked,
    Progress,
    Record,
    adoptable,
    database_directory,
    journals,
    read_only_summary,
)
from otel_cmb.journal_state import keep_for_ever
from otel_cmb.otlp_clean import SpanContent
from otel_cmb.redact import Redactor
from otel_cmb.sanitize import UNCUT, clean_span
from otel_cmb.sdk import span_from_sdk
from otel_cmb.standby import Standby
from otel_cmb.store import Store
from otel_cmb.workflow import DIED

if TYPE_CHECKING:
    from otel_cmb.binding import Binding

__all__ = ["Pipeline", "current_pipeline", "get_pipeline", "state_directory"]

_log = logging.getLogger("otel_cmb")

END, START, COMMAND, CONTENT = b"e", b"s", b"c", b"l"

LINGER = 0.02
"""Seconds the writer waits after the first span of a quiet time, so that a burst shares a transaction."""

START_AGE = 0.05
"""Seconds a span must have been running before a row is written for it: most end sooner and cost one write."""

ADOPT_EVERY = 5.0
QUIET_WAIT = 1.0

REJECTED = "rejected_by_database"

RETRY_SIGNAL_FILE = "retry-now"
"""Touched by `otel-cmb parked replay`: living processes try their parked spans again when its time changes."""


@dataclass(slots=True)
class _Live:
    span: ReadableSpan
    stamp: Stamp
    since: float
    written: bool = False


def state_directory(settings: Settings) -> str:
    """Where the journals of these settings' database are kept. Raises :class:`DatabaseURLError` for a URL that names no
    database; one that cannot be used at the moment has a journal all the same."""
    url = _database(settings)
    named = url.set(drivername=url.get_backend_name(), password=None, query={}).render_as_string(hide_password=False)
    digest = hashlib.blake2b(f"{named}|{settings.schema or ''}".encode(), digest_size=8).hexdigest()
    return database_directory(settings.state_dir, digest)


def _database(settings: Settings) -> URL:
    from otel_cmb.dialects import POSTGRESQL, SQLITE, check_url

    try:
        return check_url(settings)
    except DatabaseURLError:  # no driver, no such directory, no right to write there: may be mended
        try:
            url = make_url(settings.database_url.strip())
        except (ArgumentError, ValueError):
            url = None
        if url is not None and url.get_backend_name() == POSTGRESQL and url.database:
            return url
        path = url.database if url is not None and url.drivername == SQLITE and not url.host else None
        if not path or path.startswith((":memory:", "file:")):
            raise
        return URL.create(SQLITE, database=os.path.abspath(os.path.expanduser(path)))


class Pipeline:
    """See the module's docstring. Made by :func:`get_pipeline`; opens nothing before its first use."""

    def __init__(self, settings: Settings, *, per_trace_runs: bool = False):
        self.settings = settings
        self.per_trace_runs = per_trace_runs
        self.automatic_run_id = str(uuid.uuid4())
        self._automatic_pid = os.getpid()
        self._redactor = Redactor() if settings.redact else None
        self.live: dict[int, _Live] = {}
        self._reset()
        _pipelines.add(self)

    def _reset(self) -> None:
        """The state of a process that has done nothing yet; also what a forked child begins with."""
        self.live.clear()
        self._directory: str | None = None
        self._append_lock = threading.RLock()
        self._appending = False
        self._deferred: deque[list[bytes]] = deque()
        self._arrived: deque[tuple[str, int]] = deque()
        self._standby: Standby | None = None
        self._moved_seq = 0
        self._left: dict[str, dict[str, int]] = {}
        self._stepping = False
        self._forked = False
        self._begun = False
        self._given_back = threading.Event()
        self._shutdown_lock = threading.RLock()
        self._last_error: BaseException | None = None
        self._journal: Journal | None = None
        self._adopted: list[Journal] = []
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        self._start_lock = threading.RLock()
        self._store_lock = threading.RLock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = False
        self._urgent = False
        self._settle = False
        self._stopping = False
        self._closed = False
        self._shutdown_begun: float | None = None
        self._shutdown_by = math.inf
        self._progress = threading.Condition()
        self._done_seq = 0
        self._tickets: dict[int, Ticket] = {}
        self._stamps_before_fork: dict[int, Stamp] = {}
        self._held: list[Any] = []
        self._accepting = 0
        self._recent: dict[int, Fate] = {}
        self._ticket_lock = threading.RLock()
        self._opened: set[str] = set()
        self._things: list[tuple[str, str, bytes]] = []
        self._stats = Stats()
        self._failures = 0
        self._retry_at = 0.0
        self._next_adoption = 0.0
        self._said: dict[str, float] = {}
        self._automatic_open = False
        self._retry_asked: int | None = None

    # -- doors ---------------------------------------------------------------------------------------------------------

    def started(self, span: ReadableSpan, stamp: Stamp) -> None:
        """A span began: a row appears for it when it has run for a moment. Nothing is written here."""
        context = span.get_span_context()
        if context is not None:
            self.live[context.trace_id << 64 | context.span_id] = _Live(span, stamp, clock.monotonic())
            self._nudge()

    def ended(self, span: ReadableSpan, otherwise: Callable[[], Stamp] = Stamp) -> None:
        """A span ended: in the journal when this returns (or counted as lost, with the reason).

        `otherwise` says run and session of a span whose start was not seen here.
        """
        context = span.get_span_context()
        if context is None:
            return
        key = context.trace_id << 64 | context.span_id
        entry = self.live.pop(key, None)
        stamp = entry.stamp if entry is not None else self._stamps_before_fork.pop(key, None)
        self._arrived.append(("", 1))
        try:
            body = END + rebuild.encode(self._prepared(span_from_sdk(span, stamp if stamp is not None else otherwise())))
            self._append([body])
        except (JournalError, ConfigurationError) as error:
            self._arrived.append(("journal", 1))
            self._say("journal", "a span is lost: %s", error)
        except BaseException:  # an attribute nobody can read, or Ctrl-C in the middle: it is not in the journal
            self._arrived.append(("interrupted", 1))
            raise
        else:
            self._nudge()
        if len(self._arrived) > 1000:
            self._fold()

    def accept(self, spans: Sequence[Span]) -> Ticket:
        """Journal ended spans and give a ticket for their fate.

        When this returns they survive SIGKILL; :meth:`sync` makes them survive a power cut. Raises
        :class:`JournalError` when the journal cannot take them; then none of them is accepted.
        """
        with self._ticket_lock:
            self._accepting += 1
        ticket = Ticket(len(spans))
        try:
            bodies = [END + rebuild.encode(self._prepared(span)) for span in spans]
            self._arrived.append(("", len(spans)))
            try:
                last = self._append(bodies) if bodies else 0
            except BaseException:
                self._arrived.append(("", -len(spans)))
                raise
        except BaseException:
            with self._ticket_lock:
                self._accepting -= 1
            raise
        with self._ticket_lock:
            if last:
                for seq in range(last - len(bodies) + 1, last + 1):
                    fate = self._recent.pop(seq, None)
                    if fate is not None:
                        ticket.settle(fate.result, fate.reason)
                    else:
                        self._tickets[seq] = ticket
            else:  # called from within an append of this very thread: nobody can write while it waits
                ticket.outage()
            self._accepting -= 1
            if not self._accepting:
                self._recent.clear()
        self._urgent = True
        self._nudge()
        return ticket

    def accept_command(self, command: dict[str, Any]) -> None:
        """Journal a row of `run()`, `node()` or `step()`. Never raises: what cannot be journaled is logged."""
        try:
            command.setdefault("automatic", self.automatic_run_id)
            self._append([COMMAND + orjson.dumps(command, default=str, option=orjson.OPT_NON_STR_KEYS)])
            self._nudge()
        except (JournalError, TypeError, ConfigurationError) as error:
            self._say("command", "%s not recorded: %s", command.get("do"), error)

    def accept_logs(self, records: Sequence[SpanContent]) -> None:
        """Journal content that log records carry, to be joined to its spans whenever those come. Raises
        :class:`JournalError`."""
        bodies = []
        for record in records:
            carrier = Span(record.trace_id, record.span_id, "", 0, attributes=dict(record.attributes))
            carrier.stamp.bound_session_id = record.bound_session_id
            carrier = self._prepared(carrier)
            bodies.append(CONTENT + rebuild.encode(carrier))
        if bodies:
            self._append(bodies)
            self._nudge()

    def remember_open(self, kind: str, identifier: str) -> None:
        """A run of this process: marked failed by the next process if this one dies."""
        self._things.append((kind, identifier, b""))

    def check_run(self, name: str) -> tuple[str, str]:
        """Id and session of an existing run. Raises :class:`RunNotFoundError`, :class:`DatabaseUnavailableError`."""
        if self._journal is not None:
            self.flush(self.settings.connect_timeout)  # a run this very process has just made
        try:
            with _uninstrumented():
                row = self._the_store().check_run(name)
        except Exception as error:
            verdict = classify(error)
            if verdict.fault is Fault.OUTAGE:
                raise DatabaseUnavailableError(
                    f"{safe_url(self.settings.database_url)} did not answer: {verdict.reason}; try again when it is back"
                ) from error
            raise
        return row.id, row.session_id

    def connect(self) -> Binding:
        """What the database is. Raises the database's error, :class:`SchemaError` or :class:`ConfigurationError`."""
        with self._store_lock, _uninstrumented():
            return self._the_store().connect()

    def left_behind(self) -> dict[str, int]:
        """Spans in any journal of this database on this host that are not stored: by reason, `pending` for the rest."""
        if self._directory is None:
            self._directory = state_directory(self.settings)
        found: dict[str, int] = {}
        for path in journals(self._directory):
            summary = read_only_summary(path)
            for parked in summary.parked:
                if parked.span_id is not None:
                    found[parked.reason] = found.get(parked.reason, 0) + 1
            if summary.pending:
                found["pending"] = found.get("pending", 0) + summary.pending
        return found

    def sync(self) -> None:
        """Return when everything accepted is on the disk. Raises :class:`JournalError`."""
        if self._standby is not None and (self._standby.backlog() or self._standby.parked(limit=1)):
            raise JournalError(f"the journal in {self._directory} cannot be written; spans wait in memory")
        if self._journal is not None:
            self._journal.sync()

    def show_running(self) -> None:
        """Journal the starts of all running spans now, however young; after a :meth:`flush` their rows are there."""
        self._write_starts(math.inf)

    def flush(self, timeout: float) -> bool:
        """True when everything accepted before is committed or deliberately parked; False when `timeout` (seconds) ran out.

        Spans that wait for their trace's root are settled now.
        """
        if self._journal is None and self._standby is None:
            return True
        deadline = min(clock.monotonic() + timeout, self._shutdown_by)
        target = self._journal.last_seq if self._journal is not None else 0
        in_memory = self._standby.last_seq if self._standby is not None else 0
        self._retry_at = 0.0
        while True:
            if self._closed and clock.monotonic() >= deadline:
                return self._reached(target, in_memory)  # shut down: nothing begins anew for a question
            self._settle = self._urgent = True
            if self._ensure_thread():
                self._wake.put(None)
            else:
                self._step()
            with self._progress:
                if self._reached(target, in_memory):
                    return True
                left = deadline - clock.monotonic()
                if left <= 0:
                    return False
                self._progress.wait(min(left, 0.05))

    def stats(self) -> Stats:
        """The counts of this process, and what is parked, by reason."""
        with self._ticket_lock:
            self._fold()
            stats = self._stats.copy()
        left = dict(self._left)
        logs: list[Journal | Standby] = [log for log in (self._journal, self._standby) if log is not None]
        logs += [journal for journal in list(self._adopted) if left.pop(journal.path, None) is not None]
        stats.parked = {}
        for counts in [*map(_parked_in, logs), *left.values()]:
            for reason, n in counts.items():
                if reason != UNSETTLED:
                    stats.parked[reason] = stats.parked.get(reason, 0) + n
        stats.journal_bytes = self._journal.size if self._journal is not None else 0
        stats.live = len(self.live)
        return stats

    def any_parked(self, spans: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        wanted = list(spans)
        logs: list[Journal | Standby] = [log for log in (self._journal, self._standby) if log is not None]
        return any(log.any_parked(wanted) for log in logs)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Write what can be written within `timeout` seconds, leave the rest in the journal, say what is left.

        Safe to call twice; a later `accept` opens the pipeline again.
        """
        with self._shutdown_lock:
            limit = self.settings.shutdown_timeout if timeout is None else timeout
            if self._forked and self._journal is None and self._children_wrote():
                self._forked = False
                self._end_automatic_run()
            if self._closed or (self._journal is None and self._standby is None):
                if (thread := self._thread) is not None and thread is not threading.current_thread():
                    if not self._closed:  # a writer that only looked after the journals of others
                        self._given_back.clear()
                        self._closed = self._stopping = True
                        self._wake.put(None)
                    # That is when the database has answered. However many ask at the end of a program, it waits once.
                    begun = self._shutdown_begun if self._shutdown_begun is not None else clock.monotonic()
                    self._given_back.wait(max(0.0, begun + limit - clock.monotonic()))
                return self._journal is None and self._standby is None
            self._shutdown_begun = clock.monotonic()
            deadline = self._shutdown_by = self._shutdown_begun + limit
            self._next_adoption = 0.0  # what forked children left
            complete = self.flush(limit)
            if self._automatic_pid == os.getpid() and not self.per_trace_runs and (self._automatic_open or not complete):
                self._end_automatic_run()
                complete = self.flush(max(0.0, deadline - clock.monotonic())) and complete
            self._given_back.clear()
            self._closed = self._stopping = True
            self._wake.put(None)
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                # not for the thread's end: spans of other threads may make it begin anew at once
                self._given_back.wait(max(0.1, deadline - clock.monotonic()))
            if thread is None or thread is threading.current_thread():
                self._close()
            stats = self.stats()
            if self._standby is not None and self._standby.backlog():
                _log.error("otel-cmb: what waits in memory is lost unless the database answers before the process ends")
        if stats.parked or stats.pending or stats.lost:
            _log.warning("otel-cmb: %s", stats.summary(safe_url(self.settings.database_url)))
        return complete

    def _end_automatic_run(self) -> None:
        self._automatic_open = False
        self.accept_command({"do": "run_end", "id": self.automatic_run_id, "status": "completed", "at": clock.now_ns()})

    def _children_wrote(self) -> bool:
        """A server's workers share the run of the process that forked them, which may have had no span of its own."""
        if self._automatic_pid != os.getpid() or self.per_trace_runs:
            return False
        with contextlib.suppress(ConfigurationError):
            return os.path.isdir(state_directory(self.settings))
        return False

    # -- the way in ----------------------------------------------------------------------------------------------------

    def _prepared(self, span: Span) -> Span:
        """Redacted, reduced to what may be captured, cleaned and cut: before anything touches the disk."""
        clean_span(span, max_value_bytes=self.settings.max_value_bytes if self._redactor is None else UNCUT)
        strip_content(span, self.settings.capture)
        if self._redactor is not None:
            self._redactor.span(span)
            clean_span(span, max_value_bytes=self.settings.max_value_bytes)
        if span.stamp.automatic_run_id is None and not self.per_trace_runs:
            span.stamp.automatic_run_id = self.automatic_run_id
        if self._journal is not None and self._journal.size > 0.85 * self.settings.journal_max_bytes:
            strip_content(span, ("none",))  # nearly full: what happened is worth more than what was said
        return span

    def _append(self, bodies: list[bytes]) -> int:
        """Number of the last record; 0 when called from within an append of this thread (a signal handler, the garbage
        collector), which then writes these too. Raises :class:`JournalError` when they can be kept nowhere."""
        with self._append_lock:
            if self._appending:
                self._deferred.append(bodies)
                return 0
            self._appending = True
            try:
                return self._keep(bodies)
            finally:
                self._appending = False
                while self._deferred:
                    self._append_deferred(self._deferred.popleft())

    def _append_deferred(self, bodies: list[bytes]) -> None:
        try:
            self._append(bodies)
        except (JournalError, ConfigurationError) as error:
            lost = sum(1 for body in bodies if body[:1] == END)
            self._arrived.append(("journal", lost))
            self._say("journal", "%d span(s) lost: %s", lost, error)

    def _keep(self, bodies: list[bytes]) -> int:
        """Into the journal; into memory where there is no journal to be had."""
        if self._journal is None:
            self._directory = self._directory or state_directory(self.settings)
            own = self._automatic_pid == os.getpid() and not self.per_trace_runs
            self._journal = Journal(
                self._directory, max_bytes=self.settings.journal_max_bytes, run_id=self.automatic_run_id if own else "")
            self._closed, self._begun = False, True
            self._shutdown_begun, self._shutdown_by = None, math.inf
        try:
            return self._journal.append(bodies)
        except JournalFullError:
            raise
        except JournalError as error:
            if self._standby is None:
                self._standby = Standby()
            last = self._standby.append(bodies)
            self._say("standby", "%s. Until then spans go to the database from memory and do not survive the process", error)
            return last

    def _fold(self) -> None:
        """Count what has arrived. Arrivals are noted in a deque, not in the counters, because an arrival may come in the
        middle of another one (signal handlers, the garbage collector)."""
        with self._ticket_lock:
            while self._arrived:
                try:
                    reason, n = self._arrived.popleft()
                except IndexError:  # a signal handler counted it
                    break
                if reason:
                    self._stats.lose(reason, n)
                    self._stats.pending -= n
                else:
                    self._stats.received += n
                    self._stats.pending += n

    def _nudge(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.put(None)
        if self._thread is not None and not self._begun:
            return
        if not self._ensure_thread() and not self._failures and self._append_lock.acquire(False):
            self._append_lock.release()
            if not self._appending:
                self._guarded_step()  # at interpreter shutdown, when no thread can be had

    def _ensure_thread(self) -> bool:
        """The writer runs, or (at interpreter shutdown) cannot: then the caller writes."""
        if self._thread is not None and self._thread.is_alive() and not self._begun:
            return True
        if sys.is_finalizing():
            return False  # before Python 3.12 a thread started now waits for ever for its turn, and so do we
        with self._start_lock:  # a writer that is on its way out has it until it is gone
            self._begun = False
            if self._thread is not None and self._thread.is_alive():
                return True
            thread = threading.Thread(target=self._loop, name="otel-cmb-writer", daemon=True)
            self._stopping = False
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:  # no new threads at interpreter shutdown
                self._thread = None
                return False
        _register_exit()
        return True

    # -- the writer ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented database driver must not trace us
        while True:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=self._pause())
            while not self._wake.empty():
                self._wake.get()
            if not self._urgent and not self._stopping:
                time.sleep(LINGER)
            self._awake = self._urgent = False
            if not self._stopping:
                self._guarded_step()
                continue
            with self._start_lock:
                self._close()
                if self._closed:
                    self._thread = None
                    return
                self._stopping = False  # somebody has begun anew

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception:  # noqa: BLE001 - our own fault costs time, never spans
            self._back_off()
            if self._may_say("writer"):
                _log.exception("otel-cmb: the writer met an error of its own; the spans stay in the journal")

    def _pause(self) -> float:
        if self._urgent:
            return 0.001
        if self._retry_at:
            return max(0.01, min(self._retry_at - clock.monotonic(), self.settings.retry_max))
        if self.live:
            return self.settings.live_ms / 1000
        return QUIET_WAIT

    def _step(self) -> None:
        """Write everything that can be written now."""
        with self._store_lock, _uninstrumented():
            if self._stepping:  # from within itself: a signal handler that flushes
                return
            self._stepping = True
            try:
                self._write_all()
            finally:
                self._stepping = False

    def _write_all(self) -> None:
        now = clock.monotonic()
        self._fold()
        self._write_starts(now)
        if self._retry_at and now < self._retry_at:
            return
        if now >= self._next_adoption and self._directory is not None:
            self._next_adoption = now + ADOPT_EVERY
            self._adopt()
        asked = self._asked_to_retry()
        for log in self._logs():
            if not self._drain(log):
                break
            if isinstance(log, Journal) and log.adopted:
                self._close_rows_of(log)
            if not self._retry_parked(log, everything=asked is not None):
                break
        else:
            self._retry_asked = asked or self._retry_asked
            self._finish_adopted()
            if self._store is None or self._link_late():
                self._settle = False
            return
        if self._standby is not None:
            self._rescue(self._standby)

    def _logs(self) -> list[Journal | Standby]:
        """What is to be written: memory first, it is the least safe."""
        return [*(log for log in (self._standby, self._journal) if log is not None), *self._adopted]

    def _rescue(self, standby: Standby) -> None:
        """The database is away: what is in memory goes to the journal if that can be written by now."""
        if not standby.backlog() or self._journal is None:
            return
        with self._append_lock:
            records, parked = standby.take_all()
            try:
                last = self._journal.append([record.body for record in records])
            except JournalError:
                standby.restore(records, parked)
                return
            standby.restore([], parked)
            self._moved_seq = last
        with self._ticket_lock:
            for n, record in enumerate(reversed(records)):
                ticket = self._tickets.pop(record.seq, None)
                if ticket is not None:
                    self._tickets[last - n] = ticket

    def _asked_to_retry(self) -> int | None:
        """When somebody asked to try everything again, if that was not done yet."""
        if self._directory is None:
            return None
        try:
            touched = os.stat(os.path.join(self._directory, RETRY_SIGNAL_FILE)).st_mtime_ns
        except OSError:
            return None
        return touched if touched != self._retry_asked else None

    def _write_starts(self, now: float) -> None:
        """Journal the start of spans that have been running for a moment."""
        if not self.live or (self._journal is None and not self._can_open()):
            return
        if self._journal is not None and self._journal.size > 0.7 * self.settings.journal_max_bytes:
            return
        bodies = []
        for entry in list(self.live.values()):
            if not entry.written and now - entry.since >= START_AGE:
                entry.written = True
                span = span_from_sdk(entry.span, entry.stamp)
                if span.end_ns is None:
                    bodies.append(START + rebuild.encode(self._prepared(span)))
        if bodies:
            try:
                self._append(bodies)
            except (JournalError, ConfigurationError) as error:
                self._say("start", "running spans are not shown: %s", error)

    def _can_open(self) -> bool:
        try:
            state_directory(self.settings)
        except ConfigurationError as error:
            self._say("url", "%s", error)
            return False
        return True

    def _drain(self, journal: Journal | Standby) -> bool:
        """Write the journal's log to what is its end now; False when the database cannot take it. A program that ends
        spans all the time must not keep starts, parked spans and a shutdown waiting."""
        done, end = False, journal.last_seq
        try:
            while records := journal.read(self.settings.batch_size):
                if not self._write_records(journal, records):
                    return False
                if not journal.adopted and records[-1].seq >= end:
                    self._urgent = self._urgent or journal.last_seq > records[-1].seq
                    break
            done = True
        finally:
            if not done:  # also after an error: what was read and not noted must be read again
                journal.rewind()
        return True

    def _write_records(self, journal: Journal | Standby, records: Sequence[Record]) -> bool:
        items, starts, broken = self._decode(records)
        position = 0
        for upto, part in self._written(items, [record.seq for record in records]):
            if part is None:
                return False
            done = records[position:upto]
            position = upto
            self._note(journal, done, part, starts, broken)
        return True

    def _decode(self, records: Sequence[Record]) -> tuple[list[Item], dict[int, bytes], set[int]]:
        """Items of the records; starts whose end is in the same batch are left out: one write instead of two."""
        items: list[Item] = []
        starts: dict[int, bytes] = {}
        broken: set[int] = set()
        ends: set[tuple[str, str, int]] = set()
        for record in records:
            kind, body = record.body[:1], record.body[1:]
            try:
                item = self._item(record.seq, kind, body)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                broken.add(record.seq)
                self._say("broken", "a journal record could not be read and is lost: %s", error)
                continue
            if kind == START:
                starts[record.seq] = record.body
            elif kind == END and item.span is not None:
                ends.add((item.span.trace_id, item.span.span_id, item.span.start_ns))
            items.append(item)
        if starts and ends:
            items = [
                item for item in items
                if item.seq not in starts or item.span is None
                or (item.span.trace_id, item.span.span_id, item.span.start_ns) not in ends]
        return items, starts, broken

    def _item(self, seq: int, kind: bytes, body: bytes, *, settle: bool = False) -> Item:
        if kind in (END, START):
            return Item(seq, span=rebuild.decode(body), settle=settle or self._settle)
        if kind == COMMAND:
            return Item(seq, command=orjson.loads(body))
        if kind == CONTENT:
            return Item(seq, content=rebuild.decode(body))
        raise ValueError(f"unknown kind {kind!r}")

    def _written(self, items: list[Item], seqs: Sequence[int]) -> Any:
        """Write the items, bisecting around what the database refuses. Yields (records done, items) per transaction, or
        (0, None) when the database is away."""
        stack = [items]
        positions = {seq: n + 1 for n, seq in enumerate(seqs)}
        duplicates = 0
        while stack:
            part = stack.pop()
            # everything before the next part's first item is done once this part is
            upto = positions[stack[-1][0].seq] - 1 if stack and stack[-1] else len(seqs)
            if not part:
                if not stack:
                    yield len(seqs), []
                continue
            try:
                self._the_store().write(part)
            except Exception as error:  # noqa: BLE001 - one table says what any of them means
                verdict = classify(error)
                if verdict.fault is Fault.DUPLICATE and duplicates < 5:
                    duplicates += 1
                    stack.append(part)
                    continue
                if verdict.fault in (Fault.POISON, Fault.DUPLICATE):
                    if len(part) > 1:
                        half = len(part) // 2
                        stack += [part[half:], part[:half]]
                        continue
                    part[0].outcome = Fate(PARKED, REJECTED, verdict.reason)
                    _log.debug("otel-cmb: refused by the database", exc_info=error)
                else:
                    self._failed(verdict.fault, verdict.reason, error)
                    yield 0, None
                    return
            self._recovered()
            yield upto, part

    def _note(
        self, journal: Journal | Standby, records: Sequence[Record], items: Sequence[Item], starts: dict[int, bytes],
        broken: set[int],
    ) -> None:
        """Move the journal on and count."""
        now = time.time()
        progress = Progress(done=records[-1] if records else None)
        fates: list[tuple[int, Fate]] = []
        bodies = {record.seq: record.body for record in records}
        own = journal is self._journal
        for item in items:
            fate = item.outcome
            assert fate is not None
            if item.seq in starts:
                self._note_start(progress, item, starts[item.seq])
                continue
            if fate.result in (PARKED, DEFERRED):
                progress.park.append(self._parked(item, fate, bodies[item.seq], now))
            if item.span is not None:
                fates.append((item.seq, fate))
                if fate.result not in (PARKED, DEFERRED):
                    progress.counts[fate.result] = progress.counts.get(fate.result, 0) + 1
                    self._note_end(progress, item.span, own)
            elif item.command is not None:
                _note_command(progress, item.command, fate)
        lost = sum(record.gap + (record.seq in broken) for record in records)
        if lost:
            progress.counts["lost:journal_damaged"] = lost
            self._say("damaged", "%d journal record(s) were damaged on the disk and are lost", lost)
        if own:
            self._note_things(progress)
        journal.advance(progress)
        self._count(journal, fates, lost, records)

    def _note_start(self, progress: Progress, item: Item, body: bytes) -> None:
        assert item.span is not None and item.outcome is not None
        if item.outcome.result in (COMMITTED, MERGED) and item.outcome.reason != ENDED:
            id_ = event_id(item.span.trace_id, item.span.span_id)
            self._opened.add(id_)
            progress.opened.append(("event", id_, body))

    def _note_end(self, progress: Progress, span: Span, own: bool) -> None:
        id_ = event_id(span.trace_id, span.span_id)
        if not own or id_ in self._opened:
            self._opened.discard(id_)
            progress.closed.append(("event", id_))

    def _note_things(self, progress: Progress) -> None:
        while self._things:
            progress.opened.append(self._things.pop())
        store = self._store
        if store is not None and not self._automatic_open and store.made_run(self.automatic_run_id):
            self._automatic_open = True

    def _parked(self, item: Item, fate: Fate, body: bytes, now: float, before: Parked | None = None) -> Parked:
        deferred = fate.result == DEFERRED
        since = before.since if before is not None else now
        attempts = before.attempts + 1 if before is not None else 1
        if deferred:
            due: float | None = since + self.settings.settle_time
        elif fate.reason == REJECTED or now - since > self.settings.park_retry:
            due = None
        else:
            due = now + min(0.25 * 2 ** min(attempts - 1, 8), 30.0)
        if not deferred and before is None and fate.reason != NO_SPAN:
            self._say(f"parked:{fate.reason}:{fate.run_id}", "%s: %s", fate.reason, fate.detail)
        span = item.span
        name = span.name if span else item.command["do"] if item.command else "log content"
        return Parked(
            item.seq, fate.reason, body, fate.detail, fate.run_id, span.trace_id if span else None,
            span.span_id if span else None, name, since, attempts, due)

    def _count(
        self, journal: Journal | Standby, fates: Sequence[tuple[int, Fate]], lost: int, records: Sequence[Record],
    ) -> None:
        if not self._is_ours(journal):
            return
        own = journal is self._journal
        with self._ticket_lock:
            self._fold()
            for seq, fate in fates:
                if own and seq <= self._done_seq:  # done again: its journal's state was lost
                    if fate.result == COMMITTED:
                        self._stats.count(fate.result, fate.reason)
                    continue
                self._stats.count(fate.result, fate.reason)
                if fate.result != DEFERRED:
                    self._stats.pending -= 1
                ticket = self._tickets.pop(seq, None)
                if ticket is not None:
                    ticket.settle(fate.result, fate.reason)
                elif self._accepting:
                    self._recent[seq] = fate
            if lost:
                lost = min(lost, self._stats.pending)
                self._stats.lose("journal_damaged", lost)
                self._stats.pending -= lost
        with self._progress:
            if records and own:
                self._done_seq = max(self._done_seq, records[-1].seq)
            self._progress.notify_all()

    def _is_ours(self, journal: Journal | Standby) -> bool:
        """Whether its spans are in our counts: our journal, our memory, or a journal we left at an earlier shutdown."""
        return journal is self._journal or journal is self._standby or journal.path in self._left

    def _reached(self, target: int, in_memory: int) -> bool:
        if self._done_seq < max(target, self._moved_seq) or (self._standby is not None and self._standby.done_seq < in_memory):
            return False
        logs: list[Journal | Standby] = [log for log in (self._journal, self._standby) if log is not None]
        return not any(UNSETTLED in _parked_in(log) for log in logs)

    # -- parked --------------------------------------------------------------------------------------------------------

    def _retry_parked(self, journal: Journal | Standby, *, everything: bool = False) -> bool:
        """Try again what is due. False when the database cannot take it now."""
        now = time.time()
        try:
            due = journal.parked() if everything else journal.parked(due_before=now)
            if self._settle and not everything and UNSETTLED in journal.parked_counts():
                known = {parked.seq for parked in due}
                due += [one for one in journal.parked() if one.reason == UNSETTLED and one.seq not in known]
        except sqlite3.OperationalError as error:  # its disk is full, or gone; the log goes on
            self._say("state", "what is parked in %s cannot be read now: %s", journal.path, error)
            return True
        for start in range(0, len(due), self.settings.batch_size):
            batch = due[start : start + self.settings.batch_size]
            by_seq = {parked.seq: parked for parked in batch}
            items = []
            for parked in batch:
                settle = self._settle or everything or now >= parked.since + self.settings.settle_time
                with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
                    items.append(self._item(parked.seq, parked.body[:1], parked.body[1:], settle=settle))
            for _, part in self._written(items, [item.seq for item in items]):
                if part is None:
                    return False
                self._note_parked(journal, part, by_seq, now)
        return True

    def _note_parked(
        self, journal: Journal | Standby, items: Sequence[Item], parked: dict[int, Parked], now: float,
    ) -> None:
        progress = Progress()
        own = journal is self._journal
        settled: list[Fate] = []
        pending = 0
        for item in items:
            before, fate = parked[item.seq], item.outcome
            assert fate is not None
            if before.body[:1] == START:  # closes the row of a process that died; without a row there is nothing to close
                progress.unpark.append(item.seq)
                continue
            if fate.result in (PARKED, DEFERRED):
                progress.park.append(self._parked(item, fate, before.body, now, before))
                pending += item.span is not None and before.reason == UNSETTLED and fate.result == PARKED
                continue
            progress.unpark.append(item.seq)
            if item.span is not None:
                self._note_end(progress, item.span, own)
                progress.counts[fate.result] = progress.counts.get(fate.result, 0) + 1
                settled.append(fate)
                pending += before.reason == UNSETTLED
            elif item.command is not None:
                _note_command(progress, item.command, fate)
        journal.advance(progress)
        if self._is_ours(journal):
            with self._ticket_lock:
                for fate in settled:
                    self._stats.count(fate.result, fate.reason)
                self._stats.pending -= pending
        with self._progress:
            self._progress.notify_all()

    def replay(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Try everything parked again, in our own journal and in those of dead processes; how many stay parked.

        Raises what the database raises when it is away.
        """
        with self._store_lock, _uninstrumented():
            self._directory = self._directory or state_directory(self.settings)
            self._settle = True
            self._retry_at = 0.0
            self._adopt()
            logs = self._logs()
            for n, log in enumerate(logs):
                self._last_error = None
                done = self._drain(log)
                if done and isinstance(log, Journal) and log.adopted:
                    self._close_rows_of(log)
                if not done or not self._retry_parked(log, everything=True):
                    self._retry_at = 0.0
                    if self._last_error is not None:
                        raise self._last_error
                if progress is not None:
                    progress(n + 1, len(logs))
            remaining = sum(sum(_parked_in(log).values()) for log in logs)
            self._finish_adopted()
            self._settle = False
            return remaining

    # -- journals of dead processes ------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        assert self._directory is not None
        self._adopted += adoptable(self._directory)

    def _close_rows_of(self, journal: Journal) -> None:
        """The process died: what it had open ends as failed, after what it had finished is written (a late end
        outranks the death, whichever comes first)."""
        bodies = []
        things = journal.opened_things()
        runs = {identifier for kind, identifier, _ in things if kind == "run"}
        if journal.run_id:  # its automatic run; one that was ended in time stays as it is
            runs.add(journal.run_id)
            journal.run_id = ""
        for kind, _, body in things:
            if kind == "event":
                with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
                    span = rebuild.decode(body[1:])
                    span.died = True
                    bodies.append(START + rebuild.encode(span))
        for run_id in sorted(runs):
            command = {"do": "run_end", "id": run_id, "status": "failed", "error": DIED, "at": clock.now_ns()}
            bodies.append(COMMAND + orjson.dumps(command))
        if bodies:
            now = time.time()
            first = min((parked.seq for parked in journal.parked(limit=1)), default=0)
            first = min(first, 0) - 1  # below all that are there
            journal.advance(Progress(
                park=[Parked(first - n, "process_died", body, since=now, due=0.0) for n, body in enumerate(bodies)],
                closed=[(kind, identifier) for kind, identifier, _ in things]))

    def _finish_adopted(self) -> None:
        for journal in list(self._adopted):
            if journal.parked(limit=1) or journal.backlog():
                continue
            counts, path = journal.counts(), journal.path
            self._adopted.remove(journal)
            if journal.close():
                self._left.pop(path, None)
                if self._directory is not None:
                    Totals(self._directory).add(counts)

    def _close(self) -> None:
        """Give everything back; a later `accept` starts over with a new journal. The counts go on."""
        with self._append_lock:
            if not self._closed:
                return
            journal, self._journal = self._journal, None
            standby, self._standby = self._standby, None
        lost = self._give_up(standby, journal) if standby is not None else 0
        totals = {"lost:journal": lost} if lost else {}
        for one in [*self._adopted, *([journal] if journal is not None else [])]:
            counts, path = (one.counts(), one.path) if one.opened else ({}, "")
            parked = _parked_in(one) if one is journal or path in self._left else {}
            if one.close():
                self._left.pop(path, None)
                for name, n in counts.items():
                    totals[name] = totals.get(name, 0) + n
            elif parked or one is journal:
                self._left[path] = parked
        if totals and self._directory is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                Totals(self._directory).add(totals)
        self._adopted = []
        with self._ticket_lock:
            for ticket in set(self._tickets.values()):
                ticket.outage()
            self._tickets.clear()
            self._recent.clear()
        if self._store is not None:
            self._store.close()
            self._store = None
        self._done_seq = self._moved_seq = 0
        self._opened.clear()
        self._given_back.set()

    def _give_up(self, standby: Standby, journal: Journal | None) -> int:
        """What is in memory at the end goes to the journal after all, or is lost: how many spans."""
        records, parked = standby.take_all()
        bodies = [record.body for record in records] + [one.body for one in parked]
        spans = sum(body[:1] == END for body in bodies)
        waiting = sum(record.body[:1] == END for record in records)
        if not bodies:
            return 0
        try:
            if journal is None:
                raise JournalError("there is none")
            journal.append(bodies)
        except JournalError as error:
            _log.error("otel-cmb: %d span(s) that waited in memory are lost: the journal cannot be written: %s", spans, error)
            with self._ticket_lock:
                self._fold()
                self._stats.lose("journal", spans)
                self._stats.pending -= waiting
            return spans
        with self._ticket_lock:
            self._stats.pending += spans - waiting
        return 0

    # -- trouble -------------------------------------------------------------------------------------------------------

    def _failed(self, fault: Fault, reason: str, error: BaseException) -> None:
        self._last_error = error
        where = safe_url(self.settings.database_url)
        if fault is Fault.MISCONFIGURED:
            detail = str(error) if isinstance(error, (SchemaError, ConfigurationError)) else reason
            self._say("misconfigured", "%s cannot be written: %s; spans are kept in the journal meanwhile", where, detail)
        else:
            self._say("outage", "%s is away: %s; spans are kept in the journal and tried again", where, reason)
        self._stats.last_error = reason
        if self._store is not None:
            self._store.close()
        self._back_off()
        with self._ticket_lock:
            for ticket in set(self._tickets.values()):
                ticket.outage()

    def _back_off(self) -> None:
        pause = min(self.settings.retry_max, 0.05 * 2 ** min(self._failures, 10))
        self._failures += 1
        self._retry_at = clock.monotonic() + pause * (0.5 + random.random() / 2)  # noqa: S311 - jitter, no secret

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            self._said.pop("outage", None)
            self._said.pop("misconfigured", None)
            self._stats.last_error = ""
        self._retry_at = 0.0

    def _link_late(self) -> bool:
        assert self._store is not None
        try:
            self._store.link_late()
        except Exception as error:  # noqa: BLE001 - one table says what any of them means
            verdict = classify(error)
            self._failed(verdict.fault, verdict.reason, error)
            return False
        return True

    def _the_store(self) -> Store:
        with self._start_lock:
            if self._store is None:
                self._directory = self._directory or state_directory(self.settings)
                self._store = Store(self.settings, self._directory, per_trace_runs=self.per_trace_runs)
            return self._store

    def _say(self, key: str, message: str, *values: object) -> None:
        """Log, at most once a minute for each kind of trouble."""
        if self._may_say(key):
            _log.warning("otel-cmb: " + message, *values)

    def _may_say(self, key: str) -> bool:
        now = clock.monotonic()
        if now - self._said.get(key, -1e9) < 60:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[key] = now
        return True

    # -- processes -----------------------------------------------------------------------------------------------------

    def hold_for_fork(self) -> None:
        """Before a fork: our threads stand still where nothing is half done, if they come there soon. A child that got a
        lock of SQLite's from a thread that is not there any more would wait for it for ever."""
        locks = [(self._append_lock, 1.0), (self._store_lock, 0.25), (self._start_lock, 0.1), (self._ticket_lock, 1.0)]
        self._held = [lock for lock, seconds in locks if lock.acquire(timeout=seconds)]

    def release_after_fork(self) -> None:
        """After a fork, in the parent."""
        self._forked = True
        if self._automatic_pid == os.getpid():
            _register_exit()
        held, self._held = self._held, []
        for lock in reversed(held):
            lock.release()

    def after_fork_in_child(self) -> None:
        """The files, connections and threads are the parent's: begin anew. Of the spans that are open in both processes
        only their run and session are remembered; the parent shows them."""
        stamps = {key: entry.stamp for key, entry in self.live.items()}
        for journal in [*([self._journal] if self._journal is not None else []), *self._adopted]:
            journal.forget()
        if self._store is not None:
            keep_for_ever(self._store.abandon())
        self._reset()
        self._stamps_before_fork = stamps


@contextlib.contextmanager
def _uninstrumented() -> Iterator[None]:
    """An instrumented database driver must not trace us: the spans would make work that makes spans."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)


def _parked_in(log: Journal | Standby) -> dict[str, int]:
    if not log.opened:
        return {}
    try:
        return log.parked_counts()
    except sqlite3.OperationalError:
        return {}


def _note_command(progress: Progress, command: dict[str, Any], fate: Fate) -> None:
    """A run that was begun is open until it is ended, whoever writes it."""
    if command["do"] == "run_start" and fate.result == COMMITTED:
        progress.opened.append(("run", command["id"], b""))
    elif command["do"] == "run_end":
        progress.closed.append(("run", command["id"]))


_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()
_by_key: dict[tuple[Settings, bool], Pipeline] = {}
_by_key_lock = threading.Lock()
_current: list[Pipeline] = []
_exit_registered: set[int] = set()


def get_pipeline(settings: Settings, *, per_trace_runs: bool = False) -> Pipeline:
    """The pipeline of these settings in this process: one per database and state directory, however many doors share it.

    `per_trace_runs`: spans that name no run get one per trace (a receiver), not one per process. Connects to nothing.
    """
    key = (settings, per_trace_runs)
    with _by_key_lock:
        for (known, known_per_trace), pipeline in _by_key.items():
            if known_per_trace == per_trace_runs and (known.database_url, known.schema, known.state_dir) == (
                settings.database_url, settings.schema, settings.state_dir):
                return pipeline
        pipeline = _by_key[key] = Pipeline(settings, per_trace_runs=per_trace_runs)
    metrics.watch(_known_pipelines)
    return pipeline


def _known_pipelines() -> list[Pipeline]:
    return list(_by_key.values())


def use_pipeline(pipeline: Pipeline) -> None:
    """Make this the pipeline of `run()`, `node()`, `step()` and `attach()`: the one installed last."""
    _current[:] = [pipeline]


def current_pipeline() -> Pipeline | None:
    """The pipeline installed last in this process."""
    return _current[0] if _current else None


def forget_pipelines() -> None:
    """Drop all pipelines of this process after shutting them down (tests, and `otel_cmb.testing`)."""
    with _by_key_lock:
        pipelines = list(_by_key.values())
        _by_key.clear()
        _current.clear()
    for pipeline in pipelines:
        pipeline.shutdown()


def _shut_down_all() -> None:
    for pipeline in list(_pipelines):
        with contextlib.suppress(Exception):
            pipeline.shutdown()


def _register_exit() -> None:
    """`atexit` does not run in a multiprocessing child (it ends by `os._exit`), its own finalizers do."""
    pid = os.getpid()
    if pid in _exit_registered:
        return
    _exit_registered.add(pid)
    atexit.register(_shut_down_all)
    import sys

    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _shut_down_all, exitpriority=10)


def _before_fork() -> None:
    for pipeline in list(_pipelines):
        pipeline.hold_for_fork()


def _after_fork_in_parent() -> None:
    for pipeline in list(_pipelines):
        pipeline.release_after_fork()


def _after_fork() -> None:
    global _by_key_lock  # noqa: PLW0603 - another thread may have held it
    _by_key_lock = threading.Lock()
    for pipeline in list(_pipelines):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
