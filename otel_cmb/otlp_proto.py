"""OTLP in protobuf (opentelemetry-proto v1.11.0) to :class:`~otel_cmb.event.Span` and back.

The walk is the hot path of the receiver: one attribute access for the common case (`v.string_value or ...`) instead of
`WhichOneof`, resource and scope objects shared by the spans of their group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_cmb.event import (
    KIND_CONSUMER,
    KIND_UNSPECIFIED,
    STATUS_ERROR,
    STATUS_UNSET,
    Link,
    Resource,
    Scope,
    Span,
    SpanEvent,
)
from otel_cmb.otlp_clean import (
    MAX_DEPTH,
    MAX_TIME_NS,
    TOO_DEEP,
    Decoded,
    bad_ids,
    clean_times,
)

__all__ = [
    "Groups", "attributes_of", "bare_span", "count_spans", "decode_request", "event_of", "fill_span", "links_of",
    "request_from_spans", "resource_of", "scope_of", "set_attributes", "set_links", "set_status", "set_value", "span_of",
    "value_of",
]

_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
MAX_LEVEL = 90
_INT64 = range(-(2**63), 2**63)


def value_of(value: Any, depth: int = 0) -> Any:
    """The Python value of an AnyValue; `None` where nothing is set."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        return [item.string_value or value_of(item, depth + 1) for item in value.array_value.values]
    if kind == "kvlist_value":
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        return {kv.key: kv.value.string_value or value_of(kv.value, depth + 1) for kv in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    """A dict of a repeated KeyValue; the last one wins where a sender repeats a key."""
    return {kv.key: kv.value.string_value or value_of(kv.value) for kv in pairs}


def resource_of(message: Any, schema_url: str) -> Resource:
    return Resource(attributes_of(message.attributes), schema_url, message.dropped_attributes_count)


def scope_of(message: Any, schema_url: str) -> Scope:
    return Scope(
        message.name, message.version, attributes_of(message.attributes), schema_url, message.dropped_attributes_count
    )


def event_of(message: Any) -> SpanEvent:
    return SpanEvent(
        message.name, min(message.time_unix_nano, MAX_TIME_NS), attributes_of(message.attributes),
        message.dropped_attributes_count,
    )


def links_of(messages: Any) -> list[Link]:
    """The links with usable ids."""
    return [
        Link(
            link.trace_id.hex(), link.span_id.hex(), link.trace_state,
            attributes_of(link.attributes), link.dropped_attributes_count, link.flags,
        )
        for link in messages
        if len(link.trace_id) == 16 and link.trace_id != _NO_TRACE
        and len(link.span_id) == 8 and link.span_id != _NO_SPAN
    ]


def bare_span(message: Any, resource: Resource, scope: Scope, now_ns: int) -> Span | None:
    """The span of an OTLP Span message without status, attributes, events and links, which :mod:`otel_cmb.otlp_shallow` has in
    another form; `None` when its ids are unusable."""
    trace_id, span_id, parent_id = message.trace_id, message.span_id, message.parent_span_id
    if len(trace_id) != 16 or len(span_id) != 8 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    start_ns, end_ns = message.start_time_unix_nano, message.end_time_unix_nano
    if not 0 < start_ns <= end_ns <= MAX_TIME_NS:
        start_ns, end_ns = clean_times(start_ns, end_ns, now_ns)
    kind = message.kind
    return Span(
        trace_id.hex(), span_id.hex(), message.name, start_ns, end_ns,
        parent_id.hex() if len(parent_id) == 8 and parent_id not in (_NO_SPAN, span_id) else None,
        kind if 0 <= kind <= KIND_CONSUMER else KIND_UNSPECIFIED, STATUS_UNSET, "", {}, [], [], resource, scope,
        message.trace_state, message.flags, message.dropped_attributes_count, message.dropped_events_count,
        message.dropped_links_count)


def set_status(span: Span, status: Any) -> None:
    """What an OTLP Status message says."""
    span.status_code = status.code if 0 <= status.code <= STATUS_ERROR else STATUS_UNSET
    span.status_message = status.message


def set_links(span: Span, messages: Any) -> None:
    """The links with usable ids; the others count as dropped."""
    span.links = links_of(messages)
    span.dropped_links += len(messages) - len(span.links)


def span_of(message: Any, resource: Resource, scope: Scope, now_ns: int) -> Span | None:
    """The span of an OTLP Span message; `None` when its ids are unusable."""
    span = bare_span(message, resource, scope, now_ns)
    if span is None:
        return None
    span.attributes = {kv.key: kv.value.string_value or value_of(kv.value) for kv in message.attributes}
    if message.HasField("status"):
        set_status(span, message.status)
    if message.events:
        span.events = [event_of(event) for event in message.events]
    if message.links:
        set_links(span, message.links)
    return span


def decode_request(request: ExportTraceServiceRequest, now_ns: int = 0) -> Decoded:
    """The spans of a request. `now_ns` stands in for times that are missing altogether."""
    decoded = Decoded()
    spans = decoded.spans
    for group in request.resource_spans:
        resource = resource_of(group.resource, group.schema_url)
        for scope_group in group.scope_spans:
            scope = scope_of(scope_group.scope, scope_group.schema_url)
            for message in scope_group.spans:
                span = span_of(message, resource, scope, now_ns)
                if span is None:
                    decoded.rejected.append(bad_ids(message.trace_id.hex(), message.span_id.hex(), message.name))
                else:
                    spans.append(span)
    return decoded


def count_spans(request: ExportTraceServiceRequest) -> int:
    return sum(len(scope_group.spans) for group in request.resource_spans for scope_group in group.scope_spans)


# back


def _text(value: str) -> str:
    """The text as UTF-8 can carry it: a lone surrogate becomes U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def set_value(target: AnyValue, value: Any, level: int = 5) -> None:
    """Write a Python value into an AnyValue. Integers beyond 64 bits and foreign types become their text.

    `level`: how many messages the AnyValue is inside of. Readers refuse more than 100 (a list takes two, a dict three),
    so what lies deeper is replaced by a marker.
    """
    if isinstance(value, str):
        target.string_value = _text(value)
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        if value in _INT64:
            target.int_value = value
        else:
            target.string_value = str(value)
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, (bytes, bytearray)):
        target.bytes_value = bytes(value)
    elif value is None:
        return
    elif isinstance(value, (dict, list, tuple)):
        if level >= MAX_LEVEL:
            target.string_value = TOO_DEEP
        elif isinstance(value, dict):
            target.kvlist_value.SetInParent()
            for key, item in value.items():
                pair = target.kvlist_value.values.add(key=_text(str(key)))
                set_value(pair.value, item, level + 3)
        else:
            target.array_value.SetInParent()
            for item in value:
                set_value(target.array_value.values.add(), item, level + 2)
    else:
        target.string_value = _text(str(value))


def set_attributes(target: Any, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        set_value(target.add(key=_text(key)).value, value)


def fill_span(target: Any, span: Span) -> None:
    """Write a span into an OTLP Span message. A span that has not ended has no end time there either."""
    target.trace_id, target.span_id = bytes.fromhex(span.trace_id), bytes.fromhex(span.span_id)
    if span.parent_span_id:
        target.parent_span_id = bytes.fromhex(span.parent_span_id)
    target.name, target.kind, target.flags = _text(span.name), span.kind, span.flags
    target.trace_state = _text(span.trace_state)
    target.start_time_unix_nano, target.end_time_unix_nano = span.start_ns, span.end_ns or 0
    target.dropped_attributes_count = span.dropped_attributes
    target.dropped_events_count, target.dropped_links_count = span.dropped_events, span.dropped_links
    if span.status_code or span.status_message:
        target.status.code, target.status.message = span.status_code, _text(span.status_message)
    set_attributes(target.attributes, span.attributes)
    for event in span.events:
        item = target.events.add(
            name=_text(event.name), time_unix_nano=event.time_ns, dropped_attributes_count=event.dropped_attributes
        )
        set_attributes(item.attributes, event.attributes)
    for link in span.links:
        item = target.links.add(
            trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id),
            trace_state=_text(link.trace_state), dropped_attributes_count=link.dropped_attributes, flags=link.flags,
        )
        set_attributes(item.attributes, link.attributes)


class Groups:
    """Finds the group a span belongs to: by the identity of its resource and scope, then by their values.

    Spans rebuilt from rows bring a resource each; those of one value belong together, and a group is found by identity
    only while the object lives, so every object seen is held.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, int]] = {}
        self._by_value: dict[str, int] = {}

    def _number(self, item: Resource | Scope) -> int:
        seen = self._seen.get(id(item))
        if seen is None:
            # repr, not equality: 1, 1.0 and True are different attributes
            number = self._by_value.setdefault(repr(item), len(self._by_value))
            seen = self._seen[id(item)] = (item, number)
        return seen[1]

    def key(self, span: Span) -> tuple[int, int]:
        return self._number(span.resource), self._number(span.scope)


def request_from_spans(spans: Iterable[Span]) -> ExportTraceServiceRequest:
    """One request with these spans, grouped by resource and scope, in the order given within each group."""
    request = ExportTraceServiceRequest()
    groups = Groups()
    resources: dict[int, Any] = {}
    scopes: dict[tuple[int, int], Any] = {}
    for span in spans:
        key = groups.key(span)
        scope_group = scopes.get(key)
        if scope_group is None:
            group = resources.get(key[0])
            if group is None:
                group = resources[key[0]] = request.resource_spans.add(schema_url=_text(span.resource.schema_url))
                group.resource.dropped_attributes_count = span.resource.dropped_attributes
                set_attributes(group.resource.attributes, span.resource.attributes)
            scope_group = scopes[key] = group.scope_spans.add(schema_url=_text(span.scope.schema_url))
            scope = scope_group.scope
            scope.name, scope.version = _text(span.scope.name), _text(span.scope.version)
            scope.dropped_attributes_count = span.scope.dropped_attributes
            set_attributes(scope.attributes, span.scope.attributes)
        fill_span(scope_group.spans.add(), span)
    return request
