"""Spans as Jaeger's page shows them best: agent spans of any vocabulary under the names its GenAI view reads.

The names are those of the GenAI semantic conventions 1.42 as jaeger-ui 2.20 looks for them (`utils/genai/detect.ts`,
`SpanDetail/GenAITab/genAiData.ts`). Attributes are only ever added, never changed, and only to spans that have no
`gen_ai.operation.name` (to those that have one, old names of usage); everything else comes back as it was. The values
are the row's columns, so whatever vocabulary the mapper knows is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from otel_cmb.event import Span

__all__ = ["presented"]

_OPERATIONS = {
    "agent_call": "invoke_agent", "llm_call": "chat", "tool_call": "execute_tool", "code_exec": "execute_tool",
}
_RENAMED = (
    ("gen_ai.usage.cache_write.input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
    ("gen_ai.usage.cache_read_input_tokens", "gen_ai.usage.cache_read.input_tokens"),
    ("gen_ai.usage.cache_creation_input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
    ("gen_ai.usage.thinking_tokens", "gen_ai.usage.reasoning.output_tokens"),
)


def presented(spans: list[Span], row: Mapping[str, Any]) -> list[Span]:
    """The spans of a row, the first with the row's meaning added where its own attributes do not say it.

    A span that has not ended has a length of nothing, and says `cmb.status` = `running`."""
    if not spans:
        return spans
    added = _meaning(spans[0], row)
    if added:
        spans[0] = replace(spans[0], attributes={**added, **spans[0].attributes})
    return [span if span.end_ns is not None else _unended(span, row) for span in spans]


def _unended(span: Span, row: Mapping[str, Any]) -> Span:
    status = "died" if span.died else str(row.get("status") or "running")
    return replace(span, end_ns=span.start_ns, attributes={**span.attributes, "cmb.status": status})


def _meaning(span: Span, row: Mapping[str, Any]) -> dict[str, Any]:
    attributes = span.attributes
    if "gen_ai.operation.name" in attributes:
        return {new: attributes[old] for old, new in _RENAMED if old in attributes and new not in attributes}
    operation = _OPERATIONS.get(row.get("event_type") or "")
    if operation is None:
        return {}
    found: dict[str, Any] = {"gen_ai.operation.name": operation}
    if row.get("agent_name"):
        found["gen_ai.agent.name"] = row["agent_name"]
    for column, key, name, convert in _VALUES:
        held = row.get(column)
        if isinstance(held, dict) and held.get(key) is not None:
            value = convert(held[key], operation)
            if value is not None:
                found[name] = value
    return found


def _text(value: Any, _: str) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any, _: str) -> int | None:
    return value if type(value) is int else None


def _message(role: str) -> Callable[[Any, str], str]:
    def convert(value: Any, operation: str) -> str:
        return json.dumps([_parts({"role": role, "content": _text(value, operation)})], ensure_ascii=False)

    return convert


def _messages(role: str) -> Callable[[Any, str], str]:
    def convert(value: Any, operation: str) -> str:
        items = value if isinstance(value, list) else [value]
        messages = [
            _parts(item) if isinstance(item, dict) else _parts({"role": role, "content": _text(item, operation)})
            for item in items
        ]
        return json.dumps(messages, ensure_ascii=False)

    return convert


def _parts(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message.get("parts"), list):
        return message
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    if content not in (None, ""):
        parts.append({"type": "text", "content": _text(content, "")})
    for call in message.get("tool_calls") or ():
        if isinstance(call, dict):
            function = call.get("function")
            if not isinstance(function, dict):
                function = call
            parts.append({"type": "tool_call", "id": call.get("id"), "name": function.get("name"),
                          "arguments": function.get("arguments")})
    return {"role": message.get("role", "user"), "parts": parts}


# column, key in it, attribute, how its value is written
_VALUES: tuple[tuple[str, str, str, Callable[[Any, str], Any]], ...] = (
    ("inputs", "message", "gen_ai.input.messages", _message("user")),
    ("inputs", "messages", "gen_ai.input.messages", _messages("user")),
    ("outputs", "response", "gen_ai.output.messages", _message("assistant")),
    ("outputs", "messages", "gen_ai.output.messages", _messages("assistant")),
    ("inputs", "tool_name", "gen_ai.tool.name", _text),
    ("inputs", "arguments", "gen_ai.tool.call.arguments", _text),
    ("inputs", "code", "gen_ai.tool.call.arguments", _text),
    ("outputs", "result", "gen_ai.tool.call.result", _text),
    ("meta", "tool_call_id", "gen_ai.tool.call.id", _text),
    ("meta", "model", "gen_ai.request.model", _text),
    ("meta", "prompt_tokens", "gen_ai.usage.input_tokens", _number),
    ("meta", "completion_tokens", "gen_ai.usage.output_tokens", _number),
)
