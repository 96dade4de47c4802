"""OTLP/JSON (opentelemetry-proto v1.11.0, docs/specification.md "JSON Protobuf Encoding") to spans and back.

Ids are hex (base64, as a plain protobuf JSON writer makes it, is read too), enums integers or names,
64-bit integers strings or numbers, bytes base64 in any form; unknown fields are ignored. Values of the wrong
JSON type are left out.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

import orjson

from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent
from otel_cmb.otlp_clean import (
    MAX_DEPTH,
    MAX_TIME_NS,
    TOO_DEEP,
    ZERO_SPAN,
    ZERO_TRACE,
    Decoded,
    MalformedError,
    bad_ids,
    clean_times,
)
from otel_cmb.otlp_proto import Groups

_KINDS = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_STATUS = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
_HEX = frozenset("0123456789abcdef")
_BOM = b"\xef\xbb\xbf"
_STANDARD = str.maketrans("-_", "+/", "\r\n")


def _whole(value: Any) -> int:
    """A non-negative integer of a JSON number or string; 0 where it is none."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        try:
            number = int(float(value))
        except (TypeError, ValueError, OverflowError):
            return 0
    return number if number > 0 else 0


def _uint32(value: Any) -> int:
    return min(_whole(value), 2**32 - 1)


def _enum(value: Any, names: dict[str, int]) -> int:
    number = names.get(value, -1) if isinstance(value, str) else -1
    if number < 0:
        number = _whole(value)
    return number if number < len(names) else 0


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items_of(message: Any, key: str) -> list[Any]:
    """The list under `key` of a JSON object; empty where there is none."""
    return _list(_dict(message).get(key))


def time_of(value: Any) -> int:
    """Nanoseconds of a JSON number or string; 0 where it is none."""
    return min(_whole(value), MAX_TIME_NS)


def _integer(digits: str) -> int | float:
    """Python reads 4,300 digits at most; what has more is beyond every number."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def read_json(data: bytes) -> Any:
    """The JSON value of these bytes, also where a program wrote a byte order mark, UTF-16 or UTF-32, NaN, lone surrogates or
    bytes that are no UTF-8.

    Raises :class:`MalformedError`.
    """
    try:
        return orjson.loads(data.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data.decode(json.detect_encoding(data), "replace"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error


def _base64(text: str) -> bytes | None:
    """The bytes of standard or URL-safe base64, with padding or without, as protobuf's JSON mapping reads it; `None` for what
    is no base64."""
    plain = text.translate(_STANDARD).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:  # binascii.Error, or no ASCII
        return None


def hex_id(value: Any, digits: int) -> str:
    """The id in lower-case hex; `""` for anything that is no id of this length, so that it is rejected in one place."""
    if not isinstance(value, str):
        return ""
    lowered = value.lower()
    if len(lowered) == digits and _HEX.issuperset(lowered):
        return lowered
    if len(value.rstrip("=")) != (digits * 4 + 5) // 6 or _HEX.issuperset(lowered):  # hex of a wrong length is no base64
        return ""
    decoded = _base64(value)
    return "" if decoded is None else decoded.hex()


def _int_value(value: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return value if isinstance(value, (str, float)) else None


def _double_value(value: Any) -> Any:
    """Also "NaN", "Infinity" and "-Infinity", as protobuf's JSON mapping writes them."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value if isinstance(value, str) else None


def _bytes_value(value: Any) -> Any:
    if not isinstance(value, str):
        return None
    decoded = _base64(value)
    return value if decoded is None else decoded


def value_of(value: Any, depth: int = 0) -> Any:
    """The Python value of an AnyValue in JSON; `None` where nothing usable is set."""
    if not isinstance(value, dict):
        return None
    if "stringValue" in value:
        text = value["stringValue"]
        return text if isinstance(text, str) else None if text is None else str(text)
    if "intValue" in value:
        return _int_value(value["intValue"])
    if "boolValue" in value:
        flag = value["boolValue"]
        return flag if isinstance(flag, bool) else flag == "true"
    if "doubleValue" in value:
        return _double_value(value["doubleValue"])
    if "arrayValue" in value:
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        return [value_of(item, depth + 1) for item in _list(_dict(value["arrayValue"]).get("values"))]
    if "kvlistValue" in value:
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        return attributes_of(_dict(value["kvlistValue"]).get("values"), depth + 1)
    if "bytesValue" in value:
        return _bytes_value(value["bytesValue"])
    return None


def attributes_of(pairs: Any, depth: int = 0) -> dict[str, Any]:
    return {
        pair["key"]: value_of(pair.get("value"), depth)
        for pair in _list(pairs)
        if isinstance(pair, dict) and isinstance(pair.get("key"), str)
    }


def resource_of(group: dict[str, Any]) -> Resource:
    found = _dict(group.get("resource"))
    dropped = _uint32(found.get("droppedAttributesCount"))
    return Resource(attributes_of(found.get("attributes")), _string(group.get("schemaUrl")), dropped)


def scope_of(group: dict[str, Any]) -> Scope:
    found = _dict(group.get("scope"))
    return Scope(
        _string(found.get("name")), _string(found.get("version")), attributes_of(found.get("attributes")),
        _string(group.get("schemaUrl")), _uint32(found.get("droppedAttributesCount")),
    )


def _links(items: Any) -> tuple[list[Link], int]:
    links, unusable = [], 0
    for item in _list(items):
        found = _dict(item)
        trace_id, span_id = hex_id(found.get("traceId"), 32), hex_id(found.get("spanId"), 16)
        if not trace_id or not span_id or trace_id == ZERO_TRACE or span_id == ZERO_SPAN:
            unusable += 1
            continue
        links.append(
            Link(
                trace_id, span_id, _string(found.get("traceState")), attributes_of(found.get("attributes")),
                _uint32(found.get("droppedAttributesCount")), _uint32(found.get("flags")),
            )
        )
    return links, unusable


def _span_of(found: dict[str, Any], resource: Resource, scope: Scope, now_ns: int) -> Span | None:
    trace_id, span_id = hex_id(found.get("traceId"), 32), hex_id(found.get("spanId"), 16)
    if not trace_id or not span_id or trace_id == ZERO_TRACE or span_id == ZERO_SPAN:
        return None
    parent_id = hex_id(found.get("parentSpanId"), 16)
    start_ns, end_ns = clean_times(
        _whole(found.get("startTimeUnixNano")), _whole(found.get("endTimeUnixNano")), now_ns
    )
    status = _dict(found.get("status"))
    links, unusable = _links(found.get("links"))
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        name=_string(found.get("name")),
        start_ns=start_ns,
        end_ns=end_ns,
        parent_span_id=parent_id if parent_id and parent_id not in (ZERO_SPAN, span_id) else None,
        kind=_enum(found.get("kind"), _KINDS),
        status_code=_enum(status.get("code"), _STATUS),
        status_message=_string(status.get("message")),
        attributes=attributes_of(found.get("attributes")),
        events=[
            SpanEvent(
                _string(event.get("name")), min(_whole(event.get("timeUnixNano")), MAX_TIME_NS),
                attributes_of(event.get("attributes")), _uint32(event.get("droppedAttributesCount")),
            )
            for event in _list(found.get("events"))
            if isinstance(event, dict)
        ],
        links=links,
        resource=resource,
        scope=scope,
        trace_state=_string(found.get("traceState")),
        flags=_uint32(found.get("flags")),
        dropped_attributes=_uint32(found.get("droppedAttributesCount")),
        dropped_events=_uint32(found.get("droppedEventsCount")),
        dropped_links=_uint32(found.get("droppedLinksCount")) + unusable,
    )


def decode_json(body: Any, now_ns: int = 0) -> Decoded:
    """The spans of an OTLP/JSON request or of one line of the Collector's file exporter.

    Raises :class:`MalformedError` when `body` is no such object; an object without `resourceSpans` is an empty request.
    """
    if not isinstance(body, dict):
        raise MalformedError(f"found JSON {type(body).__name__}, expected an object with resourceSpans")
    groups = body.get("resourceSpans")
    if groups is not None and not isinstance(groups, list):
        raise MalformedError(f"resourceSpans is {type(groups).__name__}, expected a list")
    decoded = Decoded()
    for group in groups or []:
        found = _dict(group)
        resource = resource_of(found)
        for scope_group in _list(found.get("scopeSpans")):
            inner = _dict(scope_group)
            scope = scope_of(inner)
            for item in _list(inner.get("spans")):
                span = _span_of(item, resource, scope, now_ns) if isinstance(item, dict) else None
                if span is None:
                    entry = _dict(item)
                    decoded.rejected.append(
                        bad_ids(str(entry.get("traceId", "")), str(entry.get("spanId", "")), str(entry.get("name", "")))
                    )
                else:
                    decoded.spans.append(span)
    return decoded


# back


def json_value(value: Any, depth: int = 0) -> dict[str, Any]:
    """An AnyValue in OTLP/JSON. Integers beyond 64 bits and foreign types become their text."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if -(2**63) <= value < 2**63 else {"stringValue": str(value)}
    if isinstance(value, float):
        if math.isfinite(value):
            return {"doubleValue": value}
        return {"doubleValue": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, (bytes, bytearray)):
        return {"bytesValue": base64.b64encode(value).decode()}
    if value is None:
        return {}
    if isinstance(value, (dict, list, tuple)):
        if depth >= MAX_DEPTH:
            return {"stringValue": TOO_DEEP}
        if isinstance(value, dict):
            return {"kvlistValue": {"values": json_attributes(value, depth + 1)}}
        return {"arrayValue": {"values": [json_value(item, depth + 1) for item in value]}}
    return {"stringValue": str(value)}


def json_attributes(attributes: dict[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    return [{"key": str(key), "value": json_value(value, depth)} for key, value in attributes.items()]


def _filled(items: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that have their default value, as protobuf's JSON mapping writes it."""
    return {key: value for key, value in items.items() if value not in ("", 0, None, [], {})}


def _nanoseconds(value: int | None) -> str | None:
    return str(value) if value else None


def json_span(span: Span) -> dict[str, Any]:
    """One span as OTLP/JSON."""
    return _filled({
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "traceState": span.trace_state,
        "parentSpanId": span.parent_span_id,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": _nanoseconds(span.start_ns),
        "endTimeUnixNano": _nanoseconds(span.end_ns),
        "attributes": json_attributes(span.attributes),
        "droppedAttributesCount": span.dropped_attributes,
        "events": [
            _filled({
                "timeUnixNano": _nanoseconds(event.time_ns), "name": event.name,
                "attributes": json_attributes(event.attributes), "droppedAttributesCount": event.dropped_attributes,
            })
            for event in span.events
        ],
        "droppedEventsCount": span.dropped_events,
        "links": [
            _filled({
                "traceId": link.trace_id, "spanId": link.span_id, "traceState": link.trace_state,
                "attributes": json_attributes(link.attributes), "droppedAttributesCount": link.dropped_attributes,
                "flags": link.flags,
            })
            for link in span.links
        ],
        "droppedLinksCount": span.dropped_links,
        "status": _filled({"message": span.status_message, "code": span.status_code}),
    })


def json_from_spans(spans: Iterable[Span]) -> dict[str, Any]:
    """One OTLP/JSON request with these spans, grouped by resource and scope, in the order given within each group."""
    groups = Groups()
    resources: dict[int, dict[str, Any]] = {}
    scopes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for span in spans:
        key = groups.key(span)
        if key not in scopes:
            if key[0] not in resources:
                resource = _filled({
                    "attributes": json_attributes(span.resource.attributes),
                    "droppedAttributesCount": span.resource.dropped_attributes,
                })
                resources[key[0]] = {"resource": resource, "scopeSpans": []}
                if span.resource.schema_url:
                    resources[key[0]]["schemaUrl"] = span.resource.schema_url
            scope = _filled({
                "name": span.scope.name, "version": span.scope.version,
                "attributes": json_attributes(span.scope.attributes),
                "droppedAttributesCount": span.scope.dropped_attributes,
            })
            scopes[key] = []
            group: dict[str, Any] = {"scope": scope, "spans": scopes[key]}
            if span.scope.schema_url:
                group["schemaUrl"] = span.scope.schema_url
            resources[key[0]]["scopeSpans"].append(group)
        scopes[key].append(json_span(span))
    return {"resourceSpans": list(resources.values())}
