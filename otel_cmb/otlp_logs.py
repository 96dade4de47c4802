"""GenAI content events in OTLP logs to attributes for the spans they belong to.

Instrumentations may keep prompts and answers out of spans and send them as log records in the span's context:

* `gen_ai.client.inference.operation.details` (semantic conventions v1.41 and later): the span's own attributes, as
  structured values, in the attributes or in the body of the record;
* one record per message, `gen_ai.{system,user,assistant,tool}.message` and `gen_ai.choice` (conventions v1.28 to v1.36,
  Google ADK 2.x, opentelemetry-instrumentation-openai-v2): they become `gen_ai.input.messages` and
  `gen_ai.output.messages` in parts style.

Any other log record is none of ours and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_cmb import otlp_json, otlp_proto
from otel_cmb.otlp_clean import MAX_TIME_NS, ZERO_SPAN, ZERO_TRACE, MalformedError, SpanContent

__all__ = ["log_records_from_json", "log_records_from_request"]

_DETAILS = frozenset({"gen_ai.client.inference.operation.details"})
_MESSAGES = {
    "gen_ai.system.message": ("gen_ai.input.messages", "system"),
    "gen_ai.user.message": ("gen_ai.input.messages", "user"),
    "gen_ai.assistant.message": ("gen_ai.input.messages", "assistant"),
    "gen_ai.tool.message": ("gen_ai.input.messages", "tool"),
    "gen_ai.choice": ("gen_ai.output.messages", "assistant"),
}
_JOINED_PREFIXES = ("gen_ai.", "error.", "server.")

_Record = tuple[str, str, int, str, dict[str, Any], Any]
"""trace id, span id, time, event name, attributes, body"""


def _tool_call(call: Any) -> dict[str, Any]:
    """`{id, type, function: {name, arguments}}` as OpenAI writes it, or the same without the envelope."""
    found = call if isinstance(call, dict) else {"name": str(call)}
    function = found.get("function")
    inner = function if isinstance(function, dict) else found
    return {
        "type": "tool_call", "id": found.get("id"), "name": inner.get("name"),
        "arguments": inner.get("arguments", inner.get("args")),
    }


def _part(part: Any) -> dict[str, Any]:
    """One part of a message: already in parts style, or as google-genai's `Content.parts` has it."""
    if not isinstance(part, dict):
        return {"type": "text", "content": part}
    if "type" in part:
        return part
    if "text" in part:
        return {"type": "text", "content": part["text"]}
    if "function_call" in part:
        return _tool_call(part["function_call"])
    if "function_response" in part:
        answer = part["function_response"]
        found = answer if isinstance(answer, dict) else {"response": answer}
        return {"type": "tool_call_response", "id": found.get("id"), "response": found.get("response")}
    return {"type": "other", "content": part}


def _message(body: Any, role: str) -> dict[str, Any]:
    """A message event's body in parts style."""
    found = body if isinstance(body, dict) else {"content": body}
    outer = found
    if isinstance(found.get("message"), dict):
        found = found["message"]
    content = found.get("content")
    if isinstance(content, dict) and "parts" in content:
        role, content = content.get("role") or role, content["parts"]
    parts: list[dict[str, Any]] = []
    if role == "tool" and "id" in found:
        parts.append({"type": "tool_call_response", "id": found["id"], "response": content})
    elif isinstance(content, list):
        parts.extend(_part(item) for item in content)
    elif content is not None:
        parts.append({"type": "text", "content": content})
    calls = found.get("tool_calls")
    if isinstance(calls, list):
        parts.extend(_tool_call(call) for call in calls)
    message: dict[str, Any] = {"role": found.get("role") or role, "parts": parts}
    if "finish_reason" in outer:
        message["finish_reason"] = outer["finish_reason"]
    return message


def _joined(attributes: Any) -> dict[str, Any]:
    if not isinstance(attributes, dict):
        return {}
    return {key: value for key, value in attributes.items() if key.startswith(_JOINED_PREFIXES)}


def _join(records: Iterable[_Record]) -> list[SpanContent]:
    """One :class:`SpanContent` per span, messages in the order of their time."""
    found: dict[tuple[str, str], SpanContent] = {}
    for trace_id, span_id, time_ns, name, attributes, body in sorted(records, key=lambda record: record[2]):
        content = found.setdefault((trace_id, span_id), SpanContent(trace_id, span_id, time_ns))
        if name in _MESSAGES:
            key, role = _MESSAGES[name]
            content.attributes.setdefault(key, []).append(_message(body, role))
            joined = _joined(attributes)
        else:
            joined = {**_joined(body), **_joined(attributes)}
        for attribute, value in joined.items():
            content.attributes.setdefault(attribute, value)
    return list(found.values())


def _wanted(trace_id: str, span_id: str, name: Any) -> bool:
    return (
        isinstance(name, str) and (name in _DETAILS or name in _MESSAGES)
        and len(trace_id) == 32 and trace_id != ZERO_TRACE and len(span_id) == 16 and span_id != ZERO_SPAN
    )


def _proto_records(request: ExportLogsServiceRequest) -> Iterator[_Record]:
    for group in request.resource_logs:
        for scope_group in group.scope_logs:
            for record in scope_group.log_records:
                trace_id, span_id = record.trace_id.hex(), record.span_id.hex()
                attributes = otlp_proto.attributes_of(record.attributes)
                name = record.event_name or attributes.get("event.name")
                if _wanted(trace_id, span_id, name):
                    time_ns = min(record.time_unix_nano or record.observed_time_unix_nano, MAX_TIME_NS)
                    yield trace_id, span_id, time_ns, str(name), attributes, otlp_proto.value_of(record.body)


def _json_records(groups: Iterable[Any]) -> Iterator[_Record]:
    for group in groups:
        for scope_group in otlp_json.items_of(group, "scopeLogs"):
            for record in otlp_json.items_of(scope_group, "logRecords"):
                if not isinstance(record, dict):
                    continue
                trace_id = otlp_json.hex_id(record.get("traceId"), 32)
                span_id = otlp_json.hex_id(record.get("spanId"), 16)
                attributes = otlp_json.attributes_of(record.get("attributes"))
                name = record.get("eventName") or attributes.get("event.name")
                if _wanted(trace_id, span_id, name):
                    time_ns = otlp_json.time_of(record.get("timeUnixNano") or record.get("observedTimeUnixNano"))
                    yield trace_id, span_id, time_ns, str(name), attributes, otlp_json.value_of(record.get("body"))


def log_records_from_request(request: ExportLogsServiceRequest) -> list[SpanContent]:
    """What the log records of a request say about spans, one entry per span."""
    return _join(_proto_records(request))


def log_records_from_json(body: Any) -> list[SpanContent]:
    """The same from OTLP/JSON. Raises :class:`MalformedError` when `body` is no OTLP logs request."""
    if not isinstance(body, dict):
        raise MalformedError(f"found JSON {type(body).__name__}, expected an object with resourceLogs")
    groups = body.get("resourceLogs")
    if groups is not None and not isinstance(groups, list):
        raise MalformedError(f"resourceLogs is {type(groups).__name__}, expected a list")
    return _join(_json_records(groups or []))
