"""The manual API: what an agent does, as spans that become event rows (DESIGN section 8).

Each of `agent_call`, `tool_call`, `code_exec`, `llm_call` and `approval` is a block, for `with` and for `async with`;
it may be held across `await`. An exception that leaves a block marks it as failed and goes on; a generator that is
closed ends its block normally. `file_gen`, `handoff`, `message` and `error` are over at once. None of them raises
because of the values it is given.

Attributes: the GenAI semantic conventions (`gen_ai.*`, 1.37) where they have a name, `cmb.*` for the rest. A payload
stands on a span once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar, overload

from opentelemetry.trace import SpanKind

from otel_cmb.block import AGENT_KEY, Block, agent_of, current_agent, inputs_of, instant, label, meta_of, number, texts
from otel_cmb.decorate import arguments_of, name_of, traced
from otel_cmb.payload import message_parts, text_of, to_json, type_name

__all__ = [
    "AgentCall", "Approval", "Block", "CodeExec", "LLMCall", "ToolCall", "agent_call", "approval", "code_exec", "error",
    "file_gen", "handoff", "llm_call", "message", "tool_call", "traced_agent", "traced_tool",
]

F = TypeVar("F", bound=Callable[..., Any])


class AgentCall(Block):
    """An agent is asked and answers."""

    def set_response(self, response: Any) -> None:
        """What the agent answered."""
        self.set("cmb.outputs", to_json({"response": response}))

    def set_usage(
        self, model: str | None = None, input_tokens: int | None = None, output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> None:
        """Tokens and US dollars spent by this very call; what an `llm_call` inside spent stands there."""
        self._set_usage(model, input_tokens, output_tokens, cost_usd)


class ToolCall(Block):
    """A tool is called."""

    def set_result(self, result: Any) -> None:
        """What the tool answered: a text as it is, anything else as JSON."""
        if result is None or isinstance(result, (bool, int, float)):
            # As a JSON text it could not be told from the text of a number, which is what most tools answer.
            self.set("cmb.outputs", to_json({"result": result}))
        else:
            self.set("gen_ai.tool.call.result", to_json(result))


class CodeExec(Block):
    """Code is executed. An exit code other than 0 is a failure."""

    meta: dict[str, Any]

    def set_result(self, output: Any, exit_code: int | None = None) -> None:
        """What the code printed, and its exit code; where that is not 0, the last line says what went wrong."""
        self.set("cmb.outputs", to_json({"result": output}))
        if exit_code is None:
            return
        self.set("cmb.meta", to_json({**self.meta, "exit_code": exit_code}))
        if exit_code != 0:
            lines = output.strip().splitlines() if isinstance(output, str) else []
            self.fail(f"exit code {exit_code}: {lines[-1][:500]}" if lines else f"exit code {exit_code}")


class LLMCall(Block):
    """A language model is called."""

    def set_response(self, messages: Any, finish_reason: str | None = None) -> None:
        """What the model answered: a text, a message or several, in OpenAI or parts style."""
        if isinstance(messages, str):
            messages = [messages]
        if isinstance(messages, (list, tuple)):  # what the model says is the assistant's, unless a message says otherwise
            messages = [{"role": "assistant", "content": text} if isinstance(text, str) else text for text in messages]
        self.set("gen_ai.output.messages", to_json(message_parts(messages)))
        if finish_reason is not None:
            self.set("gen_ai.response.finish_reasons", [text_of(finish_reason)])

    def set_usage(
        self, model: str | None = None, input_tokens: int | None = None, output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> None:
        """The model that answered, tokens and US dollars."""
        self._set_usage(model, input_tokens, output_tokens, cost_usd)


class Approval(Block):
    """A person is asked."""

    def set_response(self, response: Any, approved: bool | None = None) -> None:
        """What the person answered; `approved` says what it means, where that is known."""
        self.set("cmb.outputs", to_json({"response": response}))
        if approved is not None:
            self.set("cmb.event.subtype", "approved" if approved else "rejected")


def agent_call(
    name: str, message: Any = None, context: Any = None, *, role: str | None = None, model: str | None = None,
    sender: str | None = None, temperature: float | None = None,
) -> AgentCall:
    """The agent `name` is asked: `message` is the question, `context` what it was given besides."""
    name = text_of(name)
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": name,
        "cmb.event.type": "agent_call",
        **inputs_of(message=message, context=context),
        **meta_of(sender=sender),
        **texts({"cmb.agent.role": role, "gen_ai.request.model": model}),
        **number("gen_ai.request.temperature", temperature),
    }
    return AgentCall(f"invoke_agent {label(name)}", attributes, values={AGENT_KEY: name})


def tool_call(
    name: str, arguments: Any = None, *, call_id: str | None = None, agent_name: str | None = None
) -> ToolCall:
    """The tool `name` is called. A tool that is known to run code (setting `code_tools`) becomes a code execution."""
    name = text_of(name)
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.type": "function",
        **agent_of(agent_name),
    }
    if call_id is not None:
        attributes["gen_ai.tool.call.id"] = text_of(call_id)
    if arguments is not None:
        # A string is what a model wrote, JSON or not, and stands as it was written.
        attributes["gen_ai.tool.call.arguments"] = arguments if isinstance(arguments, str) else to_json(arguments)
    return ToolCall(f"execute_tool {label(name)}", attributes)


def code_exec(code: str, language: str = "python", *, agent_name: str | None = None) -> CodeExec:
    """The text `code` is executed."""
    code, language = text_of(code), text_of(language)
    meta = {"language": language, "code_length": len(code)}
    attributes = {"cmb.event.type": "code_exec", **inputs_of(code=code), **meta_of(**meta), **agent_of(agent_name)}
    block = CodeExec(f"execute_code {label(language)}", attributes)
    block.meta = meta
    return block


def llm_call(
    model: str | None, messages: Any = None, *, temperature: float | None = None, provider: str | None = None,
    agent_name: str | None = None,
) -> LLMCall:
    """The language model `model` is called with `messages` (a text, or messages in OpenAI or parts style)."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "cmb.event.type": "llm_call",
        **agent_of(agent_name),
        **texts({"gen_ai.request.model": model, "gen_ai.provider.name": provider}),
        **number("gen_ai.request.temperature", temperature),
    }
    if messages is not None:
        attributes["gen_ai.input.messages"] = to_json(message_parts(messages))
    return LLMCall("chat" if model is None else f"chat {label(model)}", attributes, kind=SpanKind.CLIENT)


def approval(prompt: Any, *, agent_name: str | None = None) -> Approval:
    """A person is asked `prompt`; the block lasts until the answer is there."""
    name = agent_name or current_agent()
    attributes = {"cmb.event.type": "approval_requested", **inputs_of(prompt=prompt), **agent_of(name)}
    return Approval(f"await_human_input {label(name)}" if name else "await_human_input", attributes)


def file_gen(
    file_path: Any, file_type: str, size_bytes: int | None = None, agent_name: str | None = None
) -> None:
    """A file was written."""
    path = text_of(os.fspath(file_path) if isinstance(file_path, os.PathLike) else file_path)
    attributes = {**inputs_of(file_path=path, file_type=file_type), **meta_of(size_bytes=size_bytes)}
    instant(f"generate_file {label(path)}", "file_gen", {**attributes, **agent_of(agent_name)})


def handoff(from_agent: str | None, to_agent: str | None, context: Any = None, reason: str | None = None) -> None:
    """The work went from one agent to another."""
    attributes = {**inputs_of(from_agent=from_agent, to_agent=to_agent, context=context), **meta_of(reason=reason)}
    instant(f"handoff {label(from_agent)} -> {label(to_agent)}", "handoff", {**attributes, **agent_of(from_agent)})


def message(sender: str, recipient: str, content: Any, tokens: int | None = None) -> None:
    """A message went from one agent to another."""
    instant(f"message {label(sender)} -> {label(recipient)}", "agent_call", {
        "cmb.event.subtype": "message",
        **inputs_of(sender=sender, recipient=recipient, content=content), **meta_of(tokens=tokens), **agent_of(sender),
    })


def error(error_message: Any, error_type: str | None = None, agent_name: str | None = None) -> None:
    """Something went wrong: a text, or the exception itself. Its type and stack are kept too, in an `except` block those of
    what was caught."""
    caught = error_message if isinstance(error_message, BaseException) else sys.exc_info()[1]
    stack = None
    if caught is not None:
        error_type = error_type or type_name(caught)
        stack = "".join(traceback.format_exception(type(caught), caught, caught.__traceback__))
    text = text_of(error_message)
    attributes = {"cmb.error.message": text, **meta_of(error_type=error_type, stack=stack), **agent_of(agent_name)}
    if error_type is not None:
        attributes["error.type"] = text_of(error_type)
    instant(f"error {label(error_type)}" if error_type is not None else "error", "error", attributes, failed=True)


# Decorators.

@overload
def traced_agent(function: F) -> F: ...
@overload
def traced_agent(*, name: str | None = None, role: str | None = None) -> Callable[[F], F]: ...
def traced_agent(
    function: F | None = None, *, name: str | None = None, role: str | None = None
) -> F | Callable[[F], F]:
    """Calls of the function are calls of an agent: what it is given is the message, what it returns the response.

    For functions, coroutine functions, generators and async generators; bare or with arguments. A generator's event
    lasts until it is exhausted or closed; only its own code runs inside the span.
    """
    def decorate(target: F) -> F:
        def make(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AgentCall:
            given = arguments_of(target, args, kwargs)
            return agent_call(name or name_of(target), next(iter(given.values())) if len(given) == 1 else given or None,
                              role=role)

        return traced(target, make, AgentCall.set_response)

    return decorate if function is None else decorate(function)


@overload
def traced_tool(function: F) -> F: ...
@overload
def traced_tool(*, name: str | None = None) -> Callable[[F], F]: ...
def traced_tool(function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """Calls of the function are calls of a tool. As :func:`traced_agent`."""
    def decorate(target: F) -> F:
        def make(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolCall:
            return tool_call(name or name_of(target), arguments_of(target, args, kwargs))

        return traced(target, make, ToolCall.set_result)

    return decorate if function is None else decorate(function)
