"""What goes with an event: its rows of `messages` and `files`, and the events that are found inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_cmb.event import Event, FileRow, MessageRow, derived_id
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import content_of
from otel_cmb.messages import as_json
from otel_cmb.payload import text_of
from otel_cmb.vocabulary.base import AGENT, CODE, FILE, HANDOFF, TOOL

__all__ = ["add_rows", "events_inside"]


def add_rows(event: Event, inputs: Mapping[str, Any]) -> None:
    """The rows of `messages` and `files` that go with an event of our own vocabulary."""
    if event.event_subtype == "message" and event.event_type == AGENT:
        sender, recipient, content = (inputs.get(key) for key in ("sender", "recipient", "content"))
        tokens = event.meta.get("tokens")
        event.messages = [
            MessageRow(
                text_of(event.agent_name or "" if sender is None else sender), "" if recipient is None else text_of(recipient),
                "" if content is None else text_of(content),
                tokens if isinstance(tokens, int) else None,
            )
        ]  # fmt: skip
    elif event.event_type == FILE and isinstance(inputs.get("file_path"), str):
        size = event.meta.get("size_bytes")
        kind = inputs.get("file_type")
        event.files = [
            FileRow(
                inputs["file_path"], kind if isinstance(kind, str) and kind else _suffix(inputs["file_path"]),
                size if isinstance(size, int) and not isinstance(size, bool) else None,
            )
        ]  # fmt: skip


def _suffix(path: str) -> str:
    tail = path.rsplit("/", 1)[-1].rpartition(".")
    return tail[2].lower() if tail[0] and tail[2] else "file"


def events_inside(facts: Facts, kind: str, event: Event) -> list[Event]:
    """A handoff in the result of a tool that also does something else; a file that code was saved as before it ran."""
    if kind not in (TOOL, CODE) or facts.explicit or event.completed_ns is None:
        return []
    inputs: dict[str, Any]
    if kind == TOOL:
        target = _reply_target(facts)
        if target is None:
            return []
        inputs = {"from_agent": event.agent_name, "to_agent": target} if event.agent_name else {"to_agent": target}
        return [_inside(event, HANDOFF, inputs if facts.captures(HANDOFF) else None)]
    code = event.inputs.get("code") if event.inputs is not None else None
    path = _file_name(code) if isinstance(code, str) else None
    if path is None:
        return []
    inputs = {"file_path": path, "file_type": _suffix(path)}
    more = _inside(event, FILE, inputs if facts.captures(FILE) else None)
    more.files = [FileRow(path, inputs["file_type"])]
    return [more]


def _inside(event: Event, kind: str, inputs: dict[str, Any] | None) -> Event:
    return Event(
        derived_id(event.trace_id, event.span_id, kind), event.trace_id, event.span_id, kind, "complete", "completed",
        event.started_ns, event.completed_ns, event.run_id, event.node_id, event.step_id, event.agent_name,
        inputs=inputs, parent_event_id=event.id, depth=event.depth + 1,
    )  # fmt: skip


def _reply_target(facts: Facts) -> str | None:
    """The target in AG2 0.x's ReplyResult: `{"message": ..., "target": {"agent_name": ...}, ...}`."""
    text = facts.found.get("tool_result", facts.found.get("output"))
    if not isinstance(text, str) or text[:1] not in ("{", "[") or '"target"' not in text:
        return None
    result = content_of(as_json(text))
    target = result.get("target") if isinstance(result, Mapping) and "message" in result else None
    name = target.get("agent_name") if isinstance(target, Mapping) else target
    return name if isinstance(name, str) and name else None


_FILE_MARKS = ("# filename:", "// filename:", "<!-- filename:", "/* filename:")


def _file_name(code: str) -> str | None:
    """AG2 saves a block whose first line is `# filename: plot.py` under that name."""
    first = code.lstrip().partition("\n")[0].strip()
    for mark in _FILE_MARKS:
        if first.startswith(mark):
            path = first[len(mark) :].removesuffix("-->").removesuffix("*/").strip()
            return path if path and len(path) <= 1000 else None
    return None
