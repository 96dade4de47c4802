"""OTLP to spans and back, in protobuf and in JSON; the rest of the package imports from here.

Lossless: `decode(request_from_spans(spans)).spans` equals `spans` (for what OTLP can carry), and the same through JSON.
Pure: no clock, no I/O.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_cmb.otlp_clean import MAX_DEPTH, Decoded, MalformedError, SpanContent
from otel_cmb.otlp_json import attributes_of, decode_json, json_from_spans, json_span, json_value, value_of
from otel_cmb.otlp_logs import log_records_from_json, log_records_from_request
from otel_cmb.otlp_proto import count_spans, decode_request, fill_span, request_from_spans, set_attributes, set_value

__all__ = [
    "MAX_DEPTH", "Decoded", "MalformedError", "SpanContent", "attributes_of", "count_spans", "decode", "decode_json",
    "fill_span", "json_from_spans", "json_span", "json_value", "log_records_from_json", "log_records_from_request",
    "request_from_spans", "set_attributes", "set_value", "value_of",
]


def decode(request: ExportTraceServiceRequest | dict[str, Any], now_ns: int = 0) -> Decoded:
    """The spans of a request in either form, and one line for each span rejected for its ids.

    Everything else that is odd is cleaned: see :mod:`otel_cmb.otlp_clean`. `now_ns` stands in for a span's start where
    neither start nor end is given. Raises :class:`MalformedError` for JSON that is no OTLP request.
    """
    if isinstance(request, ExportTraceServiceRequest):
        return decode_request(request, now_ns)
    return decode_json(request, now_ns)
