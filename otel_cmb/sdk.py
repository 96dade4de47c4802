"""The OpenTelemetry SDK's span to ours. Runs on the instrumented thread: nothing is copied that need not be."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent, Stamp
from otel_cmb.sanitize import clean

__all__ = ["plain_dict", "resource_of", "span_from_sdk"]

_resources: dict[int, tuple[Any, Resource]] = {}
_scopes: dict[int, tuple[Any, Scope]] = {}
"""By identity, with the object itself, so that its id cannot be reused. A process has a handful of each."""

_SCALARS = frozenset((str, bool, int, float, bytes, type(None)))

REMOTE_KNOWN, REMOTE = 0x100, 0x200
"""OTLP span flags (opentelemetry-proto v1.11.0): whether the parent is remote is known, and that it is."""


def span_from_sdk(span: ReadableSpan, stamp: Stamp | None = None) -> Span:
    """A :class:`Span` with the values of the SDK's, started or ended. Attribute values become lists and dicts where the
    SDK has tuples and mappings."""
    context = span.get_span_context()
    assert context is not None
    trace_state = context.trace_state
    flags = context.trace_flags | REMOTE_KNOWN
    parent_span_id = None
    parent = span.parent
    if parent is not None:
        parent_span_id = f"{parent.span_id:016x}"
        if parent.is_remote:
            flags |= REMOTE
    status = span.status
    attributes = getattr(span, "_attributes", None) or span.attributes
    # the SDK's properties copy both lists under a lock; most spans have neither
    events, links = getattr(span, "_events", None), getattr(span, "_links", None)
    # by position: twenty names take as long again as the object; `_value_` is what `value` looks for, through a descriptor
    return Span(
        f"{context.trace_id:032x}", f"{context.span_id:016x}", _text(span.name), span.start_time or 0, span.end_time,
        parent_span_id, span.kind._value_ + 1, status.status_code._value_, status.description or "", _attributes(attributes),
        _events(span) if events is None or len(events) else [], _links(span) if links is None or len(links) else [],
        resource_of(span.resource), _scope(span.instrumentation_scope), trace_state.to_header() if trace_state else "", flags,
        span.dropped_attributes, span.dropped_events, span.dropped_links, Stamp() if stamp is None else stamp)


def _events(span: ReadableSpan) -> list[SpanEvent]:
    return [
        SpanEvent(_text(event.name), event.timestamp, _attributes(event.attributes), _dropped(event.attributes))
        for event in span.events]


def _links(span: ReadableSpan) -> list[Link]:
    return [
        Link(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}", link.context.trace_state.to_header(),
             _attributes(link.attributes), _dropped(link.attributes), int(link.context.trace_flags))
        for link in span.links]


def plain_dict(attributes: Any) -> dict[str, Any]:
    """A copy of the SDK's attributes.

    The SDK's own mapping answers key by key, through a lock; the dict inside it in one go, ten times faster. Where a
    version of the SDK has no such dict, the public way is taken.
    """
    if not attributes:
        return {}
    inner = getattr(attributes, "_dict", None)
    if type(inner) is dict:
        return inner.copy()
    for _ in range(10):  # an older SDK has an OrderedDict once the mapping is full
        try:
            return dict(attributes if inner is None else inner)
        except (RuntimeError, KeyError):  # a running span got an attribute meanwhile, or lost its oldest
            continue
    return {}


def _attributes(attributes: Any) -> dict[str, Any]:
    copied = plain_dict(attributes)
    if not _SCALARS.issuperset(map(type, copied.values())):
        for key, value in copied.items():
            copied[key] = _plain(value)
    return copied


def _text(name: Any) -> str:
    """A name as text: the SDK takes what it is given."""
    if type(name) is str:
        return name
    return "" if name is None else str(clean(name))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bytes, bool, int, float)) or value is None:
        return value
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _dropped(attributes: Any) -> int:
    """How many the SDK's mapping let go of."""
    return getattr(attributes, "dropped", 0) or 0


def resource_of(resource: Any) -> Resource:
    """The SDK's resource as ours; one for the same one, so that looking into it costs nothing."""
    found = _resources.get(id(resource))
    if found is None:
        if len(_resources) >= 64:
            _resources.clear()
        made = Resource(_attributes(resource.attributes), resource.schema_url or "") if resource is not None else Resource()
        found = _resources[id(resource)] = (resource, made)
    return found[1]


def _scope(scope: Any) -> Scope:
    found = _scopes.get(id(scope))
    if found is None:
        if len(_scopes) >= 256:
            _scopes.clear()
        made = Scope(
            scope.name or "", scope.version or "", _attributes(getattr(scope, "attributes", None)), scope.schema_url or "",
        ) if scope is not None else Scope()
        found = _scopes[id(scope)] = (scope, made)
    return found[1]
