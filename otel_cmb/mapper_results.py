"""What a tool's result says by its form: whether it failed, which exit code it had, what is inside its envelope."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from otel_cmb.cut_json import uncut
from otel_cmb.few import unless_long
from otel_cmb.messages import as_json, python_literal

__all__ = [
    "EXIT_REPLY",
    "as_mapping",
    "canonical",
    "content_of",
    "error_result",
    "exit_code_of",
    "mapping_before_cut",
    "structure_of",
    "unquoted",
    "whole",
]


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The mapping a JSON text holds, or an empty one."""
    parsed = as_json(value)
    return parsed if isinstance(parsed, Mapping) else {}


def mapping_before_cut(value: Any) -> Mapping[str, Any]:
    """The same of a JSON text that may be cut off, without what the cut went through."""
    parsed = as_json(value)
    if isinstance(parsed, str):
        parsed = uncut(parsed, half=False)
    return parsed if isinstance(parsed, Mapping) else {}


def unquoted(value: Any) -> Any:
    """The text that a JSON text holds, where an exporter writes every value as JSON; anything else unchanged."""
    return as_json(value) if type(value) is str and value[:1] == '"' else value


def structure_of(result: str) -> Any:
    """What a result's text holds: JSON, the Python repr that `str` made of a dictionary or list, or JSON that was cut off;
    else the text, also where it came as a JSON string. For what is inferred from a result, not for what is stored of it."""
    if result[:1] == '"':
        held = as_json(result)
        result = held if type(held) is str and held is not result else result[1:]  # cut off: as far as it goes
    if result[:1] not in ("{", "["):
        return result
    parsed = as_json(result)
    if parsed is result:
        parsed = python_literal(result)
    return uncut(result, half=True) if parsed is result else parsed


@lru_cache(maxsize=4096)
def _canonical(name: str) -> str:
    """A tool's name without case, separators and the word "tool": `PythonREPL_Tool` is `python_repl`."""
    text = "".join(letter for letter in name.lower() if letter.isalnum())
    return text.removesuffix("tool") or text


canonical = unless_long(_canonical)


_EXIT_HEAD = re.compile(r"\s*exit ?code:? *(-?\d{1,10})\b", re.IGNORECASE)
_EXIT_TAIL = re.compile(r"\[exit code: *(-?\d{1,10})\]\s*")
EXIT_REPLY = re.compile(r"exitcode: (-?\d{1,10}) \(")

_EXIT_KEYS = ("exitcode", "exit_code", "exitCode", "returncode", "return_code")


def exit_code_of(result: Any, structured: bool = True) -> int | None:
    """The exit code a result says: `exitcode: 1 ...` at its head, `[exit code: 1]` at its end, or a key of a structure.
    `structured=False` looks at texts alone."""
    if isinstance(result, str):
        result = structure_of(result)
    text = content_of(result)
    if isinstance(text, str):
        match = _EXIT_HEAD.match(text) or _EXIT_TAIL.fullmatch(text, max(0, text.rfind("[exit code:")))
        if match is not None:
            return int(match[1])
    if structured and isinstance(result, Mapping):
        for key in _EXIT_KEYS:
            if key in result:
                return whole(result[key])
    return None


def content_of(result: Any) -> Any:
    """What a tool said, without the envelope its framework put it in: LangChain's message dump, AG2's `[ok, message]`,
    MCP's content blocks, Google ADK's `{"result": ...}`. Anything else unchanged."""
    for _ in range(4):
        if isinstance(result, list):
            inside = _content_of_list(result)
        elif isinstance(result, Mapping):
            inside = _content_of_mapping(result)
        else:
            return result
        if inside is result:
            return result
        result = inside
    return result


def _content_of_list(result: list[Any]) -> Any:
    if len(result) == 2 and isinstance(result[0], bool) and isinstance(result[1], Mapping) and "content" in result[1]:
        return result[1]["content"]
    blocks = [part for part in result if isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part]
    if blocks and len(blocks) == len(result):
        return "\n".join(str(part["text"]) for part in blocks)
    return result


_DUMPED = frozenset(("tool", "ai", "human"))


def _content_of_mapping(result: Mapping[str, Any]) -> Any:
    inner = result.get("kwargs")
    if result.get("lc") == 1 and isinstance(inner, Mapping):  # LangChain, serialised by itself
        return inner.get("content")
    inner = result.get("data")
    if (
        isinstance(inner, Mapping) and "content" in inner and str(result.get("type")) in _DUMPED
    ):  # LangChain, as OpenInference dumps it
        return inner["content"]
    inner = result.get("output")
    if isinstance(inner, Mapping) and len(result) <= 3 and inner.get("lc") == 1:  # the same, in Traceloop's wrapper
        return inner
    if isinstance(inner, Mapping) and len(result) == 1 and "content" in inner and "tool_call_id" in inner:  # in LangSmith's
        return inner["content"]
    if "content" in result and "tool_call_id" in result and result.get("type") == "tool":  # LangChain, in Langfuse's
        return result["content"]
    if len(result) == 1 and "result" in result:  # Google ADK, MCP: a bare value made an object
        return result["result"]
    if "raw_output" in result and "tool_name" in result:  # LlamaIndex
        return result["raw_output"]
    if result.keys() == {"result", "is_error"}:  # Traceloop, of MCP
        return result["result"]
    if isinstance(result.get("content"), list) and ("isError" in result or "is_error" in result):  # MCP
        return result["content"]
    return result


def error_result(result: Any) -> bool:
    """Whether a tool's result says by its form that the call failed: AG2's `[false, ...]`, MCP's `isError`, LangChain's
    `status: error`, or the same as Python writes it. What a tool writes as text is its own business."""
    if isinstance(result, str):
        if result[:1] == '"':
            held = as_json(result) if "rror" in result else result
            return held is not result and error_result(held)
        if result[:1] in ("{", "["):
            held = structure_of(result) if _ERROR_HINT.search(result) is not None else result
            return held is not result and error_result(held)
        return result.endswith(_ERROR_ENDS) and _ERROR_REPR.fullmatch(result) is not None
    if isinstance(result, list):
        return len(result) == 2 and result[0] is False and isinstance(result[1], Mapping) and "content" in result[1]
    if not isinstance(result, Mapping):
        return False
    if result.get("isError") is True or result.get("is_error") is True:
        return True
    if result.get("status") == "error" and "tool_call_id" in result:
        return True
    for key in ("kwargs", "data", "output"):
        inner = result.get(key)
        if isinstance(inner, Mapping):
            if inner.get("status") == "error" and "tool_call_id" in inner:
                return True
            if key == "output" and inner.get("lc") == 1:
                return error_result(inner)
    return False


_ERROR_HINT = re.compile(r"""^\[ ?[Ff]alse|["']is_?[Ee]rror["'] ?: ?[Tt]rue|["']status["'] ?: ?["']error["']""")
_ERROR_ENDS = ("isError=True", "status='error'")
_ERROR_REPR = re.compile(r"meta=.{0,200}? ?content=\[.* isError=True|content=['\"\[].* status='error'", re.DOTALL)
"""MCP's `CallToolResult` and LangChain's `ToolMessage` as `str` writes them."""


def whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 20:
        try:
            return int(value)
        except ValueError:
            return None
    return None
