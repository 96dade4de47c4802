"""The manual API: the attributes each block writes, failures, odd values, sync and async, decorators."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from pathlib import Path

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from otel_cmb import spans
from otel_cmb.block import TRACER_KEY
from otel_cmb.payload import message_parts, text_of, to_json


@pytest.fixture
def recorded():
    """Spans of a provider of this test's own; the global one is left alone."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    token = otel_context.attach(otel_context.set_value(TRACER_KEY, provider.get_tracer("otel_cmb")))
    yield exporter
    otel_context.detach(token)


def only(recorded, name=None):
    found = [span for span in recorded.get_finished_spans() if name is None or span.name == name]
    assert len(found) == 1
    return found[0]


def loads(span, key):
    return json.loads(span.attributes[key])


def test_agent_call_carries_message_context_and_response(recorded):
    with spans.agent_call("engineer", message="do it", context={"a": 1}, role="coder", sender="planner") as call:
        call.set_response("done")
        call.set_usage(model="gpt-4.1", input_tokens=3, output_tokens=0, cost_usd=0.5)
    span = only(recorded)
    assert span.name == "invoke_agent engineer"
    assert span.status.status_code is StatusCode.UNSET
    assert loads(span, "cmb.inputs") == {"message": "do it", "context": {"a": 1}}
    assert loads(span, "cmb.outputs") == {"response": "done"}
    assert loads(span, "cmb.meta") == {"sender": "planner"}
    payloads = {"cmb.inputs", "cmb.outputs", "cmb.meta"}
    assert {key: value for key, value in span.attributes.items() if key not in payloads} == {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "engineer", "cmb.event.type": "agent_call",
        "cmb.agent.role": "coder", "gen_ai.response.model": "gpt-4.1", "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 0, "gen_ai.usage.cost": 0.5,
    }


def test_tool_call_inside_an_agent_carries_its_name_and_hangs_below_it(recorded):
    with spans.agent_call("engineer"), spans.tool_call("search", {"q": "x"}, call_id="c1") as tool:
        tool.set_result(["a", None])
    tool_span, agent_span = recorded.get_finished_spans()
    assert tool_span.parent.span_id == agent_span.context.span_id
    assert tool_span.attributes["gen_ai.agent.name"] == "engineer"
    assert tool_span.attributes["gen_ai.tool.call.id"] == "c1"
    assert loads(tool_span, "gen_ai.tool.call.arguments") == {"q": "x"}
    assert loads(tool_span, "gen_ai.tool.call.result") == ["a", None]
    assert "cmb.inputs" not in agent_span.attributes


def test_a_text_result_stays_a_text_and_a_number_a_number(recorded):
    for result in ("67.4", 67.4, 0, False, None):
        with spans.tool_call("constant") as tool:
            tool.set_result(result)
    text, *others = recorded.get_finished_spans()
    assert loads(text, "gen_ai.tool.call.result") == "67.4"
    assert [loads(span, "cmb.outputs") for span in others] == [{"result": value} for value in (67.4, 0, False, None)]
    assert all("gen_ai.tool.call.result" not in span.attributes for span in others)


UNSET, ERROR = StatusCode.UNSET, StatusCode.ERROR


@pytest.mark.parametrize(("exit_code", "status"), [(0, UNSET), (1, ERROR), (None, UNSET)])
def test_code_exec_fails_by_its_exit_code(recorded, exit_code, status):
    with spans.code_exec("1/0", agent_name="executor") as execution:
        execution.set_result("Traceback\nZeroDivisionError: division by zero\n", exit_code=exit_code)
    span = only(recorded)
    assert span.status.status_code is status
    assert loads(span, "cmb.inputs") == {"code": "1/0"}
    expected = {"language": "python", "code_length": 3} | ({} if exit_code is None else {"exit_code": exit_code})
    assert loads(span, "cmb.meta") == expected
    if exit_code:
        assert span.status.description == "exit code 1: ZeroDivisionError: division by zero"


def test_llm_call_writes_parts(recorded):
    with spans.llm_call("gpt-4.1", [{"role": "user", "content": "hi"}], temperature=0.0) as llm:
        llm.set_response("hello", finish_reason="stop")
    span = only(recorded, "chat gpt-4.1")
    assert span.kind is trace.SpanKind.CLIENT
    assert span.attributes["gen_ai.request.temperature"] == 0.0
    assert loads(span, "gen_ai.input.messages") == [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "hello"}]}]
    assert loads(span, "gen_ai.output.messages") == answer
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)


def test_tool_calls_and_answers_become_parts():
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "ok"},
                {"role": "assistant", "function_call": {"name": "g", "arguments": "{not json"}}, 7]
    assert message_parts(messages) == [
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {"a": 1}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "ok"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": None, "name": "g", "arguments": "{not json"}]},
        {"role": "user", "parts": [{"type": "text", "content": "7"}]},
    ]


def test_what_is_over_at_once(recorded):
    spans.file_gen("out/plot.png", "plot", size_bytes=0, agent_name="executor")
    spans.handoff("planner", "engineer", reason="after_work")
    spans.message("planner", "engineer", "go", tokens=2)
    try:
        raise KeyError("missing")
    except KeyError:
        spans.error("no such constant", agent_name="engineer")
    file, handoff, message, error = recorded.get_finished_spans()
    assert (loads(file, "cmb.inputs"), loads(file, "cmb.meta")) == (
        {"file_path": "out/plot.png", "file_type": "plot"}, {"size_bytes": 0})
    assert handoff.name == "handoff planner -> engineer"
    assert loads(handoff, "cmb.inputs") == {"from_agent": "planner", "to_agent": "engineer"}
    assert loads(handoff, "cmb.meta") == {"reason": "after_work"}
    assert message.attributes["cmb.event.type"] == "agent_call"
    assert message.attributes["cmb.event.subtype"] == "message"
    assert loads(message, "cmb.inputs") == {"sender": "planner", "recipient": "engineer", "content": "go"}
    assert error.status.status_code is StatusCode.ERROR
    assert error.attributes["cmb.error.message"] == "no such constant"
    assert loads(error, "cmb.meta")["error_type"] == "KeyError"
    assert "in test_what_is_over_at_once" in loads(error, "cmb.meta")["stack"]


def test_approval(recorded):
    with spans.agent_call("human"), spans.approval("Proceed?") as asked:
        asked.set_response("no", approved=False)
    span = only(recorded, "await_human_input human")
    assert (loads(span, "cmb.inputs"), loads(span, "cmb.outputs")) == ({"prompt": "Proceed?"}, {"response": "no"})
    assert span.attributes["cmb.event.subtype"] == "rejected"


@pytest.mark.parametrize(("error", "description"), [
    (ValueError("boom"), "ValueError: boom"), (ValueError(), "ValueError"),
    (KeyboardInterrupt(), "interrupted by KeyboardInterrupt"), (SystemExit(0), "interrupted by SystemExit"),
    (asyncio.CancelledError(), "interrupted by CancelledError"),
])
def test_what_leaves_the_block_fails_it_and_goes_on(recorded, error, description):
    with pytest.raises(type(error)) as caught, spans.tool_call("search"):
        raise error
    assert caught.value is error
    span = only(recorded)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, description)
    assert span.attributes["error.type"].endswith(type(error).__name__)


def test_fail_keeps_its_message_when_an_exception_follows(recorded):
    with pytest.raises(RuntimeError), spans.agent_call("engineer") as call:
        call.fail("no budget left")
        raise RuntimeError("stop")
    assert only(recorded).status.description == "no budget left"


def test_a_closed_generator_ends_normally(recorded):
    def work():
        with spans.agent_call("engineer"):
            yield 1

    running = work()
    next(running)
    running.close()
    assert only(recorded).status.status_code is StatusCode.UNSET


def test_leaving_in_another_context_logs_nothing(recorded, caplog):
    block = spans.agent_call("engineer")
    contextvars.copy_context().run(block.start)
    with caplog.at_level(logging.DEBUG):
        block.end()
    assert caplog.records == []
    assert only(recorded).name == "invoke_agent engineer"
    assert not trace.get_current_span().get_span_context().is_valid


def test_async_blocks_keep_their_own_parents(recorded):
    async def act(name):
        async with spans.agent_call(name):
            await asyncio.sleep(0)
            async with spans.tool_call(f"tool-{name}"):
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(act(name) for name in "abc"))

    asyncio.run(main())
    finished = recorded.get_finished_spans()
    by_id = {span.context.span_id: span for span in finished}
    tools = [span for span in finished if span.name.startswith("execute_tool")]
    assert len(tools) == 3
    for tool in tools:
        assert by_id[tool.parent.span_id].name == tool.name.replace("execute_tool tool-", "invoke_agent ")


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")

    def __str__(self):
        raise RuntimeError("no")


def odd_values():
    cycle = []
    cycle.append(cycle)
    deep = []
    for _ in range(20_000):
        deep = [deep]
    return [Hostile(), cycle, deep, {(1, 2): 3}, float("nan"), "\ud800", b"\xff", object, {1, 2}, "x" * 9_000_000,
            None, 0, ""]


@pytest.mark.parametrize("value", odd_values(), ids=lambda value: type(value).__name__)
def test_no_value_raises(recorded, value):
    with (
        spans.agent_call(value, message=value, context=value, role=value, model=value, temperature=value) as call,
        spans.tool_call(value, value, call_id=value, agent_name=value) as tool,
    ):
        with (
            spans.code_exec(value, value) as execution, spans.llm_call(value, value, provider=value) as llm,
            spans.approval(value, agent_name=value) as asked,
        ):
            asked.set_response(value)
            llm.set_response(value, finish_reason=value)
            llm.set_usage(value, value, value, value)
            execution.set_result(value, exit_code=0)
        tool.set_result(value)
        call.set_response(value)
    spans.file_gen(value, value, value, value)
    spans.handoff(value, value, value, value)
    spans.message(value, value, value, value)
    spans.error(value, value, value)
    finished = recorded.get_finished_spans()
    assert len(finished) == 9
    for span in finished:
        for key in ("cmb.inputs", "cmb.outputs", "cmb.meta", "gen_ai.input.messages", "gen_ai.output.messages"):
            if key in span.attributes:
                json.loads(span.attributes[key])
                span.attributes[key].encode()


def test_an_exception_without_text_does_not_hide_the_failure(recorded):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no")

    with pytest.raises(Broken), spans.tool_call("search"):
        raise Broken
    assert only(recorded).status.description == "Broken"


def test_known_objects_are_readable():
    from dataclasses import dataclass
    from pathlib import Path

    @dataclass
    class Point:
        x: int

    assert json.loads(to_json({"p": Point(1), "f": Path("a/b"), "s": {3}})) == {"p": {"x": 1}, "f": "a/b", "s": [3]}


def test_decorated_functions(recorded):
    @spans.traced_tool
    def add(a, b=2):
        return a + b

    @spans.traced_agent(name="thinker", role="planner")
    async def think(question):
        return add(1) + len(question)

    assert asyncio.run(think("ab")) == 5
    tool, agent = recorded.get_finished_spans()
    assert (agent.name, agent.attributes["cmb.agent.role"]) == ("invoke_agent thinker", "planner")
    assert (loads(agent, "cmb.inputs"), loads(agent, "cmb.outputs")) == ({"message": "ab"}, {"response": 5})
    assert (tool.name, loads(tool, "gen_ai.tool.call.arguments")) == ("execute_tool add", {"a": 1})
    assert tool.parent.span_id == agent.context.span_id
    assert add.__name__ == "add"


def test_decorated_callables_that_are_no_functions(recorded):
    class Search:
        async def __call__(self, query):
            return query.upper()

    assert asyncio.run(spans.traced_tool(Search())("a")) == "A"
    assert asyncio.run(spans.traced_tool(lambda: asyncio.sleep(0, "late"))()) == "late"
    first, second = recorded.get_finished_spans()
    assert (first.name, loads(first, "gen_ai.tool.call.result")) == ("execute_tool Search", "A")
    assert "gen_ai.tool.call.result" not in second.attributes


def test_decorated_methods_do_not_record_self(recorded):
    class Team:
        @spans.traced_agent
        def ask(self, what, how="well"):
            raise LookupError(what)

    with pytest.raises(LookupError):
        Team().ask("x", how="fast")
    span = only(recorded, "invoke_agent ask")
    assert loads(span, "cmb.inputs") == {"message": {"what": "x", "how": "fast"}}
    assert span.status.description == "LookupError: x"


def test_decorated_generators_run_inside_and_leave_the_caller_outside(recorded):
    @spans.traced_tool
    def count(upto):
        for number in range(upto):
            with spans.llm_call(f"m{number}"):
                got = yield number
                assert got == "go"
        return "end"

    running = count(2)
    assert next(running) == 0
    assert not trace.get_current_span().get_span_context().is_valid
    assert running.send("go") == 1
    with pytest.raises(StopIteration) as stop:
        running.send("go")
    assert stop.value.value == "end"
    first, second, tool = recorded.get_finished_spans()
    assert {first.parent.span_id, second.parent.span_id} == {tool.context.span_id}
    assert loads(tool, "gen_ai.tool.call.result") == [0, 1]


def test_decorated_async_generators(recorded):
    @spans.traced_agent
    async def stream(text):
        for letter in text:
            await asyncio.sleep(0)
            yield letter

    async def main():
        return [letter async for letter in stream("ab")]

    assert asyncio.run(main()) == ["a", "b"]
    assert loads(only(recorded), "cmb.outputs") == {"response": ["a", "b"]}


def test_a_generator_that_is_closed_early_ends_its_block(recorded):
    closed = []

    @spans.traced_tool
    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    running = endless()
    next(running)
    running.close()
    assert closed == [True]
    assert only(recorded).status.status_code is StatusCode.UNSET


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(("error", "message", "kind"), [
    (ValueError("v"), "ValueError: v", "ValueError"), (KeyError(), "KeyError", "KeyError"), ("text", "text", None),
])
def test_an_error_may_be_the_exception_itself(recorded, error, message, kind):
    spans.error(error)
    span = only(recorded)
    assert span.attributes["cmb.error.message"] == message
    assert span.attributes.get("error.type") == kind
    assert ("cmb.meta" in span.attributes) == (kind is not None)


def test_an_exception_given_is_meant_not_the_one_being_handled(recorded):
    try:
        raise KeyError("handled")
    except KeyError:
        spans.error(ValueError("meant"))
    meta = loads(only(recorded), "cmb.meta")
    assert meta["error_type"] == "ValueError"
    assert "ValueError: meant" in meta["stack"]


@pytest.mark.parametrize(("value", "text"), [
    ("a", "a"), (Path("a/b"), "a/b"), (b"a", "a"), (None, "null"), (5, "5"), (["a"], '["a"]'), (object, "<class 'object'>"),
    (ValueError("v"), "ValueError: v"), (Mute(), "Mute()"),
])
def test_a_value_as_a_person_reads_it(value, text):
    assert text_of(value) == text


def test_texts_that_a_model_answers_are_the_assistants(recorded):
    with spans.llm_call("m", messages=["asked", "and asked"]) as call:
        call.set_response(["one", {"role": "tool", "content": "two"}])
    assert [message["role"] for message in loads(only(recorded), "gen_ai.output.messages")] == ["assistant", "tool"]
    assert [message["role"] for message in loads(only(recorded), "gen_ai.input.messages")] == ["user", "user"]
