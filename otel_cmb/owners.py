"""Whose a run is that goes on in the database, as far as this host knows: its journal is here, and somebody holds it or not.

The database cannot tell. The rows of a process that died go on until the next process, or `otel-cmb parked replay`, closes
them. Who asks: `otel-cmb doctor`, and everything that shows runs, through `Reader`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable

import orjson

from otel_cmb import journal_spans
from otel_cmb.config import Settings
from otel_cmb.errors import CMBError
from otel_cmb.event import event_id
from otel_cmb.journal import Summary, journals, log_of, read_only_summary
from otel_cmb.journal_bodies import UNREADABLE
from otel_cmb.journal_records import COMMAND, PROCESS_DIED, START, Parked
from otel_cmb.state_paths import state_directory

__all__ = ["DIED", "LIVING", "Owners", "whose"]

LIVING, DIED = "living", "died"

PAUSE = 1.0
"""Seconds between two looks at the journals; longer where a look takes more than a tenth of this."""


def whose(kind: str, summaries: Iterable[Summary]) -> dict[str, str]:
    """The rows of this kind that go on as far as these journals know, and whether a process that lives has them."""
    dead: set[str] = set()
    living: set[str] = set()
    for summary in summaries:
        (living if summary.alive else dead).update(summary.ids(kind))
        dead.update(_given_up(kind, summary.parked))
    return dict.fromkeys(dead, DIED) | dict.fromkeys(living, LIVING)


def _given_up(kind: str, parked: Iterable[Parked]) -> Iterable[str]:
    """Rows that whoever took over the journal is to close, and has not closed yet."""
    for item in parked:
        if item.reason == PROCESS_DIED:
            with contextlib.suppress(*UNREADABLE):
                if kind == "run" and item.body[:1] == COMMAND:
                    yield str(orjson.loads(item.body[1:])["id"])
                elif kind == "event" and item.body[:1] == START:
                    span = journal_spans.decode(item.body, 1)
                    yield event_id(span.trace_id, span.span_id)


class Owners:
    """Asked while runs that go on are looked at. `settings` is called at the first question. Thread-safe."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._directory: str | None = None
        self._lock = threading.Lock()
        self._look_again = 0.0
        self._dead: dict[str, list[str]] = {}
        """The journals that know a run as open and are nobody's, by the run."""
        self._ends: dict[str, frozenset[str]] = {}
        """Runs whose end waits in a journal that is nobody's. Its log stays as it is."""

    def died(self, run_ids: Iterable[str]) -> list[str]:
        """Those of these runs that a process had open which ended without ending them, and that none has which lives. What
        is not known here (another host's, a directory that may not be read) is not said to have died.

        Ask the database afterwards whether they have ended: a process that ends in order ends its run first.
        """
        with self._lock:
            if time.monotonic() >= self._look_again:
                began = time.monotonic()
                self._dead = self._look()
                now = time.monotonic()
                self._look_again = now + max(PAUSE, 10 * (now - began))
            return [run_id for run_id in run_ids
                    if run_id in self._dead and not any(run_id in self._ended_in(path) for path in self._dead[run_id])]

    def _look(self) -> dict[str, list[str]]:
        summaries = []
        try:
            if self._directory is None:
                self._directory = state_directory(self._settings())
            paths = journals(self._directory)
        except (CMBError, OSError):  # a directory that may not be read: nothing is known
            paths = []
        for path in paths:
            with contextlib.suppress(OSError):  # gone meanwhile
                summaries.append(read_only_summary(path, waiting=False))
        self._ends = {path: ends for path, ends in self._ends.items() if path in paths}
        dead: dict[str, list[str]] = {run_id: [] for run_id, of in whose("run", summaries).items() if of == DIED}
        for summary in summaries:
            for run_id in summary.ids("run") & dead.keys():
                dead[run_id].append(summary.path)
        return dead

    def _ended_in(self, path: str) -> frozenset[str]:
        """The runs that the owner has ended, which is in its log and not yet in the database."""
        if path not in self._ends:
            found = set()
            with contextlib.suppress(OSError, sqlite3.DatabaseError), log_of(path) as records:
                for record in records:
                    if record.body[:1] == COMMAND:
                        with contextlib.suppress(*UNREADABLE):
                            command = orjson.loads(record.body[1:])
                            if command["do"] == "run_end":
                                found.add(str(command["id"]))
            self._ends[path] = frozenset(found)
        return self._ends[path]
