"""Pass 2: the known facts of one trace to its events as they should be now.

Pure and deterministic in the set of facts. A trace may be incomplete (parents missing, spans still running): the same
call with more facts later gives the better answer, and an event id that was given either stays or is named by the event
that took it (`Event.spans`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from otel_cmb.assemble_around import (
    TOOL_EXECUTORS,
    arguments_of,
    code_before,
    handoff_result,
    order_siblings,
    settle,
    target_of,
    told_by_parent,
    who,
    words_of_models,
)
from otel_cmb.assemble_errors import error_of
from otel_cmb.assemble_graphs import find_agents
from otel_cmb.assemble_payload import payload_of
from otel_cmb.assemble_rows import add_rows, events_inside
from otel_cmb.assemble_stacked import unstack
from otel_cmb.assemble_tree import Node, all_members, both_said, build, merge, sort_key, take
from otel_cmb.event import Event, event_id
from otel_cmb.mapper import Facts, placed
from otel_cmb.mapper_results import as_mapping, canonical
from otel_cmb.mapper_tools import HANDOFF_NAME
from otel_cmb.sums import summable
from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, ERROR, HANDOFF, LLM, SPEAKER, TOOL

__all__ = ["assemble"]

FAR = 64
"""How many spans that are no events are looked through for a link to another trace."""


def assemble(facts: Iterable[Facts], *, record: str = "agents") -> list[Event]:
    """The events of one trace, in the order their rows should have: parents before children, siblings by start.

    `Event.inputs`, `outputs` and `meta` are shared between calls with the same facts: replace them, never change them.
    """
    nodes = build(facts, record == "all")
    heads = unstack(merge(find_agents(nodes)))
    order_siblings(heads)
    names = {node.best.agent for node in heads if node.kind == AGENT}
    agents = {canonical(name): name for name in sorted(name for name in names if name)}
    handoffs = 0
    for node in heads:
        if node.kind != LLM:
            settle(node, agents)
            handoffs += node.kind == HANDOFF
    if handoffs > 1:
        heads = _once(heads, agents)
    _count_spending(heads)
    rows: list[tuple[int, int, int, str, int, Event]] = []
    for node in heads:
        up = node.up
        above = None if up is None else up.event
        event = node.event = _event(node, above, agents)
        start = event.started_ns
        if above is not None and up is not None and up.start > start:
            start = up.start
        node.start = start
        rows.append((start, event.depth, event.started_ns, event.id, len(rows), event))
        if node.kind in (TOOL, CODE):
            for more in events_inside(node.best, node.kind, event):
                rows.append((start, more.depth, more.started_ns, more.id, len(rows), more))
    for node in nodes:  # no cycle is left: what pass 2 needed goes at once, not when the garbage is collected
        node.parent = node.up = node.into = node.before = node.after = node.near = None
    rows.sort()
    return [row[-1] for row in rows]


def _once(heads: list[Node], agents: dict[str, str]) -> list[Node]:
    """Puts together the spans of one handoff: the tool that asks for it, the framework's span as it carries it out.
    What hands over to the same agent again before any agent or model acts is the same handoff."""
    last: Node | None = None
    target: str | None = None
    taken = False
    for node in sorted(heads, key=sort_key):
        if node.kind in (AGENT, LLM):
            last = None
        elif node.kind == HANDOFF:
            to_agent = _target(node, agents)
            if last is not None and to_agent == target and not node.kids and last.run == node.run and not both_said(last, node):
                take(last, node)
                last.members = all_members(last)
                taken = True
            else:
                last, target = node, to_agent
    return [node for node in heads if node.into is None] if taken else heads


def _count_spending(heads: list[Node]) -> None:
    """Tokens and cost belong to the leaf that spent them: whoever has spending below repeats it."""
    for node in reversed(heads):
        spends, costs = node.below, node.costs_below
        if node.kind != CONTAINER:
            payload = payload_of(node.best, node.kind)
            spends, costs = spends or bool(payload.tokens), costs or payload.cost is not None
        up = node.up
        if up is not None:
            if spends:
                up.below = True
            if costs:
                up.costs_below = True


# One event


def _event(node: Node, above: Event | None, agents: dict[str, str]) -> Event:
    facts, kind = node.best, node.kind
    name = who(node, above.agent_name if above is not None else None)
    key: tuple[Any, ...] | None = None
    if (above is not None or node.parent is None) and _tells_all(node):
        key = (kind, name, node.below, node.costs_below)
        if above is not None:
            key += (above.id, above.depth, above.node_id, above.step_id)
        if facts.event_key == key:
            return facts.event  # type: ignore[no-any-return]
    span = node.facts.span
    node_id, step_id, named_parent = placed(span)
    subtype, status = _state(facts, kind, facts.failed or node.exit_code not in (None, 0))
    event = Event(
        facts.id, span.trace_id, span.span_id, kind, subtype, status, span.start_ns, span.end_ns,
        span.stamp.run_id, node_id, step_id, name, None, None, None, {}, None, None, True, 0,
        [span, *(member.facts.span for member in node.members)] if node.members else [span],
    )  # fmt: skip
    if above is not None:
        event.parent_event_id, event.depth = above.id, above.depth + 1
        event.node_id = node_id or above.node_id
        event.step_id = step_id or above.step_id
    else:
        _outside_parent(node, event, named_parent)
    role = facts.found.get("agent_role")
    if isinstance(role, str) and role:
        event.agent_role = role
    _fill(node, event, agents)
    if key is not None:
        facts.event, facts.event_key = event, key
    return event


def _tells_all(node: Node) -> bool:
    """Whether the event follows from the span and from what the event above it is, so that it need not be made again
    each time the trace grows."""
    facts, kind = node.best, node.kind
    if node.members or facts.explicit or facts.failed or node.exit_code is not None:
        return False
    if kind in (LLM, TOOL, CONTAINER):
        return True
    if kind != AGENT:
        return False
    payload = payload_of(facts, kind)
    return not facts.captures(kind) or ("message" in payload.inputs and "response" in payload.outputs)


def _state(facts: Facts, kind: str, failed: bool) -> tuple[str, str]:
    span = facts.span
    said = facts.found.get("event_subtype") if facts.explicit else None
    if kind == ERROR or (failed and (span.end_ns is not None or span.died)):
        return "error", "failed"
    if said == "message":
        return "message", "completed"
    if span.end_ns is None:
        return ("pending" if kind == APPROVAL else "start"), "running"
    if isinstance(said, str) and said and said not in ("start", "running", "pending", "error"):
        return said, "completed"
    return "complete", "completed"


def _outside_parent(node: Node, event: Event, named_parent: str | None) -> None:
    """The parent of an event that has none in this trace: the one its span names, or one its trace is linked to."""
    walk: Node | None = node
    for _ in range(FAR):
        if walk is None:
            return
        span = walk.facts.span
        parent = named_parent if walk is node else placed(span)[2]
        if parent is not None and parent != event.id:
            event.parent_event_id, event.parent_known = parent, False
            return
        for link in span.links:
            if link.trace_id != span.trace_id and len(link.trace_id) == 32 and len(link.span_id) == 16:
                try:
                    event.parent_event_id = event_id(link.trace_id, link.span_id)
                except ValueError:
                    continue
                event.parent_known = False
                return
        walk = walk.parent


def _fill(node: Node, event: Event, agents: dict[str, str]) -> None:
    facts, kind = node.best, node.kind
    payload = payload_of(facts, kind)
    inputs, outputs, meta = payload.inputs, payload.outputs, payload.meta
    captured = facts.captures(kind)
    if kind == HANDOFF:
        inputs, meta = _handoff(node, event, agents)
    elif kind == CODE:
        inputs, meta = _code(node)
    elif kind == AGENT and captured and ("message" not in inputs or "response" not in outputs) and not facts.explicit:
        inputs, outputs = _conversed(node, inputs, outputs)
    more = dict(payload.tokens) if kind != CONTAINER and not node.below else {}
    if kind != CONTAINER and not node.costs_below and payload.cost is not None:
        more["cost_usd"] = payload.cost
    if event.status == "failed":
        event.error_message, error_meta = error_of(facts, kind)
        if event.error_message is None or (kind == TOOL and event.error_message == facts.found.get("error_type")):
            event.error_message = told_by_parent(node) or event.error_message or "failed without a message"
        more.update(error_meta)
    if "cmb_meta" in facts.found:
        said = summable({key: value for key, value in as_mapping(facts.found["cmb_meta"]).items() if value is not None})
        if node.below:
            said.pop("tokens", None)
        if node.costs_below:
            said.pop("cost_usd", None)
        more.update(said)
    event.meta = meta | more if more else meta
    event.inputs = inputs if inputs and captured else None
    event.outputs = outputs or None
    if facts.explicit:
        add_rows(event, as_mapping(facts.found.get("cmb_inputs")))


def _conversed(node: Node, inputs: dict[str, Any], outputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    asked, answered = words_of_models(node)
    if "message" not in inputs and asked is not None:
        inputs = {**inputs, "message": asked}
    if "response" not in outputs and answered is not None and node.facts.span.end_ns is not None and not node.best.failed:
        outputs = {**outputs, "response": answered}
    return inputs, outputs


def _target(node: Node, agents: dict[str, str]) -> str | None:
    """Whom a handoff hands over to: what its span says, then what its name says, then what follows from it."""
    facts = node.best
    if facts.explicit:
        target = payload_of(facts, HANDOFF).inputs.get("to_agent")
    elif node.facts.kind == SPEAKER:
        target = facts.found.get("selected")
    else:
        target = facts.found.get("handoff_to")
        if target in (None, "", "unknown"):
            spelled = HANDOFF_NAME.fullmatch(facts.span.name) if facts.tool is None else None
            target = (spelled[1] or spelled[2]) if spelled is not None else None
            if target in (None, "unknown"):
                target = target_of(node, agents)
    if isinstance(target, list):
        return ", ".join(str(one) for one in target[:8])
    return target if target is None or isinstance(target, str) else str(target)


def _handoff(node: Node, event: Event, agents: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = node.best
    payload = payload_of(facts, HANDOFF)
    if facts.explicit and "to_agent" in payload.inputs:
        return payload.inputs, payload.meta
    source = node.actor if node.facts.kind == SPEAKER else facts.found.get("handoff_from")
    if not isinstance(source, str) or not source or source in TOOL_EXECUTORS:
        source = event.agent_name
    inputs: dict[str, Any] = {}
    if source is not None and source not in TOOL_EXECUTORS:
        inputs["from_agent"] = source
    target = _target(node, agents)
    if target is not None:
        inputs["to_agent"] = target
    if "context" in payload.inputs:
        inputs["context"] = payload.inputs["context"]
    result = handoff_result(facts)
    reason = result.get("reason") if result is not None and "reason" in result else arguments_of(facts).get("reason")
    return inputs, {**payload.meta, "reason": reason} if isinstance(reason, str) and reason else payload.meta


def _code(node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = node.best
    payload = payload_of(facts, CODE)
    inputs, meta = dict(payload.inputs), dict(payload.meta)
    arguments = arguments_of(facts)
    language = arguments.get("language", arguments.get("lang"))
    if "code" not in inputs and not facts.explicit:
        told = code_before(node)
        if told is not None:
            inputs["code"], language = told[0], language or told[1]
    if not isinstance(language, str) and facts.tool is not None:
        name = canonical(facts.tool)
        language = "bash" if name in ("bash", "shell", "runshell") else "python" if "python" in name else None
    if isinstance(language, str) and language:
        meta["language"] = language
    exit_code = facts.exit_code if node.exit_code is None else node.exit_code
    if exit_code is not None:
        meta["exit_code"] = exit_code
    if isinstance(inputs.get("code"), str):
        meta["code_length"] = len(inputs["code"])
    return inputs, meta
