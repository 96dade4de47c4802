"""What a committed batch changes: in its journal, all in one note, then in the counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from otel_cmb.config import Settings
from otel_cmb.event import Span, event_id
from otel_cmb.intake import Intake
from otel_cmb.items import COMMITTED, DEFERRED, ENDED, MERGED, PARKED, UNSETTLED, Item
from otel_cmb.items import Outcome as Fate
from otel_cmb.journal import Journal
from otel_cmb.journal_bodies import Batch
from otel_cmb.journal_records import LATEST_DUE, NO_SPAN, START, Parked, Progress, Record
from otel_cmb.ledger import Ledger
from otel_cmb.sanitize import clean_text
from otel_cmb.standby import Standby
from otel_cmb.trouble import Trouble

__all__ = ["CONTENT_GIVEN_UP", "REJECTED", "Bookkeeper"]

REJECTED = "rejected_by_database"
CONTENT_GIVEN_UP = "content_given_up"
"""Counter of log records whose span did not come."""
_WAITING = frozenset((PARKED, DEFERRED))


class Bookkeeper:
    """Notes the fates of items in the log they came from. The writer's; only :meth:`remember_open` is for any thread."""

    def __init__(self, settings: Settings, intake: Intake, ledger: Ledger, trouble: Trouble):
        self._settings = settings
        self._intake = intake
        self._ledger = ledger
        self._trouble = trouble
        self.reset()

    def reset(self) -> None:
        """Nothing is open; also what a forked child begins with."""
        self._opened: set[str] = set()
        self._things: list[tuple[str, str, bytes]] = []

    def remember_open(self, kind: str, identifier: str) -> None:
        """Something of this process that the next process ends if this one dies."""
        self._things.append((kind, clean_text(identifier), b""))

    def forget_opened(self) -> None:
        """The journal is given back: a new one knows no open rows."""
        self._opened.clear()

    def note(self, journal: Journal | Standby, records: Sequence[Record], items: Sequence[Item], batch: Batch) -> None:
        """Move the journal on past the records, whose items are committed, and count."""
        now = time.time()
        progress = Progress(done=records[-1] if records else None)
        counts = progress.counts
        fates: list[tuple[int, Fate]] = []
        bodies: dict[int, bytes] = {}
        own = journal is self._intake.journal
        of_this_process = own or isinstance(journal, Standby)
        for item in items:
            fate, seq = item.outcome, item.seq
            assert fate is not None
            if seq in batch.starts:
                self._note_start(progress, item, batch.starts[seq])
                continue
            result = fate.result
            waits = result in _WAITING
            if waits:
                bodies = bodies or {record.seq: record.body for record in records}
                progress.park.append(self._parked(item, fate, bodies[seq], now))
            if item.span is not None:
                fates.append((seq, fate))
                if not waits:
                    counts[result] = counts.get(result, 0) + 1
                    if self._opened or not of_this_process:
                        self._note_end(progress, item.span, of_this_process)
            elif item.command is not None:
                _note_command(progress, item.command, fate)
        lost = sum([record.gap for record in records]) + len(batch.broken.intersection([record.seq for record in records]))
        if lost:
            progress.counts["lost:journal_damaged"] = lost
            self._trouble.say("damaged", "%d journal record(s) were damaged on the disk and are lost", lost)
        while own and self._things:
            progress.opened.append(self._things.pop())
        self._advance(journal, progress)
        if not self._is_counted(journal):
            return
        self._ledger.count(fates, lost, own=own)
        with self._ledger.progress:
            if records and own:
                self._ledger.done_seq = max(self._ledger.done_seq, records[-1].seq)
            self._ledger.progress.notify_all()

    def note_parked(
        self, journal: Journal | Standby, items: Sequence[Item], parked: dict[int, Parked], now: float,
    ) -> None:
        """Note what became of items that were parked until now."""
        progress = Progress()
        own = journal is self._intake.journal
        settled: list[Fate] = []
        pending = 0
        for item in items:
            before, fate = parked[item.seq], item.outcome
            assert fate is not None
            if before.body[:1] == START:  # closes the row of a process that died; without a row there is nothing to close
                progress.unpark.append(item.seq)
                continue
            if fate.reason == NO_SPAN and now - before.since > self._settings.content_time:
                progress.unpark.append(item.seq)
                progress.counts[CONTENT_GIVEN_UP] = progress.counts.get(CONTENT_GIVEN_UP, 0) + 1
                self._trouble.say(
                    "content", "content of a log record whose span did not come in %.0f s is given up (content_time)",
                    self._settings.content_time)
                continue
            if fate.result in _WAITING:
                progress.park.append(self._parked(item, fate, before.body, now, before))
                if item.span is not None:  # it may also wait again: the span that named its trace's run is not beside it now
                    pending += (before.reason == UNSETTLED) - (fate.result == DEFERRED)
                continue
            progress.unpark.append(item.seq)
            if item.span is not None:
                self._note_end(progress, item.span, own or isinstance(journal, Standby))
                progress.counts[fate.result] = progress.counts.get(fate.result, 0) + 1
                settled.append(fate)
                pending += before.reason == UNSETTLED
            elif item.command is not None:
                _note_command(progress, item.command, fate)
        self._advance(journal, progress)
        if self._is_counted(journal):
            self._ledger.count_parked(settled, pending)
        with self._ledger.progress:
            self._ledger.progress.notify_all()

    def _advance(self, log: Journal | Standby, progress: Progress) -> None:
        """Note it. What was begun or ended in memory is the journal's to know, if there is one: it outlives the process."""
        log.advance(progress)
        journal = self._intake.journal
        if isinstance(log, Standby) and (progress.opened or progress.closed) and journal is not None and journal.opened:
            journal.advance(Progress(opened=progress.opened, closed=progress.closed))

    def _is_counted(self, journal: Journal | Standby) -> bool:
        """Whether its spans are in our counts: our journal, our memory, or a journal we left at an earlier shutdown."""
        return journal is self._intake.journal or journal is self._intake.standby or journal.path in self._ledger.left

    def _note_start(self, progress: Progress, item: Item, body: bytes) -> None:
        assert item.span is not None and item.outcome is not None
        if item.outcome.result in (COMMITTED, MERGED) and item.outcome.reason != ENDED:
            id_ = event_id(item.span.trace_id, item.span.span_id)
            self._opened.add(id_)
            progress.opened.append(("event", id_, body))

    def _note_end(self, progress: Progress, span: Span, of_this_process: bool) -> None:
        id_ = event_id(span.trace_id, span.span_id)
        if not of_this_process or id_ in self._opened:
            self._opened.discard(id_)
            progress.closed.append(("event", id_))

    def _parked(self, item: Item, fate: Fate, body: bytes, now: float, before: Parked | None = None) -> Parked:
        deferred = fate.result == DEFERRED
        since = min(before.since, now) if before is not None else now  # the clock may have gone back
        attempts = before.attempts + 1 if before is not None else 1
        if deferred:
            due: float | None = min(since + self._settings.settle_time, now + LATEST_DUE)
        elif fate.reason == NO_SPAN and now - since > self._settings.park_retry:
            due = now + (now - since) / 2
        elif fate.reason == REJECTED or now - since > self._settings.park_retry:
            due = None
        else:
            due = now + min(0.25 * 2 ** min(attempts - 1, 8), 30.0)
        if not deferred and before is None and fate.reason != NO_SPAN:
            self._trouble.say(f"parked:{fate.reason}:{fate.run_id}", "%s: %s", fate.reason, fate.detail)
        span = item.span
        name = span.name if span else item.command["do"] if item.command else "log content"
        return Parked(
            item.seq, fate.reason, body, fate.detail, fate.run_id, span.trace_id if span else None,
            span.span_id if span else None, name, since, attempts, due)


def _note_command(progress: Progress, command: dict[str, Any], fate: Fate) -> None:
    """A run that was begun is open until it is ended, whoever writes it."""
    if command["do"] == "run_start" and fate.result == COMMITTED:
        progress.opened.append(("run", command["id"], b""))
    elif command["do"] == "run_end":
        progress.closed.append(("run", command["id"]))
