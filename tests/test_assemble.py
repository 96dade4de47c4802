
"""Pass 2: the spans of a trace to its events, as they should be now."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from mapping_support import OTHER, TRACE, agent, chat, events, exception, one, span, tool

from otel_cmb.assemble import assemble
from otel_cmb.event import Link, Span, Stamp, derived_id, event_id
from otel_cmb.mapper import from_skeleton, read, skeleton

OI = "openinference.span.kind"
AG2 = {"scope": "opentelemetry.instrumentation.ag2"}
PARTS = '[{"role": "%s", "parts": [{"type": "text", "content": "%s"}]}]'


def said(text: str, role: str = "assistant") -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def types(*spans: Span, **options: Any) -> list[str]:
    return [event.event_type for event in events(*spans, **options)]


# States


@pytest.mark.parametrize(
    ("made", "subtype", "status"),
    [
        (agent(1, "a", end=None), "start", "running"),
        (agent(1, "a"), "complete", "completed"),
        (agent(1, "a", status=2), "error", "failed"),
        (agent(1, "a", end=None, died=True), "error", "failed"),
        (span(1, None, {"ag2.span.type": "human_input"}, end=None), "pending", "running"),
        (span(1, None, {"ag2.span.type": "human_input"}), "complete", "completed"),
        (span(1, None, {"cmb.event.type": "approval_requested", "cmb.event.subtype": "approved"}), "approved", "completed"),
        (span(1, None, {"cmb.event.type": "agent_call", "cmb.event.subtype": "message"}), "message", "completed"),
        (span(1, None, {"cmb.event.type": "agent_call", "cmb.event.subtype": "start"}), "complete", "completed"),
        (span(1, None, {"cmb.event.type": "error", "cmb.error.message": "m"}, end=None), "error", "failed"),
    ],
)  # fmt: skip
def test_state(made: Span, subtype: str, status: str) -> None:
    event = one(made)
    assert (event.event_subtype, event.status) == (subtype, status)
    assert (event.started_ns, event.completed_ns) == (made.start_ns, made.end_ns)


def test_a_dead_process_is_said_so() -> None:
    assert one(chat(1, end=None, died=True)).error_message == "process ended before the span did"


def test_a_running_span_and_its_end_are_one_event() -> None:
    """AG2 names a span when it starts and says everything else when it ends."""
    running = span(2, 1, {}, name="execute_code executor", end=None, **AG2)
    assert [(event.event_type, event.status) for event in events(running)] == [("code_exec", "running")]
    nothing = span(2, 1, {"ag2.span.type": "code_execution"}, name="execute_code executor", **AG2)
    ran = agent(1, "executor")
    found = events(ran, nothing)
    assert [(event.event_type, [s.name for s in event.spans]) for event in found] == [
        ("agent_call", ["invoke_agent executor", "execute_code executor"])
    ]


# Tree and order


def test_parents_skip_what_is_no_event() -> None:
    found = events(agent(1, "a"), span(2, 1, {"http.method": "GET"}), span(3, 2, {}), tool(4, "f", 3))
    assert [(event.event_type, event.parent_event_id, event.depth) for event in found] == [
        ("agent_call", None, 0),
        ("tool_call", event_id(TRACE, f"{1:016x}"), 1),
    ]


def test_skeletons_carry_the_chain() -> None:
    """Of a span without a row only its skeleton is kept; children still find the event above it."""
    bridge = from_skeleton(json.loads(json.dumps(skeleton(read(span(2, 1, {}))))))
    found = assemble([read(tool(3, "f", 2)), bridge, read(agent(1, "a"))])
    assert [event.parent_event_id for event in found] == [None, found[0].id]


def test_a_parent_of_another_run_is_none() -> None:
    found = events(agent(1, "a", run="run-2"), tool(2, "f", 1))
    assert [(event.run_id, event.parent_event_id, event.depth) for event in found] == [("run-2", None, 0), ("run-1", None, 0)]


def test_parents_come_before_children_whatever_their_clocks_say() -> None:
    found = events(agent(1, "a", start=100), tool(2, "f", 1, start=50), tool(3, "g", 1, start=40), chat(4, None, start=60))
    assert [event.span_id[-1] for event in found] == ["4", "1", "3", "2"]


def test_a_late_child_goes_beneath_a_parent_that_has_ended() -> None:
    found = events(span(1, None, {"ag2.span.type": "channel"}, end=5), agent(2, "a", 1, start=900))
    assert [event.depth for event in found] == [0, 1]


def test_a_cycle_of_parents_is_cut_once() -> None:
    found = events(agent(1, "a", 3), agent(2, "b", 1), agent(3, "c", 2))
    assert [(event.agent_name, event.depth) for event in found] == [("a", 0), ("b", 1), ("c", 2)]


def test_an_unknown_parent_is_taken_from_the_attribute_or_the_context_or_a_link() -> None:
    told = one(tool(2, "f", 9, more={"cmb.parent_event_id": "11111111-1111-8111-8111-111111111111"}))
    assert (told.parent_event_id, told.parent_known, told.depth) == ("11111111-1111-8111-8111-111111111111", False, 0)
    context = one(tool(2, "f", None, stamp=Stamp(run_id="run-1", parent_event_id="p")))
    assert (context.parent_event_id, context.parent_known) == ("p", False)
    linked = events(span(1, None, {"ag2.span.type": "envelope"}, links=[Link(OTHER, "1" * 16)]), agent(2, "a", 1))
    assert [(event.parent_event_id, event.parent_known) for event in linked] == [(event_id(OTHER, "1" * 16), False)]
    assert one(agent(2, "a", 9)).parent_event_id is None


def test_node_and_step_are_those_of_the_event_above_unless_told() -> None:
    stamp = Stamp(run_id="run-1", node_id="n", step_id="s")
    found = events(agent(1, "a", stamp=stamp), tool(2, "f", 1), tool(3, "g", 1, more={"cmb.node.id": "m"}))
    assert [(event.node_id, event.step_id) for event in found] == [("n", "s"), ("n", "s"), ("m", "s")]


def test_the_raw_span_stays_as_it_came() -> None:
    made = tool(1, "f", more={"gen_ai.tool.call.arguments": '{"a": 1}'})
    before = repr(made)
    assert one(made).spans[0] is made
    assert repr(made) == before


# Tokens once


def test_tokens_sit_on_the_leaf_that_spent_them() -> None:
    usage = {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4, "gen_ai.usage.cost": 0.5}
    found = events(
        span(1, None, {"ag2.span.type": "conversation", **usage}), agent(2, "a", 1, more=usage),
        chat(3, 2, (10, 2), more={"gen_ai.usage.cost": 0.5}), span(4, 2, {"ag2.span.type": "usage", **usage}),
    )  # fmt: skip
    assert [(event.event_type, event.meta.get("tokens"), event.meta.get("cost_usd")) for event in found] == [
        ("info", None, None), ("agent_call", None, None), ("llm_call", 12, 0.5),
    ]  # fmt: skip


def test_an_agent_without_model_calls_keeps_its_tokens() -> None:
    usage = {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4}
    found = events(agent(1, "a", more=usage), agent(2, "b", 1, more=usage), tool(3, "f", 2))
    assert [event.meta.get("tokens") for event in found] == [None, 34, None]


def test_cost_of_an_agent_is_kept_where_its_models_say_none() -> None:
    found = events(agent(1, "a", more={"operation.cost": 0.25}), chat(2, 1, (1, 1)))
    assert [(event.meta.get("cost_usd"), event.meta.get("tokens")) for event in found] == [(0.25, None), (None, 2)]


# Stacked instrumentations


def test_stacked_instrumentations_tell_of_one_act() -> None:
    """The outermost span survives and each field comes from the best vocabulary of either."""
    native = tool(2, "f", 1, more={"gen_ai.tool.call.id": "c", "error.type": "ExecutionError"})
    other = span(3, 2, {OI: "TOOL", "tool.name": "f", "tool_call.id": "c", "output.value": '[false, {"content": "Error: no x"}]',
                        "tool_call.function.arguments": '{"a": 1}'}, name="f", status=2, message="tool execution failed")  # fmt: skip
    event = events(agent(1, "a"), native, other)[1]
    assert [made.span_id for made in event.spans] == [native.span_id, other.span_id]
    assert (event.inputs, event.error_message) == ({"tool_name": "f", "arguments": {"a": 1}}, "Error: no x")
    assert (event.meta["error_type"], event.status) == ("ExecutionError", "failed")


def test_children_of_a_taken_span_hang_on_the_one_that_took_it() -> None:
    found = events(agent(1, "a"), span(2, 1, {OI: "AGENT", "agent.name": "a"}), tool(3, "f", 2))
    assert [(event.event_type, event.depth, event.parent_event_id) for event in found] == [
        ("agent_call", 0, None),
        ("tool_call", 1, found[0].id),
    ]


def test_a_chat_inside_a_chat_is_one_call() -> None:
    found = events(chat(1, None, (10, 2)), span(2, 1, {OI: "LLM", "llm.token_count.prompt": 10, "llm.token_count.completion": 2,
                                                       "llm.token_count.completion_details.reasoning": 1}))  # fmt: skip
    assert [(event.event_type, event.meta["tokens"], event.meta["reasoning_tokens"]) for event in found] == [("llm_call", 12, 1)]


def test_two_trees_of_the_same_acts_are_one() -> None:
    """Callback handlers hang their spans on their own parents: told by kind, name or tokens, and time."""
    usage = {"llm.token_count.prompt": 10, "llm.token_count.completion": 2}
    found = events(
        span(1, None, {OI: "CHAIN"}, name="graph", scope="oi", end=5000),
        span(2, 1, {OI: "TOOL", "tool.name": "f", "output.value": "r"}, scope="oi"),
        span(3, 1, {OI: "LLM", **usage}, scope="oi", start=2000),
        span(4, None, {"gen_ai.operation.name": "invoke_workflow"}, scope="tl", end=5000),
        tool(5, "f", 4, scope="tl", more={"gen_ai.tool.call.arguments": '{"a": 1}'}),
        chat(6, 4, (10, 2), scope="tl", start=2001), tool(7, "f", 4, scope="tl", start=60_000_000), tool(8, "f", 5, scope="tl"),
    )  # fmt: skip
    assert [(event.event_type, [made.span_id[-1] for made in event.spans]) for event in found] == [
        ("info", ["1"]), ("tool_call", ["2", "5", "8"]), ("info", ["4"]), ("llm_call", ["3", "6"]), ("tool_call", ["7"]),
    ]  # fmt: skip
    assert found[1].inputs == {"tool_name": "f", "arguments": {"a": 1}}
    assert sum(event.meta.get("tokens", 0) for event in found) == 12


def test_parallel_calls_of_one_instrumentation_stay_apart() -> None:
    assert types(agent(1, "a"), tool(2, "f", 1, scope="s"), tool(3, "f", 1, scope="s")) == ["agent_call", "tool_call", "tool_call"]
    other = {"gen_ai.tool.call.id": "1"}
    ids = tool(2, "f", 1, scope="s", more=other), tool(3, "f", 1, scope="t", more={"gen_ai.tool.call.id": "2"})
    assert types(agent(1, "a"), *ids) == ["agent_call", "tool_call", "tool_call"]


def test_several_calls_inside_one_are_the_calls() -> None:
    found = events(chat(1, None, (20, 4)), chat(2, 1, (10, 2)), chat(3, 1, (10, 2)))
    assert [(event.event_type, event.meta.get("tokens")) for event in found] == [("info", None), ("llm_call", 12), ("llm_call", 12)]


def test_a_failed_attempt_inside_a_call_that_worked_is_no_failure() -> None:
    found = events(chat(1, None, (10, 2)), chat(2, 1, None, status=2, message="500"), chat(3, 1, (10, 2)))
    assert [(event.event_type, event.status, event.meta["tokens"]) for event in found] == [("llm_call", "completed", 12)]


def test_agents_of_one_name_inside_a_tool_are_two_calls() -> None:
    assert types(agent(1, "a"), tool(2, "ask", 1), agent(3, "a", 2)) == ["agent_call", "tool_call", "agent_call"]


def test_a_recursion_is_as_many_calls_as_there_are() -> None:
    """One instrumentation that tells of a call inside a call of the same name tells of two: where the program itself says
    what they are, or where the arguments differ."""

    def own(number: int, parent: int | None, kind: str, **more: str) -> Span:
        return span(number, parent, {"cmb.event.type": kind, "cmb.agent.name": "a", "gen_ai.tool.name": "f", **more}, scope="s")

    for kind in ("agent_call", "tool_call", "code_exec", "handoff", "approval_requested"):
        assert types(own(1, None, kind), own(2, 1, kind), own(3, 2, kind)) == [kind] * 3
    found = events(own(1, None, "llm_call"), *(own(n, 1, "llm_call", **{"cmb.meta": '{"tokens": 7}'}) for n in (2, 3)))
    assert [(event.event_type, event.meta.get("tokens")) for event in found] == [("llm_call", None), ("llm_call", 7), ("llm_call", 7)]

    def f(number: int, parent: int | None, arguments: str, scope: str = "s") -> Span:
        return tool(number, "f", parent, scope=scope, more={"gen_ai.tool.call.arguments": arguments})

    assert types(f(1, None, '{"n": 2}'), f(2, 1, '{"n": 1}')) == ["tool_call"] * 2
    assert types(f(1, None, '{"n": 2}'), f(2, 1, '{"n":2}')) == ["tool_call"]
    assert types(f(1, None, '{"n": 2}'), f(2, 1, '{"args": [2]}', scope="t")) == ["tool_call"]


def test_an_agent_that_calls_its_like_again_and_again_is_no_duplicate() -> None:
    """One double is one act told twice; several of one instrumentation are acts, whatever they say."""

    def own(number: int, parent: int | None, scope: str = "s") -> Span:
        return span(number, parent, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}, scope=scope)

    assert types(own(1, None), own(2, 1)) == ["agent_call"]
    assert types(own(1, None), *(own(n, 1) for n in (2, 3, 4))) == ["agent_call"] * 4
    assert types(own(1, None), own(2, 1), own(3, 1), own(4, 1, "t")) == ["agent_call"] * 3
    assert types(tool(1, "f"), tool(2, "f", 1), tool(3, "f", 1)) == ["tool_call"] * 3


def test_an_agent_with_work_of_its_own_that_calls_its_like_is_no_duplicate() -> None:
    """What was done before or after the inner call was done by the outer one."""

    def own(number: int, parent: int | None, start: int, end: int, scope: str = "s", name: str = "invoke_agent a") -> Span:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
        return span(number, parent, attributes, name=name, start=start, end=end, scope=scope)

    def model(number: int, parent: int, start: int) -> Span:
        return chat(number, parent, (1, 1), start=start, end=start + 10, scope="s")

    outer, inner = own(1, None, 0, 900), own(2, 1, 100, 500)
    within, before, after = model(3, 2, 110), model(4, 1, 10), model(5, 1, 600)
    assert types(outer, inner, within) == ["agent_call", "llm_call"]
    for outside in (before, after):
        assert sorted(types(outer, inner, within, outside)) == ["agent_call", "agent_call", "llm_call", "llm_call"]
    assert types(outer, inner, within, model(6, 1, 300)) == ["agent_call", "llm_call", "llm_call"]
    assert types(outer, own(2, 1, 100, 500, name="a.workflow"), within, after) == ["agent_call", "llm_call", "llm_call"]

    stacked = own(1, None, 0, 900), own(2, 1, 1, 899, "t"), own(3, 2, 100, 500), own(4, 3, 101, 499, "t")
    found = events(*stacked, model(5, 4, 110), model(6, 2, 600))
    assert sorted((event.event_type, len(event.spans)) for event in found) == [
        ("agent_call", 2), ("agent_call", 2), ("llm_call", 1), ("llm_call", 1)]


def test_runs_keep_duplicates_apart() -> None:
    found = events(agent(1, "a"), span(2, 1, {OI: "AGENT", "agent.name": "a"}, run="run-2"))
    assert [(event.run_id, len(event.spans)) for event in found] == [("run-1", 1), ("run-2", 1)]


# Who acted


def test_names_come_from_above() -> None:
    found = events(agent(1, "a"), span(2, 1, {OI: "CHAIN"}), chat(3, 2), tool(4, "f", 2))
    assert [event.agent_name for event in found] == ["a"] * 4


def test_ag2s_tool_executor_acts_for_the_agent_before_it() -> None:
    found = events(
        span(1, None, {"ag2.span.type": "conversation", "gen_ai.agent.name": "_User"}), agent(2, "chat_manager", 1),
        agent(3, "planner", 2), agent(4, "_Group_Tool_Executor", 2), tool(5, "f", 4),
        agent(6, "_Group_Tool_Executor", 2), tool(7, "transfer_to_engineer_1", 6, **AG2),
    )  # fmt: skip
    assert [(event.event_type, event.agent_name) for event in found][4:] == [
        ("tool_call", "planner"), ("agent_call", "_Group_Tool_Executor"), ("handoff", "planner"),
    ]  # fmt: skip
    assert found[-1].inputs == {"from_agent": "planner", "to_agent": "engineer"}


# Handoffs

HANDOFFS: list[tuple[Span, str | None, str | None]] = [
    (tool(2, "transfer_to_engineer_1", 1, **AG2), "a", "engineer"),
    (tool(2, "transfer_to_team_2", 1), "a", "team_2"),
    (tool(2, "transfer_to_agent", 1, more={"gcp.vertex.agent.tool_call_args": '{"agent_name": "b"}'}), "a", "b"),
    (tool(2, "handoff_to_agent", 1, more={"gen_ai.tool.call.arguments": '{"agent_name": "b", "message": "m"}'}), "a", "b"),
    (tool(2, "handoff", 1, more={"gen_ai.tool.call.arguments": '{"to_agent": "b", "reason": "r"}'}), "a", "b"),
    (tool(2, "transfer_to_x", 1, more={"gen_ai.tool.call.result": '{"assistant": "B x"}'}), "a", "B x"),
    (tool(2, "route", 1, more={"gen_ai.tool.call.result": '{"target": "b", "reason": "r"}'}), "a", "b"),
    (tool(2, "route", 1, more={"gen_ai.tool.call.result": {"target": "b"}}), "a", "b"),
    (tool(2, "route", 1, more={"gen_ai.tool.call.result": "{'target': 'b', 'reason': 'r'}"}), "a", "b"),
    (tool(2, "route", 1, more={"gen_ai.agent.handoff.source.name": "p", "gen_ai.agent.handoff.target.name": "b"}), "p", "b"),
    (span(2, 1, {OI: "TOOL", "input.value": "p", "output.value": "b"}, name="handoff to b"), "p", "b"),
    (span(2, 1, {OI: "TOOL", "tool.name": "transfer_to_b_1", "output.value": '[true, {"content": {"agent_name": "b"}}]'}), "a", "b"),
    (span(2, 1, {"langgraph.command.source_node": "n", "langgraph.command.goto_node": "b"}), "n", "b"),
    (span(2, 1, {"gen_ai.operation.name": "handoff", "gen_ai.handoff.from_agent": "p"}, name="p → b.handoff"), "p", "b"),
    (span(2, 1, {"from_agent": "p", "to_agent": "b"}, name="Handoff: p", scope="logfire.openai_agents"), "p", "b"),
    (span(2, 1, {"cmb.event.type": "handoff", "cmb.inputs": '{"from_agent": "p", "to_agent": "b"}'}), "p", "b"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "source", "target"), HANDOFFS)
def test_a_handoff_however_it_is_spelled(made: Span, source: str | None, target: str | None) -> None:
    event = events(agent(1, "a"), made)[1]
    assert event.event_type == "handoff"
    assert event.inputs is not None
    assert (event.inputs.get("from_agent"), event.inputs.get("to_agent")) == (source, target)


def test_a_tool_that_transfers_something_else_is_a_tool() -> None:
    paid = tool(2, "transfer_to_account", 1, more={"gen_ai.tool.call.arguments": '{"amount": 5}'})
    assert types(agent(1, "a"), paid) == ["agent_call", "tool_call"]
    assert types(agent(1, "a"), paid, agent(3, "Account")) == ["agent_call", "handoff", "agent_call"]


def test_a_handoff_that_names_nobody_goes_to_the_agent_that_starts_next() -> None:
    asked = span(3, 2, {"gen_ai.operation.name": "handoff", "gen_ai.handoff.from_agent": "a"}, name="a → unknown.handoff")
    found = events(span(1, None, {OI: "CHAIN"}), agent(2, "a", 1), asked, agent(4, "b", 1))
    assert [event.inputs for event in found if event.event_type == "handoff"] == [{"from_agent": "a", "to_agent": "b"}]


def test_choosing_a_speaker_is_a_handoff_if_the_speaker_changes() -> None:
    def chosen(number: int, name: str) -> Span:
        attributes = {"ag2.span.type": "speaker_selection", "ag2.speaker_selection.selected": name}
        return span(number, 1, attributes, name="speaker_selection")

    found = events(
        agent(1, "chat_manager"), chosen(2, "a"), agent(3, "a", 1), chosen(4, "a"), agent(5, "a", 1), chosen(6, "b"),
        agent(7, "b", 1),
    )  # fmt: skip
    assert [event.event_type for event in found] == [
        "agent_call", "info", "agent_call", "info", "agent_call", "handoff", "agent_call",
    ]  # fmt: skip
    assert found[5].inputs == {"from_agent": "a", "to_agent": "b"}


def test_the_spans_of_one_handoff_are_one_event() -> None:
    """The tool that asks, what the framework does with it, and our own instrumentation: told three times, stored once."""
    ours = span(5, 1, {"cmb.event.type": "handoff", "cmb.inputs": '{"from_agent": "a", "to_agent": "b", "context": "c"}'})
    goto = span(4, 1, {"langgraph.command.source_node": "tools", "langgraph.command.goto_node": "b"})
    found = events(agent(1, "a"), tool(2, "transfer_to_b", 1), goto, ours, agent(6, "b"), tool(7, "transfer_to_b", 6))
    assert [event.event_type for event in found].count("handoff") == 2
    assert found[1].inputs == {"from_agent": "a", "to_agent": "b", "context": "c"}
    assert len(found[1].spans) == 3


def test_stacked_spans_of_a_repeated_handoff_are_all_kept() -> None:
    oi = {OI: "TOOL", "tool.name": "transfer_to_b"}
    found = events(
        agent(1, "a"), tool(2, "transfer_to_b", 1), span(3, 2, oi), tool(4, "transfer_to_b", 1), span(5, 4, oi),
    )  # fmt: skip
    assert [[made.span_id[-1] for made in event.spans] for event in found] == [["1"], ["2", "3", "4", "5"]]


def test_what_our_own_type_says_is_not_inferred_again() -> None:
    made = tool(2, "transfer_to_b", 1, more={"cmb.event.type": "tool_call"})
    assert types(agent(1, "a"), made) == ["agent_call", "tool_call"]


def test_a_tool_that_also_hands_over_has_a_handoff_inside() -> None:
    output = json.dumps([True, {"role": "function", "content": {"message": "m", "target": {"agent_name": "b"}, "context_variables": {}}}])
    made = span(2, 1, {OI: "TOOL", "tool.name": "record", "output.value": output})
    found = events(agent(1, "a"), made)
    assert [event.event_type for event in found] == ["agent_call", "tool_call", "handoff"]
    derived = found[2]
    assert derived.id == derived_id(TRACE, made.span_id, "handoff")
    assert (derived.spans, derived.parent_event_id, derived.depth) == ([], found[1].id, 2)
    assert (derived.inputs, derived.started_ns) == ({"from_agent": "a", "to_agent": "b"}, made.start_ns)


# Code


def test_an_answer_that_is_an_exit_code_is_a_code_execution() -> None:
    code = "Here.\n```python\n# filename: out/plot.py\nraise ValueError('x')\n```"
    reply = "exitcode: 1 (execution failed)\nCode output: Traceback\nValueError: x"
    found = events(
        span(1, None, {OI: "CHAIN"}),
        span(2, 1, {OI: "AGENT", "agent.name": "engineer", "input.value": "go", "output.value": code}),
        span(3, 1, {OI: "AGENT", "agent.name": "executor", "input.value": "None", "output.value": reply}),
    )  # fmt: skip
    ran = found[2]
    assert (ran.event_type, ran.agent_name, ran.status, ran.error_message) == ("code_exec", "executor", "failed", "ValueError: x")
    assert ran.inputs == {"code": "# filename: out/plot.py\nraise ValueError('x')"}
    assert ran.outputs == {"result": "Traceback\nValueError: x"}
    assert (ran.meta["language"], ran.meta["exit_code"], ran.meta["code_length"]) == ("python", 1, 45)
    made = found[3]
    assert (made.event_type, made.inputs) == ("file_gen", {"file_path": "out/plot.py", "file_type": "py"})
    assert [(row.file_path, row.file_type, row.size_bytes) for row in made.files] == [("out/plot.py", "py", None)]


def test_an_agent_in_which_something_happened_only_repeats_the_exit_code() -> None:
    reply = said("exitcode: 0 (execution succeeded)\nCode output: 1")
    ran = span(2, 1, {"ag2.span.type": "code_execution", "ag2.code_execution.exit_code": 0, "ag2.code_execution.output": "1"})
    assert types(agent(1, "x", more={"gen_ai.output.messages": reply}), ran) == ["agent_call", "code_exec"]


def test_code_of_an_execution_is_in_the_answer_before_it() -> None:
    found = events(
        agent(1, "manager"), agent(2, "engineer", 1, more={"gen_ai.output.messages": said("```sh\nls\n```")}),
        agent(3, "reviewer", 1, more={"gen_ai.output.messages": said("looks good")}), agent(4, "executor", 1),
        span(5, 4, {"ag2.span.type": "code_execution", "ag2.code_execution.exit_code": 0}),
    )  # fmt: skip
    assert (found[4].inputs, found[4].meta["language"]) == ({"code": "ls"}, "sh")


# What agents were asked


def test_an_agent_without_messages_shows_what_its_models_were_asked() -> None:
    found = events(
        agent(1, "a"), span(2, 1, {OI: "CHAIN"}),
        chat(3, 2, more={"gen_ai.input.messages": said("be good", "system")[:-1] + "," + said("measure", "user")[1:]}),
        chat(4, 1, more={"gen_ai.output.messages": said("67.4")}),
    )  # fmt: skip
    assert (found[0].inputs, found[0].outputs) == ({"message": "measure"}, {"response": "67.4"})


def test_why_a_tool_failed_is_in_the_answer_of_the_agent_that_ran_it() -> None:
    """AG2 0.x leaves nothing but `error.type` on the tool."""
    answer = said("Error: no x\n\nError: no y", "tool")
    found = events(
        agent(1, "executor", more={"gen_ai.output.messages": answer}), tool(2, "f", 1, more={"error.type": "ExecutionError"}),
        tool(3, "g", 1, more={"error.type": "ExecutionError"}),
    )  # fmt: skip
    assert [event.error_message for event in found] == [None, "Error: no x", "Error: no y"]


# Our own vocabulary


def test_our_own_attributes_are_taken_as_they_are() -> None:
    attributes = {
        "cmb.event.type": "agent_call", "cmb.agent.name": "engineer", "cmb.agent.role": "coder", "gen_ai.agent.name": "other",
        "cmb.inputs": '{"message": "m", "context": {"a": 1}}', "cmb.outputs": '{"response": "r"}',
        "cmb.meta": '{"sender": "planner", "model": "m", "nothing": null}', "gen_ai.request.model": "x",
    }  # fmt: skip
    event = one(span(1, None, attributes))
    assert (event.agent_name, event.agent_role) == ("engineer", "coder")
    assert (event.inputs, event.outputs) == ({"message": "m", "context": {"a": 1}}, {"response": "r"})
    assert event.meta == {"model": "m", "sender": "planner"}


def test_messages_and_files_have_rows() -> None:
    message = one(span(1, None, {"cmb.event.type": "agent_call", "cmb.event.subtype": "message", "cmb.meta": '{"tokens": 7}',
                                 "cmb.inputs": '{"sender": "a", "recipient": "b", "content": "hi"}'}))  # fmt: skip
    assert [(row.sender, row.recipient, row.content, row.tokens) for row in message.messages] == [("a", "b", "hi", 7)]
    made = one(span(1, None, {"cmb.event.type": "file_gen", "cmb.inputs": '{"file_path": "a/b.csv", "file_type": "data"}',
                              "cmb.meta": '{"size_bytes": 0}'}))  # fmt: skip
    assert [(row.file_path, row.file_type, row.size_bytes) for row in made.files] == [("a/b.csv", "data", 0)]


@pytest.mark.parametrize(("inputs", "row"), [
    ({"sender": "", "recipient": "", "content": ""}, ("", "", "")),
    ({"recipient": "b", "content": {"c": [1, "ü"]}}, ("", "b", '{"c": [1, "ü"]}')),
    ({"sender": 0, "recipient": False, "content": 0}, ("0", "false", "0")),
    ({}, ("", "", "")),
])
def test_a_message_says_no_more_than_it_was_given(inputs: dict[str, Any], row: tuple[str, str, str]) -> None:
    """A message without a sender is not its span's; content that is no text is JSON, as everywhere."""
    event = one(span(1, None, {"cmb.event.type": "agent_call", "cmb.event.subtype": "message", "cmb.inputs": json.dumps(inputs)},
                     name="message -> "))  # fmt: skip
    assert event.agent_name is None
    assert [(message.sender, message.recipient, message.content) for message in event.messages] == [row]


# Whose payloads are kept


def test_capture_is_a_switch_per_type() -> None:
    made = (
        agent(1, "a", more={"gen_ai.input.messages": said("secret", "user")}),
        tool(2, "f", 1, more={"gen_ai.tool.call.arguments": "{}", "gen_ai.tool.call.result": "r"}),
        tool(3, "transfer_to_b", 1),
    )
    assert [bool(event.inputs) for event in events(*made, capture=("all",))] == [True, True, True]
    assert [bool(event.inputs or event.outputs) for event in events(*made, capture=("none",))] == [False, False, False]
    assert [bool(event.inputs) for event in events(*made, capture=("tool_call", "handoff"))] == [False, True, True]


def test_a_long_trace_takes_linear_time() -> None:
    """Ten times the spans take about ten times as long, deep or wide."""

    def seconds(count: int, wide: bool) -> float:
        made = [agent(1, "a")] + [tool(n, "f", 1 if wide else n - 1) for n in range(2, count)]
        facts = [read(one) for one in made]
        started = time.process_time()
        assert len(assemble(facts)) > 1
        return time.process_time() - started

    for wide in (True, False):
        small = min(seconds(1000, wide) for _ in range(3))
        assert seconds(10_000, wide) < 40 * small + 0.5


def test_a_duplicate_exception_is_told_once() -> None:
    event = one(tool(1, "f", status=2, events=[exception("A", "first", "s1"), exception("B", "last", "s2")]))
    assert (event.error_message, event.meta["error_type"], event.meta["stack"]) == ("last", "B", "s2")
