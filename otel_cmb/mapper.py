"""Pass 1: one span to what it says by itself. Pure, table-driven, and never raising, whatever the attributes hold.

The tables are in `otel_cmb.vocabulary`; what only the neighbours of a span tell is pass 2, `otel_cmb.assemble`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from otel_cmb.config import CODE_TOOLS
from otel_cmb.event import STATUS_ERROR, Link, Span, Stamp, event_id
from otel_cmb.messages import as_json, conversation
from otel_cmb.vocabulary import DISCRIMINATORS, FIELD_OF, NAMES, OVERRIDES, PRESENT
from otel_cmb.vocabulary.base import (
    AGENT, CODE, CONTAINER, ERROR, EVENT_TYPES, HANDOFF, LLM, NEVER, PLAIN, SPEAKER, TOOL,
)

__all__ = ["Facts", "from_skeleton", "is_event", "named", "read", "skeleton"]


@dataclass(slots=True)
class Facts:
    """What one span says by itself. `kind` is one of `otel_cmb.vocabulary.base`; `found` holds our fields as the best
    vocabulary on the span gives them, unparsed."""

    id: str
    span: Span
    kind: str
    found: dict[str, Any] = field(default_factory=dict)
    agent: str | None = None
    tool: str | None = None
    explicit: bool = False
    """`cmb.event.type` says what it is: nothing is inferred from it."""
    failed: bool = False
    exit_code: int | None = None
    record_all: bool = False
    capture: frozenset[str] = frozenset(("all",))
    bare: bool = False
    """Made from a skeleton: it has no attributes and can never be an event."""
    memo: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """What pass 2 worked out from these facts alone, so that a trace that grows is not read again each time."""

    def captures(self, event_type: str) -> bool:
        return "all" in self.capture or event_type in self.capture


def is_event(facts: Facts) -> bool:
    """Whether the span is an event by itself. If not, only its skeleton matters to its neighbours."""
    kind = facts.kind
    return not facts.bare and kind != NEVER and (kind != PLAIN or facts.record_all)


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
    facts = Facts(
        event_id(span.trace_id, span.span_id) if id is None else id,
        span,
        PLAIN,
        found=_collect(attributes),
        record_all=record == "all",
        capture=_capture(tuple(capture)),
    )
    _classify(facts, attributes)
    kind = facts.kind
    if kind in (NEVER, PLAIN):
        _plain(facts)
        return facts
    _name_agent(facts)
    found = facts.found
    tool = found.get("tool_name")
    if isinstance(tool, str):
        facts.tool = tool
    if facts.explicit:
        if kind == CODE:
            facts.exit_code = _whole(found.get("exit_code", as_mapping(found.get("cmb_meta")).get("exit_code")))
    elif kind == TOOL:
        _read_tool(facts, code_tools)
    elif kind == CODE:
        facts.exit_code = _whole(found.get("exit_code"))
    elif kind == CONTAINER:
        _read_container(facts)
    facts.failed = _failed(facts)
    return facts


@lru_cache(maxsize=64)
def _capture(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def _collect(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    field_of = FIELD_OF.get
    for key, value in attributes.items():
        slot = field_of(key)
        if slot is not None and value is not None:
            name, rank = slot
            if rank < ranks.get(name, 1000):
                found[name] = value
                ranks[name] = rank
    return found


def _classify(facts: Facts, attributes: Mapping[str, Any]) -> None:
    for key, kinds in DISCRIMINATORS:
        value = attributes.get(key)
        if value is None or type(value) is not str:
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
    for key, kind in PRESENT.items():
        if key in attributes:
            facts.kind = kind
            return
    if facts.kind != PLAIN:
        facts.kind = _overridden(facts.span.scope.name, facts.span.name) or facts.kind
    else:
        kind, name, text = _by_name(facts.span.scope.name, facts.span.name)
        facts.kind = kind
        if name is not None:
            facts.found.setdefault(name, text)


@lru_cache(maxsize=4096)
def _overridden(scope: str, name: str) -> str | None:
    for pattern, kind, scopes in OVERRIDES:
        if (not scopes or scope.startswith(scopes)) and pattern.fullmatch(name) is not None:
            return kind
    return None


@lru_cache(maxsize=4096)
def _by_name(scope: str, name: str) -> tuple[str, str | None, str | None]:
    """Kind, and the one field a span's name carries; frameworks set attributes late, so a running span has only this."""
    for pattern, kind, scopes in NAMES:
        if scopes and not scope.startswith(scopes):
            continue
        match = pattern.fullmatch(name)
        if match is not None:
            for group, text in match.groupdict().items():
                return kind, _GROUP_FIELDS[group], text
            return kind, None, None
    return PLAIN, None, None


_GROUP_FIELDS = {"agent": "agent_name", "tool": "tool_name", "model": "request_model"}


def _plain(facts: Facts) -> None:
    """A log record of an error (Logfire: level 17 and above, zero-length) is an error event of its own."""
    level = facts.found.get("level")
    if facts.kind == PLAIN and facts.found.get("span_type") == "log" and isinstance(level, int) and level >= 17:
        facts.kind = ERROR
    facts.failed = facts.kind == ERROR or _failed(facts)
    name = facts.found.get("agent_name")
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name


_NO_NAMES = frozenset(("", "unknown", "None"))
_NAME_IN_SPAN = re.compile(r"(.+)\.(?:a?run|a?generate_reply|agent|_execute_core|a?kickoff|invoke|ainvoke|arun_stream|run_stream)", re.DOTALL)


def _name_agent(facts: Facts) -> None:
    found = facts.found
    name = found.get("agent_name")
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name
        return
    if name is not None and isinstance(name, int | float):
        facts.agent = str(name)
        return
    metadata = found.get("metadata")
    if isinstance(metadata, str) and ("agent_name" in metadata or "langgraph_node" in metadata):
        parsed = as_mapping(metadata)
        if facts.kind == CONTAINER and parsed.get("lc_agent_name") == facts.span.name:
            if parsed.get("ls_integration") == "langchain_create_agent":
                facts.kind = AGENT  # an agent of LangChain whose name does not contain the word
        for key in ("lc_agent_name", "agent_name", "langgraph_node"):
            name = parsed.get(key)
            if isinstance(name, str) and name not in _NO_NAMES:
                facts.agent = name
                return
    name = found.get("graph_node")
    if isinstance(name, str) and name not in _NO_NAMES:
        facts.agent = name
        return
    if facts.kind != AGENT:
        return
    match = _NAME_IN_SPAN.fullmatch(facts.span.name)
    if match is not None:
        facts.agent = match[1]
    elif "oi_kind" in found and "input" not in found and "output" not in found and facts.span.end_ns is not None:
        # Nothing but its kind: the root that OpenInference gives a workflow of the OpenAI Agents SDK.
        facts.kind = CONTAINER
    elif "agent_name" not in found:
        facts.agent = facts.span.name or None


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The mapping a JSON text holds, or an empty one."""
    parsed = as_json(value)
    return parsed if isinstance(parsed, Mapping) else {}


def canonical(name: str) -> str:
    """A tool's name without case, separators and the word "tool": `PythonREPL_Tool` is `python_repl`."""
    text = "".join(letter for letter in name.lower() if letter.isalnum())
    return text.removesuffix("tool") or text


@lru_cache(maxsize=32)
def _canonical_set(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(canonical(name) for name in names)


@lru_cache(maxsize=4096)
def _canonical_name(name: str) -> str:
    return canonical(name)


TRANSFER = re.compile(r"(?:transfer|transfer_back|handoff|hand_off|handoff_back|hand_over)_to_(.+)", re.DOTALL)
HANDOFF_NAME = re.compile(r"handoff to (.+)|.+ → (.+)\.handoff", re.DOTALL)
_EXIT_HEAD = re.compile(r"\s*exit ?code:? *(-?\d{1,10})\b", re.IGNORECASE)
_EXIT_TAIL = re.compile(r"\[exit code: *(-?\d{1,10})\]\s*")
EXIT_REPLY = re.compile(r"exitcode: (-?\d{1,10}) \(")


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
                    calls = message.get("tool_calls") or ({},)
                    value = calls[0].get("arguments") if name == "tool_arguments" else message.get("content")
                    if value is not None:
                        facts.found.setdefault(name, value)


def _read_tool(facts: Facts, code_tools: Collection[str]) -> None:
    tool, found = facts.tool, facts.found
    if facts.span.events and "tool_result" not in found and "output" not in found:
        _told_by_events(facts)
    if tool is None:
        match = HANDOFF_NAME.fullmatch(facts.span.name) if "handoff" in facts.span.name else None
        if match is not None:
            facts.kind = HANDOFF
            for name, source in (("handoff_from", "input"), ("handoff_to", "output")):
                if isinstance(found.get(source), str):
                    found.setdefault(name, found[source])
            found.setdefault("handoff_to", match[1] or match[2])
            return
        match = _TOOL_IN_SPAN.fullmatch(facts.span.name)
        tool = facts.tool = match[1] if match is not None else facts.span.name
    if ("_to_" in tool and TRANSFER.fullmatch(tool) is not None) or (
        "handoff" in tool and canonical(tool) in ("handoff", "handofftoagent") and _names_target(facts)
    ):
        facts.kind = HANDOFF
        return
    code_names = _canonical_set(tuple(code_tools))
    text = found.get("tool_result", found.get("output"))
    if _canonical_name(tool) in code_names:
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
    return isinstance(arguments, Mapping) and any(key in arguments for key in ("to_agent", "agent_name", "target", "agent"))


_TOOL_IN_SPAN = re.compile(r"(.+)\.(?:run|tool|a?call|__call__|a?execute)", re.DOTALL)
_EXIT_KEYS = ("exitcode", "exit_code", "exitCode", "returncode", "return_code")


def exit_code_of(result: Any, structured: bool = True) -> int | None:
    """The exit code a result says: `exitcode: 1 ...` at its head, `[exit code: 1]` at its end, or a key of a structure.
    `structured=False` looks at texts alone."""
    if isinstance(result, str):
        if result[:1] in ("{", "["):
            result = as_json(result)
        else:
            match = _EXIT_HEAD.match(result) or _EXIT_TAIL.fullmatch(result, max(0, result.rfind("[exit code:")))
            return int(match[1]) if match is not None else None
    text = content_of(result)
    if isinstance(text, str) and text is not result:
        match = _EXIT_HEAD.match(text) or _EXIT_TAIL.fullmatch(text, max(0, text.rfind("[exit code:")))
        if match is not None:
            return int(match[1])
    if structured and isinstance(result, Mapping):
        for key in _EXIT_KEYS:
            if key in result:
                return _whole(result[key])
    return None


def content_of(result: Any) -> Any:
    """What a tool said, without the envelope its framework put it in: LangChain's message dump, AG2's `[ok, message]`,
    MCP's content blocks, Google ADK's `{"result": ...}`. Anything else unchanged."""
    for _ in range(4):
        if isinstance(result, list):
            if len(result) == 2 and isinstance(result[0], bool) and isinstance(result[1], Mapping) and "content" in result[1]:
                result = result[1]["content"]
                continue
            if result and all(isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part for part in result):
                return "\n".join(str(part["text"]) for part in result)
            return result
        if not isinstance(result, Mapping):
            return result
        if result.get("lc") == 1 and isinstance(result.get("kwargs"), Mapping):
            result = result["kwargs"].get("content")
        elif isinstance(result.get("data"), Mapping) and "content" in result["data"] and result.get("type") in ("tool", "ai", "human"):
            result = result["data"]["content"]
        elif len(result) <= 3 and isinstance(result.get("output"), Mapping) and result["output"].get("lc") == 1:
            result = result["output"]
        elif len(result) == 1 and "result" in result:  # Google ADK, MCP: a bare value made an object
            result = result["result"]
        elif "raw_output" in result and "tool_name" in result:  # LlamaIndex
            result = result["raw_output"]
        elif isinstance(result.get("content"), list) and ("isError" in result or "is_error" in result):
            result = result["content"]
        else:
            return result
    return result


def error_result(result: Any) -> bool:
    """Whether a tool's result says by its form that the call failed: AG2's `[false, ...]`, MCP's `isError`, LangChain's
    `status: error`. What a tool writes as text is its own business."""
    if isinstance(result, list):
        return len(result) == 2 and result[0] is False and isinstance(result[1], Mapping) and "content" in result[1]
    if not isinstance(result, Mapping):
        return False
    if result.get("isError") is True or result.get("is_error") is True:
        return True
    for key in ("kwargs", "data", "output"):
        inner = result.get(key)
        if isinstance(inner, Mapping):
            if inner.get("status") == "error" and "tool_call_id" in inner:
                return True
            if key == "output" and inner.get("lc") == 1:
                return error_result(inner)
    return False


def _read_container(facts: Facts) -> None:
    """The step of a smolagents CodeAgent runs code: it says so by its logs or by the error that running raised."""
    found = facts.found
    text = found.get("input")
    if "oi_kind" not in found or not isinstance(text, str) or '"memory_step"' not in text[:64]:
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
    if kind is None:
        kind = next((event.attributes.get("exception.type") for event in facts.span.events if event.name == "exception"), None)
    return isinstance(kind, str) and kind.endswith(_CONTROL_FLOW)


def _failed(facts: Facts) -> bool:
    span, found = facts.span, facts.found
    if span.died:
        return True
    if span.status_code == STATUS_ERROR or found.get("task_status") == "failure":
        if not _controls_flow(facts):
            return True
        return facts.exit_code not in (None, 0)
    if found.get("error_type") not in (None, "") or facts.exit_code not in (None, 0):
        return True
    if "error_message" in found and found["error_message"] != "":
        return True
    if found.get("task_status") in ("failure", "error", "failed", "timeout"):
        return True
    level = found.get("level")
    if isinstance(level, int) and not isinstance(level, bool) and level >= 17:
        return True
    if facts.kind in (TOOL, CODE):
        result = found.get("tool_result", found.get("output"))
        if isinstance(result, str) and result[:1] in ("{", "[") and _ERROR_HINT.search(result) is not None:
            return error_result(as_json(result))
        return error_result(result)
    return False


_ERROR_HINT = re.compile(r'^\[ ?false|"is_?[Ee]rror" ?: ?true|"status" ?: ?"error"')


def _whole(value: Any) -> int | None:
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


_STAMPED = ("run", "session", "node", "step")


def named(span: Span) -> Stamp:
    """Which run, session, node, step and parent event the span belongs to, as it and its door say (DESIGN section 5):
    the door, then `cmb.*` attributes, then the context, then resource attributes of the same names."""
    stamp, attributes, resource = span.stamp, span.attributes, span.resource.attributes

    def pick(key: str, context: str | None) -> str | None:
        for value in (attributes.get(key), context, resource.get(key)):
            if value is not None and value != "" and isinstance(value, str | int):
                return str(value)
        return None

    return Stamp(
        run_id=stamp.door_run_id or pick("cmb.run.id", stamp.run_id),
        session_id=pick("cmb.session.id", stamp.session_id),
        node_id=pick("cmb.node.id", stamp.node_id),
        step_id=pick("cmb.step.id", stamp.step_id),
        parent_event_id=pick("cmb.parent_event_id", stamp.parent_event_id),
        door_run_id=stamp.door_run_id,
        bound_session_id=stamp.bound_session_id,
        automatic_run_id=stamp.automatic_run_id,
    )


def skeleton(facts: Facts) -> dict[str, Any]:
    """What neighbours need to know of a span without a row, as small JSON: :func:`from_skeleton` is the way back."""
    span = facts.span
    body: dict[str, Any] = {
        "id": facts.id, "t": span.trace_id, "s": span.span_id, "n": span.name[:200], "a": span.start_ns, "k": facts.kind,
    }  # fmt: skip
    for key, value in (
        ("e", span.end_ns), ("p", span.parent_span_id), ("g", facts.agent), ("r", span.stamp.run_id),
        ("pe", named(span).parent_event_id),
    ):  # fmt: skip
        if value is not None:
            body[key] = value
    if span.died:
        body["d"] = True
    links = [[link.trace_id, link.span_id] for link in span.links[:8]]
    if links:
        body["l"] = links
    return body


def from_skeleton(body: Mapping[str, Any]) -> Facts:
    """Facts of a span of which only the skeleton was kept."""
    span = Span(
        body["t"], body["s"], body["n"], body["a"], body.get("e"), body.get("p"),
        links=[Link(trace_id, span_id) for trace_id, span_id in body.get("l", ())],
        stamp=Stamp(run_id=body.get("r"), parent_event_id=body.get("pe")),
        died=body.get("d", False),
    )  # fmt: skip
    return Facts(body["id"], span, body["k"], agent=body.get("g"), bare=True)


assert EVENT_TYPES >= {AGENT, LLM, HANDOFF} and SPEAKER not in EVENT_TYPES
