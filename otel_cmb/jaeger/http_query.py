"""What the parameters of a request to Jaeger's query API ask for, v1 and v3. A `ValueError` says what is wrong with them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from starlette.requests import Request

from otel_cmb.jaeger.match import TraceQuery
from otel_cmb.jaeger.v1 import duration_ns

__all__ = ["MAX_LIMIT", "trace_id_of", "v1_query", "v3_query", "whole_number"]

MAX_LIMIT = 1500
"""Most traces in one answer; Jaeger's page offers as many."""
_LOOKBACK_NS = 48 * 3600 * 10**9


def trace_id_of(text: str) -> str:
    """32 hex digits; Jaeger's pages leave leading zeros out."""
    if not 0 < len(text) <= 32 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
        raise ValueError(f"found trace id {text[:40]!r}, expected up to 32 hex digits")
    return text.lower().rjust(32, "0")


def whole_number(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        raise ValueError(f"parameter {name}: found {text[:40]!r}, expected a whole number")
    return int(text)


def _limit(parameters: Mapping[str, str], names: Iterable[str], default: int) -> int:
    for name in names:
        if parameters.get(name):
            return min(whole_number(parameters, name, default) or default, MAX_LIMIT)
    return default


def v1_query(request: Request) -> TraceQuery:
    parameters = request.query_params
    end_us = whole_number(parameters, "end", time.time_ns() // 1000)
    start_us = whole_number(parameters, "start", end_us - _lookback(parameters.get("lookback", "")) // 1000)
    return TraceQuery(
        service=parameters.get("service", ""),
        operation=parameters.get("operation", ""),
        attributes=_v1_tags(parameters.getlist("tag"), parameters.getlist("tags")),
        start_min_ns=start_us * 1000,
        start_max_ns=end_us * 1000,
        duration_min_ns=duration_ns(parameters.get("minDuration", "")),
        duration_max_ns=duration_ns(parameters.get("maxDuration", "")),
        limit=_limit(parameters, ("limit",), 100),
    )


def _lookback(text: str) -> int:
    """Grafana and old pages write days too; `custom` says that start and end are given."""
    if text in {"", "custom"}:
        return _LOOKBACK_NS
    if text.endswith("d") and text[:-1].isdecimal():
        return int(text[:-1]) * 24 * 3600 * 10**9
    return duration_ns(text)


def _v1_tags(pairs: Iterable[str], maps: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon:
            raise ValueError(f"parameter tag: found {pair[:40]!r}, expected key:value")
        found[key] = value
    for text in maps:
        found.update(_map(text, "tags"))
    return found


def _map(text: str, name: str) -> dict[str, str]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"parameter {name}: found {text[:40]!r}, expected a JSON object of texts")  # noqa: TRY004
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in values.items()
    }


_V3 = {
    "service": ("query.serviceName", "query.service_name"),
    "operation": ("query.operationName", "query.operation_name", "query.spanName", "query.span_name"),
    "start": ("query.startTimeMin", "query.start_time_min"),
    "end": ("query.startTimeMax", "query.start_time_max"),
    "shortest": ("query.durationMin", "query.duration_min"),
    "longest": ("query.durationMax", "query.duration_max"),
    "attributes": ("query.attributes",),
}
_V3_LIMITS = ("query.searchDepth", "query.search_depth", "query.numTraces", "query.num_traces")


def v3_query(request: Request) -> TraceQuery:
    parameters = request.query_params
    given = {
        what: next((parameters[name] for name in names if parameters.get(name)), "") for what, names in _V3.items()
    }
    if parameters.get("query.filter"):
        raise ValueError("query.filter is not served; use query.serviceName, query.attributes, ...")
    for what in ("start", "end"):
        if not given[what]:
            raise ValueError(f"parameter {_V3[what][0]} is needed")
    start_ns, end_ns = (_moment(given[what], _V3[what][0]) for what in ("start", "end"))
    if start_ns >= end_ns:
        raise ValueError(f"{_V3['start'][0]} is not before {_V3['end'][0]}")
    return TraceQuery(
        service=given["service"],
        operation=given["operation"],
        attributes=_map(given["attributes"], "query.attributes") if given["attributes"] else {},
        start_min_ns=start_ns,
        start_max_ns=end_ns,
        duration_min_ns=duration_ns(given["shortest"]),
        duration_max_ns=duration_ns(given["longest"]),
        limit=_limit(parameters, _V3_LIMITS, 100),
    )


def _moment(text: str, name: str) -> int:
    """RFC 3339 with up to nine digits of a second, to nanoseconds."""
    try:
        head, dot, rest = text.partition(".")
        digits = ""
        if dot:
            digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
            rest = rest[len(digits):]
            if not 0 < len(digits) <= 9:
                raise ValueError
            head += rest
        # A "+" in a query string arrives as a space.
        moment = datetime.fromisoformat(head.replace("Z", "+00:00").replace(" ", "+"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return int(moment.timestamp()) * 10**9 + int(digits.ljust(9, "0") or 0)
    except (ValueError, OverflowError):
        raise ValueError(
            f"parameter {name}: found {text[:40]!r}, expected a time like 2026-01-31T12:00:00.5Z"
        ) from None
