"""`CMBSpanExporter`: the database as an OpenTelemetry span exporter, to drop into any configuration."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_cmb import config
from otel_cmb.accounting import Stats
from otel_cmb.context import RUN_ID
from otel_cmb.errors import ConfigurationError, JournalError
from otel_cmb.event import Stamp
from otel_cmb.pipeline import Pipeline, get_pipeline, use_pipeline
from otel_cmb.sdk import span_from_sdk
from otel_cmb.surroundings import placed, text_of

__all__ = ["CMBSpanExporter", "exporters"]

_log = logging.getLogger("otel_cmb")
exporters: weakref.WeakSet[CMBSpanExporter] = weakref.WeakSet()
"""Exporters made in this process: `post_instrument` gives each one's pipeline a processor."""


class CMBSpanExporter(SpanExporter):
    """Writes ended spans as rows of `execution_events`.

    `export` returns SUCCESS when every event of the batch is **committed**, FAILURE when at least one is not; that one is
    then in the journal (parked, or waiting for the database), not lost. Thread-safe. The constructor connects to nothing,
    creates nothing and raises nothing, because the SDK would swallow it and the program would run untraced: a wrong
    setting is reported by the first `export`.

    Where a :class:`CMBSpanProcessor` of the same database is at work, the spans it has are left to it: `export` only
    waits for their commit. Behind a bare `BatchSpanProcessor` spans are in memory until they are exported.

    All parameters are plain scalars with defaults, so that declarative configuration can build it; see
    :data:`otel_cmb.config.SETTINGS`.
    """

    def __init__(self, database_url: str | None = None, **settings: Any):
        self.keywords = {"database_url": database_url, **settings}
        self._settings: config.Settings | None = None
        self._pipeline: Pipeline | None = None
        self._problem: str | None = None
        self._shut_down = False
        self._processed = False
        exporters.add(self)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of these settings. Raises :class:`ConfigurationError` for a wrong setting."""
        if self._pipeline is None:
            self._pipeline = get_pipeline(self.settings)
            self._pipeline.also_asked(self.settings, [name for name, value in self.keywords.items() if value is not None])
            use_pipeline(self._pipeline)
        return self._pipeline

    @property
    def settings(self) -> config.Settings:
        """What this exporter was told; the pipeline may have been made by another door. Raises :class:`ConfigurationError`."""
        if self._settings is None:
            self._settings = config.load(**self.keywords)
        return self._settings

    def leave_to_processor(self) -> None:
        """A processor of the same pipeline has all spans of this provider."""
        self._processed = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS when every event of the batch is committed; waits `export_timeout` for that at most. Never raises."""
        if self._shut_down:
            return SpanExportResult.FAILURE
        try:
            pipeline = self.pipeline
            timeout = self.settings.export_timeout
            if self._processed:
                stored = pipeline.flush(timeout) and not pipeline.any_parked(_ids(spans))
                return SpanExportResult.SUCCESS if stored else SpanExportResult.FAILURE
            ticket = pipeline.accept([span_from_sdk(span, _stamp(span, pipeline)) for span in spans])
            outcome = ticket.wait(timeout, through_outage=True)
        except (ConfigurationError, JournalError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("otel-cmb: %d span(s) not stored: %s", len(spans), error)
            return SpanExportResult.FAILURE
        except Exception:  # noqa: BLE001 - the SDK would swallow it; the log must not
            _log.exception("otel-cmb: %d span(s) not stored", len(spans))
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS if outcome.stored else SpanExportResult.FAILURE

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its settings: the process it is unpickled in has a pipeline of its own."""
        return _rebuilt, (CMBSpanExporter, self.keywords)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True only if everything accepted before is committed or deliberately parked."""
        return self._pipeline is None or self._pipeline.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Write what can be written within `shutdown_timeout`; later exports fail."""
        self._shut_down = True
        if self._pipeline is not None:
            self._pipeline.shutdown(self.settings.shutdown_timeout)

    def stats(self) -> Stats:
        """See :class:`otel_cmb.accounting.Stats`."""
        return self.pipeline.stats()


def _rebuilt(kind: type[CMBSpanExporter], keywords: dict[str, Any]) -> CMBSpanExporter:
    return kind(**keywords)


def _ids(spans: Sequence[ReadableSpan]) -> list[tuple[str, str]]:
    contexts = [context for span in spans if (context := span.get_span_context()) is not None]
    return [(f"{context.trace_id:032x}", f"{context.span_id:016x}") for context in contexts]


def _stamp(span: ReadableSpan, pipeline: Pipeline) -> Stamp:
    return placed(Stamp(run_id=text_of((span.attributes or {}).get(RUN_ID))), pipeline, span.resource)
