"""Spans that have begun and not ended: a row shows them once they have been running for a moment."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from otel_cmb import clock
from otel_cmb.config import Settings
from otel_cmb.errors import ConfigurationError, JournalError
from otel_cmb.event import Stamp
from otel_cmb.intake import Intake
from otel_cmb.journal_records import START
from otel_cmb.sdk import span_from_sdk
from otel_cmb.state_paths import state_directory
from otel_cmb.trouble import Trouble

__all__ = ["Running"]

START_AGE = 0.05
"""Seconds a span must have been running before a row is written for it: most end sooner and cost one write."""

NO_STARTS_ABOVE = 0.7
"""Part of the journal's size cap: what ends is worth more than what runs."""


@dataclass(slots=True)
class _Running:
    span: ReadableSpan
    stamp: Stamp
    since: float
    written: bool = False


class Running:
    """The running spans of one process, with the run and session they began in."""

    def __init__(self, settings: Settings, intake: Intake, trouble: Trouble):
        self._settings = settings
        self._intake = intake
        self._trouble = trouble
        self._spans: dict[int, _Running] = {}
        self._before_fork: dict[int, Stamp] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def after_fork_in_child(self) -> None:
        """Of the spans that are open in both processes only their run and session are remembered; the parent shows them.
        Also of those that began before the parent itself was forked."""
        self._before_fork.update((key, entry.stamp) for key, entry in self._spans.items())
        self._spans.clear()

    def begin(self, context: SpanContext, span: ReadableSpan, stamp: Stamp) -> None:
        """A span began. Nothing is written here."""
        self._spans[context.trace_id << 64 | context.span_id] = _Running(span, stamp, clock.monotonic())

    def end(self, context: SpanContext) -> Stamp | None:
        """The span does not run any more: the stamp it began with, `None` if that was not seen here."""
        key = context.trace_id << 64 | context.span_id
        entry = self._spans.pop(key, None)
        return entry.stamp if entry is not None else self._before_fork.pop(key, None)

    def write_starts(self, now: float) -> None:
        """Journal the start of spans that have been running for a moment at `now` (monotonic seconds; infinite: of all)."""
        if not self._spans or (self._intake.journal is None and not self._can_open()):
            return
        if self._intake.fuller_than(NO_STARTS_ABOVE):
            return
        bodies = []
        for entry in list(self._spans.values()):
            if not entry.written and now - entry.since >= START_AGE:
                entry.written = True
                span = span_from_sdk(entry.span, entry.stamp)
                if span.end_ns is None:
                    bodies.append(self._intake.body(START, span))
        if bodies:
            try:
                self._intake.append(bodies)
            except (JournalError, ConfigurationError) as error:
                self._trouble.say("start", "running spans are not shown: %s", error)

    def _can_open(self) -> bool:
        try:
            state_directory(self._settings)
        except ConfigurationError as error:
            self._trouble.say("url", "%s", error)
            return False
        return True
