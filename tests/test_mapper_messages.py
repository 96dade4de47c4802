
"""Messages of every format become one readable form; what is no message stays what it is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from mapping_support import chat, one, span

from otel_cmb.event import SpanEvent
from otel_cmb.mapper_results import content_of, error_result, exit_code_of
from otel_cmb.messages import as_json, conversation, fenced_code, python_literal
from otel_cmb.messages_flat import flattened

CALL = {"id": "c", "name": "f", "arguments": {"a": 1}}
ASKED = [{"role": "user", "content": "q"}]
CALLED = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [{"role": "tool", "content": "67.4", "tool_call_id": "c"}]
ARGUMENTS = '{"a": 1}'


def lc(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": kwargs}


CASES: list[tuple[str, Any, list[dict[str, Any]] | None]] = [
    ("parts", [{"role": "user", "parts": [{"type": "text", "content": "q"}], "name": None}], ASKED),
    ("parts", [{"role": "assistant", "parts": [{"type": "tool_call", **CALL}]}], CALLED),
    ("parts", [{"role": "assistant", "parts": [{"type": "tool_call", **CALL, "arguments": ARGUMENTS}]}], CALLED),
    ("parts", [{"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "67.4"}]}], ANSWERED),
    ("parts", [{"role": "user", "parts": [{"type": "text", "content": "a"}, {"type": "text", "content": "b"}]}],
     [{"role": "user", "content": "a\nb"}]),
    ("parts", [{"role": "assistant", "parts": [{"type": "thinking", "content": "hm"}, {"type": "text", "content": "x"}], "finish_reason": "stop"}],
     [{"role": "assistant", "reasoning": "hm", "content": "x", "finish_reason": "stop"}]),
    ("parts", [{"role": "user", "parts": [{"type": "uri", "uri": "u"}]}], [{"role": "user", "parts": [{"type": "uri", "uri": "u"}], "content": ""}]),
    ("openai", [{"role": "user", "content": "q"}], ASKED),
    ("openai", [{"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}]}], CALLED),
    ("openai", [{"role": "tool", "tool_call_id": "c", "content": "67.4"}], ANSWERED),
    ("openai", [{"role": "user", "content": [{"type": "text", "text": "q"}]}], ASKED),
    ("openai request", {"model": "m", "messages": [{"role": "user", "content": "q"}]}, ASKED),
    ("openai reply", {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}]},
     [{"role": "assistant", "content": "x", "finish_reason": "stop"}]),
    ("responses", {"id": "r", "output": [{"type": "function_call", "call_id": "c", "id": "fc", "name": "f", "arguments": ARGUMENTS}]}, CALLED),
    ("responses", {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}]},
     [{"role": "assistant", "content": "x"}]),
    ("responses", [{"type": "function_call_output", "call_id": "c", "output": "67.4"}], ANSWERED),
    ("anthropic", {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]}, CALLED),
    ("anthropic", [{"role": "tool", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "67.4"}]}], ANSWERED),
    ("google", {"contents": [{"role": "user", "parts": [{"text": "q"}]}]}, ASKED),
    ("google", {"content": {"role": "model", "parts": [{"function_call": {"id": "c", "name": "f", "args": {"a": 1}}}]}}, CALLED),
    ("bedrock", [{"role": "assistant", "content": [{"toolUse": {"toolUseId": "c", "name": "f", "input": {"a": 1}}}]}], CALLED),
    ("langchain", {"messages": [[lc("HumanMessage", content="q")]]}, ASKED),
    ("langchain", lc("AIMessage", content="", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}]),
     [{"role": "assistant", "content": "", "tool_calls": [CALL]}]),
    ("langchain", {"messages": [{"type": "human", "data": {"content": "q", "type": "human"}}]}, ASKED),
    ("langchain", {"generations": [[{"text": "x", "message": lc("AIMessage", content="x")}]]}, [{"role": "assistant", "content": "x"}]),
    ("traceloop", {"inputs": {"messages": [lc("HumanMessage", content="q")]}, "tags": []}, ASKED),
    ("calls", [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}], CALLED),
    ("repr", "[{'role': 'user', 'content': 'q'}]", ASKED),
    ("no messages", {"a": 1}, None),
    ("no messages", "text", None),
    ("no messages", [1, 2], None),
    ("no messages", "[{not json", None),
    ("no messages", 5, None),
    ("odd", [{"role": 5, "content": "q"}], ASKED),
    ("odd", [{"role": "user", "parts": [7, None, "q"]}], [{"role": "user", "parts": [7, None], "content": "q"}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "expected"), CASES)
def test_one_form_for_all(kind: str, value: Any, expected: list[dict[str, Any]] | None) -> None:
    """As values, and as the JSON text that stands on spans."""
    assert conversation(value) == expected, kind
    if not isinstance(value, str):
        assert conversation(json.dumps(value)) == expected, kind


def test_flattened_messages() -> None:
    """OpenInference and older Traceloop write one key per field; numbers order them, not the keys."""
    attributes = {
        "llm.input_messages.10.message.role": "tool", "llm.input_messages.10.message.content": "67.4",
        "llm.input_messages.10.message.tool_call_id": "c", "llm.input_messages.2.message.role": "assistant",
        "llm.input_messages.2.message.tool_calls.0.tool_call.id": "c",
        "llm.input_messages.2.message.tool_calls.0.tool_call.function.name": "f",
        "llm.input_messages.2.message.tool_calls.0.tool_call.function.arguments": ARGUMENTS,
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.contents.0.message_content.type": "text",
        "llm.input_messages.0.message.contents.0.message_content.text": "q", "llm.input_messages.x.message.role": "odd",
        "llm.input_messages.99999999999.message.role": "odd", "other": 1,
    }  # fmt: skip
    assert flattened(attributes, "llm.input_messages.") == [*ASKED, *CALLED, *ANSWERED]
    old = {"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.tool_calls.0.name": "f",
           "gen_ai.completion.0.tool_calls.0.id": "c", "gen_ai.completion.0.tool_calls.0.arguments": ARGUMENTS}  # fmt: skip
    assert flattened(old, "gen_ai.completion.") == CALLED
    assert flattened({"llm.input_messagesX": 1}, "llm.input_messages.") is None


LLM_CASES: list[tuple[dict[str, Any], list[SpanEvent], Any, Any]] = [
    ({"gen_ai.input.messages": json.dumps(ASKED), "gen_ai.system_instructions": '[{"type": "text", "content": "s"}]'}, [],
     [{"role": "system", "content": "s"}, *ASKED], None),
    ({"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "q", "gen_ai.completion.0.content": "x", "gen_ai.completion.0.role": "assistant"}, [],
     ASKED, [{"role": "assistant", "content": "x"}]),
    ({}, [SpanEvent("gen_ai.user.message", 1, {"content": "q"}), SpanEvent("gen_ai.choice", 1, {"message": '{"content": "x"}'})],
     ASKED, [{"role": "assistant", "content": "x"}]),
    ({}, [SpanEvent("gen_ai.user.message", 1, {"content": '[{"text": "q"}]'}), SpanEvent("gen_ai.choice", 1, {"message": '[{"text": "x"}]'})],
     ASKED, [{"role": "assistant", "content": "x"}]),
    ({}, [SpanEvent("gen_ai.content.prompt", 1, {"gen_ai.prompt": json.dumps(ASKED)}), SpanEvent("gen_ai.content.completion", 1, {"gen_ai.completion": "x"})],
     ASKED, [{"role": "assistant", "content": "x"}]),
    ({}, [SpanEvent("gen_ai.client.inference.operation.details", 1, {"gen_ai.input.messages": json.dumps(ASKED)})], ASKED, None),
    ({"ai.prompt.messages": json.dumps(ASKED), "ai.response.text": "x", "ai.response.toolCalls": '[{"toolCallId": "c", "toolName": "f", "args": {"a": 1}}]'}, [],
     ASKED, [{"role": "assistant", "content": "x", "tool_calls": [CALL]}]),
    ({"input.value": "q", "output.value": "x"}, [], ASKED, [{"role": "assistant", "content": "x"}]),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "told", "asked", "answered"), LLM_CASES)
def test_a_model_call_shows_its_messages(attributes: dict[str, Any], told: list[SpanEvent], asked: Any, answered: Any) -> None:
    event = one(chat(1, more=attributes, events=told))
    assert ((event.inputs or {}).get("messages"), (event.outputs or {}).get("messages")) == (asked, answered)


AGENTS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"input.value": "q", "output.value": "x"}, {"message": "q"}, {"response": "x"}),
    ({"input.value": '{"task": "q", "stream": false}', "output.value": "67.4"}, {"message": "q"}, {"response": "67.4"}),
    ({"input.value": '[{"content": "a", "role": "user"}, {"content": "q", "role": "user"}]'},
     {"message": "q", "context": [{"role": "user", "content": "a"}]}, None),
    ({"input.value": "None"}, None, None),
    ({"output.value": '{"description": "d", "raw": "x", "messages": [{"role": "user", "content": "m"}]}'}, None, {"response": "x"}),
    ({"pydantic_ai.all_messages": json.dumps([*ASKED, {"role": "assistant", "content": "x"}]), "final_result": "x"}, {"message": "q"}, {"response": "x"}),
    ({"gen_ai.output.messages": json.dumps(CALLED)}, None, {"response": {"tool_calls": [CALL]}}),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "inputs", "outputs"), AGENTS)
def test_an_agent_shows_what_came_in_and_what_it_answered(attributes: dict[str, Any], inputs: Any, outputs: Any) -> None:
    event = one(span(1, None, {"openinference.span.kind": "AGENT", "agent.name": "a", **attributes}))
    assert (event.inputs, event.outputs) == (inputs, outputs)


TOOLS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"gen_ai.tool.call.arguments": '{"a": 1}', "gen_ai.tool.call.result": "67.4"}, {"a": 1}, "67.4"),
    ({"gen_ai.tool.call.arguments": "{not json", "gen_ai.tool.call.result": '{"v": 67.4}'}, "{not json", {"v": 67.4}),
    ({"gen_ai.tool.call.arguments": {"a": 1}, "gen_ai.tool.call.result": 67.4}, {"a": 1}, 67.4),
    ({"tool_arguments": '{"a": 1}', "tool_response": "done"}, {"a": 1}, "done"),
    ({"tool_call.function.arguments": '"{not json"', "output.value": '[true, {"content": "{\\"v\\": 1}"}]'}, "{not json", {"v": 1}),
    ({"input.value": "H0", "output.value": '{"type": "tool", "data": {"content": "67.4"}}'}, "H0", "67.4"),
    ({"input.value": "{'a': 1}"}, {"a": 1}, None),
    ({"gen_ai.tool.call.arguments": '{"input_str": "{\'a\': 1}", "tags": []}', "gen_ai.tool.call.result": json.dumps({"output": lc("ToolMessage", content="67.4")})},
     {"a": 1}, "67.4"),
    ({"input.value": '{"args": [], "sanitize_inputs_outputs": false, "kwargs": {"a": 1}}', "output.value": "x"}, {"a": 1}, "x"),
    ({"input.value": '{"kwargs": {"a": 1}}', "output.value": '{"raw_output": "x", "tool_name": "f", "is_error": false}'}, {"a": 1}, "x"),
    ({"gcp.vertex.agent.tool_call_args": '{"a": 1}', "gcp.vertex.agent.tool_response": '{"result": "x"}'}, {"a": 1}, "x"),
    ({"gen_ai.tool.call.arguments": "", "gen_ai.tool.call.result": ""}, "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "arguments", "result"), TOOLS)
def test_a_tool_shows_its_arguments_and_its_result(attributes: dict[str, Any], arguments: Any, result: Any) -> None:
    event = one(span(1, None, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f", **attributes}))
    assert event.inputs == {"tool_name": "f", "arguments": arguments}
    assert event.outputs == (None if result is None else {"result": result})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}), ("[1]", [1]), ('"x"', "x"), ('{"a": 1} \n', {"a": 1}), ("67.4", "67.4"), ("true", "true"),
        ('{"a": NaN}', '{"a": NaN}'), ("{'a': 1}", "{'a': 1}"), ('{"a": 1} x', '{"a": 1} x'), ("[" * 100_000, "[" * 100_000), (None, None), (7, 7),
    ],
)  # fmt: skip
def test_json_or_text(text: Any, value: Any) -> None:
    assert as_json(text) == value


def test_a_python_repr_is_data_or_text() -> None:
    assert python_literal("{'a': (1, None)}") == {"a": (1, None)}
    for text in ("{'a': open('x')}", "{'a'", "{" * 30_000, "{'a': " + "-" * 60_000 + "1}", "x" * 100_000):
        assert python_literal(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a\n```python\nx\n```\nb\n```sh\nls\n```", ("ls", "sh")), ("```\nx\n```", ("x", None)), ("```py title=a\nx\n```", ("x", "py")),
        ("```python\nunclosed", None), ("```a\nx\n```\n```python\nunclosed", ("x", "a")), ("<code>\nx\n</code>", ("x", "python")), ("plain", None),
        ("```x```", ("x", None)),
    ],
)  # fmt: skip
def test_the_last_fenced_block(text: str, code: tuple[str, str | None] | None) -> None:
    assert fenced_code(text) == code


def test_hostile_texts_take_linear_time() -> None:
    started = time.process_time()
    for text in ("`" * 262_144, "```\n" * 65_536, "<code>" * 40_000, "exitcode:" + " " * 262_144, "[exit code:" * 24_000, '{"a":' * 50_000):
        fenced_code(text)
        exit_code_of(text)
        conversation(text)
        as_json(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("exitcode: 0\nx", 0), ("exit code: -9", -9), ("x\n[exit code: 3]\n", 3), ("[exit code: 3]", 3), ("{1}\n[exit code: 3]", 3), ({"exit_code": 2}, 2), ({"returncode": True}, None),
        ('{"exitcode": 1}', 1), ([True, {"content": "exitcode: 4\n"}], 4), ("x", None), (None, None), ({"exitcode": "5"}, 5),
    ],
)  # fmt: skip
def test_exit_codes(result: Any, code: int | None) -> None:
    assert exit_code_of(result) == code


def test_envelopes() -> None:
    assert content_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"
    assert content_of({"content": [{"type": "text", "text": "a"}], "isError": False}) == "a"
    assert content_of({"result": {"result": 5}}) == 5
    assert content_of({"result": 5, "more": 6}) == {"result": 5, "more": 6}
    assert error_result({"isError": True})
    assert not error_result({"isError": "yes"})
    assert not error_result([False, 1])


AUTOGEN = "id='1' source='{}' models_usage=RequestUsage(prompt_tokens=1, completion_tokens=2) metadata={{}} content={} type='TextMessage'"


def test_messages_that_are_python_texts() -> None:
    """As OpenInference writes the arguments of AutoGen, Haystack and LlamaIndex."""
    asked = [AUTOGEN.format("user", "\"it's\""), AUTOGEN.format("writer", r"'one\n\'two\' \u00e9 \\'")]
    assert conversation(json.dumps({"messages": asked, "cancellation_token": "<object>"})) == [
        {"role": "user", "name": "user", "content": "it's"},
        {"role": "assistant", "name": "writer", "content": "one\n'two' \xe9 \\"},
    ]
    for text in (
        "ChatMessage(_role=<ChatRole.SYSTEM: 'system'>, _content=[TextContent(text='a'), TextContent(text='b')], _name=None)",
        "ChatMessage(role=<MessageRole.SYSTEM: 'system'>, blocks=[TextBlock(block_type='text', text='a'), TextBlock(text='b')])",
    ):
        assert conversation([text]) == [{"role": "system", "content": "a\nb"}]
    for hostile in (r"id='1' source='a' content='\x \q \ud800 \U00110000'", "id='1' source='a' content='" + "\\" * 99_999, "id='" * 50_000):
        conversation([hostile])
    assert conversation(["plain", AUTOGEN.format("user", "'x'")]) is None


def test_langchains_short_form_of_a_message() -> None:
    assert conversation({"messages": [["user", "hi"], ["ai", "hello"]]}) == [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
    ]  # fmt: skip
    assert conversation([["user", "hi"]]) == [{"role": "user", "content": "hi"}]
    assert conversation([["x", "y"]]) is None
