"""Jaeger's own trace JSON ("UI model", query API v1): microseconds, tags, logs, processes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from otel_cmb.event import STATUS_ERROR, STATUS_OK, Link, Span
from otel_cmb.jaeger.match import kind_name
from otel_cmb.search_index import as_string, service_of

__all__ = ["NO_SERVICE", "duration_ns", "trace_json"]

NO_SERVICE = "OTLPResourceNoServiceName"
"""What Jaeger calls a service without a name (collector-contrib, translator/jaeger)."""

_UNITS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3,  # both micro signs, as Go takes them
    "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_JS_SAFE = 2**53 - 1


def duration_ns(text: str) -> int:
    """A duration as Go writes it: `1.5s`, `300ms`, `1h30m`, `0`. `ValueError` for anything else, less than 0 too."""
    if text in {"", "0"}:
        return 0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"found duration {text[:40]!r}, expected one like 1.5s, 300ms or 1h30m")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def trace_json(spans: Sequence[Span]) -> dict[str, Any]:
    """One trace, as `/api/traces/{id}` gives it. At least one span."""
    processes: dict[str, dict[str, Any]] = {}
    keys: dict[str, str] = {}
    made = []
    for span in spans:
        text = repr(span.resource)
        key = keys.get(text)
        if key is None:
            key = keys[text] = f"p{len(keys) + 1}"
            attributes = {name: value for name, value in span.resource.attributes.items() if name != "service.name"}
            processes[key] = {"serviceName": service_of(span) or NO_SERVICE, "tags": _tags(attributes.items())}
        made.append(_span(span, key))
    return {"traceID": spans[0].trace_id, "spans": made, "processes": processes, "warnings": None}


def _span(span: Span, process: str) -> dict[str, Any]:
    references = []
    if span.parent_span_id:
        references.append({"refType": "CHILD_OF", "traceID": span.trace_id, "spanID": span.parent_span_id})
    references += [_reference(link) for link in span.links]
    logs = [
        {"timestamp": event.time_ns // 1000,
         "fields": _tags([*([("event", event.name)] if event.name else []), *event.attributes.items()])}
        for event in span.events
    ]
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "flags": span.flags,
        "operationName": span.name,
        "references": references,
        "startTime": span.start_ns // 1000,
        "duration": max((span.end_ns or span.start_ns) // 1000 - span.start_ns // 1000, 0),
        "tags": _tags([*span.attributes.items(), *_own_tags(span)]),
        "logs": logs,
        "processID": process,
        "warnings": _warnings(span),
    }


def _reference(link: Link) -> dict[str, Any]:
    kind = "CHILD_OF" if link.attributes.get("opentracing.ref_type") == "child_of" else "FOLLOWS_FROM"
    return {"refType": kind, "traceID": link.trace_id, "spanID": link.span_id}


def _own_tags(span: Span) -> Iterable[tuple[str, Any]]:
    """What OTLP has fields for and Jaeger's old model has tags for (opentelemetry-specification, Jaeger exporter)."""
    if span.kind:
        yield "span.kind", kind_name(span.kind)
    if span.status_code == STATUS_ERROR:
        yield "error", True
        yield "otel.status_code", "ERROR"
    elif span.status_code == STATUS_OK:
        yield "otel.status_code", "OK"
    if span.status_message:
        yield "otel.status_description", span.status_message
    if span.scope.name:
        yield "otel.scope.name", span.scope.name
    if span.scope.version:
        yield "otel.scope.version", span.scope.version
    yield from span.scope.attributes.items()
    if span.trace_state:
        yield "w3c.tracestate", span.trace_state


def _warnings(span: Span) -> list[str] | None:
    found = []
    for count, what in (
        (span.dropped_attributes, "attributes"), (span.dropped_events, "events"), (span.dropped_links, "links"),
    ):
        if count:
            found.append(f"{count} {what} were dropped before the span was recorded")
    return found or None


def _tags(items: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [_tag(key, value) for key, value in items]


def _tag(key: str, value: Any) -> dict[str, Any]:
    kind = type(value)
    if kind is bool:
        return {"key": key, "type": "bool", "value": value}
    if kind is int:
        # A browser's numbers end at 2**53: Jaeger sends the larger ones as text too.
        return {"key": key, "type": "int64", "value": value if abs(value) <= _JS_SAFE else str(value)}
    if kind is float and value == value and abs(value) != float("inf"):  # noqa: PLR0124 - NaN
        return {"key": key, "type": "float64", "value": value}
    if kind is bytes:
        return {"key": key, "type": "binary", "value": as_string(value)}
    if kind is list or kind is dict:
        return {"key": key, "type": "string", "value": json.dumps(value, default=as_string, ensure_ascii=False)}
    return {"key": key, "type": "string", "value": as_string(value)}
