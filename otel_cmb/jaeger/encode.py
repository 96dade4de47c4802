"""Spans of one trace to OTLP messages that fit through a client's pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from otel_cmb.event import Span, SpanEvent
from otel_cmb.otlp import request_from_spans
from otel_cmb.sanitize import cut

__all__ = ["CHUNK_BYTES", "traces_data"]

CHUNK_BYTES = 3 * 1_048_576
"""A gRPC client takes 4 MiB unless it was told otherwise (Jaeger: `max_recv_msg_size_mib`)."""
_SPANS = 512


def traces_data(spans: Sequence[Span], limit: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The spans as serialized `TracesData` messages of at most `limit` bytes each, in order, none empty.

    A single span that is larger has its longest texts cut, with the marker of :mod:`otel_cmb.sanitize`.
    """
    for start in range(0, len(spans), _SPANS):
        yield from _fitting(spans[start : start + _SPANS], limit)


def _fitting(spans: Sequence[Span], limit: int) -> Iterator[bytes]:
    # TracesData and ExportTraceServiceRequest are one message on the wire: resource_spans = 1.
    data = request_from_spans(spans).SerializeToString()
    if len(data) <= limit:
        yield data
    elif len(spans) > 1:
        middle = len(spans) // 2
        yield from _fitting(spans[:middle], limit)
        yield from _fitting(spans[middle:], limit)
    else:
        yield _shortened(spans[0], limit)


def _shortened(span: Span, limit: int) -> bytes:
    longest = limit // 4
    while True:
        shorter = replace(
            span,
            attributes=_cut(span.attributes, longest),
            events=[
                SpanEvent(item.name, item.time_ns, _cut(item.attributes, longest), item.dropped_attributes)
                for item in span.events
            ],
        )
        data = request_from_spans([shorter]).SerializeToString()
        if len(data) <= limit:
            return data
        longest //= 4
        if longest < 64:
            bare = replace(
                span, attributes={}, events=[], links=[],
                dropped_attributes=span.dropped_attributes + len(span.attributes),
                dropped_events=span.dropped_events + len(span.events),
                dropped_links=span.dropped_links + len(span.links),
            )
            return request_from_spans([bare]).SerializeToString()


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return cut(value, longest)
    if isinstance(value, bytes):
        return value[:longest]
    if isinstance(value, list):
        return [_cut(item, longest) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item, longest) for key, item in value.items()}
    return value
