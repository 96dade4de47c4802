"""Journal, writer thread, store and counts of one process: what every door calls.

    accept ──> journal (survives SIGKILL) ──> writer ──> store.write (one transaction) ──> journal.advance ──> counted
    intake     journal, standby               writer     draining                          bookkeeping         ledger
                                                │ outage: back off, read again          ├─> parked, with its reason
                                                │ poison: bisect, park the one          └─> tickets answered
                                                └ misconfigured: keep journaling, say so loudly

Never raises into a program through `on_start`/`on_end`; never blocks one on the database. After a fork the child begins
anew with its own journal; the parent's is the parent's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_cmb import clock, metrics, processes
from otel_cmb.accounting import Stats, Ticket
from otel_cmb.config import Settings, safe_url
from otel_cmb.draining import Drainer
from otel_cmb.errors import ConfigurationError, JournalError, RunNotFoundError
from otel_cmb.event import Span, Stamp
from otel_cmb.intake import Intake, parked_in
from otel_cmb.items import UNSETTLED
from otel_cmb.journal import Journal, left_behind
from otel_cmb.journal_bodies import command_body
from otel_cmb.journal_records import CONTENT, END
from otel_cmb.journal_state import keep_for_ever
from otel_cmb.ledger import Ledger
from otel_cmb.otlp_clean import SpanContent
from otel_cmb.running import Running
from otel_cmb.sdk import span_from_sdk
from otel_cmb.standby import Standby
from otel_cmb.state_paths import RETRY_SIGNAL_FILE, state_directory
from otel_cmb.trouble import Trouble
from otel_cmb.writer import Writer

if TYPE_CHECKING:
    from otel_cmb.binding import Binding

__all__ = [
    "NO_ANSWER", "RETRY_SIGNAL_FILE", "Pipeline", "current_pipeline", "forget_pipelines", "get_pipeline", "known_pipelines",
    "state_directory", "use_pipeline",
]

_log = logging.getLogger("otel_cmb")

NO_ANSWER = 10.0
"""Seconds after which a database that neither answers nor fails counts as one that cannot be written."""

_OF_A_DOOR = frozenset(("export_timeout", "shutdown_timeout"))
"""Settings that each door has for itself; all others are the pipeline's."""

LAST_LOOK = 1.0
"""Seconds that are left for a question at least, when what comes before it has taken all the time there was."""


class Pipeline:
    """See the module's docstring. Made by :func:`get_pipeline`; opens nothing before its first use. Thread-safe.

    Its parts are made once and begin anew in place after a fork, so that whoever holds one holds the child's.
    """

    def __init__(self, settings: Settings, *, per_trace_runs: bool = False):
        self.settings = settings
        self.per_trace_runs = per_trace_runs
        self.automatic_run_id = str(uuid.uuid4())
        self._database: str | None = None
        self._trouble = Trouble(settings)
        self._ledger = Ledger()
        self._intake = Intake(
            settings, self._ledger, self._trouble, self._journal_made, run_id=self.automatic_run_id,
            per_trace_runs=per_trace_runs)
        self._running = Running(settings, self._intake, self._trouble)
        self._drainer = Drainer(
            settings, self._intake, self._running, self._ledger, self._trouble, per_trace_runs=per_trace_runs)
        self._writer = Writer(settings, self._intake, self._running, self._drainer, self._ledger, self._trouble)
        self._begin()
        processes.register(self)

    def _begin(self) -> None:
        """The state of a process that has done nothing yet; also what a forked child begins with."""
        self._shutdown_lock = threading.RLock()
        self._shutdown_begun: float | None = None
        self._shutdown_by = math.inf
        self._forked = False
        self._held: list[Any] = []

    def _journal_made(self) -> None:
        """Something has come: a shutdown before it is over and done."""
        self._writer.closed, self._writer.begun = False, True
        self._shutdown_begun, self._shutdown_by = None, math.inf

    def also_asked(self, settings: Settings, keywords: Iterable[str]) -> None:
        """Say which of the settings that a further door was given count no more: what was made first is at work."""
        ours = self.settings
        theirs = [name for name in keywords if name not in _OF_A_DOOR and getattr(settings, name) != getattr(ours, name)]
        if theirs:
            told = (f"{name}={getattr(settings, name)!r} is not applied, {getattr(ours, name)!r} is" for name in theirs)
            self._trouble.say(
                "asked " + " ".join(theirs), "%s: this process writes there already; of a further door %s",
                safe_url(ours.database_url), ", ".join(told))

    # -- doors ---------------------------------------------------------------------------------------------------------

    def started(self, span: ReadableSpan, stamp: Stamp) -> None:
        """A span began: a row appears for it when it has run for a moment. Nothing is written here."""
        context = span.get_span_context()
        if context is not None:
            self._running.begin(context, span, stamp)
            if self._intake.directory is None:  # found out now: when the interpreter ends, nothing can be imported for it
                with contextlib.suppress(ConfigurationError):  # said when the span ends
                    self._intake.place()
            self._writer.nudge()

    def ended(self, span: ReadableSpan, otherwise: Callable[[ReadableSpan], Stamp] = lambda _: Stamp()) -> None:
        """A span ended: in the journal when this returns (or counted as lost, with the reason).

        `otherwise` says run and session of a span whose start was not seen here.
        """
        context = span.get_span_context()
        if context is None:
            return
        stamp = self._running.end(context)
        self._ledger.arrived(1)
        try:
            copied = span_from_sdk(span, stamp if stamp is not None else otherwise(span))
            self._intake.append([self._intake.body(END, copied)], [copied])
        except (JournalError, ConfigurationError) as error:
            self._ledger.lost_on_arrival("journal")
            self._trouble.say("journal", "a span is lost: %s", error)
        except BaseException:  # an attribute nobody can read, or Ctrl-C in the middle: it is not in the journal
            self._ledger.lost_on_arrival("interrupted")
            raise
        else:
            self._writer.nudge()
        self._ledger.fold_if_many()

    def accept(self, spans: Sequence[Span]) -> Ticket:
        """Journal ended spans and give a ticket for their fate. They are the pipeline's from now on.

        When this returns they survive SIGKILL; :meth:`sync` makes them survive a power cut. Raises
        :class:`JournalError` when the journal cannot take them; then none of them is accepted.
        """
        ticket = self._ledger.expect(len(spans))
        try:
            body = self._intake.body
            bodies = [body(END, span) for span in spans]
            self._ledger.arrived(len(spans))
            try:
                last = self._intake.append(bodies, spans) if bodies else 0
            except BaseException:
                self._ledger.arrived(-len(spans))
                raise
        except BaseException:
            self._ledger.give_up_claim()
            raise
        self._ledger.claim(ticket, last, len(bodies))
        self._drainer.urgent = True
        self._writer.nudge()
        return ticket

    def accept_command(self, command: dict[str, Any]) -> None:
        """Journal a row of `run()`, `node()` or `step()`. Never raises: what cannot be journaled is logged."""
        try:
            command.setdefault("automatic", self.automatic_run_id)
            self._intake.append([command_body(self._intake.prepared_command(command))])
            self._writer.nudge()
        except (JournalError, TypeError, ConfigurationError) as error:
            self._trouble.say("command", "%s not recorded: %s", command.get("do"), error)

    def accept_logs(self, records: Sequence[SpanContent]) -> None:
        """Journal content that log records carry, to be joined to its spans whenever those come. Raises
        :class:`JournalError`."""
        bodies = []
        for record in records:
            carrier = Span(record.trace_id, record.span_id, "", 0, attributes=dict(record.attributes))
            carrier.stamp.bound_session_id = record.bound_session_id
            bodies.append(self._intake.body(CONTENT, carrier))
        if bodies:
            self._intake.append(bodies)
            self._writer.nudge()

    def remember_open(self, kind: str, identifier: str) -> None:
        """A run of this process: marked failed by the next process if this one dies."""
        self._drainer.books.remember_open(kind, identifier)

    @property
    def database(self) -> str | None:
        """What tells this database from any other, however its URL is written; `None` where the URL names none."""
        if self._database is None:
            with contextlib.suppress(ConfigurationError):
                self._database = os.path.basename(self._intake.place())
        return self._database

    # -- questions -----------------------------------------------------------------------------------------------------

    def check_run(self, name: str) -> tuple[str, str]:
        """Id and session of an existing run. Raises :class:`RunNotFoundError`, and :class:`DatabaseUnavailableError` when the
        database does not answer within `connect_timeout`, also one that hangs without being gone."""
        timeout = self.settings.connect_timeout
        deadline = clock.monotonic() + timeout

        def left() -> float:
            return max(deadline - clock.monotonic(), min(timeout, LAST_LOOK))

        waiting = self._intake.journal is not None
        if waiting and not self._drainer.connected:  # the writer is about to: it need not be found out twice
            self.flush(timeout)
            waiting = False
        try:
            return self._drainer.check_run(name, left())
        except RunNotFoundError:
            if not waiting:
                raise
        self.flush(left())  # a run this very process has just made
        return self._drainer.check_run(name, left())

    def connect(self) -> Binding:
        """What the database is. Raises the database's error, :class:`SchemaError` or :class:`ConfigurationError`."""
        return self._drainer.connect()

    def left_behind(self) -> dict[str, int]:
        """Spans in any journal of this database on this host that are not stored: by reason, `pending` for the rest."""
        return left_behind(self._intake.place())

    def stats(self) -> Stats:
        """The counts of this process, and what is parked, by reason."""
        stats = self._ledger.copy()
        left = dict(self._ledger.left)
        logs: list[Journal | Standby] = self._intake.logs()
        logs += [journal for journal in list(self._drainer.adoption.journals) if left.pop(journal.path, None) is not None]
        stats.parked = {}
        for counts in [*map(parked_in, logs), *left.values()]:
            for reason, n in counts.items():
                if reason != UNSETTLED:
                    stats.parked[reason] = stats.parked.get(reason, 0) + n
        journals = [*self._drainer.adoption.journals, *([self._intake.journal] if self._intake.journal is not None else [])]
        stats.journal_bytes = sum(journal.size for journal in journals)
        stats.live = len(self._running)
        stats.redacted = self._intake.redacted
        if not stats.last_error and (waited := self.unanswered()) > NO_ANSWER:
            stats.last_error = f"the database has not answered for {waited:.0f} s"
        return stats

    def unanswered(self) -> float:
        """Seconds for which the database has been at work on the transaction it was given last; 0: it is not asked."""
        since = self._drainer.asked_at
        return 0.0 if since is None else clock.monotonic() - since

    def any_parked(self, spans: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        wanted = list(spans)
        return any(log.any_parked(wanted) for log in self._intake.logs())

    def replay(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Try everything parked again, in our own journal and in those of dead processes; how many stay parked.

        `progress` is told how many journals of how many are done. Raises what the database raises when it is away.
        """
        return self._drainer.replay(progress)

    # -- waiting and ending --------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything accepted is on the disk. Raises :class:`JournalError`."""
        standby, journal = self._intake.standby, self._intake.journal
        if standby is not None and (standby.backlog() or standby.parked(limit=1)):
            raise JournalError(f"the journal in {self._intake.directory} cannot be written; spans wait in memory")
        if journal is not None:
            journal.sync()

    def show_running(self) -> None:
        """Journal the starts of all running spans now, however young; after a :meth:`flush` their rows are there."""
        self._running.write_starts(math.inf)

    def flush(self, timeout: float) -> bool:
        """True when everything accepted before is committed or deliberately parked; False when `timeout` (seconds) ran out.

        Spans that wait for their trace's root are settled now.
        """
        if self._intake.idle:
            return not self._ledger.copy().pending  # a shutdown that ran out of time left them to the next process
        if self._intake.appending_here:  # a signal handler: the span it interrupted is not journaled before it returns
            return False
        deadline = min(clock.monotonic() + timeout, self._shutdown_by)
        journal, standby = self._intake.journal, self._intake.standby
        target = journal.last_seq if journal is not None else 0
        in_memory = standby.last_seq if standby is not None else 0
        self._trouble.retry_at = 0.0
        while True:
            if self._writer.closed and clock.monotonic() >= deadline:
                return self._reached(target, in_memory)  # shut down: nothing begins anew for a question
            self._drainer.settle = self._drainer.urgent = True
            if self._writer.ensure():
                self._writer.wake()
            else:
                self._drainer.step()
            with self._ledger.progress:
                if self._reached(target, in_memory):
                    return True
                left = deadline - clock.monotonic()
                if left <= 0:
                    return False
                self._ledger.progress.wait(min(left, 0.05))
                if self._reached(target, in_memory):  # without waking the writer for nothing
                    return True

    def _reached(self, target: int, in_memory: int) -> bool:
        ledger, standby = self._ledger, self._intake.standby
        if ledger.done_seq < max(target, ledger.moved_seq) or (standby is not None and standby.done_seq < in_memory):
            return False
        return not any(UNSETTLED in parked_in(log) for log in self._intake.logs())

    def shutdown(self, timeout: float | None = None) -> bool:
        """Write what can be written within `timeout` seconds, leave the rest in the journal, say what is left.

        Safe to call twice; a later `accept` opens the pipeline again.
        """
        with self._shutdown_lock:
            limit = self.settings.shutdown_timeout if timeout is None else timeout
            if self._forked and self._intake.journal is None and self._children_wrote():
                self._forked = False
                self._end_automatic_run()
            writer = self._writer
            if writer.closed or self._intake.idle:
                if (thread := writer.thread) is not None and thread is not threading.current_thread():
                    if not writer.closed:  # a writer that only looked after the journals of others
                        writer.stop()
                    # That is when the database has answered. However many ask at the end of a program, it waits once.
                    begun = self._shutdown_begun if self._shutdown_begun is not None else clock.monotonic()
                    writer.given_back.wait(max(0.0, begun + limit - clock.monotonic()))
                return self._intake.idle
            self._shutdown_begun = clock.monotonic()
            deadline = self._shutdown_by = self._shutdown_begun + limit
            self._drainer.adoption.look_soon()  # what forked children left
            complete = self.flush(limit)
            if self._intake.owns_run and (self._drainer.automatic_open or not complete):
                self._end_automatic_run()
                complete = self.flush(max(0.0, deadline - clock.monotonic())) and complete
            writer.stop()
            thread = writer.thread
            if thread is not None and thread is not threading.current_thread():
                # not for the thread's end: spans of other threads may make it begin anew at once
                writer.given_back.wait(max(0.1, deadline - clock.monotonic()))
            if thread is None or thread is threading.current_thread():
                writer.close()
            stats, standby = self.stats(), self._intake.standby
            if standby is not None and standby.backlog():
                _log.error("otel-cmb: what waits in memory is lost unless the database answers before the process ends")
        if stats.parked or stats.pending or stats.lost:
            _log.warning("otel-cmb: %s", stats.summary(safe_url(self.settings.database_url)))
        return complete

    def _end_automatic_run(self) -> None:
        self._drainer.automatic_open = False
        error = processes.failure()
        self.accept_command({
            "do": "run_end", "id": self.automatic_run_id, "status": "failed" if error else "completed", "error": error,
            "at": clock.now_ns()})

    def _children_wrote(self) -> bool:
        """A server's workers share the run of the process that forked them, which may have had no span of its own."""
        if not self._intake.owns_run:
            return False
        with contextlib.suppress(ConfigurationError):
            return os.path.isdir(state_directory(self.settings))
        return False

    # -- forks ---------------------------------------------------------------------------------------------------------

    def hold_for_fork(self) -> None:
        """Before a fork: our threads stand still where nothing is half done, if they come there soon. A child that got a
        lock of SQLite's from a thread that is not there any more would wait for it for ever."""
        locks = [
            (self._intake.lock, 1.0), (self._drainer.store_lock, 0.25), (self._drainer.start_lock, 0.1),
            (self._ledger.lock, 1.0)]
        self._held = [lock for lock, seconds in locks if lock.acquire(timeout=seconds)]

    def release_after_fork(self) -> None:
        """After a fork, in the parent."""
        self._forked = True
        if self._intake.in_maker:
            processes.register_exit()
        held, self._held = self._held, []
        for lock in reversed(held):
            lock.release()

    def after_fork_in_child(self) -> None:
        """The files, connections and threads are the parent's: begin anew."""
        if self._intake.journal is not None:
            self._intake.journal.forget()
        for journal in self._drainer.adoption.journals:
            journal.forget()
        if self._drainer.store is not None:
            keep_for_ever(self._drainer.store.abandon())
        for part in (self._trouble, self._ledger, self._intake, self._drainer, self._writer):
            part.reset()
        self._running.after_fork_in_child()
        self._begin()


_by_key: dict[tuple[Settings, bool], Pipeline] = {}
_by_key_lock = threading.Lock()
_current: list[Pipeline] = []


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
    metrics.watch(known_pipelines)
    return pipeline


def known_pipelines() -> list[Pipeline]:
    """All pipelines of this process."""
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


def _new_lock() -> None:
    global _by_key_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _by_key_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
