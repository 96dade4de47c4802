"""From the logs into the database: everything that can be written now, in one step.

    log ──read──> items ──store.write (one transaction)──> noted in the log, counted
                              │ outage, misconfigured: back off, read again
                              └ poison: bisect, park the one
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

from otel_cmb import clock
from otel_cmb.adoption import Adoption
from otel_cmb.bookkeeping import REJECTED, Bookkeeper
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import SQLITE
from otel_cmb.errors import DatabaseUnavailableError
from otel_cmb.faults import Fault, classify
from otel_cmb.intake import Intake, parked_in
from otel_cmb.items import PARKED, UNSETTLED, Item
from otel_cmb.items import Outcome as Fate
from otel_cmb.journal import Journal
from otel_cmb.journal_bodies import UNREADABLE, decode, item_of
from otel_cmb.journal_records import Record
from otel_cmb.journal_state import keep_for_ever
from otel_cmb.ledger import Ledger
from otel_cmb.questions import NoAnswerError, Questions
from otel_cmb.running import Running
from otel_cmb.standby import Standby
from otel_cmb.state_paths import retry_signal
from otel_cmb.store import Store
from otel_cmb.trouble import Trouble

if TYPE_CHECKING:
    from otel_cmb.binding import Binding
    from otel_cmb.workflow import RunRow

__all__ = ["Drainer"]

_log = logging.getLogger("otel_cmb")

DUPLICATES_TRIED = 5
"""How often a transaction is tried again that met a row somebody else has just made."""


class Drainer:
    """Writes our memory, our journal and the adopted ones to the store. One thread at a time: under `store_lock`."""

    def __init__(
        self, settings: Settings, intake: Intake, running: Running, ledger: Ledger, trouble: Trouble, *, per_trace_runs: bool,
    ):
        self._settings = settings
        self._intake = intake
        self._running = running
        self._ledger = ledger
        self._trouble = trouble
        self._per_trace_runs = per_trace_runs
        self.books = Bookkeeper(settings, intake, ledger, trouble)
        self.adoption = Adoption(intake, ledger)
        self._questions = Questions()
        self.reset()

    def reset(self) -> None:
        """Nothing was written yet; also what a forked child begins with."""
        self.books.reset()
        self.adoption.reset()
        self._questions.reset()
        self.store_lock = threading.RLock()
        self.start_lock = threading.RLock()
        """Held while the store or the writer's thread begins, and by a writer on its way out until it is gone."""
        self.store: Store | None = None
        self.urgent = False
        """Somebody waits: do not linger."""
        self.settle = False
        """Nobody will name a run any more: spans that wait for their trace's root are settled."""
        self.automatic_open = False
        """The automatic run has a row, which this process is to end."""
        self.asked_at: float | None = None
        """Since when (monotonic seconds) the database is at work on a transaction."""
        self._unusable = ""
        """Why this process cannot write to the database any more; the next one can."""
        self._stepping = False
        self._retry_asked: int | None = None

    def the_store(self) -> Store:
        """The store; made when there is none. Connects to nothing. Raises :class:`DatabaseURLError`,
        :class:`DatabaseUnavailableError`."""
        if self._unusable:
            raise DatabaseUnavailableError(self._unusable)
        with self.start_lock:
            if self.store is None:
                self.store = Store(self._settings, self._intake.place(), per_trace_runs=self._per_trace_runs)
            return self.store

    def connect(self) -> Binding:
        """What the database is. Raises the database's error, :class:`SchemaError` or :class:`ConfigurationError`."""
        with self.store_lock, _uninstrumented():
            return self.the_store().connect()

    @property
    def connected(self) -> bool:
        """Whether it is known what the database is."""
        return self.store is not None and self.store.binding is not None

    def check_run(self, name: str, timeout: float) -> tuple[str, str]:
        """Id and session of an existing run. Raises :class:`RunNotFoundError`, and :class:`DatabaseUnavailableError` after
        `timeout` seconds at the latest."""

        def question() -> RunRow:
            with _uninstrumented():
                return self.the_store().check_run(name)

        try:
            row = self._questions.ask(question, timeout)
        except NoAnswerError:
            raise DatabaseUnavailableError(
                f"{safe_url(self._settings.database_url)} did not answer within {timeout:.3g} s; try again when it is back"
            ) from None
        except Exception as error:
            verdict = classify(error)
            if verdict.fault is Fault.OUTAGE:
                raise DatabaseUnavailableError(
                    f"{safe_url(self._settings.database_url)} did not answer: {verdict.reason}; try again when it is back"
                ) from error
            raise
        return row.id, row.session_id

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Write everything that can be written now."""
        with self.store_lock, _uninstrumented():
            if self._stepping:  # from within itself: a signal handler that flushes
                return
            self._stepping = True
            try:
                self._write_all()
            finally:
                self._stepping = False

    def guarded_step(self) -> None:
        """A step that never raises."""
        try:
            self.step()
        except Exception:  # noqa: BLE001 - our own fault costs time, never spans
            self._trouble.back_off()
            if self._trouble.may_say("writer"):
                _log.exception("otel-cmb: the writer met an error of its own; the spans stay in the journal")

    def _write_all(self) -> None:
        now = clock.monotonic()
        self.look_after_files()
        self._ledger.fold()
        self._running.write_starts(now)
        if self._trouble.retry_at and now < self._trouble.retry_at:
            return
        self.adoption.look_if_due(now)
        asked = self._asked_to_retry()
        for log in self._logs():
            if not self._drain(log):
                break
            if isinstance(log, Journal) and log.adopted:
                self.adoption.close_rows(log)
            if not self._retry_parked(log, everything=asked is not None):
                break
        else:
            self._retry_asked = asked or self._retry_asked
            self.adoption.finish()
            if self.store is None or self._link_late():
                self.settle = False
            return
        self._intake.rescue()

    def look_after_files(self) -> None:
        """Where the program closed all descriptors, and by now has others of their numbers, nothing that was open is used
        again, closed or finalized: SQLite would write into the program's files."""
        found = self._intake.look_after_files()
        if not found:
            return
        _log.warning("otel-cmb: the program closed the files of its journal (it became a daemon?); %s", found)
        for adopted in self.adoption.journals:
            adopted.abandon()
        self.adoption.reset()
        if self.store is not None:
            binding = self.store.binding
            keep_for_ever(self.store.abandon())
            self.store = None
            if binding is not None and binding.dialect == SQLITE:  # which gives its descriptors to new connections as well
                self._unusable = (
                    "the program closed the files of its SQLite database, which this process cannot open again; spans wait in "
                    "the journal for the next one, or `otel-cmb parked replay` after its end")

    def replay(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Try everything parked again, in our own journal and in those of dead processes; how many stay parked.

        Raises what the database raises when it is away.
        """
        with self.store_lock, _uninstrumented():
            place = self._intake.place()
            self.settle = True
            self._trouble.retry_at = 0.0
            self.adoption.look(place)
            logs = self._logs()
            for n, log in enumerate(logs):
                self._trouble.last_error = None
                done = self._drain(log)
                if done and isinstance(log, Journal) and log.adopted:
                    self.adoption.close_rows(log)
                if not done or not self._retry_parked(log, everything=True):
                    self._trouble.retry_at = 0.0
                    if self._trouble.last_error is not None:
                        raise self._trouble.last_error
                if progress is not None:
                    progress(n + 1, len(logs))
            remaining = sum(sum(parked_in(log).values()) for log in logs)
            self.adoption.finish()
            self.settle = False
            return remaining

    def _logs(self) -> list[Journal | Standby]:
        """What is to be written: our own, then what we adopted."""
        return [*self._intake.logs(), *self.adoption.journals]

    def _asked_to_retry(self) -> int | None:
        """When somebody asked to try everything again, if that was not done yet."""
        if self._intake.directory is None:
            return None
        touched = retry_signal(self._intake.directory)
        return touched if touched != self._retry_asked else None

    # -- logs ----------------------------------------------------------------------------------------------------------

    def _drain(self, journal: Journal | Standby) -> bool:
        """Write the journal's log to what is its end now; False when the database cannot take it. A program that ends
        spans all the time must not keep starts, parked spans and a shutdown waiting."""
        done, end = False, journal.last_seq
        try:
            while records := journal.read(self._settings.batch_size):
                if not self._write_records(journal, records):
                    return False
                if not journal.adopted and records[-1].seq >= end:
                    # a batch more has come: this is a burst, go on at once
                    self.urgent = self.urgent or journal.last_seq - records[-1].seq >= self._settings.batch_size
                    break
            done = True
        finally:
            if not done:  # also after an error: what was read and not noted must be read again
                journal.rewind()
        return True

    def _write_records(self, journal: Journal | Standby, records: Sequence[Record]) -> bool:
        fresh = {} if isinstance(journal, Journal) and journal.adopted else self._intake.take_fresh(records)
        batch = decode(records, fresh, settle=self.settle, on_broken=lambda error: self._trouble.say(
            "broken", "a journal record could not be read and is lost: %s", error))
        position = 0
        for upto, part in self._written(batch.items, [record.seq for record in records]):
            if part is None:
                return False
            if journal is self._intake.journal and not self.automatic_open:
                self.automatic_open = self.store is not None and self.store.made_run(self._intake.run_id)
            self.books.note(journal, records[position:upto], part, batch)
            position = upto
        return True

    def _retry_parked(self, journal: Journal | Standby, *, everything: bool = False) -> bool:
        """Try again what is due. False when the database cannot take it now."""
        now = time.time()
        try:
            due = journal.parked() if everything else journal.parked(due_before=now)
            if self.settle and not everything and UNSETTLED in journal.parked_counts():
                known = {parked.seq for parked in due}
                due += [one for one in journal.parked() if one.reason == UNSETTLED and one.seq not in known]
        except sqlite3.OperationalError as error:  # its disk is full, or gone; the log goes on
            self._trouble.say("state", "what is parked in %s cannot be read now: %s", journal.path, error)
            return True
        for start in range(0, len(due), self._settings.batch_size):
            batch = due[start : start + self._settings.batch_size]
            by_seq = {parked.seq: parked for parked in batch}
            items = []
            for parked in batch:
                settle = self.settle or everything or now >= parked.since + self._settings.settle_time
                with contextlib.suppress(*UNREADABLE):
                    items.append(item_of(parked.seq, parked.body, settle=settle))
            for _, part in self._written(items, [item.seq for item in items]):
                if part is None:
                    return False
                self.books.note_parked(journal, part, by_seq, now)
        return True

    # -- transactions --------------------------------------------------------------------------------------------------

    def _written(self, items: list[Item], seqs: Sequence[int]) -> Iterator[tuple[int, list[Item] | None]]:
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
                self.asked_at = clock.monotonic()
                self.the_store().write(part)
            except Exception as error:  # noqa: BLE001 - one table says what any of them means
                verdict = classify(error)
                if verdict.fault is Fault.DUPLICATE and duplicates < DUPLICATES_TRIED:
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
            finally:
                self.asked_at = None
            if self._trouble.recovered():
                self._ledger.stats.last_error = ""
            yield upto, part

    def _link_late(self) -> bool:
        assert self.store is not None
        try:
            self.store.link_late()
        except Exception as error:  # noqa: BLE001 - one table says what any of them means
            verdict = classify(error)
            self._failed(verdict.fault, verdict.reason, error)
            return False
        return True

    def _failed(self, fault: Fault, reason: str, error: BaseException) -> None:
        self._trouble.failed(fault, reason, error)
        self._ledger.stats.last_error = reason
        if self.store is not None:
            self.store.close()
        self._trouble.back_off()
        self._ledger.outage()


@contextlib.contextmanager
def _uninstrumented() -> Iterator[None]:
    """An instrumented database driver must not trace us: the spans would make work that makes spans."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
