"""What Jaeger's search page and its graph of services show of traces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from otel_cmb.event import STATUS_ERROR, Span
from otel_cmb.search_index import service_of

__all__ = ["Summary", "dependencies_of", "summarize"]


@dataclass(slots=True)
class Summary:
    """One line of a search result."""

    trace_id: str
    root_service: str
    root_operation: str
    start_ns: int
    end_ns: int
    spans: int
    errors: int
    orphans: int
    """Spans whose parent is not in the trace."""
    services: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Spans and errors of each service."""


def summarize(spans: Sequence[Span]) -> Summary:
    """`spans` are all of one trace, at least one. Its root is the first span without a parent, else the first one whose
    parent is not there."""
    ids = {span.span_id for span in spans}
    first = min(spans, key=lambda span: (span.parent_span_id is not None, span.parent_span_id in ids, span.start_ns))
    services: dict[str, tuple[int, int]] = {}
    for span in spans:
        name = service_of(span)
        count, errors = services.get(name, (0, 0))
        services[name] = (count + 1, errors + (span.status_code == STATUS_ERROR))
    return Summary(
        trace_id=first.trace_id, root_service=service_of(first), root_operation=first.name,
        start_ns=min(span.start_ns for span in spans), end_ns=max(span.end_ns or span.start_ns for span in spans),
        spans=len(spans), errors=sum(span.status_code == STATUS_ERROR for span in spans),
        orphans=sum(span.parent_span_id is not None and span.parent_span_id not in ids for span in spans),
        services=dict(sorted(services.items())),
    )


def dependencies_of(traces: Iterable[Sequence[Span]]) -> list[tuple[str, str, int]]:
    """Who calls whom: spans whose parent belongs to another service."""
    counts: dict[tuple[str, str], int] = {}
    for spans in traces:
        owners = {span.span_id: service_of(span) for span in spans}
        for span in spans:
            parent = owners.get(span.parent_span_id or "")
            child = owners[span.span_id]
            if parent is not None and parent != child:
                counts[parent, child] = counts.get((parent, child), 0) + 1
    return [(parent, child, count) for (parent, child), count in sorted(counts.items())]
