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
import os
import queue
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan

from otel_cmb import clock, rebuild
from otel_cmb.accounting import Stats, Ticket, Totals
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, JournalError, SchemaError
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.faults import Fault, classify
from otel_cmb.journal import (
    Journal, Parked, Progress, Record, adoptable, database_directory, journals, read_only_summary,
)
from otel_cmb.binding import Binding
from otel_cmb.capture import strip_content
from otel_cmb.otlp_clean import SpanContent
from otel_cmb.redact import Redactor
from otel_cmb.sanitize import clean_span
from otel_cmb.sdk import span_from_sdk
from otel_cmb.store import (
    COMMITTED, DEFERRED, NO_SPAN, MERGED, PARKED, UNSETTLED, Item, Outcome as Fate, Store,
)

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
    """Where the journals of these settings' database are kept."""
    from otel_cmb.dialects import check_url

    url = check_url(settings)
    named = url.set(password=None, query={}).render_as_string(hide_password=False)
    digest = hashlib.blake2b(f"{named}|{settings.schema or ''}".encode(), digest_size=8).hexdigest()
    return database_directory(settings.state_dir, digest)


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
        self._progress = threading.Condition(threading.Lock())
        self._done_seq = 0
        self._tickets: dict[int, Ticket] = {}
        self._accepting = 0
        self._recent: dict[int, Fate] = {}
        self._ticket_lock = threading.Lock()
        self._opened: set[str] = set()
        self._things: list[tuple[str, str, bytes]] = []
        self._stats = Stats()
        self._failures = 0
        self._retry_at = 0.0
        self._next_adoption = 0.0
        self._said: dict[str, float] = {}
        self._automatic_open = False
        self._retry_asked: int | None = None
        self._memory: list[bytes] = []

    # -- doors ---------------------------------------------------------------------------------------------------------

    def started(self, span: ReadableSpan, stamp: Stamp) -> None:
        """A span began: a row appears for it when it has run for a moment. Nothing is written here."""
        context = span.get_span_context()
        if context is not None:
            self.live[context.span_id] = _Live(span, stamp, clock.monotonic())
            self._nudge()

    def stamp_of(self, span: ReadableSpan) -> Stamp | None:
        """What was stamped on the span at its start, which no attribute limit can evict."""
        context = span.get_span_context()
        entry = self.live.get(context.span_id) if context is not None else None
        return entry.stamp if entry is not None else None

    def ended(self, span: ReadableSpan, stamp: Stamp | None) -> None:
        """A span ended: in the journal when this returns (or counted as lost, with the reason). Never raises."""
        context = span.get_span_context()
        if context is None:
            return
        entry = self.live.pop(context.span_id, None)
        if entry is not None:
            stamp = entry.stamp
        self._take([self._prepared(span_from_sdk(span, stamp))])

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
            last = self._append(bodies) if bodies else 0
        except BaseException:
            with self._ticket_lock:
                self._accepting -= 1
            raise
        with self._ticket_lock:
            self._stats.received += len(spans)
            self._stats.pending += len(spans)
            for seq in range(last - len(bodies) + 1, last + 1):
                fate = self._recent.pop(seq, None)
                if fate is not None:
                    ticket.settle(fate.result, fate.reason)
                else:
                    self._tickets[seq] = ticket
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
            carrier = self._prepared(Span(record.trace_id, record.span_id, "", 0, attributes=dict(record.attributes)))
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
        with self._store_lock:
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
        if self._journal is not None:
            self._journal.sync()

    def flush(self, timeout: float) -> bool:
        """True when everything accepted before is committed or deliberately parked; False when `timeout` (seconds) ran out.

        Spans that wait for their trace's root are settled now.
        """
        if self._journal is None and not self._memory:
            return True
        deadline = clock.monotonic() + timeout
        target = self._journal.last_seq if self._journal is not None else 0
        self._settle = self._urgent = True
        self._retry_at = 0.0
        inline = not self._ensure_thread()
        while True:
            if inline:
                self._step()
            else:
                self._wake.put(None)
            with self._progress:
                if self._reached(target):
                    return True
                left = deadline - clock.monotonic()
                if left <= 0:
                    return False
                self._progress.wait(min(left, 0.05))

    def stats(self) -> Stats:
        """The counts of this process, and what is parked, by reason."""
        with self._ticket_lock:
            stats = self._stats.copy()
        if self._journal is not None and self._journal.opened:
            parked = self._journal.parked_counts()
            stats.parked = {reason: n for reason, n in parked.items() if reason != UNSETTLED}
            stats.journal_bytes = self._journal.size
        stats.live = len(self.live)
        return stats

    def shutdown(self, timeout: float | None = None) -> bool:
        """Write what can be written within `timeout` seconds, leave the rest in the journal, say what is left.

        Safe to call twice; a later `accept` opens the pipeline again.
        """
        if self._closed or self._journal is None:
            return True
        limit = self.settings.shutdown_timeout if timeout is None else timeout
        deadline = clock.monotonic() + limit
        complete = self.flush(limit)
        if self._automatic_open and self._automatic_pid == os.getpid():
            self._automatic_open = False
            self.accept_command({"do": "run_end", "id": self.automatic_run_id, "status": "completed",
                                 "at": clock.now_ns()})
            complete = self.flush(max(0.0, deadline - clock.monotonic())) and complete
        self._closed = self._stopping = True
        self._wake.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.1, min(limit, 2.0)))
        stats = self.stats()
        if thread is None or not thread.is_alive():
            self._close_journals()
            if self._store is not None:
                self._store.close()
                self._store = None
            self._reopenable(stats)
        if stats.parked or stats.pending or stats.lost:
            _log.warning("otel-cmb: %s", stats.summary(safe_url(self.settings.database_url)))
        return complete

    # -- the way in ----------------------------------------------------------------------------------------------------

    def _prepared(self, span: Span) -> Span:
        """Redacted, reduced to what may be captured, cleaned and cut: before anything touches the disk."""
        clean_span(span, max_value_bytes=self.settings.max_value_bytes)
        strip_content(span, self.settings.capture)
        if self._redactor is not None:
            self._redactor.span(span)
        if span.stamp.automatic_run_id is None and not self.per_trace_runs:
            span.stamp.automatic_run_id = self.automatic_run_id
        if self._journal is not None and self._journal.size > 0.85 * self.settings.journal_max_bytes:
            strip_content(span, ("none",))  # nearly full: what happened is worth more than what was said
        return span

    def _take(self, spans: Sequence[Span]) -> None:
        with self._ticket_lock:
            self._stats.received += len(spans)
        try:
            self._append([END + rebuild.encode(span) for span in spans])
        except (JournalError, ConfigurationError) as error:
            with self._ticket_lock:
                self._stats.lose("journal", len(spans))
            self._say("journal", "%d span(s) lost: %s", len(spans), error)
        else:
            with self._ticket_lock:
                self._stats.pending += len(spans)
            self._nudge()

    def _append(self, bodies: Sequence[bytes]) -> int:
        if self._journal is None:
            with self._start_lock:
                if self._journal is None:
                    self._directory = state_directory(self.settings)
                    self._journal = Journal(self._directory, max_bytes=self.settings.journal_max_bytes)
        self._closed = self._stopping = False
        return self._journal.append(bodies)

    def _nudge(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.put(None)
        if self._thread is None:
            self._ensure_thread()

    def _ensure_thread(self) -> bool:
        """The writer runs, or (at interpreter shutdown) cannot: then the caller writes."""
        if self._thread is not None and self._thread.is_alive():
            return True
        with self._start_lock:
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
        while not self._stopping:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=self._pause())
            while not self._wake.empty():
                self._wake.get()
            if not self._urgent and not self._stopping:
                time.sleep(LINGER)
            self._awake = self._urgent = False
            try:
                self._step()
            except Exception:
                _log.exception("otel-cmb: the writer met an error of its own; the spans stay in the journal")
                self._back_off()
            if self._stopping:
                break

    def _pause(self) -> float:
        if self._retry_at:
            return max(0.01, min(self._retry_at - clock.monotonic(), self.settings.retry_max))
        if self.live:
            return self.settings.live_ms / 1000
        return QUIET_WAIT

    def _step(self) -> None:
        """Write everything that can be written now."""
        with self._store_lock:
            now = clock.monotonic()
            self._write_starts(now)
            if self._retry_at and now < self._retry_at:
                return
            if now >= self._next_adoption and self._directory is not None:
                self._next_adoption = now + ADOPT_EVERY
                self._adopt()
            asked = self._asked_to_retry()
            for journal in [*([self._journal] if self._journal is not None else []), *self._adopted]:
                if not self._drain(journal) or not self._retry_parked(journal, everything=asked):
                    return
            self._finish_adopted()
            if self._store is not None and not self._link_nodes():
                return
            self._settle = False

    def _asked_to_retry(self) -> bool:
        if self._directory is None:
            return False
        try:
            touched = os.stat(os.path.join(self._directory, RETRY_SIGNAL_FILE)).st_mtime_ns
        except OSError:
            return False
        asked, self._retry_asked = self._retry_asked != touched, touched
        return asked

    def _write_starts(self, now: float) -> None:
        """Journal the start of spans that have been running for a moment."""
        if not self.live or self._journal is None and not self._can_open():
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

    def _drain(self, journal: Journal) -> bool:
        """Write the journal's log to its end; False when the database cannot take it now."""
        while True:
            records = journal.read(self.settings.batch_size)
            if not records:
                return True
            if not self._write_records(journal, records):
                journal.rewind()
                return False

    def _write_records(self, journal: Journal, records: Sequence[Record]) -> bool:
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
            except Exception as error:
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
        self, journal: Journal, records: Sequence[Record], items: Sequence[Item], starts: dict[int, bytes], broken: set[int],
    ) -> None:
        """Move the journal on and count."""
        now = time.time()
        progress = Progress(done=records[-1] if records else None)
        fates: list[tuple[int, Fate]] = []
        bodies = {record.seq: record.body for record in records}
        own = journal is self._journal
        spans_done = 0
        for item in items:
            fate = item.outcome
            assert fate is not None
            if item.seq in starts:
                self._note_start(progress, item, starts[item.seq])
                continue
            if fate.result in (PARKED, DEFERRED):
                progress.park.append(self._parked(item, fate, bodies[item.seq], now))
            if item.span is not None:
                spans_done += 1
                fates.append((item.seq, fate))
                if fate.result not in (PARKED, DEFERRED):
                    progress.counts[fate.result] = progress.counts.get(fate.result, 0) + 1
                self._note_end(progress, item.span, own)
            elif item.command is not None and item.command["do"] == "run_end":
                progress.closed.append(("run", item.command["id"]))
        gaps = sum(record.gap for record in records)
        undecoded = sum(1 for record in records if record.seq in broken)
        if gaps or undecoded:
            progress.counts["lost:journal_damaged"] = gaps + undecoded
            self._say("damaged", "%d journal record(s) were damaged on the disk and are lost", gaps + undecoded)
        if own:
            self._note_things(progress)
        journal.advance(progress)
        if own:
            self._count(fates, spans_done, gaps + undecoded, records)

    def _note_start(self, progress: Progress, item: Item, body: bytes) -> None:
        assert item.span is not None and item.outcome is not None
        if item.outcome.result in (COMMITTED, MERGED):
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
            if self._automatic_pid == os.getpid():
                progress.opened.append(("run", self.automatic_run_id, b""))

    def _parked(self, item: Item, fate: Fate, body: bytes, now: float, before: Parked | None = None) -> Parked:
        deferred = fate.result == DEFERRED
        since = before.since if before is not None else now
        attempts = before.attempts + 1 if before is not None else 0
        if deferred:
            due: float | None = since + self.settings.settle_time
        elif fate.reason == REJECTED or now - since > self.settings.park_retry:
            due = None
        else:
            due = now + min(0.25 * 2 ** min(attempts, 8), 30.0)
        if not deferred and before is None and fate.reason != NO_SPAN:
            self._say(f"parked:{fate.reason}:{fate.run_id}", "%s: %s", fate.reason, fate.detail)
        span = item.span
        name = span.name if span else item.command["do"] if item.command else "log content"
        return Parked(
            item.seq, fate.reason, body, fate.detail, fate.run_id, span.trace_id if span else None,
            span.span_id if span else None, name, since, attempts, due)

    def _count(self, fates: Sequence[tuple[int, Fate]], spans: int, lost: int, records: Sequence[Record]) -> None:
        with self._ticket_lock:
            for seq, fate in fates:
                self._stats.count(fate.result, fate.reason)
                if fate.result != DEFERRED:
                    self._stats.pending -= 1
                ticket = self._tickets.pop(seq, None)
                if ticket is not None:
                    ticket.settle(fate.result, fate.reason)
                elif self._accepting:
                    self._recent[seq] = fate
            if lost:
                self._stats.lose("journal_damaged", lost)
                self._stats.pending = max(0, self._stats.pending - lost)
        del spans
        with self._progress:
            if records:
                self._done_seq = max(self._done_seq, records[-1].seq)
            self._progress.notify_all()

    def _reached(self, target: int) -> bool:
        if self._done_seq < target:
            return False
        journal = self._journal
        return journal is None or not journal.opened or UNSETTLED not in journal.parked_counts()

    # -- parked --------------------------------------------------------------------------------------------------------

    def _retry_parked(self, journal: Journal, *, everything: bool = False) -> bool:
        """Try again what is due. False when the database cannot take it now."""
        now = time.time()
        due = journal.parked() if everything else journal.parked(due_before=now)
        if self._settle and not everything:
            due += [parked for parked in journal.parked() if parked.reason == UNSETTLED and (parked.due or 0) > now]
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

    def _note_parked(self, journal: Journal, items: Sequence[Item], parked: dict[int, Parked], now: float) -> None:
        progress = Progress()
        own = journal is self._journal
        with self._ticket_lock:
            for item in items:
                before, fate = parked[item.seq], item.outcome
                assert fate is not None
                if fate.result in (PARKED, DEFERRED):
                    progress.park.append(self._parked(item, fate, before.body, now, before))
                    continue
                progress.unpark.append(item.seq)
                if item.span is not None:
                    self._note_end(progress, item.span, own)
                    progress.counts[fate.result] = progress.counts.get(fate.result, 0) + 1
                    if own:
                        self._stats.count(fate.result, fate.reason)
                        if before.reason == UNSETTLED:
                            self._stats.pending -= 1
                elif item.command is not None and item.command["do"] == "run_end":
                    progress.closed.append(("run", item.command["id"]))
            if own:
                for item in items:
                    before, fate = parked[item.seq], item.outcome
                    if fate is not None and item.span is not None and before.reason == UNSETTLED and fate.result == PARKED:
                        self._stats.pending -= 1
        journal.advance(progress)
        with self._progress:
            self._progress.notify_all()

    def replay(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Try everything parked again, in our own journal and in those of dead processes; how many stay parked.

        Raises what the database raises when it is away.
        """
        with self._store_lock:
            self._directory = self._directory or state_directory(self.settings)
            self._settle = True
            self._retry_at = 0.0
            self._adopt()
            journals = [*([self._journal] if self._journal is not None else []), *self._adopted]
            self._last_error: BaseException | None = None
            for n, journal in enumerate(journals):
                if not self._drain(journal) or not self._retry_parked(journal, everything=True):
                    self._retry_at = 0.0
                    if self._last_error is not None:
                        raise self._last_error
                if progress is not None:
                    progress(n + 1, len(journals))
            remaining = sum(sum(journal.parked_counts().values()) for journal in journals)
            self._finish_adopted()
            self._settle = False
            return remaining

    # -- journals of dead processes ------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        assert self._directory is not None
        for journal in adoptable(self._directory):
            self._close_rows_of(journal)
            self._adopted.append(journal)

    def _close_rows_of(self, journal: Journal) -> None:
        """The process died: what it had open ends as failed, after what it had finished is written (a late end
        outranks the death, whichever comes first)."""
        bodies = []
        for kind, identifier, body in journal.opened_things():
            if kind == "event":
                with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
                    span = rebuild.decode(body[1:])
                    span.died = True
                    bodies.append((kind, identifier, START + rebuild.encode(span)))
            elif kind == "run":
                from otel_cmb.workflow import DIED

                command = {"do": "run_end", "id": identifier, "status": "failed", "error": DIED, "at": clock.now_ns()}
                bodies.append((kind, identifier, COMMAND + orjson.dumps(command)))
        if bodies:
            now = time.time()
            first = -1 - len(journal.parked(limit=1_000_000))
            journal.advance(Progress(
                park=[Parked(first - n, "process_died", body, since=now, due=0.0) for n, (_, _, body) in enumerate(bodies)],
                closed=[(kind, identifier) for kind, identifier, _ in bodies]))

    def _finish_adopted(self) -> None:
        for journal in list(self._adopted):
            if journal.parked(limit=1) or journal.backlog():
                continue
            counts = journal.counts()
            if journal.close():
                self._adopted.remove(journal)
                if self._directory is not None:
                    Totals(self._directory).add(counts)

    def _close_journals(self) -> None:
        for journal in [*self._adopted, *([self._journal] if self._journal is not None else [])]:
            counts = journal.counts() if journal.opened else {}
            if journal.close() and counts and self._directory is not None:
                Totals(self._directory).add(counts)
        self._adopted = []

    def _reopenable(self, stats: Stats) -> None:
        """After a shutdown: a later `accept` starts over with a new journal; the counts go on."""
        self._journal = None
        self._done_seq = 0
        self._stats = stats
        self._thread = None
        self._opened.clear()

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

    def _link_nodes(self) -> bool:
        assert self._store is not None
        try:
            self._store.link_nodes()
        except Exception as error:
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
        now = clock.monotonic()
        if now - self._said.get(key, -1e9) >= 60:
            if len(self._said) > 1000:
                self._said.clear()
            self._said[key] = now
            _log.warning("otel-cmb: " + message, *values)

    # -- processes -----------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """The files, connections and threads are the parent's: begin anew."""
        for journal in [*([self._journal] if self._journal is not None else []), *self._adopted]:
            journal.forget()
        if self._store is not None:
            self._store.abandon()
        self._reset()


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
        return pipeline


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


def _after_fork() -> None:
    global _by_key_lock  # noqa: PLW0603 - another thread may have held it
    _by_key_lock = threading.Lock()
    for pipeline in list(_pipelines):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
