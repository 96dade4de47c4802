"""The writer: one thread per process that drains the logs into the database, and ends when everything is given back."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import sys
import threading
import time

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

from otel_cmb import clock, processes
from otel_cmb.accounting import Totals
from otel_cmb.config import Settings
from otel_cmb.draining import Drainer
from otel_cmb.errors import JournalError
from otel_cmb.intake import Intake, parked_in
from otel_cmb.journal import Journal
from otel_cmb.journal_records import END
from otel_cmb.ledger import Ledger
from otel_cmb.running import Running
from otel_cmb.standby import Standby
from otel_cmb.trouble import Trouble

__all__ = ["Writer"]

_log = logging.getLogger("otel_cmb")

LINGER = 0.02
"""Seconds the writer waits after the first span of a quiet time, so that a burst shares a transaction."""
LONGEST_LINGER = 0.15
"""As long as a row is there within 250 ms of its span's start."""
LINGER_FACTOR = 4
"""A writer for whom nobody waits rests this many times as long as it worked, within those bounds: one trace of thousands of
spans is looked at as a whole whenever it grows, and the program has other things to do."""

QUIET_WAIT = 1.0
"""Seconds between two looks when nothing happens."""


class Writer:
    """The thread, started when there is something to write. At interpreter shutdown, where none can be had, the caller
    writes."""

    def __init__(
        self, settings: Settings, intake: Intake, running: Running, drainer: Drainer, ledger: Ledger, trouble: Trouble,
    ):
        self._settings = settings
        self._intake = intake
        self._running = running
        self._drainer = drainer
        self._ledger = ledger
        self._trouble = trouble
        self.reset()

    def reset(self) -> None:
        """It never ran; also what a forked child begins with."""
        self.thread: threading.Thread | None = None
        self.closed = False
        """Shut down; until the next journal is made nothing begins anew."""
        self.begun = False
        """A journal was made since the thread was looked at: it may be on its way out."""
        self.given_back = threading.Event()
        """Set when everything is given back."""
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = False

    # -- the thread ----------------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """There is something to write, soon."""
        if not self._awake or self._drainer.urgent:
            self._awake = True
            self._wake.put(None)
        if self.thread is not None and not self.begun:
            return
        if not self.ensure() and not self._trouble.failures and self._intake.lock.acquire(False):
            self._intake.lock.release()
            # At interpreter shutdown no thread can be had; at its very end nothing can be imported either, and the next process
            # finds the span in the journal.
            if not self._intake.appending and sys.meta_path is not None:
                self._drainer.guarded_step()

    def wake(self) -> None:
        """Look up now, whatever was said before."""
        self._wake.put(None)

    def stop(self) -> None:
        """Give everything back when the step that is going on is over; `given_back` says when."""
        self.given_back.clear()
        self.closed = self._stopping = True
        self._wake.put(None)

    def ensure(self) -> bool:
        """The writer runs, or (at interpreter shutdown) cannot: then the caller writes."""
        if self.thread is not None and self.thread.is_alive() and not self.begun:
            return True
        if sys.is_finalizing():
            return False  # before Python 3.12 a thread started now waits for ever for its turn, and so do we
        with self._drainer.start_lock:  # a writer that is on its way out has it until it is gone
            self.begun = False
            if self.thread is not None and self.thread.is_alive():
                return True
            thread = threading.Thread(target=self._loop, name="otel-cmb-writer", daemon=True)
            self._stopping = False
            self.thread = thread
            try:
                thread.start()
            except RuntimeError:  # no new threads at interpreter shutdown
                self.thread = None
                return False
        processes.register_exit()
        return True

    def _loop(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented database driver must not trace us
        worked = ended = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=self._pause())
            while not self._wake.empty():
                self._wake.get()
            self._linger_until(max(time.perf_counter() + LINGER, ended + min(LONGEST_LINGER, LINGER_FACTOR * worked)))
            self._awake = self._drainer.urgent = False
            if not self._stopping:
                begun = time.perf_counter()
                self._drainer.guarded_step()
                ended = time.perf_counter()
                worked = ended - begun
                continue
            with self._drainer.start_lock:
                self.close()
                if self.closed:
                    self.thread = None
                    return
                self._stopping = False  # somebody has begun anew

    def _linger_until(self, until: float) -> None:
        while not self._drainer.urgent and not self._stopping and (left := until - time.perf_counter()) > 0:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=left)

    def _pause(self) -> float:
        if self._drainer.urgent:
            return 0.001
        if self._trouble.retry_at:
            return max(0.01, min(self._trouble.retry_at - clock.monotonic(), self._settings.retry_max))
        if len(self._running):
            return self._settings.live_ms / 1000
        return QUIET_WAIT

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back; a later `accept` starts over with a new journal. The counts go on."""
        self._drainer.look_after_files()  # what the program closed already must not be closed again: it may be its own by now
        with self._intake.lock:
            if not self.closed:
                return
            journal, standby = self._intake.take_out()
        lost = self._give_up(standby, journal) if standby is not None else 0
        totals = standby.counts() if standby is not None else {}
        if lost:
            totals["lost:journal"] = totals.get("lost:journal", 0) + lost
        left, adoption = self._ledger.left, self._drainer.adoption
        for one in [*adoption.journals, *([journal] if journal is not None else [])]:
            counts, path = (_counted(one), one.path) if one.opened else ({}, "")
            parked = parked_in(one) if one is journal or path in left else {}
            if one.close():
                left.pop(path, None)
                for name, n in counts.items():
                    totals[name] = totals.get(name, 0) + n
            elif parked or one is journal:
                left[path] = parked
        if totals and self._intake.directory is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                Totals(self._intake.directory).add(totals)
        adoption.journals = []
        self._ledger.end_tickets()
        if self._drainer.store is not None:
            self._drainer.store.close()
            self._drainer.store = None
        self._ledger.done_seq = self._ledger.moved_seq = 0
        self._drainer.books.forget_opened()
        self.given_back.set()

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
            self._ledger.lost_at_the_end(spans, waiting)
            return spans
        self._ledger.pending_again(spans - waiting)
        return 0


def _counted(journal: Journal) -> dict[str, int]:
    """Its counters; none where they cannot be read now."""
    try:
        return journal.counts()
    except sqlite3.OperationalError:
        return {}
