"""Why an act failed: a short message for the list, type and stack for the person who digs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_cmb.assemble_messages import reply_of
from otel_cmb.assemble_payload import Columns, result_of, strip_exit
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import content_of, error_result, structure_of
from otel_cmb.vocabulary.base import AGENT, CODE, ERROR, TOOL

__all__ = ["MAX_MESSAGE", "error_of"]

MAX_MESSAGE = 500
"""Longest `error_message`: it is shown in lists; the whole stands in `meta.stack` or in the outputs."""


def _exception(facts: Facts) -> Mapping[str, Any] | None:
    """The attributes of the last exception event: instrumentations repeat it, and wrap it on its way up."""
    for event in reversed(facts.span.events):
        if event.name == "exception":
            return event.attributes
    return None


def _short(text: str) -> str:
    head = text = _told(text)
    cut = text.find("Traceback (most recent call last)")
    if cut > 0:
        head = text[:cut].strip()
    elif cut == 0:
        lines = text.strip().splitlines()
        head = lines[-1].strip() if lines else text
    if len(head) > MAX_MESSAGE:
        head = head[: MAX_MESSAGE - 1] + "…"
    return head


def _told(text: str) -> str:
    """`Error running tool: no x` of `{'message': ..., 'data': {'error': ...}}`, as the OpenAI Agents SDK writes it."""
    if not text.startswith(("{'message': ", '{"message": ')):
        return text
    held = structure_of(text)
    if not isinstance(held, Mapping) or not isinstance(held.get("message"), str):
        return text
    data = held.get("data")
    reason = data.get("error") if isinstance(data, Mapping) else None
    return f"{held['message']}: {reason}" if reason else held["message"]


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("[exit code:")]
    return lines[-1].strip() if lines else ""


def error_of(facts: Facts, kind: str) -> tuple[str | None, Columns]:
    """A short message, and `error_type` and `stack` for `meta`, of a failed event."""
    found, span = facts.found, facts.span
    exception = _exception(facts)
    meta: Columns = {}
    error_type = found.get("error_type")
    stack = None
    if exception is not None:
        error_type = error_type if error_type not in (None, "", "_OTHER") else exception.get("exception.type")
        stack = exception.get("exception.stacktrace")
    if isinstance(error_type, str) and error_type:
        meta["error_type"] = error_type
    if isinstance(stack, str) and stack:
        meta["stack"] = stack
    elif "Traceback (most recent call last)" in span.status_message:
        meta["stack"] = span.status_message
    if span.died:
        return "process ended before the span did", meta
    message = found.get("error_message")
    if isinstance(message, str) and message:
        return _short(message), meta
    if kind in (TOOL, CODE):
        result = found.get("tool_result", found.get("output"))
        if isinstance(result, str):
            result = structure_of(result)
        if error_result(result):
            text = content_of(result)
            if isinstance(text, str) and text:
                return _short(text), meta
        said = result.get("error") if isinstance(result, Mapping) else None
        if isinstance(said, str) and said and not span.status_message and exception is None:
            return _short(said), meta
    if span.status_message:
        return _short(span.status_message), meta
    if exception is not None and exception.get("exception.message"):
        return _short(str(exception["exception.message"])), meta
    if kind == CODE:
        result = strip_exit(reply_of(facts)) if facts.kind == AGENT else result_of(facts)
        if isinstance(result, str):
            result = structure_of(result)
        if isinstance(result, Mapping):
            result = next((result[key] for key in ("stderr", "error", "output", "stdout") if result.get(key)), None)
        if isinstance(result, str) and result.strip():
            line = _last_line(result)
            return _short(line or result), meta
        if facts.exit_code is not None:
            return f"exit code {facts.exit_code}", meta
    message = found.get("message")
    if isinstance(message, str) and message and facts.kind == ERROR:
        return _short(message), meta
    return (error_type if isinstance(error_type, str) and error_type else None), meta
