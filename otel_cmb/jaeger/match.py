"""What a search asks for, and whether a span has it: the rules of Jaeger's own memory storage.

All conditions hold for one span at once; then its whole trace is the answer. Attributes are compared as text. Special
keys: `error`, `span.status`, `span.kind`, `scope.name`, `scope.version`, and `resource.<key>`; any other key is looked
for in the span, its scope, its resource, its events and its links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_cmb.event import STATUS_ERROR, STATUS_OK, STATUS_UNSET, Span
from otel_cmb.search_index import (
    MAX_TEXT,
    OPERATION,
    SCOPE_NAME,
    SCOPE_VERSION,
    SERVICE,
    SPAN_KIND,
    SPAN_STATUS,
    as_string,
    service_of,
    tag,
)

__all__ = ["KINDS", "TraceQuery", "kind_name", "matches", "tags_wanted"]

KINDS = ("", "internal", "server", "client", "producer", "consumer")
"""Names of OTLP's span kinds by number, as Jaeger writes them."""
_STATUS = {"OK": STATUS_OK, "ERROR": STATUS_ERROR}
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}


@dataclass(slots=True)
class TraceQuery:
    """A search. Times and durations in nanoseconds; `None`, empty and 0 mean any."""

    service: str = ""
    operation: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    start_min_ns: int | None = None
    start_max_ns: int | None = None
    duration_min_ns: int = 0
    duration_max_ns: int = 0
    limit: int = 100


def kind_name(kind: int) -> str:
    return KINDS[kind] if 0 <= kind < len(KINDS) else ""


def _kind_of(name: str) -> int:
    lowered = name.lower()
    return KINDS.index(lowered) if lowered in KINDS else 0


def matches(span: Span, query: TraceQuery) -> bool:
    if query.service and service_of(span) != query.service:
        return False
    if query.operation and span.name != query.operation:
        return False
    # The contract excludes the end of the range, Jaeger's memory storage includes it; nobody minds one span more.
    if query.start_min_ns is not None and span.start_ns < query.start_min_ns:
        return False
    if query.start_max_ns is not None and span.start_ns > query.start_max_ns:
        return False
    if query.duration_min_ns or query.duration_max_ns:
        duration = max((span.end_ns or span.start_ns) - span.start_ns, 0)
        if duration < query.duration_min_ns or 0 < query.duration_max_ns < duration:
            return False
    return all(_has(span, key, text) for key, text in query.attributes.items())


def _has(span: Span, key: str, text: str) -> bool:
    if key == "error":
        lowered = text.lower()
        if lowered in _TRUE:
            return span.status_code == STATUS_ERROR
        return lowered in _FALSE and span.status_code != STATUS_ERROR
    if key == "span.status":
        return span.status_code == _STATUS.get(text.upper(), STATUS_UNSET)
    if key == "span.kind":
        return span.kind == _kind_of(text)
    if key == "scope.name":
        return span.scope.name == text
    if key == "scope.version":
        return span.scope.version == text
    if key.startswith("resource."):
        return _equal(span.resource.attributes, key.removeprefix("resource."), text)
    return (
        _equal(span.attributes, key, text) or _equal(span.scope.attributes, key, text)
        or _equal(span.resource.attributes, key, text)
        or any(_equal(event.attributes, key, text) for event in span.events)
        or any(_equal(link.attributes, key, text) for link in span.links)
    )


def _equal(attributes: Mapping[str, Any], key: str, text: str) -> bool:
    return key in attributes and as_string(attributes[key]) == text


def tags_wanted(query: TraceQuery) -> list[bytes]:
    """The hashes that a part of a matching trace holds (:mod:`otel_cmb.search_index`), probably the rarest first: the
    database looks no further at a part that lacks one."""
    wanted = []
    for key, text in query.attributes.items():
        if key == "error":
            if text.lower() in _TRUE:
                wanted.append(tag(SPAN_STATUS, str(STATUS_ERROR)))
        elif key == "span.status":
            wanted.append(tag(SPAN_STATUS, str(_STATUS.get(text.upper(), STATUS_UNSET))))
        elif key == "span.kind":
            wanted.append(tag(SPAN_KIND, str(_kind_of(text))))
        elif key == "scope.name":
            wanted.append(tag(SCOPE_NAME, text))
        elif key == "scope.version":
            wanted.append(tag(SCOPE_VERSION, text))
        elif len(text) <= MAX_TEXT:
            wanted.append(tag(key.removeprefix("resource."), text))
    if query.operation:
        wanted.append(tag(OPERATION, query.operation[:255]))
    if query.service:
        wanted.append(tag(SERVICE, query.service))
    return wanted
