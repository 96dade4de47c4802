"""What one span says by itself, the short form of it that is kept of spans without a row, and whose it says it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_cmb.event import STATUS_ERROR, Link, Span, Stamp
from otel_cmb.mapper_shape import NO_SHAPE, Shape
from otel_cmb.vocabulary.base import NEVER, PLAIN

__all__ = ["Facts", "from_skeleton", "is_event", "named", "named_run", "placed", "skeleton"]


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
    shape: Shape = field(default=NO_SHAPE, compare=False, repr=False)
    bare: bool = False
    """Made from a skeleton: it has no attributes and can never be an event."""
    payload: Any = field(default=None, compare=False, repr=False)
    """What pass 2 worked out from these facts alone, so that a trace that grows is not read again each time: the payload,
    the event and what it follows from, and by name what few ask for."""
    event: Any = field(default=None, compare=False, repr=False)
    event_key: Any = field(default=None, compare=False, repr=False)
    memo: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    def captures(self, event_type: str) -> bool:
        return "all" in self.capture or event_type in self.capture


def is_event(facts: Facts) -> bool:
    """Whether the span is an event by itself. If not, only its skeleton matters to its neighbours."""
    return not facts.bare and (facts.record_all or facts.kind not in _NO_ACT)


_NO_ACT = frozenset((NEVER, PLAIN))


def _said(span: Span, key: str, context: str | None) -> str | None:
    return _text_of(span.attributes, key) or context or _text_of(span.resource.attributes, key)


def _text_of(attributes: Mapping[str, Any], key: str) -> str | None:
    value = attributes.get(key)
    return str(value) if value is not None and value != "" and isinstance(value, (str, int)) else None


def named(span: Span) -> Stamp:
    """Which run, session, node, step and parent event the span belongs to, as it and its door say (DESIGN section 5):
    the door, then `cmb.*` attributes, then the context, then resource attributes of the same names. The session of a
    resource that names a run goes with that run only."""
    stamp, of_resource = span.stamp, span.resource.attributes
    node_id, step_id, parent_event_id = placed(span)
    run_id = named_run(span)
    session_id = _text_of(span.attributes, "cmb.session.id") or stamp.session_id or None
    if session_id is None and _text_of(of_resource, "cmb.run.id") in (None, run_id):
        session_id = _text_of(of_resource, "cmb.session.id")
    return Stamp(
        run_id=run_id,
        session_id=session_id,
        node_id=node_id,
        step_id=step_id,
        parent_event_id=parent_event_id,
        door_run_id=stamp.door_run_id,
        bound_session_id=stamp.bound_session_id,
        automatic_run_id=stamp.automatic_run_id,
    )


def named_run(span: Span) -> str | None:
    """The run of :func:`named`."""
    return span.stamp.door_run_id or _said(span, "cmb.run.id", span.stamp.run_id)


def placed(span: Span) -> tuple[str | None, str | None, str | None]:
    """Node, step and parent event of :func:`named`."""
    stamp = span.stamp
    if not (_names_a_place(span.attributes) or _names_a_place(span.resource.attributes)):
        return stamp.node_id or None, stamp.step_id or None, stamp.parent_event_id or None
    return (
        _said(span, "cmb.node.id", stamp.node_id),
        _said(span, "cmb.step.id", stamp.step_id),
        _said(span, "cmb.parent_event_id", stamp.parent_event_id),
    )


def _names_a_place(attributes: Mapping[str, Any]) -> bool:
    return "cmb.node.id" in attributes or "cmb.step.id" in attributes or "cmb.parent_event_id" in attributes


def skeleton(facts: Facts) -> dict[str, Any]:
    """What neighbours need to know of a span without a row, as small JSON: :func:`from_skeleton` is the way back."""
    span = facts.span
    body: dict[str, Any] = {
        "id": facts.id, "t": span.trace_id, "s": span.span_id, "n": span.name[:200], "a": span.start_ns,
        "k": facts.kind,
    }  # fmt: skip
    more = {
        "e": span.end_ns, "p": span.parent_span_id, "g": facts.agent, "r": span.stamp.run_id, "pe": placed(span)[2],
    }  # fmt: skip
    body.update((key, value) for key, value in more.items() if value is not None)
    if span.died:
        body["d"] = True
    if span.status_code == STATUS_ERROR:
        body["f"] = True
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
        status_code=STATUS_ERROR if body.get("f") else 0, died=body.get("d", False),
    )  # fmt: skip
    return Facts(body["id"], span, body["k"], agent=body.get("g"), bare=True)
