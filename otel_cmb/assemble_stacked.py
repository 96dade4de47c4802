"""Duplicates of stacked instrumentations whose spans are not nested: two trees, side by side, of the same acts.

Callback handlers (OpenInference and Traceloop under LangChain) each hang their spans on their own parents. What tells
that two spans are one act: different scopes, the same kind and name (or, of model calls, the same tokens), the same
time.
"""

from __future__ import annotations

import math
import re

from otel_cmb.assemble_messages import incoming
from otel_cmb.assemble_payload import called_with, payload_of
from otel_cmb.assemble_tree import Node, all_members, encloses, sort_key, take
from otel_cmb.mapper_results import canonical
from otel_cmb.vocabulary.base import AGENT, CODE, CONTAINER, LLM, NEVER, PLAIN, TOOL

__all__ = ["unstack"]

NEAR_NS = 20_000_000
"""How far apart two ends of one act may be told: instrumentations do their own work in between."""
LOOK_BACK = 16


def unstack(heads: list[Node]) -> list[Node]:
    """Puts duplicates of parallel trees together; the earliest span survives. Returns the survivors, parents first."""
    scopes = {node.facts.span.scope.name for node in heads}
    if len(scopes) < 2 and not _BOTH_ENDS.issubset(node.facts.span.kind for node in heads):
        return heads
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in heads:
        key = _identity(node)
        if key is not None:
            groups.setdefault(key, []).append(node)
    taken = False
    for group in groups.values():
        if len(group) > 1 and len({(node.facts.span.scope.name, node.facts.span.kind) for node in group}) > 1:
            taken |= _pair(sorted(group, key=sort_key))
    calls = [node for node in heads if node.kind == LLM and node.into is None]
    if len({node.facts.span.scope.name for node in calls}) > 1:
        beside: dict[int | None, list[Node]] = {}
        for node in calls:
            holder = _holder(node)
            beside.setdefault(None if holder is None else id(holder), []).append(node)
        alone = beside.pop(None, ())  # whoever told of these knows nothing of what they are inside of
        for group in beside.values():
            if 1 < len(group) <= MOST_BESIDE:
                for node in group:
                    taken |= _join_beside(node, group)
        if len(calls) <= MOST_BESIDE:
            for node in alone:
                taken |= _join_beside(node, calls)
    return _ordered(heads) if taken else heads


def _holder(node: Node) -> Node | None:
    """The act a call is inside of, looking through steps: one instrumentation tells of a graph's nodes, another does not.
    Of a call inside of steps alone the outermost one; `None` if nothing is known."""
    held: Node | None = None
    walk = node.up
    for _ in range(64):
        if walk is None:
            break
        if walk.kind == CONTAINER:
            held = walk
        elif walk.kind not in (PLAIN, NEVER):
            return walk
        walk = walk.up
    return held


def _join_beside(node: Node, beside: list[Node]) -> bool:
    """Of a call of a model that failed or was streamed, instrumentations often do not say what it spent, or count the
    answer differently: it joins the call of the same model beside it, at the same time, that another one tells of."""
    if node.into is not None:
        return False
    for other in beside:
        if (
            other is not node and other.into is None and other.best.failed == node.best.failed
            and not (other.facts.explicit and node.facts.explicit) and _one_act(other, node) and _one_model(other, node)
            and _told_of_by(other).isdisjoint(_told_of_by(node)) and _one_question(other, node)
        ):  # fmt: skip
            first, second = sorted((node, other), key=_outermost)
            _join(first, second)
            return True
    return False


def _told_of_by(node: Node) -> set[str]:
    """The instrumentations that tell of a call already: each tells of one once."""
    return {node.facts.span.scope.name, *(member.facts.span.scope.name for member in node.members)}


def _one_question(a: Node, b: Node) -> bool:
    """What two calls were asked, and took for it, does not say that they are two. Answers that are counted differently are
    one where one call encloses the other, as where one library calls the other."""
    asked, answered = ([payload_of(node.best, LLM).tokens.get(key) for node in (a, b)] for key in _COUNTS)
    if None not in asked and asked[0] != asked[1]:
        return False
    if None not in answered and answered[0] != answered[1] and not (encloses(a, b) or encloses(b, a)):
        return False
    one, other = _last_words(a), _last_words(b)
    return one is None or other is None or one.startswith(other) or other.startswith(one)


_COUNTS = ("prompt_tokens", "completion_tokens")


def _last_words(node: Node) -> str | None:
    """The text that a model was asked last, where its span says it: whether it is stored or not."""
    messages = incoming(node.best)
    text = messages[-1].get("content") if messages else None
    return text.strip() or None if isinstance(text, str) else None


def _outermost(node: Node) -> tuple[int, float, str]:
    span = node.facts.span
    return span.start_ns, -math.inf if span.end_ns is None else -span.end_ns, node.facts.id


MOST_BESIDE = 256
"""Among more calls inside one act this is not looked for: it is of the square of their number."""


def _one_model(a: Node, b: Node) -> bool:
    return any(_is_version(one, other) or _is_version(other, one) for one in _models(a) for other in _models(b))


def _is_version(name: str, base: str) -> bool:
    """`gpt-4o-2024-08-06` is one of `gpt-4o`; `gpt-4o-mini` is another model."""
    return name == base or (name.startswith(base) and _VERSION.match(name, len(base)) is not None)


_VERSION = re.compile(r"[-@:](?:v?\d{3,}|latest)")


def _models(node: Node) -> list[str]:
    named = (node.best.found.get(name) for name in ("model", "request_model"))
    return [name for name in named if isinstance(name, str) and name]


def _identity(node: Node) -> tuple[object, ...] | None:
    facts = node.best
    if facts.explicit and facts.found.get("event_subtype") == "message":
        return None
    if node.kind == AGENT:
        return (node.run, AGENT, facts.agent) if facts.agent is not None else None
    if node.kind in (TOOL, CODE):
        return (node.run, node.kind, canonical(facts.tool)) if facts.tool is not None else None
    if node.kind == LLM:
        tokens = payload_of(facts, LLM).tokens
        asked, answered = tokens.get("prompt_tokens"), tokens.get("completion_tokens")
        return (node.run, LLM, asked, answered) if asked is not None or answered is not None else None
    return None


def _pair(group: list[Node]) -> bool:
    """Each node joins an earlier one of another scope that it can be one act with, which is then taken: of several the one
    most like it, and of those the latest."""
    free: list[Node] = []
    taken = False
    for node in group:
        fitting = [other for other in reversed(free[-LOOK_BACK:]) if _one_act(other, node)]
        partner = fitting[0] if fitting else None
        if len(fitting) > 1:
            likeness = [_likeness(other, node) for other in fitting]
            partner = fitting[likeness.index(max(likeness))]
        above = None if partner is None else _is_above(node, partner)
        if partner is None or above is None:
            free.append(node)
            continue
        free.remove(partner)
        if above:
            _join(node, partner)
        else:
            _join(partner, node)
        taken = True
    return taken


def _likeness(a: Node, b: Node) -> int:
    """How much two acts are alike that may be one: calls at once differ in what they were called with."""
    if a.kind in (TOOL, CODE):
        same = called_with(a.best) == called_with(b.best)
    else:
        same = a.kind == LLM and _last_words(a) == _last_words(b)
    return 2 * bool(same) + (a.best.failed == b.best.failed)


def _one_act(a: Node, b: Node) -> bool:
    one, other = a.facts.span, b.facts.span
    if one.scope.name == other.scope.name:
        if {one.kind, other.kind} != _BOTH_ENDS:
            return False
        client, server = (a, b) if one.kind == _CLIENT else (b, a)
        if not encloses(client, server):
            return False
    ids = a.best.found.get("tool_call_id"), b.best.found.get("tool_call_id")
    if None not in ids and ids[0] != ids[1]:
        return False
    codes = a.best.exit_code, b.best.exit_code
    if None not in codes and codes[0] != codes[1]:
        return False
    if one.end_ns is None or other.end_ns is None:
        return abs(one.start_ns - other.start_ns) <= NEAR_NS
    if min(one.end_ns, other.end_ns) < max(one.start_ns, other.start_ns):
        return False
    longest = max(one.end_ns - one.start_ns, other.end_ns - other.start_ns)
    apart = abs(one.start_ns - other.start_ns) + abs(one.end_ns - other.end_ns)
    return apart <= max(NEAR_NS, longest // 4) or (a.kind == LLM and _calls_through(a, b))


def _calls_through(a: Node, b: Node) -> bool:
    """Whether one library calls a model through the other, however long that takes it: within the time of the one, the
    other asks the same of the same model."""
    asked = _last_words(a)
    return asked is not None and asked == _last_words(b) and (encloses(a, b) or encloses(b, a)) and _one_model(a, b)


_CLIENT = 3
_BOTH_ENDS = {2, _CLIENT}
"""Span kinds SERVER and CLIENT: FastMCP tells of one call of a tool from both ends, in spans that are side by side where
both are in one process; there one clock says that the server's is within the client's."""


def _is_above(node: Node, other: Node) -> bool | None:
    """Whether `other` is inside `node`; `None` where that is deeper than is looked: then nothing is put together."""
    walk = other.up
    for _ in range(64):
        if walk is None:
            return False
        if walk is node:
            return True
        walk = walk.up
    return None


def _join(survivor: Node, gone: Node) -> None:
    take(survivor, gone)
    survivor.members = all_members(survivor)
    for kid in gone.kids:
        if kid is not survivor:
            kid.up = survivor
    if gone.up is not None:
        gone.up.kids = [kid for kid in gone.up.kids if kid is not gone]
    kids = [kid for kid in survivor.kids if kid is not gone] + [kid for kid in gone.kids if kid is not survivor]
    survivor.kids = sorted(kids, key=sort_key)


def _ordered(heads: list[Node]) -> list[Node]:
    found = [node for node in heads if node.into is None and node.up is None]
    done = 0
    while done < len(found):
        found.extend(kid for kid in found[done].kids if kid.into is None)
        done += 1
    return found
