
"""Whatever attributes hold and however spans arrive: nothing raises, no span is lost, the order of arrival tells nothing."""

from __future__ import annotations

import gc
import json
import random
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_cmb.assemble import assemble
from otel_cmb.assemble_tree import Node
from otel_cmb.event import Event, Link, Scope, Span, SpanEvent, Stamp
from otel_cmb.mapper import Facts, from_skeleton, is_event, named, read, skeleton
from otel_cmb.mapper_results import content_of, error_result, exit_code_of
from otel_cmb.mapper_shape import shape_of
from otel_cmb.messages import as_json, conversation
from otel_cmb.messages_flat import flattened
from otel_cmb.vocabulary import DISCRIMINATORS, FIELD_OF, PRESENT

TRACE = "0af7651916cd43dd8448eb211c80319c"
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "", "\x00", "\ud800", "{not json", "[[[[", '{"a": NaN}', "exitcode: 1 (execution failed)\nCode output: x", "exitcode: 99999999999999",
        '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]', '[{"role": 7, "content": {"a": []}}]', "```python\nprint(1)\n```",
        '[false, {"content": 3}]', '{"target": "b"}', '{"message": "m", "target": {"agent_name": "b"}}', "[" * 3000, '{"a":' * 2000, "transfer_to_b_1",
        '[{"type": "human", "data": {"content": "x"}}]', '{"lc": 1, "kwargs": {"content": null}}', "{'python': 'repr'}", "1" * 5000, '{"input_str": 5}',
        "[exit code: 1]", "`" * 5000, '{"content": {"parts": 5}}', '[[{"lc": 1, "type": "constructor", "id": 5, "kwargs": {}}]]', "None", "unknown",
        '{"cmb": 1}', '[1, 2]', "message", "handoff", '{"sender": 1, "recipient": [], "content": {}}',
    ]),
)  # fmt: skip
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        texts,
        st.booleans(),
        st.none(),
        st.integers(),
        st.floats(allow_nan=True),
        st.binary(max_size=8),
        st.sampled_from([10**30, -1, 0, 1.5, float("inf")]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
MESSAGE_KEYS = [
    "role", "content", "parts", "type", "text", "lc", "kwargs", "id", "data", "message", "messages", "tool_calls", "function", "name", "arguments",
    "args", "input", "output", "outputs", "choices", "generations", "contents", "candidates", "finish_reason", "tool_call_id", "response", "result",
    "thinking", "function_call", "functionCall", "function_response", "toolUse", "toolResult", "system", "update", "raw", "task", "isError", "is_error",
    "status", "target", "agent_name", "exitcode", "stderr", "raw_output", "tool_name", "kwargs", "input_str", "sanitize_inputs_outputs", "reason",
    "sender", "recipient", "file_path", "to_agent", "from_agent", "code", "language", "lc_agent_name", "ls_integration", "langgraph_node",
]  # fmt: skip
words = st.sampled_from(["text", "tool_call", "tool_use", "function_call_output", "human", "ai", "tool", "user", "system", "error", "q", "", "[1]", "exitcode: 2"])
structures: st.SearchStrategy[Any] = st.recursive(
    st.one_of(words, st.integers(-2, 9), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(MESSAGE_KEYS), inner, max_size=4)),
    max_leaves=10,
)
values = st.one_of(values, structures, structures.map(json.dumps), structures.map(repr))
kinds = [(key, value) for key, table in DISCRIMINATORS for value in table]
known_keys = sorted(FIELD_OF) + sorted(PRESENT) + [
    "llm.input_messages.0.message.role", "llm.input_messages.99999999.message.content", "llm.input_messages.0.message.tool_calls.0.tool_call.id",
    "llm.output_messages.0.message.contents.0.message_content.text", "gen_ai.prompt.0.content", "gen_ai.completion.x.content", "cmb.run.id",
]  # fmt: skip


@st.composite
def attributes(draw: st.DrawFn) -> dict[str, Any]:
    found = draw(st.dictionaries(st.sampled_from(known_keys), values, max_size=8))
    if draw(st.booleans()):
        key, value = draw(st.sampled_from(kinds))
        found[key] = value
    return found


names = st.sampled_from([
    "invoke_agent a", "execute_tool transfer_to_b_1", "execute_tool run_code", "a.run", "handoff to b", "a → b.handoff", "chat m", "x", "", "execute_code a", "\x00",
])  # fmt: skip
ids = st.integers(0, 9).map(lambda n: f"{n:016x}")


@st.composite
def one_span(draw: st.DrawFn) -> Span:
    start = draw(st.integers(0, 50))
    return Span(
        TRACE, draw(ids), draw(names), start, draw(st.one_of(st.none(), st.integers(start, 100))),
        draw(st.one_of(st.none(), ids)), status_code=draw(st.integers(0, 2)), status_message=draw(texts),
        attributes=draw(attributes()),
        events=[
            SpanEvent(name, start, draw(attributes()))
            for name in draw(st.lists(st.sampled_from(["exception", "gen_ai.choice", "gen_ai.tool.message", "gen_ai.user.message"]), max_size=2))
        ],
        links=[Link(*pair) for pair in draw(st.lists(st.tuples(st.sampled_from(["f" * 32, "zz" * 16, ""]), st.sampled_from(["1" * 16, "x"])), max_size=2))],
        scope=Scope(draw(st.sampled_from(["", "opentelemetry.instrumentation.ag2", "gcp.vertex.agent", "pydantic-ai"]))),
        stamp=Stamp(run_id=draw(st.sampled_from(["r1", "r1", "r1", "r2", None]))), died=draw(st.booleans()) and draw(st.booleans()),
    )  # fmt: skip


OI = "openinference.span.kind"
acts = st.sampled_from([
    {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"},
    {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "_Group_Tool_Executor"},
    {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "x", "gen_ai.output.messages": '[{"role": "assistant", "content": "exitcode: 1 (execution failed)"}]'},
    {OI: "AGENT", "agent.name": "a", "output.value": "```python\n# filename: a.py\nx\n```"},
    {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 1},
    {"gen_ai.operation.name": "chat"},
    {OI: "LLM", "llm.token_count.prompt": 3, "llm.token_count.completion": 1},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f"},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "run_code", "gen_ai.tool.call.result": "exitcode: 1"},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "transfer_to_b_1"},
    {OI: "TOOL", "tool.name": "f", "output.value": '[true, {"content": {"message": "m", "target": {"agent_name": "b"}}}]'},
    {OI: "TOOL", "tool.name": "transfer_to_b_1"},
    {"langgraph.command.goto_node": "b"},
    {"cmb.event.type": "handoff", "cmb.inputs": '{"from_agent": "a", "to_agent": "b"}'},
    {"ag2.span.type": "code_execution"},
    {"ag2.span.type": "speaker_selection", "ag2.speaker_selection.selected": "b"},
    {"ag2.span.type": "usage"},
    {OI: "CHAIN"},
    {},
])  # fmt: skip


@st.composite
def plausible(draw: st.DrawFn) -> Span:
    """A span such as frameworks make, among few enough that they meet."""
    made = draw(one_span())
    made.attributes, made.events, made.name, made.stamp = dict(draw(acts)), [], "x", Stamp(run_id="r1")
    made.scope = Scope(draw(st.sampled_from(["s", "t"])))
    return made


any_span = st.one_of(plausible(), plausible(), one_span())


def facts_of(spans: list[Span], record: str = "agents") -> list[Facts]:
    unique = {(span.span_id, span.start_ns): span for span in spans}
    return [read(span, id=f"{span.span_id}@{span.start_ns}", record=record) for span in unique.values()]


def shown(events: list[Event]) -> list[Any]:
    return [
        (replace(event, spans=[]), [id(span) for span in event.spans][:1], sorted(id(span) for span in event.spans))
        for event in events
    ]


@settings(quick, max_examples=600)
@given(structures)
def test_any_structure_can_be_taken_for_messages_or_a_result(value: Any) -> None:
    for form in (value, json.dumps(value), repr(value)):
        for message in conversation(form) or ():
            assert isinstance(message["role"], str)
        content_of(form)
        exit_code_of(form)
        error_result(form)
    if isinstance(value, dict):
        flattened({f"llm.input_messages.0.message.{key}": one for key, one in value.items()}, "llm.input_messages.")


data = st.one_of(texts, structures, st.sampled_from([10**30, -(2**63), 2**63, 2**64, 1e300, 0.5, -0.0, "\ud800", [[[1e19]]], {"a": [10**20]}]))
chats = st.lists(st.fixed_dictionaries(
    {}, optional={
        "role": st.one_of(words, data),
        "content": data,
        "parts": st.lists(st.fixed_dictionaries({"type": words}, optional={"content": data, "x": data}), max_size=2),
        "finish_reason": data,
        "tool_calls": data,
    }), min_size=1, max_size=3)  # fmt: skip


@settings(quick, max_examples=600)
@given(chats, st.sampled_from(["user", "assistant"]), st.sampled_from(["{}", " {}", "{} ", "{}x", '[{{"role": "user", "content": {}}}]']))
def test_a_text_is_read_as_what_it_holds(value: list[Any], role: str, form: str) -> None:
    """What is read quickly, with another parser, is what the general way reads; integers of any size and all."""
    for text in (form.format(json.dumps(value)), form.format(json.dumps(value, ensure_ascii=False, separators=(",", ":")))):
        held = as_json(text)
        assert repr(conversation(text, role)) == repr(None if held is text else conversation(held, role))


def fields_one_by_one(attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, tuple[int, Any]] = {}
    for key, value in attributes.items():
        if key in FIELD_OF and value is not None:
            name, rank = FIELD_OF[key]
            if name not in found or rank < found[name][0]:
                found[name] = rank, value
    return {name: value for name, (_, value) in found.items()}


@settings(quick, max_examples=300)
@given(st.lists(attributes(), min_size=1, max_size=4))
def test_spans_with_the_same_names_are_read_as_if_each_were_the_first(found: list[dict[str, Any]]) -> None:
    """What is remembered of the names of attributes says nothing of their values: null, or of another type."""
    for one in found:
        for values_of in found:
            mixed = {key: values_of.get(key) for key in one}
            assert repr(sorted(shape_of(mixed).fields(mixed).items())) == repr(sorted(fields_one_by_one(mixed).items()))


@quick
@given(one_span())
def test_any_attributes_can_be_read(span: Span) -> None:
    """Reading never raises, nor does anything asked of the facts; a skeleton survives JSON."""
    facts = read(span)
    named(span)
    body = json.loads(json.dumps(skeleton(facts)))
    again = from_skeleton(body)
    assert skeleton(again) == body
    assert not is_event(again)
    assert again.agent == facts.agent
    for event in assemble([facts]):
        assert event.trace_id == TRACE
    if is_event(facts):
        assert [one for event in assemble([facts]) for one in event.spans] == [span]


@quick
@given(st.lists(any_span, max_size=8), st.sampled_from(["agents", "all"]), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter_and_no_span_is_lost(
    spans: list[Span], record: str, chance: random.Random
) -> None:
    """Whatever the ids, runs, parents and cycles: the same set gives the same events, and each event's span is in one."""
    facts = facts_of(spans, record)
    events = assemble(facts, record=record)
    mixed = list(facts)
    chance.shuffle(mixed)
    assert repr(shown(assemble(mixed, record=record))) == repr(shown(events))
    held = [id(span) for event in events for span in event.spans]
    assert sorted(held) == sorted(id(one.span) for one in facts if is_event(one))
    before: dict[str, Event] = {}
    for event in events:
        assert event.id not in before
        parent = before.get(event.parent_event_id or "")
        if event.parent_event_id is not None and event.parent_known:
            assert parent is not None
            assert (parent.run_id, parent.depth + 1) == (event.run_id, event.depth)
        else:
            assert event.depth == 0
        before[event.id] = event


@quick
@given(st.lists(any_span, max_size=7))
def test_an_event_once_told_stays_or_is_taken(spans: list[Span]) -> None:
    """With each span that comes, an id persists or its span is among those of the event that took it."""
    facts = facts_of(spans)
    told: dict[str, Span] = {}
    for count in range(1, len(facts) + 1):
        events = assemble(facts[:count])
        now = {event.id: event for event in events if event.spans}
        taken = {id(span) for event in events for span in event.spans}
        for gone, span in told.items():
            assert gone in now or id(span) in taken
        told.update((event.id, event.spans[0]) for event in now.values())


@quick
@given(st.lists(any_span, max_size=5))
def test_facts_are_not_changed(spans: list[Span]) -> None:
    """Assembling the same facts twice gives the same events: nothing of one call is left in them but a memory."""
    facts = facts_of(spans)
    assert repr(shown(assemble(facts))) == repr(shown(assemble(facts)))
    assert repr(shown(assemble(facts_of(spans)))) == repr(shown(assemble(facts)))


@settings(quick, max_examples=20)
@given(st.lists(any_span, max_size=8))
def test_nothing_waits_for_the_garbage_collector(spans: list[Span]) -> None:
    """The nodes of a trace name each other; once its events are known none is left."""
    facts = facts_of(spans)
    gc.disable()
    try:
        assemble(facts)
        assert not [one for one in gc.get_objects() if type(one) is Node]
    finally:
        gc.enable()
