"""What goes on in the database although it should have ended, and who can end it. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.config import Settings
from otel_cmb.event import is_own_id
from otel_cmb.journal import Summary
from otel_cmb.quiet_runs import quiet_runs, silent_runs
from otel_cmb.workflow import MADE_BY_US

__all__ = ["DIED", "LIVING", "NOBODY", "QUIET", "THEIRS", "Open", "open_events", "open_runs"]

MOST = 1_000
"""Most rows of each kind that are looked at."""
QUIET_SECONDS = 3_600
"""A run that nothing has come for in this time is worth a word."""

LIVING, DIED, QUIET, THEIRS, NOBODY = "living", "died", "quiet", "theirs", "nobody"
"""Whose a row is: a living process's; one's that died and left its journal here; a trace's without a root; the
application's own; nobody's that is known here."""


@dataclass
class Open:
    """Rows that go on, by whose they are."""

    found: dict[str, list[str]] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        return [identifier for identifiers in self.found.values() for identifier in identifiers]

    @property
    def wrong(self) -> bool:
        """Somebody has to do something."""
        return not self.found.keys() <= {LIVING, THEIRS}

    def advice(self, words: Mapping[str, str]) -> str:
        """What to do, for each that has words."""
        return "; ".join(f"{len(self.found[whose])} {words[whose]}" for whose in words if self.found.get(whose))


def open_events(connection: Connection, binding: Binding, summaries: Iterable[Summary]) -> Open:
    """Events still running although their run has ended."""
    tables = binding.tables
    rows = connection.exec_driver_sql(
        f"SELECT e.id FROM {tables['execution_events'].qualified} e JOIN {tables['workflow_runs'].qualified} r "
        f"ON r.id = e.run_id WHERE e.status = 'running' AND r.completed_at IS NOT NULL LIMIT {MOST}")
    return _sorted(((str(row[0]), "" if binding.owned or is_own_id(str(row[0])) else THEIRS) for row in rows),
                   _known("event", summaries))


def open_runs(connection: Connection, binding: Binding, settings: Settings, summaries: Iterable[Summary]) -> Open:
    """Runs of ours that go on although nothing has come for an hour; a living process on this host may be quiet."""
    columns = binding.tables["workflow_runs"].columns
    if "meta" not in columns or "completed_at" not in columns:
        return Open()
    rows = silent_runs(connection, binding, QUIET_SECONDS)
    ours = [run_id for run_id, meta in rows if meta.get("made_by") == MADE_BY_US]
    quiet = set(quiet_runs(connection, binding, settings)) if ours else set()
    return _sorted(((run_id, QUIET if run_id in quiet else "") for run_id in ours), _known("run", summaries))


def _known(kind: str, summaries: Iterable[Summary]) -> dict[str, str]:
    """What the journals of this host know as open, and whether its process lives."""
    known: dict[str, str] = {}
    for summary in summaries:
        whose = LIVING if summary.alive else DIED
        known.update(dict.fromkeys(summary.ids(kind), whose))
    return known


def _sorted(rows: Iterable[tuple[str, str]], known: Mapping[str, str]) -> Open:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for identifier, whose in rows:
        found[known.get(identifier) or whose or NOBODY].append(identifier)
    return Open(dict(found))
