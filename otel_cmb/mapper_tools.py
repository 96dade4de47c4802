"""What the call of a tool was: a code execution, a handoff, or just that."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from otel_cmb.mapper_facts import Facts
from otel_cmb.mapper_results import as_mapping, canonical, exit_code_of
from otel_cmb.messages import as_json, conversation
from otel_cmb.vocabulary.base import CODE, HANDOFF

__all__ = ["HANDOFF_NAME", "TRANSFER", "read_tool"]


@lru_cache(maxsize=32)
def _canonical_set(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(canonical(name) for name in names)


TRANSFER = re.compile(r"(?:\w+-)?(?:transfer|transfer_back|handoff|hand_off|handoff_back|hand_over)_to_(.+)", re.DOTALL)
HANDOFF_NAME = re.compile(r"handoff to (.+)|.+ → (.+)\.handoff", re.DOTALL)


def _told_by_events(facts: Facts) -> None:
    """Older conventions put a tool's arguments and result into span events."""
    for event in facts.span.events:
        attributes = event.attributes
        if event.name == "gen_ai.tool.message" and "content" in attributes:
            facts.found.setdefault("tool_arguments", attributes["content"])
        elif event.name == "gen_ai.choice" and "message" in attributes:
            facts.found.setdefault("tool_result", attributes["message"])
        elif event.name == "gen_ai.client.inference.operation.details":
            for name, key in (("tool_arguments", "gen_ai.input.messages"), ("tool_result", "gen_ai.output.messages")):
                messages = conversation(attributes.get(key)) or ()
                for message in messages[-1:]:
                    calls: Any = message.get("tool_calls") or ({},)
                    value = calls[0].get("arguments") if name == "tool_arguments" else message.get("content")
                    if value is not None:
                        facts.found.setdefault(name, value)


def read_tool(facts: Facts, code_tools: Collection[str]) -> None:
    tool, found = facts.tool, facts.found
    if facts.span.events and "tool_result" not in found and "output" not in found:
        _told_by_events(facts)
    if "rpc" in found:  # Logfire's spans of MCP have the request as it was sent
        parameters = as_mapping(found["rpc"]).get("params")
        if isinstance(parameters, Mapping) and "arguments" in parameters:
            found.setdefault("tool_arguments", parameters["arguments"])
    if "input" not in found and "messages_in" in found:  # LangSmith has one pair of keys for what goes in and comes out
        found.setdefault("tool_arguments", found["messages_in"])
    if "output" not in found and "messages_out" in found:
        found.setdefault("tool_result", found["messages_out"])
    if tool is None:
        match = HANDOFF_NAME.fullmatch(facts.span.name) if "handoff" in facts.span.name else None
        if match is not None:
            facts.kind = HANDOFF
            for name, source in (("handoff_from", "input"), ("handoff_to", "output")):
                if isinstance(found.get(source), str):
                    found.setdefault(name, found[source])
            found.setdefault("handoff_to", match[1] or match[2])
            return
        named_tool = found.get("plain_name")
        match = _TOOL_IN_SPAN.fullmatch(facts.span.name)
        tool = match[1] if match is not None else facts.span.name
        tool = facts.tool = named_tool if isinstance(named_tool, str) and named_tool else tool
    if ("_to_" in tool and TRANSFER.fullmatch(tool) is not None) or (
        "handoff" in tool and canonical(tool) in ("handoff", "handofftoagent") and _names_target(facts)
    ):
        facts.kind = HANDOFF
        return
    code_names = _canonical_set(tuple(code_tools))
    text = found.get("tool_result", found.get("output"))
    if canonical(tool) in code_names:
        facts.kind = CODE
        facts.exit_code = exit_code_of(text)
    elif isinstance(text, str) and "exit" in (text[:200] + text[-64:]).lower():
        code = exit_code_of(text, structured=False)
        if code is not None:
            facts.kind = CODE
            facts.exit_code = code


def _names_target(facts: Facts) -> bool:
    arguments = as_json(facts.found.get("tool_arguments", facts.found.get("input")))
    if isinstance(arguments, Mapping) and isinstance(arguments.get("kwargs"), Mapping):
        arguments = arguments["kwargs"]
    keys = ("to_agent", "agent_name", "target", "agent")
    return isinstance(arguments, Mapping) and any(key in arguments for key in keys)


_TOOL_IN_SPAN = re.compile(r"(.+)\.(?:run|tool|a?call|__call__|a?execute)", re.DOTALL)
