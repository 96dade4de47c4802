"""The way in: spans made fit for the disk, then appended to this process's journal, or kept in memory where there is none."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from otel_cmb import journal_spans
from otel_cmb.capture import keeps_all, strip_content
from otel_cmb.config import Settings
from otel_cmb.errors import ConfigurationError, JournalError
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few, weight
from otel_cmb.journal import Journal, JournalFullError
from otel_cmb.journal_records import END, Record
from otel_cmb.ledger import Ledger
from otel_cmb.redact import Redactor
from otel_cmb.sanitize import UNCUT, clean, clean_span
from otel_cmb.shapes import Shapes
from otel_cmb.standby import Standby
from otel_cmb.state_paths import state_directory
from otel_cmb.trouble import Trouble

__all__ = ["Intake", "parked_in"]

FRESH, FRESH_OF_SERVER = 128, 1024
"""Most spans kept in memory besides their record, so that a writer that keeps up need not decode them."""

FRESH_BYTES = 16_384
"""Spans whose records are longer than this, on average, are decoded when they are written: too many wait at times."""

SAID = ("agent", "error", "goal", "meta", "mode", "model", "node_type", "task")
"""What of a command people and programs say; the rest is times, and ids that name rows (:data:`otel_cmb.redact.IDS`)."""

NO_CONTENT_ABOVE = 0.85
"""Part of the journal's size cap: nearly full, what happened is worth more than what was said."""


class Intake:
    """The journal of this process and all that comes into it, from any thread.

    `run_id`: the automatic run; it is this process's unless every trace gets one of its own. `journal_made` is called,
    under `lock`, when a new journal begins.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, trouble: Trouble, journal_made: Callable[[], None], *, run_id: str,
        per_trace_runs: bool,
    ):
        self._settings = settings
        self._ledger = ledger
        self._trouble = trouble
        self._journal_made = journal_made
        self.run_id = run_id
        self._per_trace_runs = per_trace_runs
        self._most_fresh = FRESH_OF_SERVER if per_trace_runs else FRESH
        self._pid = os.getpid()
        self._redactor = Redactor() if settings.redact else None
        self._shapes = Shapes(self._redactor, settings.max_value_bytes)
        self._shared: Few[tuple[int, int], tuple[Resource, Scope, Resource, Scope]] = Few()
        self.reset()

    def reset(self) -> None:
        """Nothing has come yet; also what a forked child begins with."""
        self.lock = threading.RLock()
        self.journal: Journal | None = None
        self.standby: Standby | None = None
        self.directory: str | None = None
        """Where the journals of the database are; `None` before somebody needed to know."""
        self._appending_in: int | None = None
        """The thread whose append is going on."""
        self._deferred: deque[list[bytes]] = deque()
        self._fresh: dict[int, Span] = {}
        self._closed = ""
        """What became of files that the program closed, until the writer knows."""

    @property
    def appending_here(self) -> bool:
        """Whether the caller came from within an append of its own thread: until it returns, nothing can be written."""
        return self._appending_in == threading.get_ident()

    @property
    def appending(self) -> bool:
        """Whether an append is going on."""
        return self._appending_in is not None

    @property
    def in_maker(self) -> bool:
        """Whether this is the process that made the pipeline, not one forked from it."""
        return self._pid == os.getpid()

    @property
    def owns_run(self) -> bool:
        """Whether the automatic run is this process's to end."""
        return self.in_maker and not self._per_trace_runs

    @property
    def idle(self) -> bool:
        """Nothing has come since the beginning, or since everything was given back."""
        return self.journal is None and self.standby is None

    def place(self) -> str:
        """Where the journals of the database are. Raises :class:`DatabaseURLError`."""
        self.directory = self.directory or state_directory(self._settings)
        return self.directory

    def logs(self) -> list[Journal | Standby]:
        """What is to be written: memory first, it is the least safe."""
        return [log for log in (self.standby, self.journal) if log is not None]

    def fuller_than(self, part: float) -> bool:
        """Whether the journal has more than this part of its size cap."""
        return self.journal is not None and self.journal.size > part * self._settings.journal_max_bytes

    @property
    def redacted(self) -> int:
        """Secrets replaced so far."""
        return 0 if self._redactor is None else self._redactor.replaced

    def body(self, kind: bytes, span: Span) -> bytes:
        """The record of a span. The span itself is redacted, reduced to what may be captured, cleaned and cut: before
        anything touches the disk."""
        stamp = span.stamp
        if stamp.automatic_run_id is None and not self._per_trace_runs:
            stamp.automatic_run_id = self.run_id
        full = self.fuller_than(NO_CONTENT_ABOVE)
        if full:
            self._trouble.say(
                "full", "the journal has more than %.0f%% of its cap (journal_max_bytes): until there is room, spans are kept "
                "without what was said", 100 * NO_CONTENT_ABOVE)
        if not full and keeps_all(self._settings.capture) and self._shapes.plain(span):
            self._share(span)
            try:
                return kind + journal_spans.encode_plain(span)
            except orjson.JSONEncodeError:
                pass
        self._clean(span)
        if full:
            strip_content(span, ("none",))
        return kind + journal_spans.encode(span)

    def _clean(self, span: Span) -> None:
        limit = self._settings.max_value_bytes
        clean_span(span, max_value_bytes=limit if self._redactor is None else UNCUT)
        strip_content(span, self._settings.capture)
        if self._redactor is not None:
            self._redactor.span(span)
            clean_span(span, max_value_bytes=limit)

    def _share(self, span: Span) -> None:
        """Resource and scope of a plain span: a process has a handful, each is cleaned and redacted once."""
        key = (id(span.resource), id(span.scope))
        known = self._shared.get(key)
        if known is None:
            carrier = Span("", "", "", 0, resource=span.resource, scope=span.scope)
            self._clean(carrier)
            # with the objects themselves, so that their ids cannot be reused
            known = self._shared.keep(
                key, (span.resource, span.scope, carrier.resource, carrier.scope), 2 * weight(span.resource, span.scope))
        span.resource, span.scope = known[2], known[3]

    def prepared_command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a row of `run()`, `node()` or `step()`."""
        limit = self._settings.max_value_bytes
        cleaned = {key: clean(value, max_value_bytes=limit if self._redactor is None else UNCUT)
                   for key, value in command.items()}
        if self._redactor is None:
            return cleaned
        cleaned.update(self._redactor.values({key: cleaned[key] for key in SAID if key in cleaned}))
        return {key: clean(value, max_value_bytes=limit) for key, value in cleaned.items()}

    def append(self, bodies: list[bytes], spans: Sequence[Span] = ()) -> int:
        """Number of the last record; 0 when called from within an append of this thread (a signal handler, the garbage
        collector), which then writes these too. Raises :class:`JournalError` when they can be kept nowhere.

        `spans`: what the bodies are of, if nobody changes them any more.
        """
        with self.lock:
            if self._appending_in is not None:
                self._deferred.append(bodies)
                return 0
            self._appending_in = threading.get_ident()
            try:
                last = self._keep(bodies)
                if spans and sum(map(len, bodies)) <= FRESH_BYTES * len(spans):
                    self._remember(last, spans)
                return last
            finally:
                self._append_deferred()

    def _append_deferred(self) -> None:
        """What came from within, and what comes from within this: one after the other, however many they are."""
        while True:
            try:
                while self._deferred:
                    bodies = self._deferred[0]  # there until it is kept: a Ctrl-C here leaves it for the next append
                    try:
                        self._keep(bodies)
                    except (JournalError, ConfigurationError) as error:
                        lost = sum(1 for body in bodies if body[:1] == END)
                        self._ledger.lost_on_arrival("journal", lost)
                        self._trouble.say("journal", "%d span(s) lost: %s", lost, error)
                    self._deferred.popleft()
            finally:
                self._appending_in = None
            if not self._deferred:
                return
            self._appending_in = threading.get_ident()  # one came between the last look and the mark

    def _remember(self, last: int, spans: Sequence[Span]) -> None:
        fresh = self._fresh
        if len(fresh) + len(spans) > self._most_fresh:
            if next(iter(fresh), last) > self._ledger.done_seq:
                return
            fresh.clear()  # somebody else wrote them
        for seq, span in enumerate(spans, last - len(spans) + 1):
            fresh[seq] = span

    def take_fresh(self, records: Sequence[Record]) -> dict[int, Span]:
        """Spans of the records that are in memory, by number, once: who tries again reads the record."""
        with self.lock:
            pop = self._fresh.pop
            return {seq: span for seq in [record.seq for record in records] if (span := pop(seq, None)) is not None}

    def _keep(self, bodies: list[bytes]) -> int:
        """Into the journal; into memory where there is no journal to be had."""
        if self.journal is not None and self.journal.gone:
            self._give_up()
        if self.journal is None:
            self.journal = Journal(
                self.place(), max_bytes=self._settings.journal_max_bytes, run_id=self.run_id if self.owns_run else "")
            self._journal_made()
        try:
            return self.journal.append(bodies)
        except JournalFullError:
            raise
        except JournalError as error:
            if self.standby is None:
                self.standby = Standby()
            last = self.standby.append(bodies)
            self._trouble.say(
                "standby", "%s. Until then spans go to the database from memory and do not survive the process", error)
            return last

    def look_after_files(self) -> str:
        """What has become of our files, where the program has closed them since this was asked last; else nothing."""
        with self.lock:
            if self.journal is not None and self.journal.taken_away():
                self._closed = "they are open again"
                if self.journal.gone:
                    self._give_up()
            found, self._closed = self._closed, ""
            return found

    def _give_up(self) -> None:
        """The journal is another process's: what comes next begins a new one."""
        assert self.journal is not None
        self.journal.abandon()
        self.journal = None
        self._closed = "another process has taken it over, and writes what was in it"
        self._fresh.clear()
        self._ledger.begin_anew()

    def rescue(self) -> None:
        """The database is away: what is in memory goes to the journal if that can be written by now."""
        with self.lock:  # an append of another thread looks at the oldest of them
            self._fresh.clear()
        standby = self.standby
        if standby is None or not standby.backlog() or self.journal is None:
            return
        with self.lock:
            records, parked = standby.take_all()
            try:
                last = self.journal.append([record.body for record in records])
            except JournalError:
                standby.restore(records, parked)
                return
            standby.restore([], parked)
            self._ledger.moved_seq = last
        self._ledger.renumber(records, last)

    def take_out(self) -> tuple[Journal | None, Standby | None]:
        """Journal and memory, to be given back; what comes next begins new ones. Called under `lock`."""
        self._fresh.clear()
        journal, self.journal = self.journal, None
        standby, self.standby = self.standby, None
        return journal, standby


def parked_in(log: Journal | Standby) -> dict[str, int]:
    """Parked spans by reason; none where that cannot be read now."""
    if not log.opened:
        return {}
    try:
        return log.parked_counts()
    except sqlite3.OperationalError:
        return {}
