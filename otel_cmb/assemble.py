"""Pass 2: the known facts of one trace to its events as they should be now.

Pure and deterministic in the set of facts. A trace may be incomplete (parents missing, spans still running): the same
call with more facts later gives the better answer, and an event id that was given either stays or is named by the event
that took it (`Event.spans`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from otel_cmb.assemble_payload import error_of, inputs_of, meta_of, outputs_of, reply_of, spent
from otel_cmb.assemble_tree import Node, build, merge, ran_nothing
from otel_cmb.event import Event, FileRow, MessageRow, derived_id, event_id
from otel_cmb.mapper import EXIT_REPLY, TRANSFER, Facts, as_mapping, canonical, content_of, named
from otel_cmb.messages import as_json, conversation, fenced_code
from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, FILE, HANDOFF, LLM, PLAIN, SPEAKER, TOOL

__all__ = ["assemble"]

INTERNAL_AGENTS = frozenset(("_Group_Tool_Executor", "chat_manager", "checking_agent", "speaker_selection_agent"))
"""Agents that are part of a framework: they never act of their own."""
TOOL_EXECUTORS = frozenset(("_Group_Tool_Executor",))
"""Agents that only run the tools another agent called."""
ENDS = frozenset(("__end__", "END", "FINISH", ""))
"""Targets of a `goto` that are no agents."""
LOOK_BACK = 8
"""How many events before a code execution are looked at for the code it ran."""


def assemble(facts: Iterable[Facts], *, record: str = "agents") -> list[Event]:
    """The events of one trace, in the order their rows should have: parents before children, siblings by start."""
    heads = merge(build(facts, record == "all"))
    _walk_siblings(heads)
    agents = {canonical(node.best.agent): node.best.agent for node in heads if node.kind == AGENT and node.best.agent}
    for node in heads:
        _settle(node)
    _count_spending(heads)
    events: dict[int, Event] = {}
    made: list[tuple[int, int, int, str, Event]] = []
    starts: dict[str, int] = {}
    for node in heads:
        event = _event(node, events, agents)
        events[id(node)] = event
        above = events.get(id(node.up)) if node.up is not None else None
        start = max(event.started_ns, starts[above.id]) if above is not None else event.started_ns
        starts[event.id] = start
        made.append((start, event.depth, event.started_ns, event.id, event))
        made.extend(
            (start, more.depth, more.started_ns, more.id, more) for more in _derived(node, event)
        )
    made.sort(key=lambda row: row[:4])
    return [row[4] for row in made]


# What siblings tell


def _walk_siblings(heads: list[Node]) -> None:
    """The event before each event inside the same one, and who acted last there."""
    rows: dict[Any, list[Node]] = {}
    for node in heads:
        key = id(node.up) if node.up is not None else node.facts.span.parent_span_id
        if key is not None:
            rows.setdefault(key, []).append(node)
    for row in rows.values():
        row.sort(key=lambda node: (node.facts.span.start_ns, node.facts.id))
        last: str | None = None
        before: Node | None = None
        for node in row:
            node.before = before
            node.actor = last
            before = node
            name = node.best.agent
            if node.kind == AGENT and name is not None and name not in INTERNAL_AGENTS:
                last = name


def _settle(node: Node) -> None:
    """What a node is once its neighbours are known, and the agent it belongs to."""
    facts = node.best
    if node.kind == SPEAKER:
        selected = facts.found.get("selected")
        changes = isinstance(selected, str) and selected and node.actor is not None and selected != node.actor
        node.kind = HANDOFF if changes else CONTAINER
    elif node.kind == PLAIN:
        node.kind = CONTAINER
    elif node.kind == AGENT and not facts.explicit and _only_ran_code(node):
        node.kind = CODE
    elif node.kind == CODE and facts.kind == CODE and node.up is None and ran_nothing(facts):
        node.kind = CONTAINER
    elif node.kind == TOOL and not facts.explicit and _handoff_result(facts) is not None:
        node.kind = HANDOFF
    elif node.kind == HANDOFF and not facts.explicit and _only_end(facts):
        node.kind = CONTAINER


def _only_end(facts: Facts) -> bool:
    target = facts.found.get("handoff_to")
    return isinstance(target, str) and target in ENDS


def _reply(node: Node) -> Any:
    if not node.replied:
        node.reply, node.replied = reply_of(node.best), True
    return node.reply


def _only_ran_code(node: Node) -> bool:
    """An agent whose whole answer is `exitcode: N (execution ...)` and in which nothing else happened."""
    found = node.best.found
    raw = found.get("messages_out", found.get("output"))
    if not isinstance(raw, str) or "exitcode: " not in raw[:400]:
        return False
    if any(kid.kind in (AGENT, LLM, TOOL, CODE, HANDOFF) for kid in node.kids):
        return False
    reply = _reply(node)
    match = EXIT_REPLY.match(reply) if isinstance(reply, str) else None
    if match is None:
        return False
    node.exit_code = int(match[1])
    return True


def _handoff_result(facts: Facts) -> Mapping[str, Any] | None:
    """The result of a tool that is nothing but a handoff: AG2 1.x's `{"target": ..., "reason": ...}`."""
    text = facts.found.get("tool_result")
    if not isinstance(text, str) or '"target"' not in text[:400]:
        return None
    result = as_mapping(text)
    if "target" in result and isinstance(result["target"], str) and result.keys() <= {"target", "reason", "type"}:
        return result
    return None


def _count_spending(heads: list[Node]) -> None:
    """Tokens and cost belong to the leaf that spent them: whoever has spending below repeats it."""
    for node in reversed(heads):
        if node.kind != CONTAINER:
            tokens, cost = spent(node.best)
            node.spends, node.costs = bool(tokens), cost is not None
        if node.up is not None:
            node.up.below |= node.spends or node.below
            node.up.costs_below |= node.costs or node.costs_below


# One event


def _event(node: Node, events: dict[int, Event], agents: dict[str, str]) -> Event:
    facts, kind = node.best, node.kind
    span = node.facts.span
    stamp = named(span)
    above = events.get(id(node.up)) if node.up is not None else None
    subtype, status = _state(facts, kind, facts.failed or node.exit_code not in (None, 0))
    event = Event(
        facts.id, span.trace_id, span.span_id, kind, subtype, status, span.start_ns, span.end_ns,
        span.stamp.run_id, stamp.node_id, stamp.step_id,
        spans=[span, *(member.facts.span for member in node.members)],
    )  # fmt: skip
    if above is not None:
        event.parent_event_id, event.depth = above.id, above.depth + 1
        event.node_id = event.node_id or above.node_id if above.run_id == event.run_id else event.node_id
        event.step_id = event.step_id or above.step_id if above.run_id == event.run_id else event.step_id
    else:
        _outside_parent(node, event, stamp.parent_event_id)
    event.agent_name = _agent_name(node, above)
    role = facts.found.get("agent_role")
    event.agent_role = role if isinstance(role, str) and role else None
    _fill(node, event, agents)
    return event


def _outside_parent(node: Node, event: Event, named_parent: str | None) -> None:
    """The parent of an event that has none in this trace: the one its span names, or one its trace is linked to."""
    if named_parent is not None and named_parent != event.id:
        event.parent_event_id, event.parent_known = named_parent, False
        return
    walk: Node | None = node
    while walk is not None:
        span = walk.facts.span
        if walk is not node:
            parent = named(span).parent_event_id
            if parent is not None and parent != event.id:
                event.parent_event_id, event.parent_known = parent, False
                return
        for link in span.links:
            if link.trace_id != span.trace_id and len(link.trace_id) == 32 and len(link.span_id) == 16:
                try:
                    event.parent_event_id, event.parent_known = event_id(link.trace_id, link.span_id), False
                except ValueError:
                    continue
                return
        walk = walk.parent


def _state(facts: Facts, kind: str, failed: bool) -> tuple[str, str]:
    span = facts.span
    said = facts.found.get("event_subtype") if facts.explicit else None
    if failed and (span.end_ns is not None or span.died):
        return "error", "failed"
    if said == "message":
        return "message", "completed"
    if span.end_ns is None and kind != "error":
        return ("pending" if kind == APPROVAL else "start"), "running"
    if kind == "error":
        return "error", "failed"
    if isinstance(said, str) and said and said not in ("start", "running", "pending", "error"):
        return said, "completed"
    return "complete", "completed"


def _agent_name(node: Node, above: Event | None) -> str | None:
    name = node.best.agent
    if node.kind == AGENT or (node.kind == CODE and node.facts.kind == AGENT):
        return name
    if node.kind == HANDOFF and node.facts.kind == SPEAKER:
        return node.actor
    if name in TOOL_EXECUTORS or name is None:
        walk = node.up
        while walk is not None:
            outer = walk.best.agent
            if outer is not None and walk.kind != CONTAINER and outer in TOOL_EXECUTORS:
                return walk.actor
            if outer is not None:
                break
            walk = walk.up
    if name is None and above is not None:
        return above.agent_name
    return name


def _fill(node: Node, event: Event, agents: dict[str, str]) -> None:
    facts, kind = node.best, node.kind
    captured = facts.captures(kind)
    inputs = inputs_of(facts, kind) if captured or kind == HANDOFF else {}
    outputs = outputs_of(facts, kind) if captured else {}
    meta = meta_of(facts, kind)
    if kind == HANDOFF:
        _fill_handoff(node, event, inputs, meta, agents)
        if not captured:
            inputs = {}
    elif kind == CODE:
        _fill_code(node, inputs, meta)
        if not captured:
            inputs = {}
    tokens, cost = spent(facts)
    if kind != CONTAINER and not node.below:
        meta.update(tokens)
    if kind != CONTAINER and not node.costs_below and cost is not None:
        meta["cost_usd"] = cost
    if event.status == "failed":
        event.error_message, error_meta = error_of(facts, kind)
        if event.error_message is None or kind == TOOL and event.error_message == facts.found.get("error_type"):
            event.error_message = _told_by_parent(node) or event.error_message
        meta.update(error_meta)
    if "cmb_meta" in facts.found:
        meta.update({key: value for key, value in as_mapping(facts.found["cmb_meta"]).items() if value is not None})
    event.inputs, event.outputs, event.meta = inputs or None, outputs or None, meta
    if facts.explicit:
        _rows(event, as_mapping(facts.found.get("cmb_inputs")))


def _told_by_parent(node: Node) -> str | None:
    """AG2 0.x says why a tool failed only in the message of the agent that ran it, one paragraph per call."""
    if node.up is None or node.up.kind != AGENT:
        return None
    reply = _reply(node.up)
    if not isinstance(reply, str):
        return None
    tools = [kid for kid in node.up.kids if kid.facts.kind in (TOOL, HANDOFF, CODE)]
    parts = [reply] if len(tools) == 1 else reply.split("\n\n")
    if len(parts) == len(tools):
        text = parts[tools.index(node)].strip()
        return text[:500] or None
    return None


def _fill_handoff(node: Node, event: Event, inputs: dict[str, Any], meta: dict[str, Any], agents: dict[str, str]) -> None:
    facts = node.best
    found = facts.found
    if facts.explicit and "to_agent" in inputs:
        return
    source, target, reason = found.get("handoff_from"), found.get("handoff_to"), None
    arguments = as_mapping(found.get("tool_arguments", found.get("input")))
    if node.facts.kind == SPEAKER:
        source, target = node.actor, found.get("selected")
    elif target is None:
        result = as_mapping(found.get("tool_result", found.get("output")))
        target = _target(facts, arguments, agents)
        reason = result.get("reason") if "target" in result else None
    if not isinstance(source, str) or not source:
        source = event.agent_name
    context = inputs.pop("context", None)
    inputs.clear()
    if source is not None and source not in TOOL_EXECUTORS:
        inputs["from_agent"] = source
    if isinstance(target, list):
        target = ", ".join(str(one) for one in target[:8])
    if target is not None:
        inputs["to_agent"] = target if isinstance(target, str) else str(target)
    if context is not None:
        inputs["context"] = context
    reason = reason if reason is not None else arguments.get("reason")
    if isinstance(reason, str) and reason:
        meta["reason"] = reason


_TARGET_KEYS = ("agent_name", "target", "to_agent", "agent", "assistant", "recipient", "next_agent", "name")


def _target(facts: Facts, arguments: Mapping[str, Any], agents: dict[str, str]) -> str | None:
    """Whom a transfer hands over to: what the result says, then the arguments, then the tool's name."""
    raw = as_json(facts.found.get("tool_result", facts.found.get("output")))
    result = content_of(raw)
    if isinstance(result, str):
        result = as_json(result)
    tail = TRANSFER.fullmatch(facts.tool or "")
    name = tail[1] if tail is not None else None
    generic = name is None or name in ("agent", "next_agent", "another_agent")
    for source in (result, arguments if generic else None):
        if isinstance(source, Mapping):
            for key in _TARGET_KEYS:
                if isinstance(source.get(key), str) and source[key]:
                    return str(source[key])
    if name is None:
        return None
    for tried in (name, name.rstrip("0123456789").rstrip("_")):
        known = agents.get(canonical(tried))
        if known is not None:
            return known
    if "ag2.span.type" in facts.span.attributes or facts.span.scope.name.endswith("ag2"):
        head, _, number = name.rpartition("_")
        return head if head and number.isdigit() else name
    return name


def _fill_code(node: Node, inputs: dict[str, Any], meta: dict[str, Any]) -> None:
    facts = node.best
    arguments = as_mapping(facts.found.get("tool_arguments", facts.found.get("input")))
    language = arguments.get("language", arguments.get("lang"))
    if "code" not in inputs and not facts.explicit:
        told = _code_before(node)
        if told is not None:
            inputs["code"], language = told[0], language or told[1]
    code = inputs.get("code")
    if not isinstance(language, str) and facts.tool is not None:
        name = canonical(facts.tool)
        language = "bash" if name in ("bash", "shell", "runshell") else "python" if "python" in name else None
    if isinstance(language, str) and language:
        meta["language"] = language
    exit_code = facts.exit_code if node.exit_code is None else node.exit_code
    if exit_code is not None:
        meta["exit_code"] = exit_code
    if isinstance(code, str):
        meta["code_length"] = len(code)


def _code_before(node: Node) -> tuple[str, str | None] | None:
    """The code an execution ran, where its span does not say: in what a model inside it wrote, in the reply just before
    it, or in the message it answered."""
    for kid in node.kids:
        if kid.kind == LLM:
            code = _fence_in(_last_text(outputs_of(kid.best, LLM).get("messages")))
            if code is not None:
                return code
    walk: Node | None = node
    for _ in range(2):
        if walk is None:
            break
        other, looked = walk.before, 0
        while other is not None and looked < LOOK_BACK:
            if other.kind == AGENT:
                code = _fence_in(_reply(other))
                if code is not None:
                    return code
            other, looked = other.before, looked + 1
        if walk.best.kind == AGENT:
            code = _fence_in(inputs_of(walk.best, AGENT).get("message"))
            if code is not None:
                return code
        walk = walk.up
    return None


def _fence_in(text: Any) -> tuple[str, str | None] | None:
    return fenced_code(text) if isinstance(text, str) else None


def _last_text(messages: Any) -> Any:
    return messages[-1].get("content") if isinstance(messages, list) and messages else None


def _rows(event: Event, inputs: Mapping[str, Any]) -> None:
    """The rows of `messages` and `files` that go with an event of our own vocabulary."""
    if event.event_subtype == "message" and event.event_type == AGENT:
        sender, recipient, content = (inputs.get(key) for key in ("sender", "recipient", "content"))
        tokens = event.meta.get("tokens")
        event.messages = [
            MessageRow(
                str(sender or event.agent_name or ""), str(recipient or ""),
                content if isinstance(content, str) else "" if content is None else str(content),
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


# Events that are found inside another


def _derived(node: Node, event: Event) -> list[Event]:
    """A handoff in the result of a tool that also does something else; a file that code was saved as before it ran."""
    facts = node.best
    if facts.explicit or event.completed_ns is None:
        return []
    if node.kind == TOOL:
        target = _reply_target(facts)
        if target is not None:
            inputs = {"from_agent": event.agent_name, "to_agent": target} if event.agent_name else {"to_agent": target}
            return [_inside(event, HANDOFF, inputs if facts.captures(HANDOFF) else None)]
    if node.kind == CODE and event.inputs is not None and isinstance(event.inputs.get("code"), str):
        path = _file_name(event.inputs["code"])
        if path is not None:
            inputs = {"file_path": path, "file_type": _suffix(path)}
            more = _inside(event, FILE, inputs if facts.captures(FILE) else None)
            more.files = [FileRow(path, inputs["file_type"])]
            return [more]
    return []


def _inside(event: Event, kind: str, inputs: dict[str, Any] | None) -> Event:
    return Event(
        derived_id(event.trace_id, event.span_id, kind), event.trace_id, event.span_id, kind, "complete", "completed",
        event.started_ns, event.completed_ns, event.run_id, event.node_id, event.step_id, event.agent_name,
        inputs=inputs, parent_event_id=event.id, depth=event.depth + 1,
    )  # fmt: skip


def _reply_target(facts: Facts) -> str | None:
    """The target in AG2 0.x's ReplyResult: `{"message": ..., "target": {"agent_name": ...}, ...}`."""
    text = facts.found.get("tool_result", facts.found.get("output"))
    if not isinstance(text, str) or '"target"' not in text:
        return None
    result = content_of(as_json(text))
    target = result.get("target") if isinstance(result, Mapping) and "message" in result else None
    name = target.get("agent_name") if isinstance(target, Mapping) else target
    return name if isinstance(name, str) and name else None


def _file_name(code: str) -> str | None:
    """AG2 saves a block whose first line is `# filename: plot.py` under that name."""
    first = code.lstrip().partition("\n")[0].strip()
    for mark in ("# filename:", "// filename:", "<!-- filename:", "/* filename:"):
        if first.startswith(mark):
            path = first[len(mark) :].removesuffix("-->").removesuffix("*/").strip()
            return path if path and len(path) <= 1000 else None
    return None
