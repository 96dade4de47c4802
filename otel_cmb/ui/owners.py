"""Whether the process that writes a run has died, as far as this host knows: its journal is here and nobody holds it.

The database cannot tell. Its rows go on until the next process, or `otel-cmb parked replay`, closes them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from otel_cmb.config import Settings
from otel_cmb.errors import CMBError
from otel_cmb.journal import journals, read_only_summary
from otel_cmb.state_paths import state_directory

__all__ = ["Owners"]

PAUSE = 1.0
"""Seconds between two looks at the journals."""


class Owners:
    """Asked while a run that goes on is watched. `settings` is called at the first question."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._directory: str | None = None
        self._lock = threading.Lock()
        self._looked_at = -PAUSE
        self._died: frozenset[str] = frozenset()

    def died(self, run_id: str) -> bool:
        """A process that has this run open ended without closing it, and none that lives has it. False when unknown."""
        with self._lock:
            if time.monotonic() - self._looked_at >= PAUSE:
                self._died = self._look()
                self._looked_at = time.monotonic()
            return run_id in self._died

    def _look(self) -> frozenset[str]:
        try:
            if self._directory is None:
                self._directory = state_directory(self._settings())
            dead: set[str] = set()
            living: set[str] = set()
            for summary in map(read_only_summary, journals(self._directory)):
                (living if summary.alive else dead).update(summary.ids("run"))
        except (CMBError, OSError):  # a journal that is gone meanwhile, a directory that may not be read: nothing is known
            return frozenset()
        return frozenset(dead - living)
