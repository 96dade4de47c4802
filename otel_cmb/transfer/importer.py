"""Spans from OTLP files into the database, by the same pipeline as every other door."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from otel_cmb import clock
from otel_cmb.accounting import Stats, Ticket
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import CMBError, ConfigurationError, DatabaseUnavailableError, JournalError
from otel_cmb.event import STATUS_ERROR, Span, event_id
from otel_cmb.otlp_clean import SpanContent
from otel_cmb.otlp_files import read_chunks
from otel_cmb.pipeline import Pipeline, get_pipeline
from otel_cmb.quiet_runs import end_quiet_runs

__all__ = ["ImportReport", "Importer"]

BATCH = 1_000
MAX_OPEN = 4
"""Batches journaled but not yet answered: bounds the journal while a large file is read."""
BATCH_WAIT = 120.0
FLUSH_WAIT = 600.0
"""Longest wait at the end for a database that takes what it is given."""
AWAY_WAIT = 4.0
"""The same for one that takes nothing: all is in the journal, and waiting brings nothing."""
KNOWN_PROBES = 200
"""Spans that are looked up to find out whether a file was imported before."""
MAX_TRACES = 100_000
"""Most traces whose runs are remembered."""
MAX_PROBLEMS = 1_000
ADVICE = {
    "run_not_found": "the spans name a run that is not there: import with --on-missing-run create, or with --run RUN",
    "no_run": "the spans name no run: import with --run RUN or --new-run",
    "session_mismatch": "the spans name another session than their run's",
    "id_conflict": "the same spans are stored in another run",
    "rejected_by_database": "see `otel-cmb parked list`",
    "unsettled": "their trace's root has not come: `otel-cmb parked replay`",
}


@dataclass(slots=True)
class ImportReport:
    """What became of everything that was read."""

    database: str
    spans: int = 0
    stats: Stats = field(default_factory=Stats)
    problems: list[str] = field(default_factory=list)
    """Lines, messages and spans that could not be read, and where they are; the first thousand of them."""
    problem_count: int = 0
    run_id: str | None = None
    known_run: bool = False
    """`run_id` is not new: it has these spans already."""

    @property
    def complete(self) -> bool:
        stats = self.stats
        return not (self.problem_count or stats.pending or stats.parked or stats.refused or stats.lost)

    def _counts(self) -> dict[str, int]:
        stats = self.stats
        return {
            "spans": self.spans, "committed": stats.committed, "merged": stats.merged, "ignored": stats.ignored,
            "parked": sum(stats.parked.values()), "pending": stats.pending, "lost": sum(stats.lost.values()),
            "unreadable": self.problem_count,
        }

    def as_json(self) -> str:
        return orjson.dumps({
            **self._counts(), "parked_by_reason": self.stats.parked, "lost_by_reason": self.stats.lost,
            "problems": self.problems, "run_id": self.run_id, "known_run": self.known_run, "complete": self.complete,
        }).decode()

    def as_text(self) -> str:
        counts = self._counts()
        lines = [
            f"{counts.pop('spans')} spans read, "
            + ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "committed")
            + f" ({self.database})"
        ]
        if self.run_id is not None:
            lines.append(f"run {self.run_id}" + (" has these spans already; no run was made" if self.known_run else ""))
        if self.stats.parked:
            width = max(len("reason"), *(len(reason) for reason in self.stats.parked))
            lines += [f"{'reason':<{width}}  spans  what to do"]
            lines += [
                f"{reason:<{width}}  {number:>5}  {ADVICE.get(reason, 'see `otel-cmb parked list`')}"
                for reason, number in sorted(self.stats.parked.items())
            ]
        if self.stats.pending:
            why = f" ({self.stats.last_error})" if self.stats.last_error else ""
            lines.append(
                f"{self.stats.pending} spans are kept in the journal, the database did not take them{why}; go on with "
                "`otel-cmb parked replay` and the same database when it is back (importing again is harmless too)"
            )
        lines += [f"not read: {problem}" for problem in self.problems[:20]]
        if self.problem_count > 20:
            lines.append(f"not read: and {self.problem_count - 20} more")
        return "\n".join(lines)


class _Counted(io.RawIOBase):
    """A file that says how much of it was read."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self._file.readinto(buffer)
        self._advance(read or 0)
        return read


class Importer:
    """Reads files one after the other; :meth:`finish` waits until every span's fate is known.

    Raises :class:`RunNotFoundError` at once for a `run_id` that is not there. Spans are journaled before they are
    written, so an interrupted import loses nothing of what it had read.
    """

    def __init__(self, settings: Settings, *, run_id: str | None, new_run: bool, session: str | None = None) -> None:
        self._settings = settings
        self._pipeline: Pipeline = get_pipeline(settings, per_trace_runs=True)
        self._new_run, self._session = new_run, session
        self._run_id: str | None = None
        self._open: deque[Ticket] = deque()
        self._batch: list[Span] = []
        self._began = False
        self._run_of_trace: dict[str, str] = {}
        """Of traces that are stored already, in one run each."""
        self._made_run = False
        self._failed_root = False
        self._last_ns = 0
        self._away = False
        self.report = ImportReport(safe_url(settings.database_url))
        if run_id is not None:
            self._run_id = self._pipeline.check_run(run_id)[0]
            self.report.run_id = self._run_id

    @staticmethod
    def total_bytes(paths: Sequence[str]) -> int | None:
        """The size of all files, `None` when stdin is among them. Raises :class:`ConfigurationError` for one that is
        not there, before anything is imported."""
        if "-" in paths:
            return None
        try:
            for path in filter(os.path.isdir, paths):
                raise ConfigurationError(
                    f"{path}: found a directory; expected an OTLP file, e.g. {os.path.join(path, '*.jsonl')}")
            return sum(os.stat(path).st_size for path in paths)
        except OSError as error:
            raise ConfigurationError(f"{error.filename}: {error.strerror}; expected an OTLP file") from error

    def read(self, path: str, advance: Callable[[int], None] = lambda _: None) -> None:
        """Read one file (`-` is stdin). Raises :class:`CMBError` when it cannot be read or the journal is full."""
        label = "stdin" if path == "-" else path
        try:
            if path == "-":
                self._read(sys.stdin.buffer, label, advance)
            else:
                with open(path, "rb", buffering=0) as file:
                    self._read(file, label, advance)
        except OSError as error:
            raise CMBError(f"{label} cannot be read: {error.strerror or error}") from error

    def _read(self, file: Any, label: str, advance: Callable[[int], None]) -> None:
        for chunk in read_chunks(io.BufferedReader(_Counted(file, advance), 1 << 20)):
            for problem in chunk.problems:
                self.report.problem_count += 1
                if len(self.report.problems) < MAX_PROBLEMS:
                    self.report.problems.append(f"{label}: {problem}")
            self._batch.extend(chunk.spans)
            while len(self._batch) >= BATCH:
                batch, self._batch = self._batch[:BATCH], self._batch[BATCH:]
                self._send(batch)
            self._send_content(chunk.content)

    def _send(self, spans: list[Span]) -> None:
        if not spans:
            return
        if self._new_run and not self._began:
            self._begin_run(spans)
        self._began = True
        if self.report.known_run:
            self._find_traces(spans)
        for span in spans:
            span.stamp.door_run_id = self._run_of_trace.get(span.trace_id, self._run_id)
            self._last_ns = max(self._last_ns, span.end_ns or span.start_ns)
            if span.parent_span_id is None and span.status_code == STATUS_ERROR:
                self._failed_root = True
        self.report.spans += len(spans)
        try:
            self._open.append(self._pipeline.accept(spans))
        except JournalError as error:
            raise CMBError(
                f"the journal cannot take more spans after {self.report.spans - len(spans)} ({error}); "
                "is the database away? Importing again later is harmless"
            ) from error
        if len(self._open) > MAX_OPEN:
            self._open.popleft().wait(BATCH_WAIT)

    def _send_content(self, content: list[SpanContent]) -> None:
        if content:
            self._pipeline.accept_logs(content)

    def _begin_run(self, spans: list[Span]) -> None:
        """Make the run, unless some run has these spans already."""
        self._run_id = self._known_run(spans)
        self.report.known_run = self._run_id is not None
        if self._run_id is None:
            self._run_id = str(uuid.uuid4())
            self._made_run = True
            self._pipeline.accept_command({
                "do": "run_start", "id": self._run_id, "session": self._session, "mode": "one_shot",
                "at": min(span.start_ns for span in spans), "meta": {"imported": True},
            })
        self.report.run_id = self._run_id

    def _known_run(self, spans: list[Span]) -> str | None:
        from otel_cmb.reader import open_reader

        try:
            reader = open_reader(self._settings.database_url, schema=self._settings.schema)
        except DatabaseUnavailableError as error:
            raise DatabaseUnavailableError(
                f"{error}. Whether a run has these spans already cannot be known now: nothing was imported"
            ) from error
        except CMBError:
            return None  # no database or no tables yet: the pipeline makes them, or says what is wrong
        with reader:
            for span in spans[:KNOWN_PROBES]:
                event = reader.event(event_id(span.trace_id, span.span_id))
                if event is not None and event.run_id is not None:
                    return event.run_id
        return None

    def _find_traces(self, spans: list[Span]) -> None:
        """The spans were stored before: each trace stays in the run that has it."""
        from otel_cmb.reader import open_reader

        if len(self._run_of_trace) > MAX_TRACES:
            self._run_of_trace.clear()
        with open_reader(self._settings.database_url, schema=self._settings.schema) as reader:
            for span in spans:
                if span.trace_id not in self._run_of_trace:
                    event = reader.event(event_id(span.trace_id, span.span_id))
                    if event is not None and event.run_id is not None:
                        self._run_of_trace[span.trace_id] = event.run_id

    def finish(self) -> ImportReport:
        """Send what is left and wait until everything is committed or parked."""
        self._send(self._batch)
        self._batch = []
        self._settle()
        if self._made_run and self._run_id is not None:
            self._pipeline.accept_command({
                "do": "run_end", "id": self._run_id, "status": "failed" if self._failed_root else "completed",
                "at": self._last_ns or clock.now_ns(),
            })
            if not self._away:
                self._pipeline.flush(self._settings.shutdown_timeout)
        if not self._away:
            with contextlib.suppress(CMBError):
                end_quiet_runs(self._settings)  # traces whose root is in no file
        self.report.stats = self._pipeline.stats()
        return self.report

    def _settle(self) -> None:
        """Wait until everything is committed or parked, or the database has taken nothing for a while."""
        end, since = clock.monotonic() + FLUSH_WAIT, None
        while not self._pipeline.flush(0.5) and not self._away:
            now = clock.monotonic()
            since = (since or now) if self._pipeline.stats().last_error else None
            self._away = now >= end or (since is not None and now >= since + AWAY_WAIT)

    def close(self) -> None:
        """What could not be written stays in the journal."""
        self._pipeline.shutdown(0.5 if self._away else None)
