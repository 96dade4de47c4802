"""What goes into the columns of one event: inputs, outputs, meta and the error, from the facts of its span.

Pure; values are taken as they come and only unwrapped or parsed, never judged. Keys with nothing to say are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_cmb.event import SpanEvent
from otel_cmb.mapper import EXIT_REPLY, Facts, as_mapping, content_of, error_result
from otel_cmb.messages import as_json, conversation, flattened, python_literal, text_of
from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, HANDOFF, LLM, TOOL

__all__ = ["error_of", "inputs_of", "meta_of", "outputs_of", "reply_of", "spent"]

Payload = dict[str, Any]

MAX_MESSAGE = 500
"""Longest `error_message`: it is shown in lists; the whole stands in `meta.stack` or in the outputs."""


# Messages in and out


_EVENT_ROLES = {
    "gen_ai.system.message": "system", "gen_ai.user.message": "user", "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool", "gen_ai.choice": "assistant",
}  # fmt: skip


def _event_messages(events: list[SpanEvent], outgoing: bool) -> list[dict[str, Any]] | None:
    """Messages that older conventions put into span events."""
    found: list[dict[str, Any]] = []
    for event in events:
        role = _EVENT_ROLES.get(event.name)
        attributes = event.attributes
        if role is not None and (event.name == "gen_ai.choice") == outgoing:
            body = as_json(attributes.get("message", attributes.get("body", attributes)))
            if isinstance(body, Mapping) and "content" in body and isinstance(body["content"], str):
                body = {**body, "content": as_json(body["content"])} if body["content"][:1] == "[" else body
            messages = conversation([{"role": role, **body}] if isinstance(body, Mapping) else [{"role": role, "content": body}])
            found.extend(messages or ())
        elif event.name == "gen_ai.client.inference.operation.details":
            key = "gen_ai.output.messages" if outgoing else "gen_ai.input.messages"
            found.extend(conversation(attributes.get(key)) or ())
        elif event.name in ("gen_ai.content.completion" if outgoing else "gen_ai.content.prompt",):
            value = attributes.get("gen_ai.completion" if outgoing else "gen_ai.prompt")
            found.extend(conversation(value) or ([{"role": "user", "content": value}] if isinstance(value, str) else ()))
    return found or None


def incoming(facts: Facts) -> list[dict[str, Any]] | None:
    """The messages that came in, in the one form, or `None`."""
    found, attributes = facts.found, facts.span.attributes
    messages = conversation(found["messages_in"]) if "messages_in" in found else None
    if messages is None and "oi_kind" in found:
        messages = flattened(attributes, "llm.input_messages.")
    if messages is None and facts.kind == LLM:
        messages = flattened(attributes, "gen_ai.prompt.") or flattened(attributes, "llm.prompts.")
    if messages is None and facts.span.events:
        messages = _event_messages(facts.span.events, outgoing=False)
    if messages is None and "messages_in" in found and isinstance(found["messages_in"], str):
        messages = [{"role": "user", "content": found["messages_in"]}]
    if messages is None and "input" in found:
        messages = conversation(found["input"])
    if messages is not None and "system" in found and not any(message["role"] == "system" for message in messages):
        text = _system_text(found["system"])
        if text is not None:
            messages = [{"role": "system", "content": text}, *messages]
    return messages


def _system_text(value: Any) -> Any:
    parsed = as_json(value)
    if isinstance(parsed, list):
        messages = conversation([{"role": "system", "parts": parsed}])
        return messages[0].get("content") if messages else None
    return parsed if parsed != "" else None


def outgoing(facts: Facts) -> list[dict[str, Any]] | None:
    """The messages that went out, in the one form, or `None`."""
    found, attributes = facts.found, facts.span.attributes
    messages = conversation(found["messages_out"], "assistant") if "messages_out" in found else None
    if messages is None and "oi_kind" in found:
        messages = flattened(attributes, "llm.output_messages.")
    if messages is None and facts.kind == LLM:
        messages = flattened(attributes, "gen_ai.completion.") or flattened(attributes, "llm.completions.")
    if messages is None and facts.span.events:
        messages = _event_messages(facts.span.events, outgoing=True)
    if messages is None and isinstance(found.get("messages_out"), str) and found["messages_out"]:
        messages = [{"role": "assistant", "content": found["messages_out"]}]
    if messages is None and "output" in found:
        messages = conversation(found["output"], "assistant")
    return messages


def _gist(message: Mapping[str, Any]) -> Any:
    """A message as a person reads it: its text, or what it asks for."""
    text = text_of(message)
    if text is not None:
        return text
    rest = {key: value for key, value in message.items() if key not in ("role", "name", "content", "finish_reason")}
    if rest:
        return rest
    return message.get("content")


_TASK_KEYS = ("message", "task", "input", "query", "question", "prompt", "user_message", "user_msg", "content", "description")
_ANSWER_KEYS = ("response", "raw", "output", "result", "answer", "content", "final_output")


def _pick(value: Any, keys: tuple[str, ...]) -> Any:
    """What a request or a reply that is no list of messages is about."""
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        for key in keys:
            if key in value and value[key] is not None:
                value = value[key]
                break
        else:
            break
    return value


def reply_of(facts: Facts) -> Any:
    """What an agent or a container answered: a text, a structure, or `None`."""
    found = facts.found
    if "final_result" in found:
        return as_json(found["final_result"])
    if "cmb_outputs" in found:
        return as_mapping(found["cmb_outputs"]).get("response")
    messages = outgoing(facts)
    if messages:
        return _gist(messages[-1])
    if "output" in found:
        value = as_json(found["output"])
        return _pick(value, _ANSWER_KEYS) if isinstance(value, Mapping) else value
    return None


# Inputs


def _arguments(facts: Facts) -> Any:
    found = facts.found
    value = found.get("tool_arguments", found.get("input"))
    parsed = as_json(value)
    if isinstance(parsed, str):
        return python_literal(parsed)
    if isinstance(parsed, Mapping):
        if "input_str" in parsed:  # Traceloop's wrapper around LangChain
            text = parsed["input_str"]
            return python_literal(text) if isinstance(text, str) else text
        if "sanitize_inputs_outputs" in parsed and "kwargs" in parsed:  # smolagents' Tool.__call__
            return parsed["kwargs"] if not parsed.get("args") else {"args": parsed["args"], **as_mapping(parsed["kwargs"])}
        if parsed.keys() <= {"args", "kwargs"} and isinstance(parsed.get("kwargs"), Mapping) and not parsed.get("args"):
            return parsed["kwargs"]
        if parsed.keys() == {"name", "arguments"} and "tool_arguments" not in found:
            return as_json(parsed["arguments"])
    return parsed


def _result(facts: Facts) -> Any:
    found = facts.found
    for name in ("tool_result", "code_output", "output"):
        if name in found:
            value = content_of(as_json(found[name]))
            return as_json(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    if facts.span.events:
        messages = _event_messages(facts.span.events, outgoing=True)
        if messages:
            return _gist(messages[-1])
    return None


def _agent_inputs(facts: Facts) -> Payload:
    found = facts.found
    if "all_messages" in found:
        messages = conversation(found["all_messages"])
        asked = [message for message in messages or () if message["role"] == "user"]
        return {"message": _gist(asked[0])} if asked else {}
    messages = incoming(facts)
    if messages:
        payload: Payload = {"message": _gist(messages[-1])}
        if len(messages) > 1 and facts.kind == AGENT:
            payload["context"] = messages[:-1]
        return payload
    if "input" in found and found["input"] not in ("None", "null"):
        value = as_json(found["input"])
        return {"message": _pick(value, _TASK_KEYS) if isinstance(value, Mapping) else value}
    return {}


_CODE_KEYS = ("code", "script", "source", "python_code", "code_snippet", "command", "cmd", "query", "input", "__arg1")


def _code_inputs(facts: Facts) -> Payload:
    arguments = _arguments(facts)
    if isinstance(arguments, Mapping):
        for key in _CODE_KEYS:
            if isinstance(arguments.get(key), str):
                return {"code": arguments[key]}
        return {}
    if isinstance(arguments, str) and not arguments.startswith('{"memory_step"'):
        return {"code": arguments}
    return {}


def _handoff_inputs(facts: Facts) -> Payload:
    arguments = _arguments(facts) if facts.tool is not None else None
    return {"context": arguments} if arguments not in (None, {}, [], "", "{}") else {}


def inputs_of(facts: Facts, kind: str) -> Payload:
    """The `inputs` of an event of type `kind` (DESIGN section 3). What neighbours tell is added by the caller."""
    found = facts.found
    if "cmb_inputs" in found:
        value = as_json(found["cmb_inputs"])
        return dict(value) if isinstance(value, Mapping) else {"value": value}
    if kind == LLM:
        messages = incoming(facts)
        if messages is None and "input" in found:
            value = as_json(found["input"])
            messages = [{"role": "user", "content": _pick(value, _TASK_KEYS) if isinstance(value, Mapping) else value}]
        return {"messages": messages} if messages is not None else {}
    if kind == TOOL:
        payload: Payload = {"tool_name": facts.tool} if facts.tool is not None else {}
        if "tool_arguments" in found or "input" in found:
            payload["arguments"] = _arguments(facts)
        return payload
    if kind == CODE:
        return _code_inputs(facts)
    if kind == HANDOFF:
        return _handoff_inputs(facts)
    if kind == APPROVAL:
        return {"prompt": found["prompt"]} if "prompt" in found else _agent_inputs(facts)
    if kind in (AGENT, CONTAINER):
        return _agent_inputs(facts)
    return {}


# Outputs


def outputs_of(facts: Facts, kind: str) -> Payload:
    """The `outputs` of an event of type `kind` (DESIGN section 3)."""
    found = facts.found
    if "cmb_outputs" in found:
        value = as_json(found["cmb_outputs"])
        return dict(value) if isinstance(value, Mapping) else {"value": value}
    if kind == LLM:
        messages = outgoing(facts)
        if messages is None and "output" in found:
            messages = [{"role": "assistant", "content": found["output"]}]
        return {"messages": messages} if messages is not None else {}
    if kind == TOOL:
        return _present("result", _result(facts))
    if kind == CODE:
        if facts.kind == AGENT:
            return _present("result", strip_exit(reply_of(facts)))
        return _present("result", _result(facts))
    if kind == APPROVAL:
        return _present("response", found.get("response"))
    if kind in (AGENT, CONTAINER):
        return _present("response", reply_of(facts))
    return {}


def _present(key: str, value: Any) -> Payload:
    return {} if value is None else {key: value}


def strip_exit(text: Any) -> Any:
    """AG2's reply of an executor without its head: `exitcode: 0 (execution succeeded)`, then `Code output: ...`."""
    if isinstance(text, str) and EXIT_REPLY.match(text) is not None:
        return text.partition("\n")[2].removeprefix("Code output: ")
    return text


# Meta


def _count(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, float) and value.is_integer() and value < 2**53:
        value = int(value)
    return value if isinstance(value, int) and 0 <= value < 2**53 else None


def _amount(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) < 32:
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else None


def spent(facts: Facts) -> tuple[dict[str, int], int | float | None]:
    """Tokens (keys of `meta`) and US dollars the span says were spent."""
    found = facts.found
    tokens: dict[str, int] = {}
    total: int | None = None
    for name, key in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
        count = _count(found[name]) if name in found else None
        if count is not None:
            tokens[key] = count
            total = (total or 0) + count
    if total is None and "tokens_total" in found:
        total = _count(found["tokens_total"])
    if total is not None:
        tokens["tokens"] = total
        for name, key in _OTHER_TOKENS:
            count = _count(found[name]) if name in found else None
            if count is not None:
                tokens[key] = count
    return tokens, _amount(found.get("cost"))


_OTHER_TOKENS = (
    ("tokens_cache_read", "cache_read_tokens"), ("tokens_cache_write", "cache_write_tokens"),
    ("tokens_reasoning", "reasoning_tokens"),
)  # fmt: skip

_PLAIN_META = (
    ("provider", "provider"), ("tool_call_id", "tool_call_id"), ("conversation_id", "conversation_id"), ("session_id", "session_id"),
    ("thread_id", "thread_id"), ("user_id", "user_id"), ("agent_id", "agent_id"), ("workflow_name", "workflow"),
    ("turns", "turns"), ("task_name", "task"), ("sender", "sender"), ("recipient", "recipient"),
)  # fmt: skip


def meta_of(facts: Facts, kind: str) -> Payload:
    """The `meta` of an event of type `kind`, without what was spent and without the error."""
    found = facts.found
    meta: Payload = {}
    if kind in (LLM, AGENT):
        model = found.get("model", found.get("request_model"))
        if isinstance(model, str) and model:
            meta["model"] = model
        temperature = found.get("temperature")
        if temperature is None and kind == LLM and "invocation" in found:
            invocation = as_mapping(found["invocation"])
            temperature = invocation.get("temperature")
            if "model" not in meta and isinstance(invocation.get("model"), str):
                meta["model"] = invocation["model"]
        if isinstance(temperature, int | float) and not isinstance(temperature, bool):
            meta["temperature"] = temperature
        reason = as_json(found.get("finish_reason"))
        if isinstance(reason, list):
            reason = reason[0] if len(reason) == 1 else ", ".join(str(one) for one in reason[:8])
        if isinstance(reason, str) and reason:
            meta["finish_reason"] = reason
    for name, key in _PLAIN_META:
        if name in found:
            value = found[name]
            if isinstance(value, str | int | float) and value != "":
                meta[key] = value
    if kind in (CODE, HANDOFF) and facts.tool is not None:
        meta["tool_name"] = facts.tool
    return meta


# Errors


def _exception(facts: Facts) -> Mapping[str, Any] | None:
    """The attributes of the last exception event: instrumentations repeat it, and wrap it on its way up."""
    for event in reversed(facts.span.events):
        if event.name == "exception":
            return event.attributes
    return None


def _short(text: str) -> str:
    head = text
    cut = text.find("Traceback (most recent call last)")
    if cut > 0:
        head = text[:cut].strip()
    elif cut == 0:
        lines = text.strip().splitlines()
        head = lines[-1].strip() if lines else text
    if len(head) > MAX_MESSAGE:
        head = head[: MAX_MESSAGE - 1] + "…"
    return head


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("[exit code:")]
    return lines[-1].strip() if lines else ""


def error_of(facts: Facts, kind: str) -> tuple[str | None, Payload]:
    """A short message, and `error_type` and `stack` for `meta`, of a failed event."""
    found, span = facts.found, facts.span
    exception = _exception(facts)
    meta: Payload = {}
    error_type = found.get("error_type")
    stack = None
    if exception is not None:
        error_type = error_type if error_type not in (None, "", "_OTHER") else exception.get("exception.type")
        stack = exception.get("exception.stacktrace")
    if isinstance(error_type, str) and error_type:
        meta["error_type"] = error_type
    if isinstance(stack, str) and stack:
        meta["stack"] = stack
    elif "Traceback (most recent call last)" in span.status_message:
        meta["stack"] = span.status_message
    if span.died:
        return "process ended before the span did", meta
    message = found.get("error_message")
    if isinstance(message, str) and message:
        return _short(message), meta
    if kind in (TOOL, CODE):
        result = as_json(found.get("tool_result", found.get("output")))
        if error_result(result):
            text = content_of(result)
            if isinstance(text, str) and text:
                return _short(text), meta
    if span.status_message:
        return _short(span.status_message), meta
    if exception is not None and exception.get("exception.message"):
        return _short(str(exception["exception.message"])), meta
    if kind == CODE:
        result = strip_exit(reply_of(facts)) if facts.kind == AGENT else _result(facts)
        if isinstance(result, Mapping):
            result = next((result[key] for key in ("stderr", "error", "output", "stdout") if result.get(key)), None)
        if isinstance(result, str) and result.strip():
            line = _last_line(result)
            return _short(line or result), meta
        if facts.exit_code is not None:
            return f"exit code {facts.exit_code}", meta
    message = found.get("message")
    if isinstance(message, str) and message and facts.kind == "error":
        return _short(message), meta
    return (error_type if isinstance(error_type, str) and error_type else None), meta


