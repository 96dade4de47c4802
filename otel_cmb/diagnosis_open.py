"""What goes on in the database although it should have ended, and who can end it. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from otel_cmb.binding import Binding
from otel_cmb.config import Settings
from otel_cmb.dialects import mark
from otel_cmb.event import is_own_id
from otel_cmb.journal import Summary
from otel_cmb.owners import DIED, LIVING, whose
from otel_cmb.quiet_runs import quiet_runs, silent_runs
from otel_cmb.values import as_dict
from otel_cmb.workflow import MADE_BY_US

__all__ = ["NOBODY", "QUIET", "THEIRS", "Open", "open_events", "open_runs"]

MOST = 1_000
"""Most rows of each kind that are looked at."""
AT_ONCE = 500
"""Ids in one statement."""
QUIET_SECONDS = 3_600
"""A run that nothing has come for in this time is worth a word."""

QUIET, THEIRS, NOBODY = "quiet", "theirs", "nobody"
"""Whose a row is beside `LIVING` (a living process's) and `DIED` (one's that died and left its journal here): a trace's without
a root; the application's own; nobody's that is known here."""


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
        return "; ".join(f"{len(self.found[of])} {words[of]}" for of in words if self.found.get(of))


def open_events(connection: Connection, binding: Binding, summaries: Iterable[Summary]) -> Open:
    """Events still running although their run has ended, or their process has died."""
    tables, known = binding.tables, whose("event", summaries)
    rows: list[Sequence[Any]] = [*connection.exec_driver_sql(
        f"SELECT e.id FROM {tables['execution_events'].qualified} e JOIN {tables['workflow_runs'].qualified} r "
        f"ON r.id = e.run_id WHERE e.status = 'running' AND r.completed_at IS NOT NULL LIMIT {MOST}")]
    rows += _still(connection, binding, "execution_events", "e.id", "e.status = 'running'", known)
    return _sorted(((identifier, "" if binding.owned or is_own_id(identifier) else THEIRS)
                    for identifier in dict.fromkeys(str(row[0]) for row in rows)), known)


def open_runs(connection: Connection, binding: Binding, settings: Settings, summaries: Iterable[Summary]) -> Open:
    """Runs of ours that go on although their process has died, or nothing has come for an hour; a living process on this
    host may be quiet."""
    columns = binding.tables["workflow_runs"].columns
    if "meta" not in columns or "completed_at" not in columns:
        return Open()
    known = whose("run", summaries)
    going = "e.status = 'executing' AND e.completed_at IS NULL"
    left = _still(connection, binding, "workflow_runs", "e.id, e.meta", going, known)
    rows = {str(row[0]): as_dict(row[1]) for row in left}
    rows.update(silent_runs(connection, binding, QUIET_SECONDS))
    ours = [run_id for run_id, meta in rows.items() if meta.get("made_by") == MADE_BY_US]
    quiet = set(quiet_runs(connection, binding, settings)) if ours else set()
    return _sorted(((run_id, QUIET if run_id in quiet else "") for run_id in ours), known)


def _still(
    connection: Connection, binding: Binding, table: str, columns: str, going: str, known: Mapping[str, str],
) -> list[Sequence[Any]]:
    """Rows that go on in the database and are of a process that died."""
    died = sorted(identifier for identifier, of in known.items() if of == DIED)[:MOST]
    found: list[Sequence[Any]] = []
    for begin in range(0, len(died), AT_ONCE):
        some = died[begin : begin + AT_ONCE]
        places = ", ".join([mark(binding.dialect)] * len(some))
        found += connection.exec_driver_sql(
            f"SELECT {columns} FROM {binding.tables[table].qualified} e WHERE {going} AND e.id IN ({places})", tuple(some))
    return found


def _sorted(rows: Iterable[tuple[str, str]], known: Mapping[str, str]) -> Open:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for identifier, of in rows:
        found[known.get(identifier) or of or NOBODY].append(identifier)
    return Open(dict(found))
