
"""Pass 1: what one span says by itself, vocabulary by vocabulary."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mapping_support import events, exception, one, span

from otel_cmb.event import SpanEvent, Stamp
from otel_cmb.mapper import from_skeleton, is_event, named, read, skeleton
from otel_cmb.vocabulary import FIELD_KEYS, FIELD_OF, VOCABULARIES

AG2 = "opentelemetry.instrumentation.ag2"
OI = "openinference.span.kind"
STEP = '{"memory_step": "ActionStep(step_number=1)"}'

# vocabulary, attributes, options of the span -> type of its event (None: no event), agent
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str | None, str | None]] = [
    ("cmb", {"cmb.event.type": "agent_call", "cmb.agent.name": "a"}, {}, "agent_call", "a"),
    ("cmb", {"cmb.event.type": "error", "cmb.error.message": "no"}, {}, "error", None),
    ("cmb", {"cmb.event.type": "tool_call", "gen_ai.operation.name": "chat"}, {}, "tool_call", None),
    ("cmb", {"cmb.event.type": "nonsense", "gen_ai.operation.name": "chat"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}, {}, "agent_call", "a"),
    ("genai", {"gen_ai.operation.name": "chat"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "Chat"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "embeddings"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "generate_content"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "text_completion"}, {}, "llm_call", None),
    ("genai", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f"}, {}, "tool_call", None),
    ("genai", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "run_code"}, {}, "code_exec", None),
    ("genai", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "transfer_to_b"}, {}, "handoff", None),
    ("genai", {"gen_ai.operation.name": "invoke_workflow"}, {}, "info", None),
    ("genai", {"gen_ai.operation.name": "create_agent", "gen_ai.agent.name": "a"}, {}, None, "a"),
    ("ag2_0", {"ag2.span.type": "conversation", "gen_ai.agent.name": "u"}, {}, "info", "u"),
    ("ag2_0", {"ag2.span.type": "multi_conversation"}, {}, "info", None),
    ("ag2_0", {"ag2.span.type": "agent", "gen_ai.agent.name": "a"}, {}, "agent_call", "a"),
    ("ag2_0", {"ag2.span.type": "llm"}, {}, "llm_call", None),
    ("ag2_0", {"ag2.span.type": "tool", "gen_ai.tool.name": "f"}, {}, "tool_call", None),
    ("ag2_0", {"ag2.span.type": "code_execution", "ag2.code_execution.exit_code": 0}, {}, "code_exec", None),
    ("ag2_0", {"ag2.span.type": "code_execution"}, {}, "info", None),
    ("ag2_0", {"ag2.span.type": "human_input"}, {}, "approval_requested", None),
    ("ag2_0", {"ag2.span.type": "speaker_selection", "ag2.speaker_selection.selected": "b"}, {}, "info", None),
    ("ag2_0", {}, {"name": "invoke_agent a", "end": None, "scope": AG2}, "agent_call", "a"),
    ("ag2_0", {}, {"name": "chat gpt", "end": None, "scope": AG2}, "llm_call", None),
    ("ag2_0", {}, {"name": "chat with me", "scope": "my.app"}, None, None),
    ("ag2_0", {}, {"name": "await_human_input h", "end": None, "scope": AG2}, "approval_requested", "h"),
    ("ag2_1", {"ag2.span.type": "usage", "gen_ai.usage.input_tokens": 5}, {}, None, None),
    ("ag2_1", {"ag2.span.type": "envelope"}, {}, None, None),
    ("ag2_1", {"ag2.span.type": "agent_lifetime", "gen_ai.agent.name": "a"}, {}, None, "a"),
    ("ag2_1", {"ag2.span.type": "channel"}, {}, "info", None),
    ("ag2_1", {"ag2.span.type": "agent", "gen_ai.agent.name": "unknown"}, {}, "agent_call", None),
    ("openinference", {OI: "AGENT", "agent.name": "a", "input.value": "x"}, {}, "agent_call", "a"),
    ("openinference", {OI: "AGENT", "input.value": "x"}, {"name": "engineer.run"}, "agent_call", "engineer"),
    ("openinference", {OI: "AGENT"}, {"name": "my workflow"}, "info", None),
    ("openinference", {OI: "AGENT", "agent.name": "u", "ag2.recipient.name": "m"}, {}, "info", "u"),
    ("openinference", {OI: "CHAIN"}, {}, "info", None),
    ("openinference", {OI: "LLM"}, {}, "llm_call", None),
    ("openinference", {OI: "EMBEDDING"}, {}, "llm_call", None),
    ("openinference", {OI: "TOOL", "tool.name": "f"}, {}, "tool_call", None),
    ("openinference", {OI: "GUARDRAIL"}, {}, "info", None),
    ("openinference", {OI: "RETRIEVER"}, {}, "info", None),
    ("traceloop", {"traceloop.span.kind": "workflow"}, {}, "info", None),
    ("traceloop", {"traceloop.span.kind": "agent"}, {"name": "planner.agent"}, "agent_call", "planner"),
    ("traceloop", {"traceloop.span.kind": "tool"}, {"name": "f.tool"}, "tool_call", None),
    ("traceloop", {"gen_ai.operation.name": "execute_task", "gen_ai.task.name": "n"}, {}, "info", "n"),
    ("traceloop", {"llm.request.type": "chat"}, {}, "llm_call", None),
    ("pydantic_ai", {"gen_ai.operation.name": "invoke_agent", "agent_name": "p"}, {}, "agent_call", "p"),
    ("pydantic_ai", {"agent_name": "p"}, {"name": "agent run", "scope": "pydantic-ai"}, "agent_call", "p"),
    ("logfire", {"logfire.span_type": "pending_span", "gen_ai.operation.name": "chat"}, {}, None, None),
    ("logfire", {"logfire.span_type": "log", "logfire.level_num": 17, "logfire.msg": "bad"}, {}, "error", None),
    ("logfire", {"logfire.span_type": "log", "logfire.level_num": 9}, {}, None, None),
    ("logfire", {"name": "p"}, {"name": "Agent run: {name!r}", "scope": "logfire.openai_agents"}, "agent_call", "p"),
    ("logfire", {"name": "f"}, {"name": "Function: {name}", "scope": "logfire.openai_agents"}, "tool_call", None),
    ("google_adk", {"gen_ai.request.model": "m"}, {"name": "call_llm", "scope": "gcp.vertex.agent"}, "llm_call", None),
    ("google_adk", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "(merged tools)"}, {}, None, None),
    ("google_adk", {}, {"name": "invocation", "scope": "gcp.vertex.agent"}, "info", None),
    ("langgraph", {"langgraph.command.source_node": "a", "langgraph.command.goto_node": "b"}, {}, "handoff", None),
    ("langgraph", {"langgraph.command.source_node": "a", "langgraph.command.goto_node": "__end__"}, {}, "info", None),
    ("openai_agents", {OI: "TOOL", "input.value": "a", "output.value": "b"}, {"name": "handoff to b"}, "handoff", None),
    ("openai_agents", {"gen_ai.operation.name": "handoff"}, {"name": "a → b.handoff"}, "handoff", None),
    ("smolagents", {OI: "CHAIN", "input.value": STEP, "output.value": "Execution logs:\n1"}, {}, "code_exec", None),
    ("smolagents", {OI: "CHAIN", "input.value": STEP, "output.value": "67.4"}, {}, "info", None),
    ("crewai", {OI: "AGENT", "graph.node.id": "p", "input.value": "x"}, {}, "agent_call", "p"),
    ("crewai", {}, {"name": "c.kickoff", "scope": "openinference.instrumentation.crewai"}, "info", None),
    ("crewai", {"gen_ai.operation.name": "invoke_agent"}, {"name": "crewai.workflow", "scope": "opentelemetry.instrumentation.crewai.x"}, "info", None),
    ("llama_index", {OI: "LLM"}, {"name": "A._prepare_chat", "scope": "openinference.instrumentation.llama_index"}, "info", None),
    ("llama_index", {OI: "CHAIN", "input.value": "x AgentSetup(input=[], current_agent_name='p')"},
     {"name": "W.run_agent_step", "scope": "openinference.instrumentation.llama_index"}, "info", "p"),
    ("llama_index", {OI: "CHAIN", "input.value": "x AgentSetup(input=[], current_agent_name='p')"}, {"name": "W.run_agent_step"}, "info", None),
    ("vercel_ai", {"ai.operationId": "ai.generateText"}, {}, "info", None),
    ("vercel_ai", {"ai.operationId": "ai.generateText.doGenerate"}, {}, "llm_call", None),
    ("vercel_ai", {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "f"}, {}, "tool_call", None),
    ("strands", {"gen_ai.operation.name": "invoke_swarm"}, {}, "info", None),
    ("strands", {"gen_ai.operation.name": "execute_event_loop_cycle"}, {}, None, None),
    ("mcp", {"mcp.method.name": "tools/call", "gen_ai.tool.name": "f"}, {}, "tool_call", None),
    ("mcp", {"mcp.method.name": "tools/list"}, {}, None, None),
    ("haystack", {"haystack.tool.name": "f"}, {"name": "haystack.agent.step.tool"}, "tool_call", None),
    ("haystack", {OI: "CHAIN"}, {"name": "Agent.run", "scope": "openinference.instrumentation.haystack"}, "agent_call", "Agent"),
    ("spring_ai", {"spring.ai.kind": "advisor", "gen_ai.operation.name": "framework"}, {}, "info", None),
    ("mastra", {"mastra.span.type": "workflow_step"}, {}, "info", None),
    ("langfuse", {"langfuse.observation.type": "generation"}, {}, "llm_call", None),
    ("langfuse", {"langfuse.observation.type": "span"}, {}, None, None),
    ("langsmith", {"langsmith.span.kind": "chain", "gen_ai.operation.name": "chain"}, {}, "info", None),
    ("langsmith", {"langsmith.span.kind": "chain", "langsmith.metadata.ls_integration": "langchain_create_agent",
                   "langsmith.metadata.lc_agent_name": "planner"}, {"name": "planner"}, "agent_call", "planner"),
    ("langfuse", {"langfuse.observation.type": "chain", "langfuse.observation.metadata.ls_integration": '"langchain_create_agent"',
                  "langfuse.observation.metadata.lc_agent_name": '"planner"'}, {"name": "planner"}, "agent_call", "planner"),
    ("langfuse", {"langfuse.observation.type": "agent", "langfuse.observation.metadata.langgraph_node": '"__start__"'},
     {"name": "route_to_active_agent"}, "info", "__start__"),
    ("mlflow", {"mlflow.spanType": '"RETRIEVER"'}, {}, "info", None),
    ("dspy", {OI: "CHAIN", "input.value": "x"}, {"name": "ReAct.forward", "scope": "openinference.instrumentation.dspy"}, "agent_call", "ReAct"),
    ("dspy", {OI: "CHAIN", "input.value": "x"}, {"name": "Predict.forward", "scope": "openinference.instrumentation.dspy"}, "info", None),
    ("beeai", {OI: "TOOL", "metadata.path": "tool.custom.f.error"}, {"name": "error"}, None, None),
    ("agentops", {"agentops.span.kind": "agent"}, {"name": "p.agent"}, "agent_call", "p"),
    ("agentops", {"agentops.span.kind": "session"}, {"name": "default.session"}, "info", None),
    ("agentops", {"agentops.span.kind": "AgentOpsSpanKindValues.TOOL", "tool.name": "f"}, {}, None, None),
    ("agentops", {"gen_ai.request.type": "chat", "gen_ai.system": "OpenAI"}, {}, "llm_call", None),
    ("openlit", {"gen_ai.operation.name": "graph_execution"}, {}, "info", None),
    ("laminar", {"lmnr.span.type": "TOOL"}, {"name": "f"}, "tool_call", None),
    ("laminar", {"lmnr.span.type": "DEFAULT"}, {"name": "f"}, None, None),
    ("langwatch", {"langwatch.span.type": "agent"}, {"name": "planner"}, "agent_call", "planner"),
    ("langwatch", {"langwatch.span.type": "span"}, {"name": "f"}, None, None),
    ("", {"http.request.method": "GET"}, {"name": "GET"}, None, None),
    ("", {"db.system": "sqlite"}, {"name": "SELECT"}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "attributes", "options", "kind", "agent"), CASES)
def test_a_span_is_known_by_its_keys(
    vocabulary: str, attributes: dict[str, Any], options: dict[str, Any], kind: str | None, agent: str | None
) -> None:
    facts = read(span(1, None, attributes, **options))
    assert is_event(facts) == (kind is not None)
    assert facts.agent == agent
    assert [event.event_type for event in events(span(1, None, attributes, **options))] == ([kind] if kind else [])


def test_every_vocabulary_has_a_case_a_version_and_a_source() -> None:
    assert {vocabulary.name for vocabulary in VOCABULARIES} == {case[0] for case in CASES} - {""}
    assert all(vocabulary.version and vocabulary.source for vocabulary in VOCABULARIES)


def test_a_key_carries_one_field() -> None:
    assert len(FIELD_OF) == sum(len(keys) for keys in FIELD_KEYS.values())


@pytest.mark.parametrize(
    "attributes", [{"http.request.method": "GET"}, {"logfire.span_type": "pending_span"}, {"ag2.span.type": "usage"}]
)
def test_everything_recorded(attributes: dict[str, Any]) -> None:
    """`record=all` makes any span a row; what is no act, or repeats another span, is one that spent nothing."""
    found = one(span(1, None, attributes | {"gen_ai.usage.input_tokens": 3}), record="all")
    assert (found.event_type, found.status) == ("info", "completed")
    assert "tokens" not in found.meta


def test_present_is_never_truthy() -> None:
    """Zero, empty and false are values: the first key that is there wins."""
    event = one(
        span(1, None, {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0,
                       "llm.token_count.prompt": 9, "gen_ai.usage.cost": 0, "gen_ai.request.temperature": 0.0})
    )  # fmt: skip
    assert event.meta == {"temperature": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "tokens": 0, "cost_usd": 0}


# Fields, each from the best vocabulary on the span

FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"gen_ai.response.model": "m1", "gen_ai.request.model": "m0", "llm.model_name": "m2"}, {"model": "m1"}),
    ({"gen_ai.request.model": "m0"}, {"model": "m0"}),
    ({"llm.model_name": "m2"}, {"model": "m2"}),
    ({"gen_ai.system": "openai", "llm.provider": "x"}, {"provider": "openai"}),
    ({"gen_ai.response.finish_reasons": '["stop"]'}, {"finish_reason": "stop"}),
    ({"gen_ai.response.finish_reasons": ["stop", "tool_calls"]}, {"finish_reason": "stop, tool_calls"}),
    ({"llm.invocation_parameters": '{"temperature": 0.1}'}, {"temperature": 0.1}),
    ({"gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 4}, {"prompt_tokens": 3, "completion_tokens": 4, "tokens": 7}),
    ({"llm.token_count.total": 9}, {"tokens": 9}),
    ({"gen_ai.usage.input_tokens": 3, "gen_ai.usage.cache_read_input_tokens": 2, "gen_ai.usage.thinking_tokens": 1},
     {"prompt_tokens": 3, "tokens": 3, "cache_read_tokens": 2, "reasoning_tokens": 1}),
    ({"gen_ai.usage.input_tokens": -3, "gen_ai.usage.output_tokens": True, "gen_ai.usage.cost": float("nan")}, {}),
    ({"gen_ai.usage.input_tokens": "12", "gen_ai.usage.output_tokens": 3.0}, {"prompt_tokens": 12, "completion_tokens": 3, "tokens": 15}),
    ({"operation.cost": 0.5}, {"cost_usd": 0.5}),
    ({"gen_ai.conversation.id": "c", "session.id": "s", "gcp.vertex.agent.session_id": "g"}, {"conversation_id": "c", "session_id": "s"}),
    ({"ai.usage.promptTokens": 3, "ai.usage.completionTokens": 4, "ai.model.id": "m"}, {"model": "m", "prompt_tokens": 3, "completion_tokens": 4, "tokens": 7}),
]  # fmt: skip


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_is_no_null_in_meta(value: float) -> None:
    (event,) = events(span(1, None, {"gen_ai.operation.name": "chat", "gen_ai.request.temperature": value,
                                     "gen_ai.usage.cost": value, "gen_ai.usage.input_tokens": value, "gen_ai.conversation.id": value}))
    assert event.meta == {}



@pytest.mark.parametrize(("attributes", "meta"), FIELDS)
def test_fields_of_a_model_call(attributes: dict[str, Any], meta: dict[str, Any]) -> None:
    assert one(span(1, None, {"gen_ai.operation.name": "chat", **attributes})).meta == meta


# Failure, even where the status says nothing

TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f"}
RUN = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "run_code"}
FAILURES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    (TOOL, {"status": 2, "message": "KeyError: 'x'"}, "KeyError: 'x'"),
    (TOOL, {"status": 2, "events": [exception("KeyError", "no x"), exception("KeyError", "no x")]}, "no x"),
    (TOOL, {"status": 2, "message": "KeyError('x')Traceback (most recent call last):\n  File"}, "KeyError('x')"),
    (TOOL, {"status": 2, "message": "Traceback (most recent call last):\n  File y\nKeyError: 'x'"}, "KeyError: 'x'"),
    (TOOL, {"status": 2, "message": "{'message': 'Error running tool', 'data': {'tool_name': 'f', 'error': 'no x'}}"},
     "Error running tool: no x"),
    ({**TOOL, "error.type": "ExecutionError"}, {}, "ExecutionError"),
    ({**TOOL, "gen_ai.task.status": "failure", "error.type": "KeyError"}, {}, "KeyError"),
    ({**TOOL, "gen_ai.tool.call.result": '{"isError": true, "content": [{"type": "text", "text": "bad"}]}'}, {}, "bad"),
    ({OI: "TOOL", "tool.name": "f", "output.value": '[false, {"content": "Error: no"}]'}, {"status": 2, "message": "failed"}, "Error: no"),
    ({OI: "TOOL", "tool.name": "f", "output.value": '{"type": "tool", "data": {"content": "no", "status": "error", "tool_call_id": "1"}}'}, {}, "no"),
    ({**RUN, "gen_ai.tool.call.result": "exitcode: 1\nTraceback\nValueError: x\n"}, {}, "ValueError: x"),
    ({**RUN, "gen_ai.tool.call.result": "ValueError: x\n[exit code: 1]"}, {}, "ValueError: x"),
    ({**RUN, "gen_ai.tool.call.result": '{"exitcode": 2, "stderr": "a\\nb"}'}, {}, "b"),
    ({**RUN, "gen_ai.tool.call.result": '{"result": "exitcode: 3\\nq"}'}, {}, "q"),
    ({**RUN, "gen_ai.tool.call.result": "{'exitcode': 4, 'stderr': 'e'}"}, {}, "e"),
    ({**RUN, "gen_ai.tool.call.result": '"exitcode: 1\\nTraceback\\nValueError: x"'}, {}, "ValueError: x"),
    ({**RUN, "gen_ai.tool.call.result": '"ValueError: x\\n[exit code: 1]"'}, {}, "ValueError: x"),
    ({**RUN, "gen_ai.tool.call.result": '"{\\"exitcode\\": 2, \\"stderr\\": \\"b\\"}"'}, {}, "b"),
    ({**TOOL, "gen_ai.tool.call.result": '"{\\"isError\\": true, \\"content\\": [{\\"type\\": \\"text\\", \\"text\\": \\"bad\\"}]}"'}, {}, "bad"),
    ({**TOOL, "gen_ai.tool.call.result": "{'isError': True, 'content': [{'type': 'text', 'text': 'bad'}]}"}, {}, "bad"),
    ({**TOOL, "gen_ai.tool.call.result": "meta=None content=[TextContent(text='no')] isError=True"}, {},
     "meta=None content=[TextContent(text='no')] isError=True"),
    ({**TOOL, "gen_ai.tool.call.result": "content='no' name='f' tool_call_id='1' status='error'"}, {},
     "content='no' name='f' tool_call_id='1' status='error'"),
    ({"ag2.span.type": "code_execution", "ag2.code_execution.exit_code": 124, "ag2.code_execution.output": "Timeout"}, {}, "Timeout"),
    ({"gen_ai.operation.name": "chat", "error.type": "openai.RateLimitError"}, {"status": 2, "message": "429"}, "429"),
    ({"cmb.event.type": "tool_call", "cmb.error.message": "told"}, {"status": 2, "message": "other"}, "told"),
    ({"gen_ai.operation.name": "chat", "logfire.level_num": 17}, {}, "failed without a message"),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "options", "message"), FAILURES)
def test_failure_is_failure(attributes: dict[str, Any], options: dict[str, Any], message: str | None) -> None:
    event = one(span(1, None, attributes, **options))
    assert (event.event_subtype, event.status, event.error_message) == ("error", "failed", message)


SUCCESSES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (TOOL, {}),
    (TOOL, {"status": 1}),
    ({**TOOL, "gen_ai.tool.call.result": "Error: as the tool says"}, {}),
    ({**TOOL, "gen_ai.tool.call.result": '{"status": "error"}'}, {}),
    ({**RUN, "gen_ai.tool.call.result": "exitcode: 0\nok"}, {}),
    ({**RUN, "gen_ai.tool.call.result": "ok"}, {}),
    ({**TOOL, "gen_ai.tool.call.result": "the answer had isError=True"}, {}),
    ({**RUN, "gen_ai.tool.call.result": "{'exitcode': 0}"}, {}),
    (TOOL, {"status": 2, "events": [exception("langgraph.errors.ParentCommand", "goto")]}),
    (TOOL, {"status": 2, "events": [exception("Exception", "ParentCommand(Command(goto='b'))")]}),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "options"), SUCCESSES)
def test_success_is_success(attributes: dict[str, Any], options: dict[str, Any]) -> None:
    event = one(span(1, None, attributes, **options))
    assert (event.event_subtype, event.status, event.error_message) == ("complete", "completed", None)


def test_the_stack_is_kept_whole_and_the_message_short() -> None:
    stack = "Traceback (most recent call last):\n" + "  x\n" * 900 + "ValueError: y"
    event = one(span(1, None, TOOL, status=2, message="z" * 2000, events=[exception("ValueError", "y", stack)]))
    assert event.error_message is not None
    assert len(event.error_message) == 500
    assert (event.meta["error_type"], event.meta["stack"]) == ("ValueError", stack)


@pytest.mark.parametrize("name", ['""', '"None"', '"unknown"'])
def test_a_name_that_is_none_is_none_as_json_either(name: str) -> None:
    assert read(span(1, None, {"gen_ai.operation.name": "chat", "gen_ai.agent.name": name})).agent is None


def test_an_operation_is_nobodys_name() -> None:
    assert read(span(1, None, {"gen_ai.operation.name": "invoke_agent"}, name="invoke_agent")).agent is None
    assert read(span(1, None, {"gen_ai.operation.name": "invoke_agent"}, name="planner")).agent == "planner"
    assert read(span(1, None, {"gen_ai.operation.name": "invoke_agent"}, name="invoke_agent a b")).agent == "a b"


ANSWER = {"gen_ai.response.model": "m", "gen_ai.response.finish_reasons": ["stop"], "gen_ai.usage.input_tokens": 3}


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        (ANSWER, "llm_call"),
        ({**ANSWER, "gen_ai.operation.name": "moderate"}, "plain"),
        *(({key: value for key, value in ANSWER.items() if key != gone}, "plain") for gone in ANSWER),
    ],
)
def test_what_says_who_answered_and_what_it_took_is_a_call_of_a_model(attributes: dict[str, Any], kind: str) -> None:
    """A limit on the number of attributes drops the oldest: the operation is set first."""
    assert read(span(1, None, attributes, name="chat m")).kind == kind


# Code by name and by what comes back


@pytest.mark.parametrize(
    ("name", "result", "kind", "code"),
    [
        ("run_code", "x", "code_exec", None),
        ("Python_REPL", "x", "code_exec", None),
        ("CodeInterpreterTool", "x", "code_exec", None),
        ("bash", "x", "code_exec", None),
        ("simulate", "exitcode: 1\nx", "code_exec", 1),
        ("simulate", "x\n[exit code: 2]", "code_exec", 2),
        ("simulate", "[exit code: 3]", "code_exec", 3),
        ("simulate", '"exitcode: 4 (execution failed)\\nx"', "code_exec", 4),
        ("simulate", '"exitcode: 4 (execution failed) cut o', "code_exec", 4),
        ("simulate", "[1, 2]\n[exit code: 3]", "code_exec", 3),
        ("run_shell_command", "x", "code_exec", None),
        ("simulate", "the exitcode: 1 was seen", "tool_call", None),
        ("simulate", '{"exitcode": 1, "stdout": ""}', "tool_call", None),
    ],
)
def test_code_is_known_by_its_tool_and_by_its_reply(name: str, result: str, kind: str, code: int | None) -> None:
    event = one(span(1, None, {**TOOL, "gen_ai.tool.name": name, "gen_ai.tool.call.result": result}))
    assert (event.event_type, event.meta.get("exit_code")) == (kind, code)


def test_code_tools_are_the_callers_choice() -> None:
    facts = read(span(1, None, {**TOOL, "gen_ai.tool.name": "fit"}), code_tools=("fit",))
    assert facts.kind == "code_exec"
    assert read(span(1, None, RUN), code_tools=("fit",)).kind == "tool_call"


# Older conventions put payloads into span events


def test_tool_payloads_in_span_events() -> None:
    event = one(
        span(1, None, RUN, events=[
            SpanEvent("gen_ai.tool.message", 1, {"content": '{"code": "1/0"}'}),
            SpanEvent("gen_ai.choice", 1, {"message": '[{"text": "exitcode: 1\\nZeroDivisionError"}]'}),
        ])
    )  # fmt: skip
    assert (event.inputs, event.meta["exit_code"], event.status) == ({"code": "1/0"}, 1, "failed")


# Whose


def test_who_says_which_run() -> None:
    """The door, then the span, then the context, then the resource."""
    resource = {"cmb.run.id": "resource", "cmb.node.id": "n-resource", "cmb.session.id": "s-resource"}
    attributes = {"cmb.run.id": "span", "cmb.node.id": "n-span", "cmb.parent_event_id": "p"}
    context = Stamp(run_id="context", node_id="n-context", step_id="st-context", door_run_id="door")
    found = named(span(1, None, attributes, resource=resource, stamp=context))
    assert (found.run_id, found.node_id, found.step_id) == ("door", "n-span", "st-context")
    assert (found.session_id, found.parent_event_id) == (None, "p")  # its session is that of its run
    context.session_id = "s-context"
    assert named(span(1, None, attributes, resource=resource, stamp=context)).session_id == "s-context"
    assert named(span(1, None, {}, stamp=Stamp(), resource=resource)).session_id == "s-resource"
    assert named(span(1, None, {}, stamp=Stamp("r"), resource={"cmb.session.id": "s-resource"})).session_id == "s-resource"
    context.door_run_id = None
    assert named(span(1, None, attributes, stamp=context)).run_id == "span"
    assert named(span(1, None, {}, stamp=context)).run_id == "context"
    assert named(span(1, None, {}, stamp=Stamp(), resource=resource)).run_id == "resource"
    assert named(span(1, None, {"gen_ai.conversation.id": "c", "cmb.run_id": "own key"}, run=None)).run_id is None


def test_a_skeleton_keeps_what_neighbours_need() -> None:
    attributes = {"gen_ai.operation.name": "create_agent", "gen_ai.agent.name": "a", "cmb.parent_event_id": "p"}
    facts = read(span(7, 3, attributes, name="create_agent a", end=None))
    again = from_skeleton(json.loads(json.dumps(skeleton(facts))))
    assert (again.id, again.kind, again.agent) == (facts.id, "plain", "a")
    assert (again.span.span_id, again.span.parent_span_id, again.span.end_ns) == (f"{7:016x}", f"{3:016x}", None)
    assert named(again.span).parent_event_id == "p"
    assert not is_event(again)


def test_the_page_names_every_vocabulary_in_its_order() -> None:
    page = (Path(__file__).parent.parent / "docs" / "vocabularies.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    assert [(name.strip(" `"), version.strip()) for name, version in rows] == [
        (vocabulary.name, vocabulary.version) for vocabulary in VOCABULARIES
    ]
