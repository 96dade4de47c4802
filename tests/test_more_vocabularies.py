"""Frameworks without a capture in the corpus, by spans as their documentation (or a recording) has them."""

from __future__ import annotations

import json
from typing import Any

from mapping_support import events, one, span

from otel_cmb.event import STATUS_ERROR


def rows(*spans: Any) -> list[tuple[Any, ...]]:
    return [
        (event.event_type, event.agent_name, (event.inputs or {}).get("tool_name"), event.status, event.meta.get("tokens"))
        for event in events(*spans)
    ]


def test_spring_ai() -> None:
    """Its client and advisors hold the calls; a tool's call has operation `framework` and its own keys."""
    framework = {"gen_ai.operation.name": "framework", "gen_ai.system": "spring_ai"}
    tokens = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3, "gen_ai.usage.total_tokens": 10}
    found = rows(
        span(1, None, framework | {"spring.ai.kind": "chat_client"}, name="spring_ai chat_client"),
        span(2, 1, framework | {"spring.ai.kind": "advisor"}, name="call"),
        span(3, 2, {"gen_ai.operation.name": "chat", "gen_ai.response.model": "gpt-4o"} | tokens, name="chat gpt-4o"),
        span(
            4, 3,
            framework
            | {
                "spring.ai.kind": "tool_call", "spring.ai.tool.definition.name": "weather",
                "spring.ai.tool.call.arguments": '{"city":"Oslo"}', "spring.ai.tool.call.result": '"rain"',
            },
            name="tool_call weather",
        ),
    )  # fmt: skip
    assert found == [
        ("info", None, None, "completed", None),
        ("info", None, None, "completed", None),
        ("llm_call", None, None, "completed", 10),
        ("tool_call", None, "weather", "completed", None),
    ]


def test_langfuse() -> None:
    def attributes(kind: str, **more: Any) -> dict[str, Any]:
        return {"langfuse.observation.type": kind} | {f"langfuse.observation.{key}": value for key, value in more.items()}

    usage = {"usage_details": '{"input": 5, "output": 2, "total": 7}', "cost_details": '{"input": 0.1, "total": 0.3}'}
    found = events(
        span(1, None, attributes("agent", input='"hello"', output='"bye"'), name="planner"),
        span(2, 1, attributes("generation", input='[{"role":"user","content":"hello"}]', **usage), name="llm"),
        span(3, 1, attributes("tool", input='{"q": 1}', output='"found"', level="ERROR"), name="search"),
        span(4, 1, attributes("span"), name="work"),
    )
    assert [(event.event_type, event.status) for event in found] == [
        ("agent_call", "completed"), ("llm_call", "completed"), ("tool_call", "failed"),
    ]  # fmt: skip
    assert found[0].agent_name == "planner"
    assert (found[0].inputs, found[0].outputs) == ({"message": "hello"}, {"response": "bye"})
    assert found[1].meta == {"prompt_tokens": 5, "completion_tokens": 2, "tokens": 7, "cost_usd": 0.3}
    assert found[1].inputs == {"messages": [{"role": "user", "content": "hello"}]}
    assert (found[2].inputs, found[2].outputs) == ({"tool_name": "search", "arguments": {"q": 1}}, {"result": "found"})


def test_mlflow() -> None:
    """Values are JSON; without quotes, as other exporters write them, they are read too."""
    usage = json.dumps({"input_tokens": 4, "output_tokens": 6, "total_tokens": 10})
    found = events(
        span(1, None, {"mlflow.spanType": '"AGENT"', "mlflow.spanInputs": '{"task": "plan"}'}, name="planner"),
        span(2, 1, {"mlflow.spanType": "CHAT_MODEL", "mlflow.llm.model": '"gpt-4o"', "mlflow.chat.tokenUsage": usage}),
        span(3, 1, {"mlflow.spanType": '"TOOL"', "mlflow.spanInputs": '{"q": 1}'}, name="search", status=STATUS_ERROR),
    )
    assert [(event.event_type, event.agent_name, event.status) for event in found] == [
        ("agent_call", "planner", "completed"), ("llm_call", "planner", "completed"), ("tool_call", "planner", "failed"),
    ]  # fmt: skip
    assert found[1].meta == {"model": "gpt-4o", "prompt_tokens": 4, "completion_tokens": 6, "tokens": 10}


def test_mastra() -> None:
    """A model's generation holds its steps; the GenAI names beside are its own words."""
    found = rows(
        span(1, None, {"mastra.span.type": "agent_run", "gen_ai.operation.name": "agent_run", "gen_ai.agent.name": "chef"}),
        span(2, 1, {"mastra.span.type": "model_generation", "gen_ai.usage.input_tokens": 2, "gen_ai.usage.output_tokens": 1}),
        span(3, 2, {"mastra.span.type": "model_step", "gen_ai.usage.input_tokens": 2}),
        span(4, 2, {"mastra.span.type": "mcp_tool_call", "gen_ai.tool.name": "fridge"}),
    )
    assert found == [
        ("agent_call", "chef", None, "completed", None),
        ("llm_call", "chef", None, "completed", 3),
        ("tool_call", "chef", "fridge", "completed", None),
    ]


def test_haystack() -> None:
    """Names of spans are constants: the agent's is its component's; replies carry model and usage."""
    reply = {
        "role": "assistant",
        "meta": {"model": "m", "finish_reason": "stop", "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        "content": [{"text": "three"}],
    }
    asked = {"messages": [{"role": "user", "meta": {}, "content": [{"text": "1+2?"}]}]}
    step = "haystack.agent.step"
    found = events(
        span(1, None, {}, name="haystack.pipeline.run"),
        span(2, 1, {"haystack.component.name": "calculator"}, name="haystack.component.run"),
        span(3, 2, {"haystack.agent.input": json.dumps(asked)}, name="haystack.agent.run"),
        span(4, 3, {step: 0}, name=step),
        span(
            5, 4, {f"{step}.llm.input": json.dumps(asked), f"{step}.llm.output": json.dumps({"replies": [reply]})},
            name=f"{step}.llm",
        ),
        span(
            6, 4,
            {
                "haystack.tool.name": "add", "haystack.tool.error": True, f"{step}.tool.input": '{"a": 1}',
                f"{step}.tool.output": '{"error": "no b"}',
            },
            name=f"{step}.tool",
        ),
    )  # fmt: skip
    assert [(event.event_type, event.agent_name) for event in found] == [
        ("info", None), ("info", "calculator"), ("agent_call", "calculator"), ("info", "calculator"),
        ("llm_call", "calculator"), ("tool_call", "calculator"),
    ]  # fmt: skip
    assert found[2].inputs == {"message": "1+2?"}
    assert found[4].meta == {
        "model": "m", "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 2, "tokens": 7,
    }  # fmt: skip
    assert found[4].outputs == {"messages": [{"role": "assistant", "content": "three"}]}
    assert (found[5].status, found[5].error_message) == ("failed", "no b")
    assert found[5].inputs == {"tool_name": "add", "arguments": {"a": 1}}


def test_litellm_proxy() -> None:
    """The proxy's request holds the call; the raw request below repeats it without tokens."""
    spent = {"gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 4, "llm.usage.total_tokens": 7}
    found = rows(
        span(1, None, {"http.route": "/chat/completions"}, name="Received Proxy Server Request"),
        span(2, 1, {"llm.request.type": "acompletion", "gen_ai.request.model": "gpt-4o"} | spent, name="litellm_request"),
        span(3, 2, {"llm.openai.model": "gpt-4o"}, name="raw_gen_ai_request"),
    )
    assert found == [("llm_call", None, None, "completed", 7)]


def test_semantic_kernel() -> None:
    """Plugin and function make a tool's name; a handoff is one inside its plugin too. No messages are no message."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage", "gen_ai.input.messages": "[]"}
    found = events(
        span(1, None, agent),
        span(2, 1, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "Handoff-transfer_to_writer"}),
        span(3, 1, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "Math-add"}),
    )
    assert [(event.event_type, event.inputs) for event in found] == [
        ("agent_call", None),
        ("handoff", {"from_agent": "triage", "to_agent": "writer"}),
        ("tool_call", {"tool_name": "Math-add"}),
    ]


def test_mcp_client_and_server() -> None:
    """A tool behind MCP is one call, whatever layers tell of it: the framework, the client, the server."""
    call = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "weather", "gen_ai.operation.name": "execute_tool"}
    event = one(
        span(1, None, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}),
        span(2, 1, call, name="tools/call weather"),
        span(3, 2, call | {"error.type": "tool_error"}, name="tools/call weather"),
    )
    assert (event.event_type, event.status, len(event.spans)) == ("tool_call", "failed", 3)


def test_the_program_itself_with_current_genai_names() -> None:
    """Agents in a workflow, a plan, a retrieval, a failing model, memory: nothing but calls of agents, tools, models."""
    found = rows(
        span(1, None, {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "w"}),
        span(2, 1, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}),
        span(3, 2, {"gen_ai.operation.name": "retrieval"}),
        span(4, 2, {"gen_ai.operation.name": "chat", "error.type": "429"}, status=STATUS_ERROR, message="slow down"),
    )
    assert found == [
        ("info", None, None, "completed", None),
        ("agent_call", "a", None, "completed", None),
        ("info", "a", None, "completed", None),
        ("llm_call", "a", None, "failed", None),
    ]
