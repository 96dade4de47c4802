"""Every capture of real frameworks against the truth about what happened in it, cell by cell.

`python tests/test_corpus.py` prints the table. A cell that is not right needs an entry in `EXPLAINED` with its reason.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otel_cmb.assemble import assemble
from otel_cmb.assemble_tree import Node
from otel_cmb.event import Event, Span
from otel_cmb.mapper import from_skeleton, is_event, read, skeleton
from otel_cmb.otlp import decode_json

CORPUS = Path(__file__).parent / "corpus"
TRUTH: dict[str, dict[str, Any]] = json.loads((CORPUS / "truth.json").read_text())
MORE: dict[str, dict[str, Any]] = json.loads((CORPUS / "more" / "truth.json").read_text())
"""Captures recorded for this project with the same method: other frameworks, other instrumentations."""
TRUTH |= {f"more/{capture}": truth for capture, truth in MORE.items()}
RUN = "run-1"

EXPLAINED: dict[tuple[str, str], str] = {}
"""(capture, cell) -> why it is not as the truth says."""


def spans_of(capture: str) -> list[Span]:
    spans = decode_json(json.loads(gzip.decompress((CORPUS / f"{capture}.otlp.json.gz").read_bytes()))).spans
    for span in spans:
        span.stamp.run_id = RUN
    return spans


def events_of(spans: list[Span]) -> list[Event]:
    """As the store does it: one trace at a time; spans that are no events are known by their skeleton alone."""
    traces: dict[str, list[Any]] = {}
    for span in spans:
        facts = read(span)
        if not is_event(facts):
            facts = from_skeleton(json.loads(json.dumps(skeleton(facts))))
        traces.setdefault(span.trace_id, []).append(facts)
    events = []
    for facts in traces.values():
        events.extend(assemble(facts))
    return events


def of_type(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.event_type == kind]


def score(capture: str, spans: list[Span], events: list[Event]) -> dict[str, tuple[bool, Any, Any]]:
    """cell -> (right, found, expected)."""
    truth = TRUTH[capture]
    full: dict[str, Any] = {
        "tool_calls": [],
        "code_execs": [],
        "handoffs": [],
        "models": [],
        "tokens": None,
        "errors": 0,
    }
    known, truth = truth, {**full, "llm_calls": 0, "approvals": 0, "nested": False, **truth}
    cells: dict[str, tuple[bool, Any, Any]] = {}

    def cell(name: str, right: bool, found: Any, expected: Any) -> None:
        if name in known or name == "laws":
            cells[name] = (right, found, expected)

    if "agent_calls" in truth:
        found = Counter(event.agent_name for event in of_type(events, "agent_call") if event.event_subtype != "message")
        slack = truth.get("agent_calls_slack", {})
        right = all(
            expected - slack.get(name, 0) <= found.get(name, 0) <= expected
            for name, expected in truth["agent_calls"].items()
        ) and set(found) <= set(truth["agent_calls"])
        cell("agent_calls", right, dict(found), truth["agent_calls"])

    tools = sorted([event.inputs["tool_name"], event.status] for event in of_type(events, "tool_call") if event.inputs)

    def same_tools(expected: list[list[Any]]) -> bool:
        left = [list(item) for item in tools]
        for name, status in sorted(expected, key=lambda item: item[1] is None):
            match = next((item for item in left if item[0] == name and status in (None, item[1])), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    cell(
        "tool_calls",
        any(map(same_tools, [truth["tool_calls"], *truth.get("tool_calls_also", [])])),
        tools,
        truth["tool_calls"],
    )

    codes = [[event.meta.get("exit_code"), event.status] for event in of_type(events, "code_exec")]

    def same_codes(expected: list[list[Any]]) -> bool:
        left = list(codes)
        for code, status in sorted(expected, key=lambda item: item[0] is None):
            match = next((item for item in left if item[1] == status and code in (None, item[0])), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    cell(
        "code_execs",
        any(map(same_codes, [truth["code_execs"], *truth.get("code_execs_also", [])])),
        codes,
        truth["code_execs"],
    )

    handoffs = [
        ((event.inputs or {}).get("from_agent"), (event.inputs or {}).get("to_agent"))
        for event in of_type(events, "handoff")
    ]
    left = list(handoffs)
    right = True
    for source, target in truth["handoffs"]:
        match = next((item for item in left if item[1] == target and source in (None, item[0])), None)
        if match is None and truth.get("handoffs_from_optional"):
            match = next((item for item in left if item == (None, target)), None)
        if match is None:
            right = False
        else:
            left.remove(match)
    implicit = [tuple(item) for item in truth.get("handoffs_implicit", [])]
    right = right and all(item in implicit for item in left)
    cell("handoffs", right, handoffs, truth["handoffs"])

    calls = of_type(events, "llm_call")
    cell(
        "llm_calls",
        len(calls) in [truth["llm_calls"], *truth.get("llm_calls_also", [])],
        len(calls),
        truth["llm_calls"],
    )
    tokens = sum(event.meta.get("tokens", 0) for event in events)
    if truth["tokens"] is not None:
        cell("tokens", tokens in [truth["tokens"], *truth.get("tokens_also", [])], tokens, truth["tokens"])
    else:
        cell("tokens", tokens == 0, tokens, None)
    models = {event.meta["model"] for event in calls if "model" in event.meta}
    allowed = {*truth["models"], *truth.get("models_also", [])}
    cell("models", models <= allowed and bool(models) == bool(truth["models"]), sorted(models), truth["models"])
    errors = sum(
        event.status == "failed"
        for event in events
        if event.event_type in ("agent_call", "tool_call", "code_exec", "llm_call")
    )
    cell("errors", errors >= truth["errors"], errors, truth["errors"])
    approvals = len(of_type(events, "approval_requested"))
    cell("approvals", approvals == truth["approvals"], approvals, truth["approvals"])
    if truth["nested"]:
        nested = any(event.parent_event_id is not None for event in events)
        cell("nested", nested, nested, True)
    cell("laws", *laws(spans, events))
    return cells


def laws(spans: list[Span], events: list[Event]) -> tuple[bool, Any, Any]:
    """What must hold of any rows: ids once, parents known and before their children, depth, spans in one event each."""
    broken = []
    by_id: dict[str, Event] = {}
    for event in events:
        if event.id in by_id:
            broken.append(f"id twice {event.id}")
        parent = by_id.get(event.parent_event_id or "")
        if event.parent_event_id is not None and event.parent_known:
            if parent is None:
                broken.append(f"parent not before {event.event_type}")
            elif parent.run_id != event.run_id or event.depth != parent.depth + 1:
                broken.append(f"parent of another run or depth {event.event_type}")
        elif event.depth != 0:
            broken.append("depth without parent")
        by_id[event.id] = event
        if event.status == "failed" and not event.error_message:
            broken.append(f"failed without message {event.event_type} {event.agent_name}")
        if event.meta.get("tokens", 0) != event.meta.get("prompt_tokens", 0) + event.meta.get("completion_tokens", 0):
            broken.append("tokens do not add up")
        if any(value is None for value in event.meta.values()):
            broken.append("null in meta")
    held = Counter(id(span) for event in events for span in event.spans)
    if held and max(held.values()) > 1:
        broken.append("a span in two events")
    wanted = {id(span) for span in spans if is_event(read(span))}
    if set(held) != wanted:
        broken.append(f"spans lost {len(wanted - set(held))}")
    return not broken, broken, []


@pytest.mark.parametrize("capture", sorted(TRUTH))
def test_capture_tells_what_happened(capture: str) -> None:
    """Each cell of the truth is right, or has its explanation."""
    spans = spans_of(capture)
    wrong = {
        name: (found, expected)
        for name, (right, found, expected) in score(capture, spans, events_of(spans)).items()
        if not right and (capture, name) not in EXPLAINED
    }
    assert wrong == {}


def _rewritten(rewrite: Callable[[Any], Any]) -> Callable[[list[Span]], None]:
    """Every attribute that is a JSON text, written in another way."""

    def change(spans: list[Span]) -> None:
        for span in spans:
            for key, value in span.attributes.items():
                if isinstance(value, str) and value[:1] in ("{", "["):
                    with contextlib.suppress(ValueError):
                        span.attributes[key] = rewrite(json.loads(value))

    return change


def _backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _backwards(item) for key, item in reversed(value.items())}
    return [_backwards(item) for item in value] if isinstance(value, list) else value


def _python(spans: list[Span]) -> None:
    for span in spans:
        for key in ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result"):
            value = span.attributes.get(key)
            if isinstance(value, str) and value[:1] in ("{", "["):
                with contextlib.suppress(ValueError):
                    span.attributes[key] = repr(json.loads(value))


def _coarse(spans: list[Span]) -> None:
    for span in spans:
        span.start_ns -= span.start_ns % 1_000_000
        span.end_ns = None if span.end_ns is None else span.end_ns - span.end_ns % 1_000_000


def _doubles(spans: list[Span]) -> None:
    for span in spans:
        span.attributes |= {key: float(value) for key, value in span.attributes.items() if type(value) is int}


HABITS: dict[str, Callable[[list[Span]], None]] = {
    "keys in another order": _rewritten(lambda value: json.dumps(_backwards(value))),
    "indented": _rewritten(lambda value: json.dumps(value, indent=2)),
    "structured attributes": _rewritten(lambda value: value),
    "python reprs": _python,
    "a clock of milliseconds": _coarse,
    "doubles for integers": _doubles,
}
"""What other SDKs do with the same."""


@pytest.mark.parametrize("habit", HABITS)
def test_habits_of_other_sdks_change_nothing(habit: str) -> None:
    wrong = {}
    for capture in sorted(TRUTH):
        spans = spans_of(capture)
        HABITS[habit](spans)
        for name, (right, found, expected) in score(capture, spans, events_of(spans)).items():
            if not right:
                wrong[capture, name] = found, expected
    assert wrong == {}


def plain(events: list[Event]) -> list[Any]:
    return [
        (
            replace(event, spans=[]),
            event.spans[0].span_id if event.spans else None,
            sorted(span.span_id for span in event.spans),
        )
        for event in events
    ]


@pytest.mark.parametrize("capture", sorted(TRUTH))
def test_order_of_arrival_does_not_matter(capture: str) -> None:
    """Any order of the same spans gives the same rows in the same order, trace by trace."""
    spans = spans_of(capture)
    expected = {trace: plain(assemble(facts)) for trace, facts in _by_trace(spans).items()}
    shuffled = random.Random(7).sample(spans, len(spans))
    assert {trace: plain(assemble(facts)) for trace, facts in _by_trace(shuffled).items()} == expected


@pytest.mark.parametrize("capture", sorted(TRUTH))
def test_an_event_once_told_stays_or_is_taken(capture: str) -> None:
    """As spans arrive one by one, an event id persists or is among the spans of the event that took it."""
    spans = spans_of(capture)
    ids = {read(span).id: span for span in spans}
    for trace, facts in _by_trace(spans).items():
        told: set[str] = set()
        known: list[Any] = []
        for one in facts:
            known.append(one)
            events = assemble(known)
            now = {event.id for event in events if event.spans}
            taken = {span.span_id for event in events for span in event.spans}
            for gone in told - now:
                assert ids[gone].span_id in taken, (trace, gone)
            told |= now


@pytest.mark.parametrize("capture", sorted(TRUTH))
def test_recording_all_adds_rows_and_changes_none(capture: str) -> None:
    """`record="all"`: every span is on a row, and what happened is told as without it, once: what is added is `info`,
    completed, and spent nothing."""
    spans = spans_of(capture)
    agents = {event.id: event for event in events_of(spans)}
    traces: dict[str, list[Any]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(read(span, record="all"))
    everything = [event for facts in traces.values() for event in assemble(facts, record="all")]
    held = Counter(span.span_id for event in everything for span in event.spans)
    assert held == Counter(span.span_id for span in spans)
    for event in everything:
        known = agents.pop(event.id, None)
        if known is None:
            assert event.event_type in ("info", "error"), event
            assert "tokens" not in event.meta
            assert "cost_usd" not in event.meta
        else:
            told = ("event_type", "event_subtype", "status", "agent_name", "inputs", "outputs", "meta", "error_message")
            assert [getattr(event, name) for name in told] == [getattr(known, name) for name in told]
    assert agents == {}


def test_a_trace_that_was_read_leaves_nothing_to_the_garbage_collector() -> None:
    """Cycles would keep every fact and event of a trace until it comes."""
    traces = [facts for capture in sorted(TRUTH)[:20] for facts in _by_trace(spans_of(capture)).values()]
    gc.collect()
    gc.disable()
    try:
        for facts in traces:
            assemble(facts)
        assert not [found for found in gc.get_objects() if isinstance(found, Node)]
    finally:
        gc.enable()


def _by_trace(spans: list[Span]) -> dict[str, list[Any]]:
    traces: dict[str, list[Any]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(read(span))
    return traces


def main() -> None:
    names = [
        "agent_calls",
        "tool_calls",
        "code_execs",
        "handoffs",
        "llm_calls",
        "tokens",
        "models",
        "errors",
        "approvals",
        "nested",
        "laws",
    ]
    total = good = 0
    notes = []
    print(f"{'capture':50s}" + "".join(f"{name[:9]:>10s}" for name in names))
    for capture in sorted(TRUTH):
        spans = spans_of(capture)
        cells = score(capture, spans, events_of(spans))
        row = f"{capture:50s}"
        for name in names:
            if name not in cells:
                row += f"{'-':>10s}"
                continue
            right, found, expected = cells[name]
            total += 1
            good += right
            row += f"{'ok' if right else 'WRONG':>10s}"
            if not right:
                notes.append(f"{capture} {name}: found {found}, expected {expected}")
        print(row)
    print(f"{good} of {total} cells right")
    print("\n".join(notes))


if __name__ == "__main__":
    main()
