"""SQLite's log copied back into the file beside the writer, not by it.

A commit that finds the log long copies its pages into the file before it returns: half of a commit's time, two thirds at a
million rows. Here a thread does that on a connection of its own, and Python goes on meanwhile
(https://www.sqlite.org/wal.html, section 3.1).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from urllib.parse import quote

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

__all__ = ["BESIDE_PAGES", "ITSELF_PAGES", "Checkpoints"]

BESIDE_PAGES = 4_000
"""Length of the log from which a thread copies it: 16 MB of usual pages."""
ITSELF_PAGES = 16_000
"""Length, 64 MB, from which a commit does: where no thread can be had, or it does not keep up."""
_PAGES_OF_COMMIT, _PAGES_OF_ROW = 12, 2
"""About what a transaction, and each of its rows, adds to the log. Its file does not say how long it is: it never shrinks."""


class Checkpoints:
    """Of one SQLite file; for one thread at a time."""

    def __init__(self, path: str):
        self._uri = f"file:{quote(os.path.abspath(path))}?mode=rw"  # a file that is gone is not made anew
        self._thread: threading.Thread | None = None
        self._pages = 0

    def after_commit(self, rows: int) -> None:
        """Begin a copy where one is due and none is under way. Never raises: the log only becomes longer."""
        self._pages += _PAGES_OF_COMMIT + _PAGES_OF_ROW * rows
        if self._pages < BESIDE_PAGES or (self._thread is not None and self._thread.is_alive()):
            return
        self._pages = 0
        self._thread = threading.Thread(target=self._copy, name="otel-cmb-checkpoint", daemon=True)
        with contextlib.suppress(RuntimeError):  # no new threads at interpreter shutdown
            self._thread.start()

    def _copy(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented driver must not trace us
        with contextlib.suppress(sqlite3.Error), contextlib.closing(
                sqlite3.connect(self._uri, uri=True, timeout=0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def wait(self) -> None:
        """Until the copy that is under way is over."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._thread = None
