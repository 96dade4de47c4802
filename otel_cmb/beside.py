"""What is remembered of traces beside an attached database, which gets no table of ours."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import orjson

from otel_cmb import clock
from otel_cmb.event import trace_id_range
from otel_cmb.journal_files import make_private

__all__ = ["KEPT_NS", "Beside", "prefix_of"]

_log = logging.getLogger("otel_cmb")
T = TypeVar("T")

KEPT_NS = 24 * 3600 * 1_000_000_000
"""How long a skeleton is worth keeping: nanoseconds."""


def prefix_of(trace_id: str) -> str:
    """The part of an event id that all events of the trace share: 60 bits, with the version digit between."""
    return trace_id_range(trace_id)[0][:18]


class Beside:
    """A SQLite file beside an attached database, shared by the processes of this host: skeletons of spans without a row,
    and children in one trace that hang below a parent in another, or wait for it. Its trouble never delays a row."""

    def __init__(self, directory: str):
        self._path = os.path.join(directory, "skeletons.db")
        self._saves = 0
        self._said = False
        self._memory: dict[str, str] = {}
        """Skeletons that the file could not take."""
        self._children: set[tuple[str, str]] = set()
        """Waiting pairs that the file could not take."""

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        make_private(self._path)
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS skeletons (id TEXT PRIMARY KEY, seen INTEGER, body TEXT) WITHOUT ROWID")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS waiting (parent TEXT, child TEXT, seen INTEGER, PRIMARY KEY (parent, child)) "
                "WITHOUT ROWID")
            yield connection
        finally:
            connection.close()

    def load(self, trace_ids: Sequence[str]) -> list[tuple[str, str]]:
        found = self._guarded(lambda: self._load(trace_ids)) or []
        if self._memory:
            prefixes = {prefix_of(trace_id) for trace_id in trace_ids}
            known = {id_ for id_, _ in found}
            found += [(id_, body) for id_, body in self._memory.items() if id_[:18] in prefixes and id_ not in known]
        return found

    def save(self, put: Sequence[tuple[str, str]], drop: Sequence[str]) -> None:
        if not put and not drop:
            return
        if self._guarded(lambda: self._save(put, drop)) is None:
            self._memory.update(put)
            while len(self._memory) > 10_000:
                self._memory.pop(next(iter(self._memory)))
        for id_ in drop if self._memory else ():
            self._memory.pop(id_, None)

    def wait(self, pairs: Sequence[tuple[str, str]], stale: Sequence[tuple[str, str]] = ()) -> None:
        """Remember (parent, child): the child hangs, or will hang, below a parent in another trace; forget the stale ones."""
        self._children.difference_update(stale)
        if (pairs or stale) and self._guarded(lambda: self._wait(pairs, stale)) is None:
            self._children.update(pairs)
            while len(self._children) > 10_000:
                self._children.pop()

    def waiting_for(self, parents: Sequence[str]) -> list[tuple[str, str]]:
        """The (parent, child) pairs of these parents. They stay: linking twice changes nothing, and a transaction may fail."""
        if not parents:
            return []
        wanted = set(parents)
        found = self._guarded(lambda: self._waiting_for(parents)) or []
        return [*found, *(pair for pair in self._children if pair[0] in wanted)]

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """Its result; `None` where the file cannot be used now. A damaged file is put aside."""
        try:
            return work()
        except (sqlite3.OperationalError, OSError) as error:
            reason: Exception = error
        except sqlite3.DatabaseError as error:
            reason = error
            with contextlib.suppress(OSError):
                os.replace(self._path, f"{self._path}.damaged-{clock.now_ns()}")
        if not self._said:
            self._said = True
            _log.warning("otel-cmb: %s cannot be used: %s; what it would hold is remembered by this process only",
                         self._path, reason)
        return None

    def _wait(self, pairs: Sequence[tuple[str, str]], stale: Sequence[tuple[str, str]]) -> bool:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        now = clock.now_ns()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM waiting WHERE parent = ? AND child = ?", stale)
            connection.executemany("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?)", [(*pair, now) for pair in pairs])
            connection.execute("COMMIT")
        return True

    def _waiting_for(self, parents: Sequence[str]) -> list[tuple[str, str]]:
        if not os.path.exists(self._path):
            return []
        with self._open() as connection:
            if connection.execute("SELECT 1 FROM waiting LIMIT 1").fetchone() is None:
                return []
            return connection.execute(
                "SELECT parent, child FROM waiting WHERE parent IN (SELECT value FROM json_each(?))",
                (orjson.dumps(list(parents)).decode(),)).fetchall()

    def _load(self, trace_ids: Sequence[str]) -> list[tuple[str, str]]:
        if not os.path.exists(self._path):
            return []
        found: list[tuple[str, str]] = []
        with self._open() as connection:
            for trace_id in trace_ids:
                found += connection.execute(
                    "SELECT id, body FROM skeletons WHERE id BETWEEN ? AND ?", trace_id_range(trace_id)).fetchall()
        return found

    def _save(self, put: Sequence[tuple[str, str]], drop: Sequence[str]) -> bool:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        now = clock.now_ns()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO skeletons VALUES (?, ?, ?)", [(id_, now, body) for id_, body in put])
            connection.executemany("DELETE FROM skeletons WHERE id = ?", [(id_,) for id_ in drop])
            if self._saves % 1000 == 0:
                for table in ("skeletons", "waiting"):
                    connection.execute(f"DELETE FROM {table} WHERE seen < ?", (now - KEPT_NS,))
            connection.execute("COMMIT")
        self._saves += 1
        return True
