"""Journals of dead processes: taken over, written to their end, what was open in them closed as failed, removed."""

from __future__ import annotations

import contextlib
import time

from otel_cmb import clock, journal_spans
from otel_cmb.accounting import Totals
from otel_cmb.intake import Intake
from otel_cmb.journal import Journal, adoptable
from otel_cmb.journal_bodies import UNREADABLE, command_body, start_body
from otel_cmb.journal_records import PROCESS_DIED, Parked, Progress
from otel_cmb.ledger import Ledger
from otel_cmb.workflow import DIED

__all__ = ["Adoption"]

ADOPT_EVERY = 5.0
"""Seconds between two looks for journals whose owner is gone."""


class Adoption:
    """The journals this process has taken over. The writer's."""

    def __init__(self, intake: Intake, ledger: Ledger):
        self._intake = intake
        self._ledger = ledger
        self.reset()

    def reset(self) -> None:
        """None is taken yet; also what a forked child begins with."""
        self.journals: list[Journal] = []
        self._next = 0.0

    def look_soon(self) -> None:
        """Look at the next opportunity, whenever the last look was."""
        self._next = 0.0

    def look_if_due(self, now: float) -> None:
        """Take what can be taken, every few seconds (`now`: monotonic)."""
        if now >= self._next and self._intake.directory is not None:
            self._next = now + ADOPT_EVERY
            self.look(self._intake.directory)

    def look(self, directory: str) -> None:
        """Take every journal under the directory whose owner is gone."""
        self.journals += adoptable(directory)

    def close_rows(self, journal: Journal) -> None:
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
                with contextlib.suppress(*UNREADABLE):
                    span = journal_spans.decode(body[1:])
                    span.died = True
                    bodies.append(start_body(span))
        for run_id in sorted(runs):
            command = {"do": "run_end", "id": run_id, "status": "failed", "error": DIED, "at": clock.now_ns()}
            bodies.append(command_body(command))
        if bodies:
            now = time.time()
            first = min((parked.seq for parked in journal.parked(limit=1)), default=0)
            first = min(first, 0) - 1  # below all that are there
            journal.advance(Progress(
                park=[Parked(first - n, PROCESS_DIED, body, since=now, due=0.0) for n, body in enumerate(bodies)],
                closed=[(kind, identifier) for kind, identifier, _ in things]))

    def finish(self) -> None:
        """Remove the journals in which nothing is left, and add up their counts."""
        for journal in list(self.journals):
            if journal.parked(limit=1) or journal.backlog():
                continue
            counts, path = journal.counts(), journal.path
            self.journals.remove(journal)
            if journal.close():
                self._ledger.left.pop(path, None)
                if self._intake.directory is not None:
                    Totals(self._intake.directory).add(counts)
