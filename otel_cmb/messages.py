"""Chat messages in every format frameworks write them, made into one readable form.

The form: `{"role", "content"}` with, where the message has them, `name`, `tool_calls` (a list of `{"id", "name",
"arguments"}`), `tool_call_id`, `reasoning`, and `parts` (what is no text: images, files). Pure; nothing here raises on
hostile input: what cannot be read as messages is returned as it is, or as `None` where a list was asked for.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from otel_cmb.messages_repr import message_of_repr

__all__ = ["as_json", "conversation", "fenced_code", "python_literal", "text_of"]

MAX_LITERAL = 65_536
"""Longest Python repr that is parsed: the parser's time and memory grow faster than the text."""


def _no_constant(text: str) -> Any:
    raise ValueError(text)


_SCAN = json.JSONDecoder(parse_constant=_no_constant).raw_decode


def as_json(value: Any) -> Any:
    """The value of a JSON text that is an object, an array or a quoted string; anything else unchanged.

    A bare number or `true` stays text: a tool that answered "67.4" said a text. NaN and infinities are no JSON here.
    """
    if type(value) is not str or value[:1] not in _JSON_STARTS:
        return value
    try:
        found, end = _SCAN(value)
    except (ValueError, RecursionError):
        return value
    return found if end == len(value) or not value[end:].strip(_BLANK) else value


_BLANK = " \t\n\r"
_JSON_STARTS = frozenset('{["')


def python_literal(value: str) -> Any:
    """The value of a Python repr of plain data (`{'name': 'H0'}`), or the text unchanged."""
    if len(value) > MAX_LITERAL or value[:1] not in ("{", "[", "("):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


_ROLES = {
    "human": "user", "HumanMessage": "user", "HumanMessageChunk": "user", "ai": "assistant", "AIMessage": "assistant",
    "AIMessageChunk": "assistant", "SystemMessage": "system", "ToolMessage": "tool", "FunctionMessage": "tool",
    "ChatMessage": "assistant", "model": "assistant", "function": "tool", "tool-response": "tool",
    "tool-call": "assistant",
}  # fmt: skip
_LANGCHAIN_TYPES = {"human", "ai", "system", "tool", "function", "AIMessageChunk", "chat"}


def role_of(value: Any, default: str) -> str:
    return _ROLES.get(value, value) if isinstance(value, str) and value else default


def call_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call of any format: flat, OpenAI's `function`, Anthropic's `input`, LangChain's and Google's `args`."""
    inner = item.get("function")
    if not isinstance(inner, Mapping):
        inner = item
    call: dict[str, Any] = {}
    for key in ("call_id", "id", "tool_call_id", "toolCallId", "toolUseId"):
        if isinstance(item.get(key), str):
            call["id"] = item[key]
            break
    for key in ("name", "toolName", "tool_name"):
        if key in inner:
            call["name"] = inner[key]
            break
    for key in ("arguments", "args", "input"):
        if key in inner:
            call["arguments"] = as_json(inner[key])
            break
    return call


def _set_text(message: dict[str, Any], part: Mapping[str, Any]) -> None:
    text = part.get("content", part.get("text", ""))
    if not isinstance(text, str):
        message.setdefault("parts", []).append(dict(part))
        return
    message["content"] = f"{message['content']}\n{text}" if message.get("content") else text


def _set_reasoning(message: dict[str, Any], part: Mapping[str, Any]) -> None:
    text = part.get("content", part.get("thinking", part.get("text", part.get("summary", ""))))
    message["reasoning"] = f"{message['reasoning']}\n{text}" if message.get("reasoning") else text


def _set_call(message: dict[str, Any], part: Mapping[str, Any]) -> None:
    message.setdefault("tool_calls", []).append(call_of(part))


def _set_response(message: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key in ("response", "result", "content", "output"):
        if key in part:
            value = part[key]
            break
    else:
        value = None
    origin = part.get("origin")  # Haystack: the call this answers
    for key in ("id", "tool_call_id", "tool_use_id", "call_id", "toolCallId", "toolUseId"):
        if isinstance(part.get(key), str):
            message.setdefault("tool_call_id", part[key])
            break
    else:
        if isinstance(origin, Mapping) and isinstance(origin.get("id"), str):
            message.setdefault("tool_call_id", origin["id"])
    if isinstance(value, list) and all(isinstance(item, Mapping) and "text" in item for item in value):
        value = "\n".join(str(item["text"]) for item in value)
    if "content" in message and message["content"] not in (None, ""):
        message.setdefault("tool_responses", []).append(value)
    else:
        message["content"] = value


_PARTS: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], None]] = {
    "text": _set_text, "input_text": _set_text, "output_text": _set_text, "refusal": _set_text,
    "reasoning": _set_reasoning, "thinking": _set_reasoning,
    "tool_call": _set_call, "function_call": _set_call, "tool_use": _set_call, "tool-call": _set_call,
    "tool_call_response": _set_response, "tool_result": _set_response, "function_call_output": _set_response,
    "tool-result": _set_response,
}  # fmt: skip


def add_part(message: dict[str, Any], part: Any) -> None:
    if isinstance(part, str):
        _set_text(message, {"text": part})
        return
    if not isinstance(part, Mapping):
        message.setdefault("parts", []).append(part)
        return
    kind = part.get("type")
    handler = _PARTS.get(kind) if isinstance(kind, str) else None
    if handler is not None:
        handler(message, part)
        return
    for key, handler in _UNTYPED_PARTS.items():
        if part.get(key) is not None:
            inner = part[key]
            handler(message, inner if isinstance(inner, Mapping) else part)
            return
    message.setdefault("parts", []).append(dict(part))


_UNTYPED_PARTS: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], None]] = {
    "function_call": _set_call, "functionCall": _set_call, "toolUse": _set_call,
    "function_response": _set_response, "functionResponse": _set_response, "toolResult": _set_response,
    "text": _set_text,
    "tool_call": _set_call, "tool_call_result": _set_response,  # Haystack
}  # fmt: skip


def _type(item: Mapping[str, Any]) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


_PLAIN_KEYS = frozenset(("role", "content", "parts", "finish_reason"))


def _plain_message(item: dict[str, Any], default_role: str) -> dict[str, Any] | None:
    """A message that is one text, as nearly all are; `None` where more has to be looked at."""
    text = item.get("content")
    if "parts" in item:
        parts = item["parts"]
        if text is not None or type(parts) is not list or len(parts) != 1:
            return None
        part = parts[0]
        if type(part) is not dict or part.get("type") != "text":
            return None
        text = part.get("content")
    if type(text) is not str:
        return None
    role = item.get("role")
    message = {"role": _ROLES.get(role, role) if type(role) is str and role else default_role, "content": text}
    if "finish_reason" in item:
        reason = item["finish_reason"]
        if type(reason) is str:
            message["finish_reason"] = reason
    return message


def _messages_in(text: str, default_role: str) -> list[dict[str, Any]] | None:
    """The messages of a JSON list of objects with a role, read by `orjson`, which is three times as quick as `json`;
    `None` where that is another list, or where the two might read it differently."""
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    messages = []
    for item in items:
        if type(item) is not dict or "role" not in item:
            return None
        message = _plain_message(item, default_role) if item.keys() <= _PLAIN_KEYS else None
        if message is None:
            if not _exact(item):
                return None
            message = _message(item, default_role)
            if message is None:
                continue
        messages.append(message)
    return messages


_ATOMS = frozenset((str, int, bool, type(None)))
_INTEGERS = 2.0**63


def _exact(found: Any, depth: int = 64) -> bool:
    """Whether `json` reads the same: `orjson` makes floats of integers of more than 64 bits, and takes what is nested
    deeper than Python recurses."""
    for one in found.values() if type(found) is dict else found:
        kind = type(one)
        if kind in _ATOMS:
            continue
        if kind is float:
            if not -_INTEGERS < one < _INTEGERS:
                return False
        elif depth == 0 or not _exact(one, depth - 1):
            return False
    return True


def _message(item: Any, default_role: str) -> dict[str, Any] | None:
    if isinstance(item, str):
        return {"role": default_role, "content": item}
    if type(item) is dict and item.keys() <= _PLAIN_KEYS:
        plain = _plain_message(item, default_role)
        if plain is not None:
            return plain
    if not isinstance(item, Mapping):
        return None
    inner = item.get("message")
    if isinstance(inner, Mapping):
        item = {**inner, "finish_reason": item["finish_reason"]} if "finish_reason" in item else inner
    if item.get("lc") == 1 and isinstance(item.get("kwargs"), Mapping):
        path = item.get("id")
        named = path[-1] if isinstance(path, list) and path else None
        item = {**item["kwargs"], "role": role_of(named, default_role)}
    elif isinstance(item.get("data"), Mapping) and isinstance(item.get("type"), str):
        item = {**item["data"], "role": role_of(item["type"], default_role)}
    elif "role" not in item and _type(item) in _LANGCHAIN_TYPES and "content" in item:
        item = {**item, "role": item["type"]}
    message: dict[str, Any] = {"role": role_of(item.get("role"), default_role)}
    if isinstance(item.get("name"), str) and item["name"] and _type(item) not in _PARTS:
        message["name"] = item["name"]
    parts = item.get("parts")
    content = item.get("content")
    if isinstance(parts, list):
        for part in parts:
            add_part(message, part)
    elif isinstance(content, list):
        for part in content:
            add_part(message, part)
    elif isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        message["role"] = role_of(content.get("role"), message["role"])
        for part in content["parts"]:
            add_part(message, part)
    elif content is not None:
        message["content"] = content
    elif _type(item) in _PARTS:
        add_part(message, item)
        if _type(item) in ("function_call_output", "tool_result"):
            message["role"] = "tool"
        elif _type(item) in ("function_call", "tool_call", "tool_use"):
            message["role"] = "assistant"
    calls = item.get("tool_calls")
    if isinstance(calls, list):
        message.setdefault("tool_calls", []).extend(call_of(call) for call in calls if isinstance(call, Mapping))
    if isinstance(item.get("function_call"), Mapping):
        message.setdefault("tool_calls", []).append(call_of(item["function_call"]))
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    if isinstance(item.get("tool_call_id"), str):
        message["tool_call_id"] = item["tool_call_id"]
    if isinstance(item.get("finish_reason"), str):
        message["finish_reason"] = item["finish_reason"]
    for key in ("reasoning_content", "refusal"):
        if isinstance(item.get(key), str) and item[key]:
            message[key] = item[key]
    if len(message) == 1:
        if "content" not in item and "parts" not in item:
            return None
        message["content"] = content if content is not None else ""
    else:
        message.setdefault("content", None if "tool_calls" in message else "")
    return message


def _looks_like_message(item: Any) -> bool:
    return (type(item) is dict and "role" in item) or (isinstance(item, Mapping) and (
        "role" in item
        or (isinstance(item.get("content"), Mapping) and "parts" in item["content"])
        or "parts" in item
        or item.get("lc") == 1
        or (_type(item) in _PARTS and ("content" in item or "text" in item or "name" in item or "call_id" in item))
        or ("content" in item and (_type(item) in _LANGCHAIN_TYPES or "tool_calls" in item))
        or (isinstance(item.get("data"), Mapping) and _type(item) in _LANGCHAIN_TYPES)
        or isinstance(item.get("message"), Mapping)
    ))


_PAIR_ROLES = frozenset(("user", "human", "ai", "assistant", "system", "tool", "developer"))


def _is_pair(item: list[Any]) -> bool:
    """LangChain's short form of a message: `("user", "hi")`."""
    return len(item) == 2 and isinstance(item[0], str) and item[0] in _PAIR_ROLES and isinstance(item[1], str)


def _inner(value: Mapping[str, Any]) -> Any:
    """The messages inside a request or a reply of an API, or inside a framework's wrapper."""
    for key in _WRAPPERS:
        inner = value.get(key)
        if isinstance(inner, list | Mapping) and inner:
            return inner
    return None


_WRAPPERS = (
    "messages", "choices", "generations", "contents", "candidates", "output", "input", "inputs", "outputs", "update",
)  # fmt: skip


def conversation(value: Any, role: str = "user", depth: int = 6) -> list[dict[str, Any]] | None:
    """The messages of `value` in the one form, or `None` if there are none to be seen in it.

    `role` is the role of a message that names none. A JSON text is parsed; requests and replies of APIs, LangChain
    dumps and batches of one are unwrapped, at most `depth` levels.
    """
    if depth <= 0:
        return None
    if type(value) is str and value[:2] == "[{":
        quickly = _messages_in(value, role)
        if quickly is not None:
            return quickly or None
    value = as_json(value)
    if type(value) is str:
        if value.startswith(("[{'", '[{"')):
            literal = python_literal(value)
            if not isinstance(literal, str):
                return conversation(literal, role, depth - 1)
        return None
    if isinstance(value, list):
        if value and all(type(item) is list and _is_pair(item) for item in value):
            return [{"role": role_of(item[0], role), "content": item[1]} for item in value]
        if len(value) == 1 and isinstance(value[0], list):
            return conversation(value[0], role, depth - 1)
        if value and all(_looks_like_message(item) for item in value):
            messages = [_message(item, role) for item in value]
            return [message for message in messages if message is not None] or None
        if value and all(isinstance(item, Mapping) and isinstance(item.get("function"), Mapping) for item in value):
            return [{"role": "assistant", "content": None, "tool_calls": [call_of(item) for item in value]}]
        if len(value) == 1 and isinstance(value[0], Mapping):
            return conversation(value[0], role, depth - 1)
        if value and isinstance(value[0], str):
            written = [message_of_repr(item) for item in value]
            return None if None in written else [message for message in written if message is not None]
        return None
    if isinstance(value, Mapping):
        if _looks_like_message(value):
            message = _message(value, role)
            return None if message is None else [message]
        inner = _inner(value)
        if inner is None:
            return None
        found = conversation(inner, role, depth - 1)
        system = value.get("system", value.get("system_instruction"))
        if found is not None and isinstance(system, str) and system and "messages" in value:
            return [{"role": "system", "content": system}, *found]
        return found
    return None


def text_of(message: Mapping[str, Any]) -> str | None:
    """The text of one message in the one form, or `None` if it has none."""
    content = message.get("content")
    return content if isinstance(content, str) and content else None


def fenced_code(text: str) -> tuple[str, str | None] | None:
    """The code of the last closed fenced block of `text` and its language, or `None`. `<code>` tags count as a fence.

    Linear in the text: what a model wrote is not to be trusted with a regular expression's patience.
    """
    pieces = text.split("```") if "```" in text else ()
    if len(pieces) >= 3:
        block = pieces[-2] if len(pieces) % 2 else pieces[-3]
        first, newline, code = block.partition("\n")
        if newline:
            return code.rstrip("\n"), first.strip().split(" ")[0].lower() or None
        return first.strip(), None
    start = text.rfind("<code>")
    end = text.find("</code>", start)
    if start >= 0 and end >= 0:
        return text[start + 6 : end].strip(), "python"
    return None
