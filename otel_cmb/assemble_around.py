"""What only the neighbours of a span tell: what it really was, who acted, what code it ran, whom it handed over to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from otel_cmb.assemble_messages import gist, reply_of
from otel_cmb.assemble_payload import payload_of
from otel_cmb.assemble_tree import Node, ran_nothing
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import EXIT_REPLY, as_mapping, canonical, content_of, structure_of
from otel_cmb.mapper_tools import TRANSFER
from otel_cmb.messages import as_json, fenced_code
from otel_cmb.vocabulary.base import AGENT, CODE, CONTAINER, HANDOFF, LLM, NEVER, PLAIN, SPEAKER, TOOL
from otel_cmb.vocabulary.crewai import DELEGATES

__all__ = [
    "arguments_of",
    "code_before",
    "order_siblings",
    "reply",
    "settle",
    "target_of",
    "told_by_parent",
    "who",
    "words_of_models",
]

INTERNAL_AGENTS = frozenset(("_Group_Tool_Executor", "chat_manager", "checking_agent", "speaker_selection_agent"))
"""Agents that are part of a framework: they never act of their own."""
TOOL_EXECUTORS = frozenset(("_Group_Tool_Executor", "tools"))
"""AG2's agent and LangGraph's node that only run the tools another agent called."""
ENDS = frozenset(("__end__", "END", "FINISH", ""))
"""Targets of a `goto` that are no agents."""
LOOK_BACK = 8
"""How many events before or after one are looked at for what they tell of it."""


def order_siblings(heads: list[Node]) -> None:
    """The events before and after each one inside the same event, and who acted last there."""
    rows: dict[Any, list[Node]] = {}
    for node in heads:
        key = id(node.up) if node.up is not None else node.facts.span.parent_span_id
        if key is not None:
            rows.setdefault(key, []).append(node)
    for row in rows.values():
        if len(row) > 1:
            row.sort(key=_in_turn)
        last: str | None = None
        before: Node | None = None
        for node in row:
            node.before, node.actor = before, last
            if before is not None:
                before.after = node
            before = node
            if node.kind == AGENT or (node.kind == CONTAINER and _is_step(node)):
                name = node.best.agent
                if name is not None and name not in INTERNAL_AGENTS and name not in TOOL_EXECUTORS:
                    last = name


def _in_turn(node: Node) -> tuple[int, float, str]:
    """By start; of two that a coarse clock gave one start, what ended first was first."""
    span = node.facts.span
    return span.start_ns, math.inf if span.end_ns is None else span.end_ns, node.facts.id


def _is_step(node: Node) -> bool:
    """The node of a graph, which has others: it acts like an agent."""
    found = node.best.found
    return "graph_node" in found or found.get("operation") == "execute_task" or "langgraph_node" in str(found.get("metadata"))


def settle(node: Node, agents: dict[str, str]) -> None:
    """What a node is once its neighbours are known. `agents` are the names of the agents of the trace by their
    canonical form."""
    facts = node.best
    kind = node.kind
    if kind == SPEAKER:
        selected = facts.found.get("selected")
        changes = isinstance(selected, str) and selected and node.actor is not None and selected != node.actor
        node.kind = HANDOFF if changes else CONTAINER
    elif kind in (PLAIN, NEVER):
        node.kind = CONTAINER
    elif facts.explicit:
        return
    elif kind == AGENT:
        if _only_ran_code(node):
            node.kind = CODE
    elif kind == CODE:
        if ran_nothing(facts):
            node.kind = CONTAINER
    elif kind == TOOL:
        if handoff_result(facts) is not None:
            node.kind = HANDOFF
    elif kind == HANDOFF:
        target = facts.found.get("handoff_to")
        if isinstance(target, str) and target in ENDS:
            node.kind = CONTAINER
        elif facts.tool is not None and _does_more(facts, agents):
            node.kind = TOOL


_TRANSFER_ARGUMENTS = frozenset((
    "agent_name", "to_agent", "target", "reason", "message", "context", "task", "task_description", "input", "query",
    "instructions", "summary", "state", "tool_call_id", "ctx", "runtime", "args", "kwargs",
))  # fmt: skip


def _does_more(facts: Facts, agents: dict[str, str]) -> bool:
    """A tool named like a transfer (`transfer_to_account`) that takes what no handoff takes, to where no agent is."""
    tail = TRANSFER.fullmatch(facts.tool or "")
    if tail is None or arguments_of(facts).keys() <= _TRANSFER_ARGUMENTS:
        return False
    return canonical(tail[1]) not in agents and canonical(tail[1].rstrip("_0123456789")) not in agents


def arguments_of(facts: Facts) -> Mapping[str, Any]:
    """The named arguments of a tool's call, or an empty mapping."""
    arguments = as_mapping(facts.found.get("tool_arguments", facts.found.get("input")))
    inner = arguments.get("kwargs")
    return inner if isinstance(inner, Mapping) else arguments


def reply(node: Node) -> Any:
    """What an agent answered, worked out once."""
    memo = node.best.memo
    if memo is None:
        memo = node.best.memo = {}
    if "reply" not in memo:
        memo["reply"] = reply_of(node.best)
    return memo["reply"]


_ACTS = frozenset((AGENT, LLM, TOOL, CODE, HANDOFF))


def _only_ran_code(node: Node) -> bool:
    """An agent whose whole answer is `exitcode: N (execution ...)` and in which nothing else happened."""
    found = node.best.found
    raw = found.get("messages_out", found.get("output"))
    if raw is None:
        return False
    for kid in node.kids:
        if kid.kind in _ACTS:
            return False
    if isinstance(raw, str) and "exitcode: " not in raw[:400]:
        return False
    answer = reply(node)
    match = EXIT_REPLY.match(answer) if isinstance(answer, str) else None
    if match is None:
        return False
    node.exit_code = int(match[1])
    return True


def handoff_result(facts: Facts) -> Mapping[str, Any] | None:
    """The result of a tool that is nothing but a handoff: AG2 1.x's `{"target": ..., "reason": ...}`."""
    result = facts.found.get("tool_result")
    if isinstance(result, str):
        if result[:1] != "{" or "target" not in result[:400]:
            return None
        result = structure_of(result)
    if result is None or not isinstance(result, Mapping):
        return None
    if "target" in result and isinstance(result["target"], str) and result.keys() <= {"target", "reason", "type"}:
        return result
    return None


def who(node: Node, above: str | None) -> str | None:
    """The agent an event belongs to. `above` is the agent of the event it is inside of."""
    name = node.best.agent
    kind = node.kind
    if kind in (AGENT, CONTAINER) or (kind == CODE and node.facts.kind == AGENT):
        return name if name is not None else above
    if kind == HANDOFF and node.facts.kind == SPEAKER:
        return node.actor
    if name is not None and name not in TOOL_EXECUTORS:
        return name
    if node.up is not None:
        if node.up.best.agent in TOOL_EXECUTORS and node.up.actor is not None:
            return node.up.actor
        if node.up.kind == TOOL and canonical(node.up.best.tool or "") in DELEGATES:
            coworker = arguments_of(node.up.best).get("coworker")
            return coworker if isinstance(coworker, str) and coworker else above
    return above if above is not None else name


def words_of_models(node: Node) -> tuple[Any, Any]:
    """What came into an agent and what it answered, as the first and the last model call inside it show it: some
    instrumentations put no messages on the agent itself."""
    calls: list[Node] = []
    inside = list(reversed(node.kids))
    while inside and len(calls) < 64:
        kid = inside.pop()
        if kid.kind == LLM:
            calls.append(kid)
        elif kid.kind == CONTAINER:
            inside.extend(reversed(kid.kids))
    if not calls:
        return None, None
    asked = payload_of(calls[0].best, LLM).inputs.get("messages")
    answered = payload_of(calls[-1].best, LLM).outputs.get("messages")
    incoming = [message for message in asked or () if isinstance(message, Mapping) and message.get("role") != "system"]
    return (
        gist(incoming[-1]) if incoming else None,
        gist(answered[-1]) if isinstance(answered, list) and answered and isinstance(answered[-1], Mapping) else None,
    )


def told_by_parent(node: Node) -> str | None:
    """AG2 0.x says why a tool failed only in the message of the agent that ran it, one paragraph per call."""
    if node.up is None or node.up.kind != AGENT or len(node.up.kids) > 256:
        return None
    text = reply(node.up)
    if not isinstance(text, str):
        return None
    tools = [kid for kid in node.up.kids if kid.facts.kind in (TOOL, HANDOFF, CODE)]
    parts = [text] if len(tools) == 1 else text.split("\n\n")
    if node in tools and len(parts) == len(tools):
        return parts[tools.index(node)].strip()[:500] or None
    return None


def code_before(node: Node) -> tuple[str, str | None] | None:
    """The code an execution ran, and its language, where its span does not say: in what a model inside it wrote, in the
    answer just before it, or in the message it answered."""
    for kid in node.kids:
        if kid.kind == LLM:
            messages = payload_of(kid.best, LLM).outputs.get("messages")
            code = _fence_in(messages[-1].get("content")) if isinstance(messages, list) and messages else None
            if code is not None:
                return code
    walk: Node | None = node
    for _ in range(5):
        if walk is None:
            break
        other, looked = walk.before, 0
        while other is not None and looked < LOOK_BACK:
            if other.kind == AGENT:
                code = _fence_in(reply(other))
                if code is not None:
                    return code
            other, looked = other.before, looked + 1
        if walk.best.kind == AGENT:
            code = _fence_in(payload_of(walk.best, AGENT).inputs.get("message"))
            if code is not None:
                return code
        walk = walk.up
    return None


def _fence_in(text: Any) -> tuple[str, str | None] | None:
    return fenced_code(text) if isinstance(text, str) else None


_TARGET_KEYS = ("to_agent", "agent_name", "target", "agent", "assistant", "recipient", "next_agent", "name")
_ANYONE = frozenset(("agent", "next_agent", "another_agent"))


def target_of(node: Node, agents: dict[str, str]) -> str | None:
    """Whom a handoff hands over to: what the result says, then the arguments, then the tool's name, then who came next."""
    facts = node.best
    arguments = arguments_of(facts)
    result = content_of(as_json(facts.found.get("tool_result", facts.found.get("output"))))
    if isinstance(result, str):
        result = structure_of(result)
    tail = TRANSFER.fullmatch(facts.tool or "")
    name = tail[1] if tail is not None else None
    if name is None or name in _ANYONE:
        result, arguments = arguments, result if isinstance(result, Mapping) else {}
    else:
        arguments = {}
    for source in (result, arguments):
        if isinstance(source, Mapping):
            for key in _TARGET_KEYS:
                if isinstance(source.get(key), str) and source[key]:
                    return str(source[key])
    if name is None or name in _ANYONE:
        return _next_agent(node)
    for tried in (name, name.rstrip("0123456789").rstrip("_")):
        known = agents.get(canonical(tried))
        if known is not None:
            return known
    if "ag2.span.type" in facts.span.attributes or facts.span.scope.name.endswith("ag2"):
        head, _, number = name.rpartition("_")
        return head if head and number.isdigit() else name
    return name


def _next_agent(node: Node) -> str | None:
    """The agent that starts next beside the one that hands over, or beside what holds it."""
    start = node.facts.span.start_ns
    walk: Node | None = node
    for _ in range(4):
        if walk is None:
            return None
        other, looked = walk.after, 0
        while other is not None and looked < LOOK_BACK:
            if other.kind == AGENT and other.facts.span.start_ns >= start and other.best.agent is not None:
                return other.best.agent
            other, looked = other.after, looked + 1
        walk = walk.up
    return None
