"""Pass 1: one span to what it says by itself. Pure, table-driven, and never raising, whatever the attributes hold.

The tables are in `otel_cmb.vocabulary`; what only the neighbours of a span tell is pass 2, `otel_cmb.assemble`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from otel_cmb.config import CODE_TOOLS
from otel_cmb.event import STATUS_ERROR, Span, event_id
from otel_cmb.few import unless_long
from otel_cmb.mapper_facts import Facts, from_skeleton, is_event, named, named_run, placed, skeleton
from otel_cmb.mapper_results import as_mapping, error_result, mapping_before_cut, unquoted, whole
from otel_cmb.mapper_shape import Shape, shape_of
from otel_cmb.mapper_tools import read_tool
from otel_cmb.vocabulary import ACTING, NAMES, OVERRIDES
from otel_cmb.vocabulary.base import (
    AGENT,
    CODE,
    CONTAINER,
    ERROR,
    LLM,
    NEVER,
    PLAIN,
    TOOL,
)

__all__ = ["Facts", "from_skeleton", "is_event", "named", "named_run", "placed", "read", "skeleton"]


def read(
    span: Span,
    *,
    id: str | None = None,  # noqa: A002 - the name the column has
    code_tools: Collection[str] = CODE_TOOLS,
    record: str = "agents",
    capture: Collection[str] = ("all",),
) -> Facts:
    """The facts of one span. `id` is its event id (a function of the span's ids if not given); `code_tools` names the
    tools whose calls are code executions; `record` is `agents` or `all`; `capture` says whose payloads are kept."""
    attributes = span.attributes
    shape = shape_of(attributes)
    facts = Facts(
        event_id(span.trace_id, span.span_id) if id is None else id, span,
        PLAIN, shape.fields(attributes), None, None, False, False, None, record == "all", _capture(tuple(capture)), shape,
    )  # fmt: skip
    _classify(facts, shape)
    if shape.enveloped:
        _open(facts.found)
    kind = facts.kind
    if kind in (NEVER, PLAIN):
        _plain(facts, shape)
        return facts
    _name_agent(facts)
    found = facts.found
    tool = found.get("tool_name")
    if isinstance(tool, str):
        facts.tool = tool
    if facts.explicit:
        if kind == CODE:
            facts.exit_code = whole(found.get("exit_code", as_mapping(found.get("cmb_meta")).get("exit_code")))
    elif kind == TOOL:
        read_tool(facts, code_tools)
    elif kind == CODE:
        facts.exit_code = whole(found.get("exit_code"))
    elif kind == CONTAINER:
        _read_container(facts)
    elif kind == LLM and "replies" in found:
        _read_replies(found)
    facts.failed = _failed(facts, shape)
    return facts


def _open(found: dict[str, Any]) -> None:
    """LangWatch's `{"type": "json", "value": ...}`."""
    for name, envelope in (("input", "input_envelope"), ("output", "output_envelope")):
        held = as_mapping(found.get(envelope))
        if "value" in held:
            found.setdefault(name, held["value"])


@lru_cache(maxsize=64)
def _capture(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def _classify(facts: Facts, shape: Shape) -> None:
    span = facts.span
    for key, kinds in shape.discriminators:
        value = span.attributes[key]
        if type(value) is not str:
            continue
        kind = kinds.get(value) or kinds.get(value.lower()) or kinds.get(value.upper())
        if kind is not None:
            facts.kind = kind
            if key == "cmb.event.type":
                facts.explicit = True
                return
            break
    if facts.kind == NEVER:
        return
    if shape.present is not None:
        facts.kind = shape.present
    elif facts.kind != PLAIN:
        facts.kind = _overriding(span.scope.name, span.name) or facts.kind
    else:
        facts.kind, name, text = _told_by_name(span.scope.name, span.name)
        if name is not None:
            facts.found.setdefault(name, text)
        elif facts.kind == PLAIN and facts.found.keys() >= _ANSWERED and "operation" not in facts.found:
            facts.kind = LLM  # a limit dropped the oldest of its attributes, or the program never said the operation


_ANSWERED = frozenset(("model", "finish_reason", "tokens_in"))
"""What only a call of a model says all of: who answered, why the answer ended, what was read for it."""


@lru_cache(maxsize=4096)
def _overridden(scope: str, name: str) -> str | None:
    for pattern, kind, scopes in OVERRIDES:
        if (not scopes or scope.startswith(scopes)) and pattern.fullmatch(name) is not None:
            return kind
    return None


@lru_cache(maxsize=4096)
def _by_name(scope: str, name: str) -> tuple[str, str | None, str | None]:
    """Kind, and the one field a span's name carries: a running span of a framework that sets attributes late has only
    this."""
    for pattern, kind, scopes in NAMES:
        if scopes and not scope.startswith(scopes):
            continue
        match = pattern.fullmatch(name)
        if match is not None:
            for group, text in match.groupdict().items():
                return kind, _GROUP_FIELDS[group], text
            return kind, None, None
    return PLAIN, None, None


_overriding, _told_by_name = unless_long(_overridden), unless_long(_by_name)
_GROUP_FIELDS = {"agent": "agent_name", "tool": "tool_name", "model": "request_model"}


def _plain(facts: Facts, shape: Shape) -> None:
    """A log record of an error (Logfire: level 17 and above, zero-length) is an error event of its own."""
    level = facts.found.get("level")
    if facts.kind == PLAIN and facts.found.get("span_type") == "log" and isinstance(level, int) and level >= 17:
        facts.kind = ERROR
    facts.failed = facts.span.died if facts.kind == NEVER else facts.kind == ERROR or _failed(facts, shape)
    name = facts.found.get("agent_name")
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name


_NO_NAMES = frozenset(("", "unknown", "None"))
_CREATE_AGENT = "langchain_create_agent"
"""How LangChain's metadata names what `create_agent` made: the graph, and with it every node of the graph."""
_NAMED_IN_METADATA = ("lc_agent_name", "agent_name", "langgraph_node")
_NAME_IN_SPAN = re.compile(
    r"(?!haystack\.)(.+)\.(?:a?run|a?run_stream|a?generate_reply|agent|_execute_core|a?kickoff|a?invoke|a?forward)", re.DOTALL
)


def _name_agent(facts: Facts) -> None:
    found = facts.found
    name = unquoted(found.get("agent_name"))
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name
        if (
            facts.kind == CONTAINER and name == facts.span.name
            and "made_by" in found and unquoted(found["made_by"]) == _CREATE_AGENT
        ):  # fmt: skip
            facts.kind = AGENT
        return
    if name is not None and isinstance(name, (int, float)):
        facts.agent = str(name)
        return
    metadata = found.get("metadata")
    if isinstance(metadata, (str, Mapping)) and any(key in metadata for key in _NAMED_IN_METADATA):
        parsed = mapping_before_cut(metadata)
        if "langgraph_node" in parsed:
            found.setdefault("graph_node", parsed["langgraph_node"])
        made = parsed.get("ls_integration") == _CREATE_AGENT
        if made and facts.kind == CONTAINER and parsed.get("lc_agent_name") == facts.span.name:
            facts.kind = AGENT  # an agent of LangChain whose name does not contain the word
        for key in _NAMED_IN_METADATA:
            name = parsed.get(key)
            if isinstance(name, str) and name not in _NO_NAMES:
                facts.agent = name
                if facts.kind == AGENT and key == "langgraph_node":
                    _starts_a_graph(facts)
                return
    if facts.kind == CONTAINER and "graph_node" not in found and facts.span.scope.name in ACTING:
        _read_step(facts)
    name = unquoted(found.get("graph_node"))
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name
        _starts_a_graph(facts)
        return
    if facts.kind != AGENT or (facts.explicit and found.get("event_subtype") == "message"):
        return  # a message that names no sender is nobody's: its span is no agent
    name = found.get("plain_name")
    if isinstance(name, str) and name:
        facts.agent = name
        return
    _, carried, text = _told_by_name(facts.span.scope.name, facts.span.name)
    match = _NAME_IN_SPAN.fullmatch(facts.span.name)
    if carried == "agent_name":
        facts.agent = text or None
    elif match is not None:
        facts.agent = match[1]
    elif "oi_kind" in found and "input" not in found and "output" not in found:
        # Nothing but its kind: the root that OpenInference gives a workflow of the OpenAI Agents SDK.
        facts.kind = CONTAINER
    elif "agent_name" not in found and facts.span.name != found.get("operation"):  # `invoke_agent` names nobody
        facts.agent = facts.span.name or None


def _starts_a_graph(facts: Facts) -> None:
    """Functions inside a graph's own nodes (`__start__`) are taken for agents where their names contain the word."""
    if facts.kind == AGENT and facts.agent is not None and facts.agent.startswith("__"):
        facts.kind = CONTAINER


def _read_step(facts: Facts) -> None:
    """Whose step of a workflow a container is, where only its name or a text that it carries says so."""
    found = facts.found
    steps, told = ACTING[facts.span.scope.name]
    for end, node in steps:
        if facts.span.name.endswith(end):
            found["graph_node"] = node
            return
    for before, after in told:
        for text in (found.get("input"), found.get("output")):
            name = text.rpartition(before)[2].partition(after) if isinstance(text, str) and before in text else None
            if name is not None and name[1] and len(name[0]) <= MAX_NAME:
                found["graph_node"] = name[0]
                return


MAX_NAME = 200
"""Longest name of an agent that is looked for in a text."""


def _read_replies(found: dict[str, Any]) -> None:
    """Haystack's replies carry the model and what was spent in their `meta`."""
    replies = as_mapping(found["replies"]).get("replies")
    if not isinstance(replies, list):
        return
    found.setdefault("messages_out", replies)
    meta = replies[0].get("meta") if replies and isinstance(replies[0], Mapping) else None
    if isinstance(meta, Mapping):
        for name, key in (("model", "model"), ("finish_reason", "finish_reason"), ("usage", "usage")):
            if key in meta:
                found.setdefault(name, meta[key])


def _read_container(facts: Facts) -> None:
    """The step of a smolagents CodeAgent runs code: it says so by its logs or by the error that running raised."""
    found = facts.found
    text = found.get("input")
    if "oi_kind" not in found:
        return
    if "memory_step" not in text if isinstance(text, Mapping) else '"memory_step"' not in str(text)[:64]:
        return
    output = found.get("output")
    if (isinstance(output, str) and output.startswith("Execution logs:")) or any(
        isinstance(kind, str) and kind.endswith("AgentExecutionError")
        for kind in (event.attributes.get("exception.type") for event in facts.span.events)
    ):
        facts.kind = CODE


_CONTROL_FLOW = ("ParentCommand", "GraphBubbleUp", "GraphInterrupt", "NodeInterrupt")


def _controls_flow(facts: Facts) -> bool:
    """LangGraph raises to hand over or to pause: instrumentations take that for a failure."""
    kind = facts.found.get("error_type")
    raised = next((event.attributes for event in facts.span.events if event.name == "exception"), None)
    if raised is not None:
        if kind is None:
            kind = raised.get("exception.type")
        if kind == "Exception":  # LangSmith writes what was raised as its repr
            name, called, _ = str(raised.get("exception.message"))[:64].partition("(")
            kind = name if called and name.isidentifier() else kind
    return isinstance(kind, str) and kind.endswith(_CONTROL_FLOW)


def _failed(facts: Facts, shape: Shape) -> bool:
    span, found = facts.span, facts.found
    if span.died:
        return True
    if span.status_code == STATUS_ERROR or (shape.may_fail and found.get("task_status") == "failure"):
        if not _controls_flow(facts):
            return True
        return facts.exit_code not in (None, 0)
    if facts.exit_code is not None and facts.exit_code != 0:
        return True
    if shape.may_fail and _says_it_failed(found):
        return True
    if facts.kind in (TOOL, CODE):
        return error_result(found.get("tool_result", found.get("output")))
    return False


def _says_it_failed(found: Mapping[str, Any]) -> bool:
    if found.get("error_type") not in (None, "", False):
        return True
    if "error_message" in found and found["error_message"] != "":
        return True
    if found.get("task_status") in ("failure", "error", "failed", "timeout", "ERROR"):
        return True
    level = found.get("level")
    return isinstance(level, int) and not isinstance(level, bool) and level >= 17
