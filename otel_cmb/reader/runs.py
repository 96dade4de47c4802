"""Runs: the list of them, the one a person means, and what each comes to."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Select, func, or_, select

from otel_cmb.dialects import SQLITE
from otel_cmb.errors import ConfigurationError, RunNotFoundError
from otel_cmb.reader.records import Run, RunTotals, make
from otel_cmb.reader.source import EVENTS, RUNS, Source
from otel_cmb.reader.summary import Summary
from otel_cmb.reader.values import as_json, iso

__all__ = ["Runs"]

SEARCHED = ("id", "task_description", "mode", "agent", "model")
REMEMBERED = 10_000
NO_RUNS = "no runs yet; record one with: otel-cmb run -- python program.py"


class Runs:
    """Questions to `workflow_runs`. See the methods of `Reader` of the same names."""

    def __init__(self, source: Source, summary: Summary) -> None:
        self._source = source
        self._schema = source.schema
        self._summary = summary
        self._key = source.schema[RUNS].c.id
        self._remembered: dict[str, tuple[Any, float, RunTotals]] = {}

    def page(
        self, *, status: str | Sequence[str] | None = None, agent: str | None = None, text: str | None = None,
        session: str | None = None, since: datetime | None = None, until: datetime | None = None, limit: int,
        cursor: str | None = None,
    ) -> list[Run]:
        wanted = self._filters(status, agent, text, session)
        started = self._schema.column(RUNS, "started_at")
        timed = self._schema.has(RUNS, "started_at")
        after_time, after_id = _decode(cursor)
        found: list[Run] = []
        if timed and (cursor is None or after_time is not None):
            statement = self._source.select(RUNS).where(started.is_not(None), *wanted)
            if since is not None:
                statement = statement.where(started >= self._source.moment(RUNS, "started_at", since))
            if until is not None:
                statement = statement.where(started < self._source.moment(RUNS, "started_at", until))
            if after_time is not None:
                edge = self._source.same_moment(RUNS, "started_at", after_time)
                statement = statement.where(started <= edge, or_(started < edge, self._key < after_id))
            found = self._read(statement.order_by(started.desc(), self._key.desc()).limit(limit))
        if len(found) < limit and since is None and until is None:
            # Apart from the others: PostgreSQL cannot use an ascending index for DESC NULLS LAST.
            statement = self._source.select(RUNS).where(*wanted)
            if timed:
                statement = statement.where(started.is_(None))
            if cursor is not None and after_time is None:
                statement = statement.where(self._key < after_id)
            found += self._read(statement.order_by(self._key.desc()).limit(limit - len(found)))
        return found

    def one(self, run_id: str) -> Run:
        found = self._read(self._source.select(RUNS).where(self._key == run_id))
        if not found:
            raise RunNotFoundError(self._not_found(run_id))
        return found[0]

    def newest(self, limit: int) -> list[Run]:
        return self.page(limit=limit)

    def resolve(self, name: str | None) -> str:
        if name is None or name == "latest":
            newest = self.newest(1)
            if not newest:
                raise RunNotFoundError(f"{self._source.where} has {NO_RUNS}")
            return newest[0].id
        if self._source.rows(select(self._key).where(self._key == name)):
            return name
        alias = self.alias(name)
        if alias is not None:
            return alias
        begins = self._beginning_with(name, 9)
        if len(begins) == 1:
            return begins[0]
        if begins:
            raise RunNotFoundError(f"several runs begin with {name!r}: {', '.join(begins[:8])}; give more of the id")
        raise RunNotFoundError(self._not_found(name))

    def alias(self, name: str) -> str | None:
        meta = self._schema.column(RUNS, "meta")
        sieve = self._schema.says(RUNS, "meta", json.dumps(name)[1:-1])
        for row in self._source.rows(select(self._key, meta).where(sieve).order_by(self._key.desc()).limit(100)):
            values = as_json(row["meta"])
            if isinstance(values, dict) and values.get("task_id") == name:
                return str(row["id"])
        return None

    def totals(self, run_ids: Iterable[str], budget: float | None) -> dict[str, RunTotals]:
        wanted = list(dict.fromkeys(run_ids))
        marks = self.marks(wanted)
        began = time.monotonic()
        sums = {
            run_id: known[2] for run_id in wanted
            if (known := self._remembered.get(run_id)) and known[0] == marks.get(run_id) and known[1] > began
        }
        rest = [run_id for run_id in wanted if run_id not in sums]
        for start in range(0, len(rest), 10):
            now = time.monotonic()
            if budget is not None and start and now - began > budget:
                break
            chunk = rest[start : start + 10]
            answer = self._summary.by_run(chunk)
            took = time.monotonic() - now
            for run_id in chunk:
                sums[run_id] = answer.get(run_id, RunTotals())
                mark = marks.get(run_id)
                # A run that goes on is added up again, for at most a tenth of the time.
                keep = 60.0 if mark is not None and mark[0] else took * 10
                self._remembered[run_id] = (mark, time.monotonic() + keep, sums[run_id])
        while len(self._remembered) > REMEMBERED:
            self._remembered.pop(next(iter(self._remembered)), None)
        return sums

    def marks(self, run_ids: list[str]) -> dict[str, tuple[Any, ...]]:
        """What tells cheaply that a run's sums may have changed; first of all whether it has ended."""
        runs, events = self._schema[RUNS], self._schema[EVENTS]
        last = select(func.max(events.c.execution_order)).where(events.c.run_id == runs.c.id).scalar_subquery()
        columns = [self._schema.column(RUNS, name) for name in ("status", "completed_at")]
        marks: dict[str, tuple[Any, ...]] = {}
        for start in range(0, len(run_ids), 500):
            chunk = run_ids[start : start + 500]
            for row in self._source.rows(select(self._key, *columns, last.label("last")).where(self._key.in_(chunk))):
                order = row.pop("last")
                run = make(Run, row)
                marks[run.id] = (run.ended, run.status, run.completed_at, order)
        return marks

    # -- inside -------------------------------------------------------------------------------------------------------

    def _filters(
        self, status: str | Sequence[str] | None, agent: str | None, text: str | None, session: str | None,
    ) -> list[Any]:
        wanted = self._source.equal(RUNS, agent=agent, session_id=session)
        if status is not None:
            allowed = [status] if isinstance(status, str) else list(status)
            wanted.append(self._schema.column(RUNS, "status").in_(allowed))
        if text:
            columns = [self._schema[RUNS].c[name] for name in SEARCHED if name in self._schema[RUNS].c]
            if self._schema.dialect == SQLITE:  # its LIKE pays no regard to case
                wanted.append(or_(*[column.contains(text, autoescape=True) for column in columns]))
            else:
                wanted.append(or_(*[func.lower(column).contains(text.lower(), autoescape=True) for column in columns]))
        return wanted

    def _read(self, statement: Select[Any]) -> list[Run]:
        rows = self._source.rows(statement)
        return [make(Run, row, cursor=_encode(row.get("started_at"), row["id"])) for row in rows]

    def _beginning_with(self, name: str, limit: int) -> list[str]:
        if not name:
            return []
        statement = select(self._key).where(self._key.startswith(name, autoescape=True))
        return [str(row["id"]) for row in self._source.rows(statement.order_by(self._key).limit(limit))]

    def _not_found(self, name: str) -> str:
        missing = f"no run {name!r} in {self._source.where}"
        alias = self.alias(name)
        if alias is not None:
            return f"{missing}, but run {alias} has it as its task_id: use {alias}"
        recent = [run.id for run in self.newest(500)]
        similar = difflib.get_close_matches(name, recent, n=3, cutoff=0.6)
        near = list(dict.fromkeys(similar + self._beginning_with(name[:8], 3)))[:3]
        if near:
            return f"{missing}; near it: {', '.join(near)}. See `otel-cmb runs`."
        if recent:
            return f"{missing}; the newest is {recent[0]}. See `otel-cmb runs`."
        return f"{missing}, which has {NO_RUNS}"


def with_totals(run: Run, totals: RunTotals | None) -> Run:
    return replace(run, totals=totals)


def _encode(started: Any, run_id: str) -> str:
    if isinstance(started, datetime):
        started = iso(started if started.tzinfo else started.replace(tzinfo=timezone.utc))
    return base64.urlsafe_b64encode(json.dumps([started, run_id]).encode()).decode().rstrip("=")


def _decode(cursor: str | None) -> tuple[str | None, str]:
    if cursor is None:
        return None, ""
    try:
        raw, run_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, binascii.Error):
        raise ConfigurationError(f"cursor: found {cursor[:80]!r}, expected the cursor of a run") from None
    return None if raw is None else str(raw), str(run_id)
