"""Messages spread over the keys of a span, one key per field of each message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_cmb.messages import add_part, as_json, call_of, role_of

__all__ = ["flattened"]

# Six digits are more messages than a span can hold; a longer number is no index.
_INDEX = re.compile(r"(\d{1,6})\.(.+)", re.DOTALL)
_FLAT_PART = re.compile(r"contents\.(\d{1,6})\.message_content\.(.+)", re.DOTALL)
_FLAT_CALL = re.compile(r"tool_calls\.(\d{1,6})\.(?:tool_call\.)?(.+)", re.DOTALL)


_COMPLETIONS = ("prompt.text", "completion.text")
"""OpenInference's names for the texts of models that complete a text."""


@dataclass(slots=True)
class _Row:
    fields: dict[str, Any] = field(default_factory=dict)
    parts: dict[int, dict[str, Any]] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)


def flattened(attributes: Mapping[str, Any], prefix: str, role: str = "user") -> list[dict[str, Any]] | None:
    """Messages spread over keys: `llm.input_messages.0.message.role` (OpenInference), `gen_ai.prompt.0.content`
    (older Traceloop). `prefix` ends with a dot; `role` is of those that name none. `None` if there is no such key."""
    rows: dict[int, _Row] = {}
    length = len(prefix)
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        match = _INDEX.fullmatch(key, length)
        if match is None:
            continue
        row = rows.setdefault(int(match[1]), _Row())
        name = match[2].removeprefix("message.")
        if call := _FLAT_CALL.fullmatch(name):
            row.calls.setdefault(int(call[1]), {})[call[2].removeprefix("function.")] = value
        elif part := _FLAT_PART.fullmatch(name):
            row.parts.setdefault(int(part[1]), {})[part[2]] = value
        else:
            row.fields[name] = value
    if not rows:
        return None
    return [_unflatten(rows[index], role) for index in sorted(rows)]


def _unflatten(row: _Row, role: str) -> dict[str, Any]:
    fields = row.fields
    message: dict[str, Any] = {"role": role_of(fields.get("role"), role)}
    if isinstance(fields.get("name"), str) and fields["name"]:
        message["name"] = fields["name"]
    for name in _COMPLETIONS:
        if name in fields:
            fields.setdefault("content", fields[name])
    if "content" in fields:
        content = fields["content"]
        parsed = as_json(content) if isinstance(content, str) and content.startswith("[{") else content
        if isinstance(parsed, list):
            for part in parsed:
                add_part(message, part)
        else:
            message["content"] = content
    else:
        for index in sorted(row.parts):
            add_part(message, row.parts[index])
    if row.calls:
        message["tool_calls"] = [call_of(row.calls[index]) for index in sorted(row.calls)]
    for key in ("tool_call_id", "finish_reason"):
        if isinstance(fields.get(key), str):
            message[key] = fields[key]
    message.setdefault("content", None if row.calls else "")
    return message
