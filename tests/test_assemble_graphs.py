"""What spans around a span make of it: graphs that are agents, and what hangs beside the span it belongs inside of."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from mapping_support import agent, chat, events, exception, one, span, tool

from otel_cmb.assemble import assemble
from otel_cmb.event import STATUS_ERROR, Event, Scope
from otel_cmb.mapper import read

OI = "openinference.span.kind"
LLAMA = "openinference.instrumentation.llama_index"
NODES = {"gen_ai.workflow.nodes": "['model', 'tools']"}


def told(found: list[Event]) -> list[tuple[Any, ...]]:
    return [(event.event_type, event.agent_name) for event in found if event.event_type != "info"]


def node(number: int, parent: int | None, name: str, step: str | None = None, kind: str = "CHAIN", **more: Any) -> Any:
    metadata = {} if step is None else {"metadata": json.dumps({"langgraph_node": step, "langgraph_step": number})}
    return span(number, parent, {OI: kind, "input.value": "x"} | metadata | more, name=name)


def prebuilt(name: str) -> list[Any]:
    """A graph as `create_react_agent` makes it, inside a node of its name."""
    return [
        node(1, None, "LangGraph"), node(2, 1, name, name), node(3, 2, name, name), node(4, 3, "agent", "agent", "AGENT"),
        node(5, 4, "ChatModel", "agent", "LLM"), node(6, 3, "tools", "tools"),
        node(7, 6, "add", "tools", "TOOL", **{"tool.name": "add"}),
    ]  # fmt: skip


def test_a_prebuilt_graph_is_the_agent_it_is_named_after() -> None:
    """And its node `agent`, which an instrumentation takes for one, is a step of it."""
    found = events(*prebuilt("planner"))
    assert told(found) == [("agent_call", "planner"), ("llm_call", "planner"), ("tool_call", "planner")]
    assert found[1].agent_name == found[3].agent_name == "planner"


def test_a_graph_without_a_name_stays_one() -> None:
    spans = prebuilt("planner")[2:]
    spans[0].name, spans[0].parent_span_id = "LangGraph", None
    assert told(events(*spans))[0] == ("agent_call", "agent")


def test_a_graph_of_ones_own_stays_one() -> None:
    """It has a node `agent` and others that no prebuilt graph has."""
    found = told(events(*prebuilt("planner"), node(8, 3, "review", "review")))
    assert found[:2] == [("agent_call", "agent"), ("llm_call", "agent")]


def test_a_span_of_the_program_around_a_node_is_no_graph() -> None:
    """As where the graph's own span was not sampled."""
    spans = prebuilt("planner")[2:]
    spans[0].name, spans[0].parent_span_id, spans[0].scope = "POST /chat", None, Scope("app")
    assert told(events(*spans))[0] == ("agent_call", "agent")


def test_an_agent_inside_a_prebuilt_graph_is_another() -> None:
    inner = agent(8, "writer", 7)
    found = told(events(*prebuilt("planner"), inner, chat(9, 8), tool(10, "note", 8)))
    assert found[3:] == [("agent_call", "writer"), ("llm_call", "writer"), ("tool_call", "writer")]


def test_a_graph_that_grows_is_the_same_as_one_read_at_once() -> None:
    """What was worked out of it while it was none, or while less of it had come, does not stay."""
    spans = [*llama("FunctionAgent", "BaseWorkflowAgent"), step(7, "BaseWorkflowAgent.run_agent_step", "planner")]
    spans[0].attributes |= {"input.value": '{"user_msg": "go"}', "output.value": "StopEvent(...)"}
    spans.append(span(8, 7, {OI: "LLM", "llm.output_messages.0.message.content": "done"}, name="M.achat", scope=LLAMA))
    at_once = events(*spans)
    assert at_once[0].outputs == {"response": "done"}
    for order in (spans, spans[::-1], [spans[0], *spans[:0:-1]]):
        facts = [read(one) for one in order]
        for count in range(1, len(facts)):
            assemble(facts[:count])
        assert assemble(facts) == at_once


def test_graphs_inside_graphs_are_gone_through_once() -> None:
    """And each graph names what is directly inside of it."""
    count = 4000
    spans = [node(1, None, "g1", "g1")]
    for number in range(2, count, 2):
        spans += [node(number, number - 1, "agent", "agent", "AGENT"), node(number + 1, number, f"g{number + 1}", "x")]
    facts = [read(one) for one in spans]
    began = time.process_time()
    found = assemble(facts)
    assert time.process_time() - began < 4
    names = {event.span_id: event.agent_name for event in found}
    assert all(names[f"{number:016x}"] == f"g{number - 1}" for number in range(2, count, 2))


def task(number: int, parent: int, name: str, **options: Any) -> Any:
    attributes = {
        "gen_ai.operation.name": "execute_task", "gen_ai.task.name": name, "traceloop.span.kind": "task",
        "traceloop.entity.name": name,
    }  # fmt: skip
    return span(number, parent, attributes, name=f"execute_task {name}", **options)


TRACELOOP = "opentelemetry.instrumentation.langchain"


def run_of(number: int, parent: int | None, name: str) -> Any:
    """The other span that Traceloop makes of a graph, or the only one of a sequence."""
    more = {"traceloop.span.kind": "workflow", "traceloop.entity.name": name}
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name} | more
    return span(number, parent, attributes, name=f"{name}.workflow", scope=TRACELOOP)


@pytest.mark.parametrize(
    ("nodes", "step", "count"),
    [(["model", "tools"], "model", 1), (["agent", "tools"], "agent", 1), (["planner", "engineer"], "planner", 0)],
)
def test_a_graph_that_calls_no_model_itself_is_no_agent(nodes: list[str], step: str, count: int) -> None:
    graph = agent(1, "team", more={"gen_ai.workflow.nodes": nodes}, scope=TRACELOOP)
    spans = [graph, run_of(2, 1, "team"), task(3, 2, step, scope=TRACELOOP), chat(4, 3, scope=TRACELOOP)]
    found = events(*spans)
    assert [event.event_type for event in found].count("agent_call") == count
    assert events(*spans[::-1]) == found


@pytest.mark.parametrize(("step", "kind"), [("model", "agent_call"), ("Prompt", "info")])
def test_a_workflow_alone_is_an_agent_if_it_calls_a_model(step: str, kind: str) -> None:
    found = events(run_of(1, None, "RunnableSequence"), task(2, 1, step, scope=TRACELOOP), chat(3, 1, scope=TRACELOOP))
    assert [event.event_type for event in found] == [kind, "info", "llm_call"]


def test_the_function_that_calls_an_agent_is_none() -> None:
    genai = "opentelemetry.instrumentation.genai.langchain"
    outer, inner = agent(1, "call_agent", scope=genai), agent(2, "planner", 1, scope=genai)
    outer.name = "invoke_agent call_agent"
    assert [event.event_type for event in events(outer, inner)] == ["info", "agent_call"]
    outer.scope = Scope("app")
    assert told(events(outer)) == [("agent_call", "call_agent")]


@pytest.mark.parametrize(
    ("name", "arguments", "who"),
    [
        ("Delegate work to coworker", {"task": "t", "coworker": "engineer"}, "engineer"),
        ("ask_question_to_coworker", {"question": "q", "coworker": "engineer"}, "engineer"),
        ("Delegate work to coworker", {"task": "t"}, "manager"),
        ("ask", {"coworker": "engineer"}, "manager"),
    ],
)
def test_who_works_for_a_coworker(name: str, arguments: dict[str, str], who: str) -> None:
    asked = {OI: "TOOL", "tool.name": name, "input.value": json.dumps(arguments)}
    found = events(agent(1, "manager"), span(2, 1, asked), tool(3, "add", 2))
    assert [event.agent_name for event in found] == ["manager", "manager", who]


def test_what_an_agent_does_is_inside_of_it_where_its_span_is_a_leaf() -> None:
    """Traceloop under LangGraph: the agent's span and the task that it is are side by side."""
    leaf = agent(2, "writer", 1, end=900, more=NODES)
    found = events(agent(1, "team"), leaf, task(3, 1, "writer", end=800), chat(4, 3, end=700))
    assert [(event.event_type, event.depth) for event in found] == [
        ("agent_call", 0), ("agent_call", 1), ("info", 2), ("llm_call", 3),
    ]  # fmt: skip


def test_a_task_that_an_agent_does_not_enclose_stays_beside_it() -> None:
    leaf = agent(2, "writer", 1, end=3, more=NODES)
    found = events(agent(1, "team"), leaf, task(3, 1, "writer", end=800), task(4, 1, "b"))
    assert [event.depth for event in found] == [0, 1, 1, 1]


def step(number: int, name: str, acts: str | None, parent: int = 1) -> Any:
    text = "x" if acts is None else f"AgentSetup(input=[], current_agent_name='{acts}')"
    return span(number, parent, {OI: "CHAIN", "input.value": json.dumps({"ev": text})}, name=name, scope=LLAMA)


def llama(root: str, prefix: str) -> list[Any]:
    more = {"scope": LLAMA}
    return [
        span(1, None, {OI: "CHAIN", "input.value": "{}"}, name=f"{root}.run", **more),
        step(2, f"{prefix}.run_agent_step", "planner"),
        span(3, 2, {OI: "LLM", "llm.input_messages.0.message.content": "go"}, name="M.achat", **more),
        step(4, f"{prefix}.call_tool", None),
        span(5, 4, {OI: "TOOL", "tool.name": "add"}, name="FunctionTool.acall", **more),
        step(6, f"{prefix}.setup_agent", "writer" if root == "AgentWorkflow" else "planner"),
    ]


def test_an_agent_of_llama_index_that_runs_alone() -> None:
    found = events(*llama("FunctionAgent", "BaseWorkflowAgent"))
    assert told(found) == [("agent_call", "planner"), ("llm_call", "planner"), ("tool_call", "planner")]
    assert found[0].inputs == {"message": "go"}


def test_a_workflow_of_agents_of_llama_index() -> None:
    """Its steps are no calls of an agent, but whose they are is known; so is who called the tool."""
    found = events(*llama("AgentWorkflow", "AgentWorkflow"))
    assert told(found) == [("llm_call", "planner"), ("tool_call", "planner")]
    assert found[-1].agent_name == "writer"


def stream(number: int, start: int, question: str) -> list[Any]:
    attributes = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.input.messages": question,
        "logfire.span_type": "span",
    }  # fmt: skip
    answer = {"logfire.span_type": "log", "gen_ai.usage.input_tokens": number, "gen_ai.usage.output_tokens": 1}
    answer["gen_ai.output.messages"] = '[{"role": "assistant", "content": "yo"}]'
    return [
        span(number, 1, attributes, name="Chat Completion", scope="logfire.openai", start=start, end=start + 5),
        span(number + 1, 1, attributes | answer, name="streamed", scope="logfire.openai", start=start + 40, end=start + 40),
    ]


def test_a_streamed_call_and_its_log_are_one() -> None:
    """Two at once: each log goes on with the call of its question."""
    asked = [f'[{{"role": "user", "content": "{text}"}}]' for text in ("a", "b")]
    found = events(agent(1, "p"), *stream(2, 10, asked[0]), *stream(4, 12, asked[1]))
    assert [(event.event_type, event.meta.get("tokens"), len(event.spans)) for event in found[1:]] == [
        ("llm_call", 3, 2), ("llm_call", 5, 2),
    ]  # fmt: skip
    assert [event.inputs["messages"][0]["content"] for event in found[1:] if event.inputs] == ["a", "b"]


# Calls side by side that are one


def call(number: int, scope: str, model: str = "m", **options: Any) -> Any:
    more = {"gen_ai.request.model": model}
    if "asked" in options:
        more["gen_ai.input.messages"] = json.dumps([{"role": "user", "content": options.pop("asked")}])
    return chat(number, 1, options.pop("tokens", None), scope=scope, more=more, **options)


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ({}, {}, 1),
        ({"tokens": (3, 1)}, {}, 1),
        ({"tokens": (3, 2)}, {"tokens": (3, 1), "end": 1000}, 1),
        ({"tokens": (3, 1)}, {"tokens": (4, 1)}, 2),
        ({"model": "other"}, {}, 2),
        ({"status": STATUS_ERROR, "message": "no"}, {"status": STATUS_ERROR}, 1),
        ({"status": STATUS_ERROR, "message": "no"}, {}, 2),
        ({}, {"scope": "a"}, 2),
        ({}, {"start": 500_000_000, "end": 600_000_000}, 2),
        ({"model": "gpt-4o"}, {"model": "gpt-4o-2024-08-06"}, 1),
        ({"model": "gpt-4o"}, {"model": "gpt-4o-mini"}, 2),
        ({"tokens": (3, 1)}, {"tokens": (3, 2)}, 2),
        ({"asked": "one"}, {"asked": "two"}, 2),
        ({"asked": "one"}, {"asked": "one "}, 1),
    ],
)
def test_a_model_call_that_two_instrumentations_tell_of(
    first: dict[str, Any], second: dict[str, Any], count: int
) -> None:
    """One that failed or was streamed often says no tokens, or counts them otherwise."""
    found = events(agent(1, "p"), call(2, **({"scope": "a"} | first)), call(3, **({"scope": "b"} | second)))
    assert len(found) == 1 + count


@pytest.mark.parametrize("record", ["agents", "all"])
@pytest.mark.parametrize(("other", "count"), [({}, 1), ({"asked": "two"}, 2), ({"scope": "a"}, 2), ({"model": "n"}, 2)])
def test_a_failed_call_meets_itself_through_steps_and_beside_agents(record: str, other: dict[str, Any], count: int) -> None:
    """One instrumentation tells of a graph's nodes, the other of calls alone."""
    failed: dict[str, Any] = {"status": STATUS_ERROR, "message": "no", "asked": "one"}
    step = span(5, 1, {OI: "CHAIN"}, name="model")
    inside, beside = call(2, **({"scope": "a"} | failed)), call(3, **({"scope": "b"} | failed | other))
    inside.parent_span_id = step.span_id
    application = span(9, None, name="app")
    for parent in (f"{1:016x}", application.span_id):
        beside.parent_span_id = parent
        start = agent(1, "p", 9)
        found = events(application, start, step, inside, beside, record=record)
        assert [event.event_type for event in found].count("llm_call") == count


@pytest.mark.parametrize(("end", "count"), [(90_000_000, 1), (700_000_000, 2)])
def test_one_library_calls_a_model_through_another_however_slow_it_is(end: int, count: int) -> None:
    outer = call(2, "a", tokens=(3, 1), asked="one", start=2, end=100_000_000)
    inner = call(3, "b", tokens=(3, 1), asked="one", start=60_000_000, end=end)
    assert len(events(agent(1, "p"), outer, inner)) == 1 + count


@pytest.mark.parametrize("capture", [("all",), ("none",)])
@pytest.mark.parametrize("results", [("exitcode: 0\n", "exitcode: 1\n"), ("a", "b")])
def test_calls_of_one_tool_at_once_each_meet_themselves(results: tuple[str, str], capture: tuple[str, ...]) -> None:
    """Under a clock that gives all of them one time."""
    spans = [agent(1, "p")]
    for number, (scope, which) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 0)], 2):
        more = {"gen_ai.tool.call.arguments": json.dumps({"x": which}), "gen_ai.tool.call.result": results[which]}
        spans.append(tool(number, "fit", 1, scope=scope, start=2, end=9, more=more))
    found = [event for event in events(*spans, capture=capture) if event.event_type != "agent_call"]
    assert [len({one.attributes["gen_ai.tool.call.arguments"] for one in event.spans}) for event in found] == [1, 1]
    assert [len(event.spans) for event in found] == [2, 2]


def test_an_instrumentation_tells_of_a_call_once() -> None:
    """Of two calls at once, of which one instrumentation saw but the first, two are left."""
    found = events(agent(1, "p"), call(2, "a"), call(3, "b"), call(4, "b"))
    assert [event.event_type for event in found] == ["agent_call", "llm_call", "llm_call"]


def test_what_a_program_says_to_be_two_calls_is_two() -> None:
    said = [span(number, 1, {"cmb.event.type": "llm_call", "gen_ai.request.model": "m"}, scope=f"s{number}") for number in (2, 3)]
    assert len(events(agent(1, "p"), *said)) == 3


def test_whether_two_calls_are_one_does_not_hang_on_what_is_stored() -> None:
    calls = call(2, "a", asked="one"), call(3, "b", asked="two")
    assert len(events(agent(1, "p"), *calls, capture=("none",))) == len(events(agent(1, "p"), *calls)) == 3


@pytest.mark.parametrize("scope", ["app", "fastmcp"])
@pytest.mark.parametrize(("end", "count"), [(900, 1), (2000, 2)])
def test_the_servers_end_of_a_call_is_within_the_clients(scope: str, end: int, count: int) -> None:
    """Whatever else is in the trace. A call that goes on after the client's has ended is another."""
    client, server = (tool(number, "f", 1, scope="fastmcp", end=end) for number, end in ((2, 1000), (3, end)))
    client.kind, server.kind = 3, 2
    assert len(events(agent(1, "p", scope=scope, end=5000), client, server)) == 1 + count


@pytest.mark.parametrize(("kinds", "count"), [((3, 2), 1), ((1, 1), 2), ((3, 3), 2)])
def test_both_ends_of_a_tool_call_side_by_side(kinds: tuple[int, int], count: int) -> None:
    """FastMCP's client and server in one process; two calls of one tool at once are two."""
    calls = [
        span(number, 1, {"mcp.method.name": "tools/call", "gen_ai.tool.name": "f"}, name="tools/call f", scope="fastmcp", end=900)
        for number in (2, 3)
    ]
    for made, kind in zip(calls, kinds, strict=True):
        made.kind = kind
    assert len(events(agent(1, "p", scope="app"), *calls)) == 1 + count


# Payloads in forms of their own


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input": 8, "output": 4, "total": 15, "input_cache_read": 2, "output_reasoning": 1}, (10, 5, 15)),
        ({"input": 10, "output": 5, "total": 15, "input_cached_tokens": 2}, (10, 5, 15)),
        ({"input": 8, "output": 4, "total": 99, "input_cache_read": 2}, (8, 4, 12)),
    ],
)
def test_usage_with_details_beside_it(usage: dict[str, int], expected: tuple[int, int, int]) -> None:
    attributes = {"langfuse.observation.type": "generation", "langfuse.observation.usage_details": json.dumps(usage)}
    meta = one(span(1, None, attributes)).meta
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["tokens"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"args": ["plan it"], "kwargs": {}}, "plan it"),
        ({"args": [], "kwargs": {"task": "plan it"}}, "plan it"),
        ({"args": ["a", "b"], "kwargs": {}}, {"args": ["a", "b"], "kwargs": {}}),
        ({"args": [], "kwargs": {}}, None),
        ({"input_args": {"question": "plan it"}}, "plan it"),
    ],
)
def test_what_a_decorated_function_was_asked(arguments: dict[str, Any], message: Any) -> None:
    event = one(span(1, None, {"traceloop.span.kind": "agent", "traceloop.entity.input": json.dumps(arguments)}))
    assert event.inputs == (None if message is None else {"message": message})


def test_a_message_of_langchain_as_a_tools_result() -> None:
    attributes = {"langfuse.observation.type": "tool", "langfuse.observation.input": "{}"}
    result = {"content": "no q", "type": "tool", "tool_call_id": "c", "status": "error"}
    event = one(span(1, None, attributes | {"langfuse.observation.output": json.dumps(result)}, name="f"))
    assert (event.status, event.error_message, event.outputs) == ("failed", "no q", {"result": "no q"})
    result = {"status": "error", "content": "as the tool says"}
    event = one(span(1, None, attributes | {"langfuse.observation.output": json.dumps(result)}, name="f"))
    assert (event.status, event.outputs) == ("completed", {"result": result})


def test_mcp_as_traceloop_and_logfire_write_it() -> None:
    first = {
        "traceloop.span.kind": "tool", "traceloop.entity.input": '{"tool_name": "f", "arguments": {"a": 1}}',
        "traceloop.entity.output": '{"result": "no a", "is_error": true}',
    }  # fmt: skip
    second = {
        "request": '{"method": "tools/call", "params": {"name": "f", "arguments": {"a": 1}}}',
        "response": '{"content": [{"type": "text", "text": "no a"}], "isError": true}',
    }
    for event in (
        one(span(1, None, first, name="f.tool")),
        one(span(1, None, second, name="MCP request: tools/call f", scope="logfire.mcp")),
    ):
        assert (event.inputs, event.outputs) == ({"tool_name": "f", "arguments": {"a": 1}}, {"result": "no a"})
        assert (event.status, event.error_message) == ("failed", "no a")


def test_haystacks_tool_calls_and_their_results() -> None:
    asked = {"tool_name": "add", "arguments": {"a": 1}, "id": "c"}
    messages = [
        {"role": "assistant", "content": [{"tool_call": asked}]},
        {"role": "tool", "content": [{"tool_call_result": {"result": "3", "origin": asked, "error": False}}]},
    ]
    event = one(span(1, None, {"haystack.agent.step.llm.input": json.dumps({"messages": messages})}, name="haystack.agent.step.llm"))
    assert event.inputs == {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "c", "name": "add", "arguments": {"a": 1}}], "content": None},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ]
    }


def test_texts_of_models_that_complete() -> None:
    attributes = {OI: "LLM", "llm.prompts.0.prompt.text": "once", "llm.choices.0.completion.text": "upon"}
    event = one(span(1, None, attributes))
    assert event.inputs == {"messages": [{"role": "user", "content": "once"}]}
    assert event.outputs == {"messages": [{"role": "assistant", "content": "upon"}]}


def test_what_langgraph_raises_to_hand_over_is_no_failure_as_a_text_either() -> None:
    attributes = {"langsmith.span.kind": "chain", "gen_ai.completion": "{}"}
    raised = exception("Exception", "ParentCommand(Command(goto='b'))")
    event = one(span(1, None, attributes, status=STATUS_ERROR, events=[raised]))
    assert (event.status, event.outputs) == ("completed", None)


@pytest.mark.parametrize("text", ["could not hand over: ParentCommand(x)", "no GraphInterrupt", "GraphInterrupt"])
def test_a_failure_that_mentions_what_langgraph_raises_is_one(text: str) -> None:
    event = one(tool(1, "f", status=STATUS_ERROR, events=[exception("Exception", text)]))
    assert (event.status, event.error_message) == ("failed", text)
