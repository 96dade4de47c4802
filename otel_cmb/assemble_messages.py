"""The messages that went into and came out of one act, from wherever its span keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_cmb.event import SpanEvent
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import as_mapping
from otel_cmb.messages import as_json, conversation
from otel_cmb.messages_flat import flattened
from otel_cmb.vocabulary.base import LLM

__all__ = ["event_messages", "gist", "incoming", "outgoing", "pick", "reply_of"]

_EVENT_ROLES = {
    "gen_ai.system.message": "system", "gen_ai.user.message": "user", "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool", "gen_ai.choice": "assistant",
}  # fmt: skip


def event_messages(events: list[SpanEvent], outgoing: bool) -> list[dict[str, Any]] | None:
    """Messages that older conventions put into span events."""
    found: list[dict[str, Any]] = []
    said = "assistant" if outgoing else "user"
    details = "gen_ai.output.messages" if outgoing else "gen_ai.input.messages"
    content = "gen_ai.completion" if outgoing else "gen_ai.prompt"
    for event in events:
        role = _EVENT_ROLES.get(event.name)
        attributes = event.attributes
        if role is not None:
            if (event.name == "gen_ai.choice") == outgoing:
                found.extend(conversation([{"role": role, **_body(attributes)}]) or ())
        elif event.name == "gen_ai.client.inference.operation.details":
            found.extend(conversation(attributes.get(details)) or ())
        elif event.name in _CONTENT_EVENTS and content in attributes:
            value = attributes[content]
            found.extend(conversation(value) or ([{"role": said, "content": value}] if isinstance(value, str) else ()))
    return found or None


_CONTENT_EVENTS = frozenset(("gen_ai.content.prompt", "gen_ai.content.completion"))


def _body(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    body = as_json(attributes.get("message", attributes.get("body", attributes)))
    if not isinstance(body, Mapping):
        return {"content": body}
    content = body.get("content")
    return {**body, "content": as_json(content)} if isinstance(content, str) and content[:1] == "[" else body


def incoming(facts: Facts) -> list[dict[str, Any]] | None:
    """The messages that came in, in the one form, or `None`."""
    found, attributes = facts.found, facts.span.attributes
    messages = conversation(found["messages_in"]) if "messages_in" in found else None
    if messages is None and "oi_kind" in found:
        messages = flattened(attributes, "llm.input_messages.")
    if messages is None and facts.kind == LLM:
        messages = flattened(attributes, "gen_ai.prompt.") or flattened(attributes, "llm.prompts.")
    if messages is None and facts.span.events:
        messages = event_messages(facts.span.events, outgoing=False)
    if messages is None and isinstance(found.get("messages_in"), str) and found["messages_in"] != "[]":
        messages = [{"role": "user", "content": found["messages_in"]}]
    if messages is None and "input" in found:
        messages = conversation(found["input"])
    if messages is not None and "system" in found and not any(message["role"] == "system" for message in messages):
        text = _system_text(found["system"])
        if text is not None:
            messages = [{"role": "system", "content": text}, *messages]
    return messages


def _system_text(value: Any) -> Any:
    parsed = as_json(value)
    if isinstance(parsed, list):
        messages = conversation([{"role": "system", "parts": parsed}])
        return messages[0].get("content") if messages else None
    return parsed if parsed != "" else None


def outgoing(facts: Facts) -> list[dict[str, Any]] | None:
    """The messages that went out, in the one form, or `None`."""
    found, attributes = facts.found, facts.span.attributes
    messages = conversation(found["messages_out"], "assistant") if "messages_out" in found else None
    if messages is None and "oi_kind" in found:
        messages = flattened(attributes, "llm.output_messages.")
    if messages is None and facts.kind == LLM:
        messages = (
            flattened(attributes, "gen_ai.completion.") or flattened(attributes, "llm.completions.")
            or flattened(attributes, "llm.choices.", "assistant")
        )  # fmt: skip
    if messages is None and facts.span.events:
        messages = event_messages(facts.span.events, outgoing=True)
    if messages is None and isinstance(found.get("messages_out"), str) and found["messages_out"] not in ("", "{}", "[]"):
        messages = [{"role": "assistant", "content": found["messages_out"]}]
    if "calls_out" in found:
        calls = conversation([{"role": "assistant", "content": None, "tool_calls": as_json(found["calls_out"])}])
        if calls and "tool_calls" in calls[0]:
            messages = [{**(messages[-1] if messages else calls[0]), "tool_calls": calls[0]["tool_calls"]}]
    if messages is None and "output" in found:
        messages = conversation(found["output"], "assistant")
    return messages


def gist(message: Mapping[str, Any]) -> Any:
    """A message as a person reads it: its text, or what it asks for."""
    content = message.get("content")
    if type(content) is str and content:
        return content
    if content not in (None, "", [], {}):
        return content
    rest = {key: value for key, value in message.items() if key not in ("role", "name", "content", "finish_reason")}
    return rest or content


TASK_KEYS = (
    "message",
    "task",
    "input",
    "query",
    "question",
    "prompt",
    "user_message",
    "user_msg",
    "content",
    "description",
    "input_args",
)
_CALL = {"args", "kwargs"}
ANSWER_KEYS = ("response", "raw", "output", "result", "answer", "content", "final_output")


def pick(value: Any, keys: tuple[str, ...]) -> Any:
    """What a request or a reply that is no list of messages is about."""
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        if value.keys() == _CALL:  # how decorators write down what a function was called with
            positional, named = value["args"], value["kwargs"]
            if not positional:
                value = named or None
                continue
            if isinstance(positional, list) and len(positional) == 1 and not named:
                value = positional[0]
                continue
        for key in keys:
            if key in value and value[key] is not None:
                value = value[key]
                break
        else:
            break
    return value


def reply_of(facts: Facts) -> Any:
    """What an agent or a container answered: a text, a structure, or `None`."""
    found = facts.found
    if "final_result" in found:
        return as_json(found["final_result"])
    if "cmb_outputs" in found:
        return as_mapping(found["cmb_outputs"]).get("response")
    value = None
    if "output" in found and "messages_out" not in found:
        value = as_json(found["output"])
        if isinstance(value, Mapping) and isinstance(value.get("raw"), str):  # CrewAI's result, which holds all messages
            return value["raw"]
    messages = outgoing(facts)
    if messages:
        return gist(messages[-1])
    return pick(value, ANSWER_KEYS) if isinstance(value, Mapping) else value
