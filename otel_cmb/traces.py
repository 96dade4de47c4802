"""What is known of the traces being written: the facts of their spans, the events those gave, the order numbers held.

A trace is the unit of consistency: pass 2 (`assemble`) looks at all its known spans, so before a batch is written the
trace's earlier spans are needed. They come from memory while nobody else wrote the trace, else from the database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from otel_cmb import mapper
from otel_cmb.assemble import assemble
from otel_cmb.event import Event, Span, event_id
from otel_cmb.few import weight
from otel_cmb.mapper import Facts

__all__ = ["Change", "Trace", "TraceCache", "further_spans", "held_by"]

NEW, COMPLETED, DUPLICATE, CONFLICT = "new", "completed", "duplicate", "conflict"


@dataclass(slots=True)
class Trace:
    """The known spans of one trace and what is stored of them."""

    trace_id: str
    facts: dict[str, Facts] = field(default_factory=dict)
    """By event id (also of spans that have no row of their own)."""
    by_span: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Span id to event ids: more than one where the ids were reused."""
    events: dict[str, Event] = field(default_factory=dict)
    """As stored, by event id, in the order of `assemble`."""
    orders: dict[str, int] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    """Ids of rows that say no longer which span they were made of: their `meta` was replaced by the application."""
    skeletons: set[str] = field(default_factory=set)
    """Ids stored as skeletons: spans that are no events."""
    marker: object = None
    """What the database said about this trace when it was last read or written."""
    signed: tuple[int, int] | None = None
    """Start and end as last written to `otel_cmb_traces`."""
    touched: set[str] = field(default_factory=set)
    """Ids known or completed since the last save."""
    dirty: bool = False
    size: int = 0
    """About how many bytes it holds: those of its spans, see `held_by`, and of the records of the others."""

    def know(self, id: str, facts: Facts) -> None:  # noqa: A002
        self.facts[id] = facts
        self.touched.add(id)
        span_id = facts.span.span_id
        ids = self.by_span.get(span_id, ())
        if id not in ids:
            self.by_span[span_id] = (*ids, id)

    def admit(
        self, span: Span, read: Facts | None = None, *, code_tools: Collection[str], record: str, capture: Collection[str],
    ) -> tuple[str, str]:
        """Take a span in, whatever came before it: start after end, twice, with ids used before. What became of it, and the
        event id. `read`: its facts, where they were read already."""
        ids = self.by_span.get(span.span_id, ())
        verdict, start_ns = NEW, None
        for known_id in ids:
            known = self.facts[known_id].span
            if known.start_ns != span.start_ns:
                continue
            if known.stamp.run_id != span.stamp.run_id:
                return CONFLICT, known_id
            if _rank(span) <= _rank(known):
                return DUPLICATE, known_id
            verdict, id_ = COMPLETED, known_id
            break
        else:
            if ids:
                if self.facts[ids[0]].span.stamp.run_id != span.stamp.run_id:
                    return CONFLICT, ids[0]
                start_ns = span.start_ns
            id_ = read.id if read is not None and not ids else event_id(span.trace_id, span.span_id, start_ns)
        if read is None or read.id != id_:
            read = mapper.read(span, id=id_, code_tools=code_tools, record=record, capture=capture)
        self.know(id_, read)
        self.dirty = True
        return verdict, id_

    def join(self, content: Span, *, code_tools: Collection[str], record: str, capture: Collection[str]) -> bool:
        """Give a span attributes it lacks, from log records; False when it has not ended yet: its end would replace it."""
        ids = self.by_span.get(content.span_id, ())
        if any(self.facts[id_].span.end_ns is None and not self.facts[id_].span.died for id_ in ids):
            return False
        for id_ in ids:
            span = self.facts[id_].span
            added = {key: value for key, value in content.attributes.items() if key not in span.attributes}
            if added and id_ not in self.skeletons:
                span = replace(span, attributes={**span.attributes, **added})  # the stored event keeps the old one
                self.know(id_, mapper.read(span, id=id_, code_tools=code_tools, record=record, capture=capture))
                self.dirty = True
        return bool(ids)

    def is_whole(self) -> bool:
        """Whether all known spans have ended and the parent of each is known: most likely nothing more will come."""
        for facts in self.facts.values():
            span = facts.span
            if (span.end_ns is None and not span.died) or (span.parent_span_id and span.parent_span_id not in self.by_span):
                return False
        return True

    def assembled(self, record: str) -> dict[str, Event]:
        """The events as they should be now, parents before children."""
        events = {event.id: event for event in assemble(self.facts.values(), record=record)}
        if self.unread:
            for event in events.values():
                above = event.spans[0].parent_span_id if event.spans and event.parent_event_id is None else None
                parent = event_id(self.trace_id, above) if above else ""
                if parent in self.unread and parent not in events:
                    event.parent_event_id, event.parent_known = parent, False  # looked up like one of another trace
        return events


def held_by(span: Span) -> int:
    """About how many bytes a span takes in memory. Ten thousand short attributes take ten times what their record takes."""
    parts = [*(event.attributes for event in span.events), *(link.attributes for link in span.links)]
    return weight(span.attributes, *parts)


def further_spans(events: Iterable[Event]) -> set[tuple[str, int]]:
    """Span ids and starts of the spans that were merged into the events of others. Mostly none."""
    many = [event for event in events if len(event.spans) > 1]
    return {(span.span_id, span.start_ns) for event in many for span in event.spans[1:]}


def _rank(span: Span) -> int:
    """Which of two records of one span says more: running < its process died < ended."""
    if span.end_ns is not None:
        return 2
    return 1 if span.died else 0


@dataclass(slots=True)
class Change:
    """What one trace's writing comes to: its events as stored, and as they should be."""

    trace: Trace
    before: dict[str, Event]
    after: dict[str, Event]


class TraceCache:
    """The traces that may grow, bounded by their number of spans and their bytes, and those of the last batch, whole or
    not."""

    def __init__(self, max_spans: int = 3000, max_bytes: int = 64 * 1024 * 1024):
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._spans = 0
        self._bytes = 0
        self._last: list[str] = []
        self._before: list[str] = []

    def get(self, trace_id: str) -> Trace | None:
        return self._traces.get(trace_id)

    def put(self, trace: Trace) -> None:
        """The trace as it was committed just now."""
        self.drop(trace.trace_id)
        self._traces[trace.trace_id] = trace
        self._spans += len(trace.facts)
        self._bytes += trace.size
        self._last.append(trace.trace_id)

    def drop(self, trace_id: str) -> None:
        trace = self._traces.pop(trace_id, None)
        if trace is not None:
            self._spans -= len(trace.facts)
            self._bytes -= trace.size

    def clear(self) -> None:
        self._traces.clear()
        self._spans = self._bytes = 0
        self._last = []

    def shrink(self) -> None:
        """The batch is over. Forget what was whole before it and did not grow in it, then the oldest; the newest trace
        stays whatever its size, it will be needed next."""
        here = set(self._last)
        for trace_id in self._before:
            if trace_id not in here and trace_id in self._traces and self._traces[trace_id].is_whole():
                self.drop(trace_id)
        self._before, self._last = self._last, []
        while (self._spans > self._max_spans or self._bytes > self._max_bytes) and len(self._traces) > 1:
            self.drop(next(iter(self._traces)))
