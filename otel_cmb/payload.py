"""Any Python value as a JSON string, and chat messages in the parts style of the GenAI conventions.

Nothing here raises: what agents pass around is not ours to choose. A value JSON cannot say becomes its `repr`, a cycle
a marker, and a text is cut only where it would endanger the process (the cut that a row needs comes later, in the
pipeline, with the settings' limit).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from otel_cmb.sanitize import clean

__all__ = ["message_parts", "text_of", "to_json", "type_name"]

MAX_TEXT = 8_388_608
"""Characters of one payload; more than this is cut before it is copied from hand to hand."""


def type_name(value: object) -> str:
    """`ValueError`, `openai.APIError`: the class with its module, unless that is a builtin (OTel `error.type`)."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def to_json(value: Any) -> str:
    """The value as JSON that any UTF-8 encoder and any parser takes: no NaN, no lone surrogate, no cycle."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_known)
        text.encode()
    except Exception:  # noqa: BLE001 - any object may be in there, and any of its methods may raise
        text = ""
    if text and len(text) <= MAX_TEXT:
        return text
    return json.dumps(clean(value, max_value_bytes=MAX_TEXT))


def text_of(value: Any) -> str:
    """The value as a person reads it: a text as it is, an exception as what it says, anything else as JSON; what is a text
    there (a path, bytes, a date, a `repr`) without quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseException):
        with contextlib.suppress(Exception):  # one whose __str__ raises
            return f"{type(value).__name__}: {said}" if (said := str(value)) else type(value).__name__
    text = to_json(value)
    return str(json.loads(text)) if text[:1] == '"' else text


def _known(value: Any) -> Any:
    """What `json` does not know, as something it does (`default=` of `json.dumps`)."""
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, type):
        return repr(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if dataclasses.is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return repr(value)


# Messages: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (input and output messages, JSON schema of 1.37)

def message_parts(messages: Any) -> list[dict[str, Any]]:
    """Chat messages (OpenAI style, parts style, or plain text) as `[{role, parts: [{type, ...}]}]`."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        messages = [messages]
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        return {"role": "user", "parts": [_text_part(message)]}
    role = message.get("role") or "user"
    found: dict[str, Any] = {"role": role}
    if message.get("name"):
        found["name"] = message["name"]
    if "parts" in message:
        return {**found, "parts": message["parts"]}
    if message.get("finish_reason"):
        found["finish_reason"] = message["finish_reason"]
    if role == "tool" and "tool_call_id" in message:
        part = {"type": "tool_call_response", "id": message["tool_call_id"], "response": message.get("content")}
        return {**found, "parts": [part]}
    content = message.get("content")
    parts: list[Any] = []
    if isinstance(content, (list, tuple)):
        parts += [_content_part(item) for item in content]
    elif content not in (None, ""):
        parts.append(_text_part(content))
    calls = list(message.get("tool_calls") or [])
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    parts += [_call_part(call) for call in calls]
    return {**found, "parts": parts}


def _text_part(content: Any) -> dict[str, Any]:
    return {"type": "text", "content": content if isinstance(content, str) else text_of(content)}


def _content_part(item: Any) -> Any:
    if isinstance(item, Mapping) and item.get("type") == "text":
        return _text_part(item.get("text", ""))
    return item if isinstance(item, Mapping) else _text_part(item)


def _call_part(call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        return {"type": "tool_call", "name": text_of(call)}
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # what is not JSON stands as the model wrote it
            arguments = json.loads(arguments)
    return {"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": arguments}
