"""The spans of one trace as a tree: parents, nearest events, cycles cut, duplicates of one act put together.

Deterministic in the set of facts: nothing here depends on the order in which they came. Near-linear in their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from otel_cmb.event import STATUS_ERROR, Event, Span
from otel_cmb.mapper import Facts, is_event, read
from otel_cmb.mapper_results import canonical
from otel_cmb.messages import as_json
from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, HANDOFF, LLM, TOOL

__all__ = ["Node", "all_members", "both_said", "build", "encloses", "merge", "ran_nothing", "sort_key", "take"]


MOST = 64
"""Most span events and links of duplicates that are read together."""


@dataclass(slots=True, eq=False)
class Node:
    """One span in the tree. After :func:`merge`, a node with `into` is a duplicate of the act of that node."""

    facts: Facts
    kind: str
    live: bool
    run: str | None
    best: Facts
    """Facts of this act as all its duplicates tell them."""
    parent: Node | None = None
    children: Nodes = ()
    near: dict[str | None, Node | None] | None = None
    """Of a span that is no event: the nearest event above it, by run, where that was looked for."""
    up: Node | None = None
    """The event this one is inside of: nearest ancestor that is an event of the same run."""
    kids: Nodes = ()
    into: Node | None = None
    members: Nodes = ()
    before: Node | None = None
    """The event just before this one among those inside the same event."""
    after: Node | None = None
    actor: str | None = None
    """The agent that acted last before this one, inside the same event."""
    below: bool = False
    """Whether tokens were spent inside."""
    costs_below: bool = False
    event: Event | None = None
    start: int = 0
    """When its row starts: not before the row of the event it is inside of."""
    exit_code: int | None = None
    """The exit code an agent's answer says, of an agent that is nothing but a code execution."""


Nodes: TypeAlias = "list[Node] | tuple[()]"
"""No list where there is nothing: most nodes are leaves, and a trace has as many as it has spans."""

sort_key: Callable[[Node], tuple[int, str]] = attrgetter("facts.span.start_ns", "facts.id")


def encloses(outer: Node, inner: Node) -> bool:
    """Whether the time of one span lies within that of the other, which may still run."""
    one, other = outer.facts.span, inner.facts.span
    return one.start_ns <= other.start_ns and (one.end_ns is None or (other.end_ns is not None and other.end_ns <= one.end_ns))


def build(facts: Iterable[Facts], record_all: bool) -> list[Node]:
    """All nodes, parents before children and siblings by start, with `parent` and `children` set. A cycle of parents
    (hostile ids) is cut at its earliest span."""
    nodes = [
        Node(one, one.kind, is_event(one) or (record_all and not one.bare), one.span.stamp.run_id, one) for one in facts
    ]
    nodes.sort(key=sort_key)
    by_span: dict[str, Node] = {}
    for node in nodes:
        by_span.setdefault(node.facts.span.span_id, node)
    for node in nodes:
        parent_id = node.facts.span.parent_span_id
        if parent_id is not None:
            parent = by_span.get(parent_id)
            if parent is not None and parent is not node:
                node.parent = parent
                if parent.children:
                    parent.children.append(node)
                else:
                    parent.children = [node]
    ordered = [node for node in nodes if node.parent is None]
    for node in ordered:  # it grows while it is gone through
        if node.children:
            ordered.extend(node.children)
    if len(ordered) < len(nodes):
        seen = {id(node) for node in ordered}
        for node in nodes:
            if id(node) not in seen:
                first = _cut_cycle(node)
                done = len(ordered)
                ordered.append(first)
                _descend(ordered, done)
                seen.update(id(one) for one in ordered[done:])
    return ordered


def _descend(ordered: list[Node], done: int) -> None:
    while done < len(ordered):
        ordered.extend(ordered[done].children)
        done += 1


def _cut_cycle(node: Node) -> Node:
    path: set[int] = set()
    while id(node) not in path:
        path.add(id(node))
        if node.parent is None:
            return node
        node = node.parent
    first = walk = node
    while walk.parent is not None and walk.parent is not node:
        walk = walk.parent
        if sort_key(walk) < sort_key(first):
            first = walk
    if first.parent is not None:
        first.parent.children = [child for child in first.parent.children if child is not first]
        first.parent = None
    return first


def _nearest(node: Node, run: str | None) -> Node | None:
    """The nearest ancestor that is an event of `run`; walks each unmapped span once per run."""
    path = []
    walk = node.parent
    while walk is not None:
        if walk.near is not None and run in walk.near:
            answer = walk.near[run]
            break
        if walk.live and walk.run == run:
            answer = walk
            break
        path.append(walk)
        walk = walk.parent
    else:
        answer = None
    for one in path:
        if one.near is None:
            one.near = {}
        one.near[run] = answer
    return answer


def merge(ordered: list[Node]) -> list[Node]:
    """Links events to the events they are inside of and puts duplicates together: of stacked instrumentations, of a
    doubled root, of a chat inside a chat. The outermost span of an act survives. Returns the survivors, parents
    first."""
    for node in ordered:
        if node.live and node.parent is not None:
            above = node.parent
            node.up = above if above.live and above.run == node.run else _nearest(node, node.run)
            if node.up is not None:
                if node.up.kids:
                    node.up.kids.append(node)
                else:
                    node.up.kids = [node]
    told: dict[int, set[tuple[str, str]]] = {}
    """Which instrumentations tell of an agent that several spans tell of, and by what names."""
    for node in reversed(ordered):
        if not node.live or not node.kids:
            continue
        rule = _SAME.get(node.kind)
        if rule is not None:
            taken = [
                kid
                for kid in node.kids
                if kid.into is None and kid.kind == node.kind and rule(node, kid) and not _two_acts(node, kid)
            ]
            if node.kind == LLM and sum(1 for kid in taken if _has_tokens(kid)) > 1:
                node.kind = CONTAINER  # several calls that spent tokens: this one only holds them
                taken = []
            if node.kind != LLM:  # a model call that is tried again is one
                again = {id(kid) for kid in taken if kid.facts.span.scope.name == node.facts.span.scope.name}
                if len(again) > 1:  # one instrumentation tells of one act twice, not three times: what calls itself
                    taken = [kid for kid in taken if id(kid) not in again]
            if node.kind == AGENT and taken:
                within, name = _time_inside(node), _told_by(node)
                names = {id(kid): told.get(id(kid), {_told_by(kid)}) for kid in taken}
                taken = [kid for kid in taken if name not in names[id(kid)] or not _is_outside(within, kid)]
                told[id(node)] = {name}.union(*(names[id(kid)] for kid in taken))
            for kid in taken:
                take(node, kid)
        if node.kind == AGENT:
            for kid in node.kids:
                if kid.kind == CODE and kid.into is None and ran_nothing(kid.best):
                    take(node, kid, tells=False)
    heads = []
    for node in ordered:
        if node.live and node.into is None:
            heads.append(node)
            if node.members:
                node.members = all_members(node)
                node.kids = [kid for one in (node, *node.members) for kid in one.kids if kid.into is None]
                for kid in node.kids:
                    kid.up = node
                node.kids.sort(key=sort_key)
    return heads


def all_members(node: Node) -> list[Node]:
    """The duplicates of a node and theirs, in order."""
    found: dict[int, Node] = {}
    waiting = list(node.members)
    while waiting:
        member = waiting.pop()
        if id(member) not in found:
            found[id(member)] = member
            waiting.extend(member.members)
    return sorted(found.values(), key=sort_key)


def take(node: Node, kid: Node, tells: bool = True) -> None:
    """`kid` is the same act as `node`. With `tells`, what it says about the act is added."""
    kid.into = node
    if node.members:
        node.members.append(kid)
    else:
        node.members = [kid]
    if tells:
        outer, inner = node.best, kid.best
        memo = outer.memo
        if memo is None:
            memo = outer.memo = {}
        known = memo.get("union")
        if known is None or known[0] is not inner:
            known = memo["union"] = (inner, _union(outer, inner))
        node.best = known[1]


def _union(outer: Facts, inner: Facts) -> Facts:
    """The facts of one act two spans tell of: read again from both spans' attributes, the outer's first, so that each
    field comes from the best vocabulary of either."""
    a, b = outer.span, inner.span
    retried = inner.failed and not outer.failed and outer.kind == LLM and a.end_ns is not None
    if retried:
        return outer
    span = Span(
        a.trace_id, a.span_id, a.name, a.start_ns, a.end_ns, a.parent_span_id, a.kind,
        STATUS_ERROR if STATUS_ERROR in (a.status_code, b.status_code) else a.status_code,
        a.status_message if len(a.status_message) >= len(b.status_message) else b.status_message,
        {**b.attributes, **a.attributes}, [*b.events, *a.events][-MOST:], [*a.links, *b.links][:MOST],
        a.resource, a.scope, stamp=a.stamp, died=a.died,
    )  # fmt: skip
    facts = read(span, id=outer.id, record="all" if outer.record_all else "agents", capture=outer.capture)
    facts.kind, facts.agent, facts.tool = outer.kind, outer.agent or inner.agent, outer.tool or inner.tool
    facts.explicit = outer.explicit or inner.explicit
    facts.failed = outer.failed or inner.failed
    facts.exit_code = outer.exit_code if outer.exit_code is not None else inner.exit_code
    return facts


def ran_nothing(facts: Facts) -> bool:
    """AG2 0.x leaves an `execute_code` span each time an agent looks at a message without code."""
    return (
        facts.exit_code is None
        and facts.span.end_ns is not None
        and not facts.failed
        and not facts.explicit
        and "ag2.span.type" in facts.span.attributes
        and "code_output" not in facts.found
        and facts.tool is None
    )


def _has_tokens(node: Node) -> bool:
    found = node.best.found
    return "tokens_in" in found or "tokens_out" in found or "tokens_total" in found or "usage" in found


def both_said(node: Node, other: Node) -> bool:
    """Whether one program says of both that they are events: then they are two."""
    a, b = node.facts, other.facts
    return a.explicit and b.explicit and a.span.scope.name == b.span.scope.name


def _two_acts(node: Node, kid: Node) -> bool:
    """A recursion: one instrumentation tells of one act twice only by chance, so what a program says itself to be an
    event, or what was called with something else, is another one."""
    a, b = node.facts, kid.facts
    if a.span.scope.name != b.span.scope.name:
        return False
    if both_said(node, kid):
        return True
    if node.kind not in (TOOL, CODE):
        return False
    one, other = (as_json(facts.found.get("tool_arguments", facts.found.get("input"))) for facts in (a, b))
    return one is not None and other is not None and bool(one != other)


# An agent calls one of its name, rather than being told of twice, where one instrumentation tells of both alike and the outer
# one holds something beyond the time of the inner one: of one act it has two names (`invoke_agent x` and `x.workflow`).


def _told_by(node: Node) -> tuple[str, str]:
    """The instrumentation that tells of it, and by what name."""
    span = node.facts.span
    return span.scope.name, span.name


def _time_inside(node: Node) -> tuple[int, float]:
    """From when to when something happened right inside."""
    spans = [kid.facts.span for kid in node.kids]
    if not spans:
        return 0, 0
    return min(span.start_ns for span in spans), max(math.inf if span.end_ns is None else span.end_ns for span in spans)


def _is_outside(within: tuple[int, float], kid: Node) -> bool:
    span = kid.facts.span
    return within[0] < span.start_ns or (span.end_ns is not None and within[1] > span.end_ns)


def _always(node: Node, kid: Node) -> bool:  # noqa: ARG001 - one shape for all rules
    return True


def _same_agent(node: Node, kid: Node) -> bool:
    a, b = node.best.agent, kid.best.agent
    return a is not None and a == b and not _is_message(node) and not _is_message(kid)


def _is_message(node: Node) -> bool:
    return node.facts.explicit and node.facts.found.get("event_subtype") == "message"


def _same_tool(node: Node, kid: Node) -> bool:
    a, b = node.facts.tool, kid.facts.tool
    one, other = node.best.found.get("tool_call_id"), kid.best.found.get("tool_call_id")
    if one is not None and other is not None:
        return bool(one == other)
    return a is not None and b is not None and canonical(a) == canonical(b)


def _same_handoff(node: Node, kid: Node) -> bool:
    a, b = node.facts.tool, kid.facts.tool
    return a is None or b is None or canonical(a) == canonical(b)


def _same_code(node: Node, kid: Node) -> bool:
    one, other = node.best.exit_code, kid.best.exit_code
    return one is None or other is None or one == other


def _same_container(node: Node, kid: Node) -> bool:
    a, b = node.facts, kid.facts
    return a.agent is not None and a.agent == b.agent and a.span.scope.name != b.span.scope.name


_SAME: dict[str, Callable[[Node, Node], bool]] = {
    AGENT: _same_agent,
    LLM: _always,
    TOOL: _same_tool,
    CODE: _same_code,
    HANDOFF: _same_handoff,
    APPROVAL: _always,
    CONTAINER: _same_container,
}
