"""The accounting law: received = ignored + merged + committed + pending + parked + lost, and nothing lost in silence."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from otel_cmb import clock
from otel_cmb.journal_files import make_private

__all__ = ["Outcome", "Stats", "Ticket", "Totals"]


@dataclass(slots=True)
class Stats:
    """Counts of spans in one process since it began. `parked` and `lost` are by reason.

    `refused` spans (a token bound to another session) were never accepted and are not in `received`.
    """

    received: int = 0
    committed: int = 0
    merged: int = 0
    ignored: int = 0
    pending: int = 0
    refused: int = 0
    parked: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    live: int = 0
    """Spans running now."""
    journal_bytes: int = 0
    """Of this process's journal, and of those of dead processes that it has taken over."""
    last_error: str = ""
    """Why the database cannot be written at this moment; empty when it can."""
    redacted: int = 0
    """Secrets replaced before anything was written."""

    def count(self, result: str, reason: str, n: int = 1) -> None:
        """So many spans more with this result."""
        if result == "refused":
            self.refused += n
            self.received -= n
        elif result in ("committed", "merged", "ignored"):
            setattr(self, result, getattr(self, result) + n)
        elif result == "lost":
            self.lose(reason, n)

    def lose(self, reason: str, n: int) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + n

    @property
    def balanced(self) -> bool:
        """Whether the law holds."""
        return self.received == (
            self.ignored + self.merged + self.committed + self.pending + sum(self.parked.values()) + sum(self.lost.values()))

    def copy(self) -> Stats:
        """The counts as they are now."""
        return replace(self, parked=dict(self.parked), lost=dict(self.lost))

    def as_dict(self) -> dict[str, Any]:
        """Every count, for JSON."""
        return {
            "received": self.received, "committed": self.committed, "merged": self.merged, "ignored": self.ignored,
            "pending": self.pending, "parked": dict(self.parked), "lost": dict(self.lost), "refused": self.refused,
            "live": self.live, "journal_bytes": self.journal_bytes, "last_error": self.last_error,
            "redacted": self.redacted,
        }

    def summary(self, database: str) -> str:
        """One line: what is not in the database, and why."""
        parts = [f"{self.committed} of {self.received} spans committed to {database}"]
        parts += [f"{n} parked ({reason})" for reason, n in sorted(self.parked.items())]
        if self.pending:
            why = f": {self.last_error}" if self.last_error else ""
            parts.append(f"{self.pending} still in the journal{why}")
        parts += [f"{n} LOST ({reason})" for reason, n in sorted(self.lost.items())]
        if self.parked or self.pending:
            parts.append("see `otel-cmb parked list`, then `otel-cmb parked replay`")
        return "; ".join(parts)


@dataclass(slots=True)
class Outcome:
    """What became of the spans of one `accept`, as far as it is known."""

    received: int = 0
    committed: int = 0
    ignored: int = 0
    merged: int = 0
    refused: int = 0
    lost: int = 0
    pending: int = 0
    """In the journal: the database is away, or the span waits for its trace's root."""
    parked: dict[str, int] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Nothing is pending."""
        return self.pending == 0

    @property
    def stored(self) -> bool:
        """Every event is committed (or there was none to store)."""
        return not (self.pending or self.parked or self.refused or self.lost)


class Ticket:
    """A claim on the fate of the spans of one `accept`. Thread-safe."""

    def __init__(self, received: int):
        self._outcome = Outcome(received=received, pending=received)
        self._waiting = received
        self._condition = threading.Condition()
        self._outage = False

    def settle(self, result: str, reason: str, n: int = 1) -> None:
        """The fate of so many spans is known."""
        with self._condition:
            outcome = self._outcome
            self._waiting -= n
            if result == "parked":
                outcome.parked[reason] = outcome.parked.get(reason, 0) + n
            elif result != "deferred":
                setattr(outcome, result, getattr(outcome, result) + n)
            if result != "deferred":
                outcome.pending -= n
            if self._waiting <= 0:
                self._condition.notify_all()

    def outage(self) -> None:
        """The database is away: whoever need not wait any longer does not."""
        with self._condition:
            self._outage = True
            self._condition.notify_all()

    def wait(self, timeout: float, *, through_outage: bool = False) -> Outcome:
        """The outcome once every span's fate is known, or what is known after `timeout` seconds.

        Returns early when the database turns out to be away, unless `through_outage`.
        """
        deadline = clock.monotonic() + timeout
        with self._condition:
            while self._waiting > 0 and not (self._outage and not through_outage):
                left = deadline - clock.monotonic()
                if left <= 0:
                    break
                self._condition.wait(left)
            return replace(self._outcome, parked=dict(self._outcome.parked))


class Totals:
    """Counts of the journals that are done and gone, per database, in the state directory: for `otel-cmb doctor`."""

    def __init__(self, directory: str):
        self._path = os.path.join(directory, "totals.db")

    def add(self, counts: dict[str, int]) -> None:
        """Add the counts of a journal that was removed."""
        if counts:
            try:
                self._add(counts)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # damaged: put aside, and begin anew
                os.replace(self._path, f"{self._path}.damaged-{time.time_ns()}")
                self._add(counts)

    def _add(self, counts: dict[str, int]) -> None:
        with self._open() as connection:
            connection.executemany(
                "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
                list(counts.items()))

    def read(self) -> dict[str, int]:
        """All counts so far."""
        if not os.path.exists(self._path):
            return {}
        try:
            with self._open() as connection:
                return dict(connection.execute("SELECT name, n FROM totals"))
        except sqlite3.DatabaseError:  # damaged: put aside by the next that adds to it
            return {}

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        make_private(self._path)
        connection = sqlite3.connect(self._path, timeout=10)
        try:
            with connection:
                connection.execute("CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")
                yield connection
        finally:
            connection.close()
