"""`CMBSpanProcessor`: live rows, context on every span, and a journal between the program and the database."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import get_current_span

from otel_cmb import config
from otel_cmb.accounting import Stats
from otel_cmb.context import NODE_ID, PARENT_EVENT_ID, RUN_ID, SESSION_ID, STEP_ID
from otel_cmb.database_url import check_url
from otel_cmb.event import Stamp
from otel_cmb.pipeline import Pipeline, get_pipeline, use_pipeline
from otel_cmb.sdk import plain_dict
from otel_cmb.surroundings import placed, text_of

__all__ = ["CMBSpanProcessor"]

_log = logging.getLogger("otel_cmb")
_containing = threading.local()
_STAMPED = ((RUN_ID, "run_id"), (SESSION_ID, "session_id"), (NODE_ID, "node_id"), (STEP_ID, "step_id"))

_KEYS = frozenset(key for key, _ in _STAMPED)


class CMBSpanProcessor(SpanProcessor):
    """Writes spans into the database through a local journal.

    When `on_end` returns, the span is in the journal and survives SIGKILL; its row is visible within 250 ms, for a running
    span too. Neither `on_start` nor `on_end` raises or waits for the database. `force_flush` tells the truth and keeps to
    its timeout. Keywords are the settings of :data:`otel_cmb.config.SETTINGS`; a wrong one, and a URL that cannot work,
    raises :class:`~otel_cmb.errors.ConfigurationError`. Nothing is made or connected before the first span.
    """

    def __init__(self, database_url: str | None = None, **settings: Any):
        self._keywords = {"database_url": database_url, **settings}
        self._settings = config.load(**self._keywords)
        check_url(self._settings)
        self._pipeline = get_pipeline(self._settings)
        self._pipeline.also_asked(self._settings, [name for name, value in settings.items() if value is not None])
        use_pipeline(self._pipeline)

    @property
    def pipeline(self) -> Pipeline:
        return self._pipeline

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Stamp run, node and step of the context on the span, and watch it."""
        try:
            stamp = self._stamp(span, parent_context)
            self._pipeline.started(span, stamp)
        except Exception:  # noqa: BLE001 - see _contain
            _contain("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        """The span is in the journal when this returns."""
        try:
            self._pipeline.ended(span, self._unseen)
        except Exception:  # noqa: BLE001
            _contain("on_end")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True only if everything that ended before is committed or deliberately parked; False after the timeout."""
        return self._pipeline.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Write what can be written within `shutdown_timeout`; the rest stays in the journal for the next process."""
        self._pipeline.shutdown(self._settings.shutdown_timeout)

    def stats(self) -> Stats:
        """What was received, committed, merged, ignored, is pending, parked (by reason) or lost (by reason)."""
        return self._pipeline.stats()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its settings: the process it is unpickled in has a pipeline of its own."""
        return _rebuilt, (type(self), self._keywords)

    def _unseen(self, span: ReadableSpan) -> Stamp:
        """Of a span whose start we did not see; what its context said is among its attributes."""
        return placed(Stamp(), self._pipeline, span.resource)

    def _stamp(self, span: Span, parent_context: Context | None) -> Stamp:
        given = getattr(span, "_attributes", None)
        given = plain_dict(span.attributes if given is None else given)
        values = baggage.get_all(parent_context)
        stamp = Stamp()
        if values:
            for key, name in _STAMPED:
                value = values.get(key)
                if value:
                    setattr(stamp, name, str(value))
                    if key not in given:
                        span.set_attribute(key, str(value))
            above = values.get(PARENT_EVENT_ID)
            if above and not _is_known(get_current_span(parent_context), span):
                stamp.parent_event_id = str(above)
                if PARENT_EVENT_ID not in given:
                    span.set_attribute(PARENT_EVENT_ID, str(above))
        if given and not _KEYS.isdisjoint(given):
            # Attributes given at the start are remembered: a span with more than 128 of them drops its oldest.
            for key, name in _STAMPED:
                if key in given and (said := text_of(given[key])):
                    setattr(stamp, name, said)
        named = stamp.run_id
        stamp = placed(stamp, self._pipeline, span.resource)
        if stamp.run_id not in (named, None) and stamp.door_run_id is None:
            span.set_attribute(RUN_ID, stamp.run_id)  # who looks for a run in Jaeger finds all its traces by this
        return stamp


def _rebuilt(kind: type[CMBSpanProcessor], keywords: dict[str, Any]) -> CMBSpanProcessor:
    return kind(**keywords)


def _is_known(parent: Any, span: Span) -> bool:
    """Whether the trace tells what is above the span: within a process and a provider, but not beyond."""
    processor = getattr(span, "_span_processor", None)
    return parent.is_recording() and getattr(parent, "_span_processor", None) is processor


def _contain(where: str) -> None:
    """An error of ours never reaches the program; under test it does."""
    if os.environ.get("OTEL_CMB_TESTING"):
        raise  # noqa: PLE0704 - called from an except clause
    if getattr(_containing, "active", False):
        return  # a logging handler that makes spans
    _containing.active = True
    try:
        _log.exception("otel-cmb: %s failed; the program goes on, this span is counted as lost", where)
    finally:
        _containing.active = False
