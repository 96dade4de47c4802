"""Messages spread over the keys of a span, one key per field of each message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from otel_cmb.messages import add_part, as_json, call_of, role_of

__all__ = ["flattened"]

_INDEX = re.compile(r"(\d+)\.(.+)", re.DOTALL)
_FLAT_PART = re.compile(r"contents\.(\d+)\.message_content\.(.+)", re.DOTALL)
_FLAT_CALL = re.compile(r"tool_calls\.(\d+)\.(?:tool_call\.)?(.+)", re.DOTALL)
MAX_FLAT = 10_000


def flattened(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]] | None:
    """Messages spread over keys: `llm.input_messages.0.message.role` (OpenInference), `gen_ai.prompt.0.content`
    (older Traceloop). `prefix` ends with a dot. `None` if there is no such key."""
    rows: dict[int, dict[str, Any]] = {}
    length = len(prefix)
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        match = _INDEX.fullmatch(key, length)
        if match is None or len(match[1]) > 6:
            continue
        index = int(match[1])
        if index > MAX_FLAT:
            continue
        row = rows.setdefault(index, {})
        name = match[2].removeprefix("message.")
        if call := _FLAT_CALL.fullmatch(name):
            if len(call[1]) <= 6:
                entry = row.setdefault("calls", {}).setdefault(int(call[1]), {})
                entry[call[2].removeprefix("function.")] = value
        elif part := _FLAT_PART.fullmatch(name):
            if len(part[1]) <= 6:
                row.setdefault("contents", {}).setdefault(int(part[1]), {})[part[2]] = value
        else:
            row[name] = value
    if not rows:
        return None
    return [_unflatten(rows[index]) for index in sorted(rows)]


def _unflatten(row: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role_of(row.get("role"), "user")}
    if isinstance(row.get("name"), str) and row["name"]:
        message["name"] = row["name"]
    if "content" in row:
        content = row["content"]
        parsed = as_json(content) if isinstance(content, str) and content.startswith("[{") else content
        if isinstance(parsed, list):
            for part in parsed:
                add_part(message, part)
        else:
            message["content"] = content
    elif "contents" in row:
        for index in sorted(row["contents"]):
            add_part(message, row["contents"][index])
    calls = row.get("calls")
    if calls:
        message["tool_calls"] = [call_of(calls[index]) for index in sorted(calls)]
    for key in ("tool_call_id", "finish_reason"):
        if isinstance(row.get(key), str):
            message[key] = row[key]
    message.setdefault("content", None if calls else "")
    return message
