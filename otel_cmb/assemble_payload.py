"""What goes into the columns of one event: inputs, outputs and meta, from the facts of its span.

Pure; values are taken as they come and only unwrapped or parsed, never judged. Keys with nothing to say are absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otel_cmb.assemble_messages import TASK_KEYS, event_messages, gist, incoming, outgoing, pick, reply_of
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import EXIT_REPLY, as_mapping, content_of
from otel_cmb.messages import as_json, conversation, python_literal
from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, HANDOFF, LLM, TOOL

__all__ = ["Columns", "Payload", "called_with", "payload_of", "result_of", "strip_exit"]

Columns = dict[str, Any]


@dataclass(slots=True, eq=False)
class Payload:
    """What one act says by itself, ready for its columns. Shared between calls: copy before adding to it."""

    kind: str
    inputs: Columns
    outputs: Columns
    meta: Columns
    tokens: Columns
    cost: int | float | None


def payload_of(facts: Facts, kind: str) -> Payload:
    """The payload of these facts as an event of type `kind`; worked out once, as long as it is asked for as one type."""
    payload: Payload | None = facts.payload
    if payload is None or payload.kind != kind:
        captured = facts.captures(kind)
        wanted = captured or kind == HANDOFF  # who hands over to whom is no content
        tokens, cost = _spent(facts)
        payload = facts.payload = Payload(
            kind, _inputs(facts, kind) if wanted else {}, _outputs(facts, kind) if captured else {}, _meta(facts, kind),
            tokens, cost,
        )  # fmt: skip
    return payload


# Inputs


def called_with(facts: Facts) -> Any:
    """The arguments of a tool's call, out of the wrapper its framework put them in; stored or not."""
    found = facts.found
    value = found.get("tool_arguments", found.get("input"))
    parsed = as_json(value)
    if isinstance(parsed, str):
        return python_literal(parsed)
    if type(parsed) is dict and _WRAPPED.isdisjoint(parsed):
        return parsed
    if isinstance(parsed, Mapping):
        if "input_str" in parsed:  # Traceloop's wrapper around LangChain
            text = parsed["input_str"]
            return python_literal(text) if isinstance(text, str) else text
        if "sanitize_inputs_outputs" in parsed and "kwargs" in parsed:  # smolagents' Tool.__call__
            return parsed["kwargs"] if not parsed.get("args") else {"args": parsed["args"], **as_mapping(parsed["kwargs"])}
        if parsed.keys() <= {"args", "kwargs"} and isinstance(parsed.get("kwargs"), Mapping) and not parsed.get("args"):
            return parsed["kwargs"]
        if parsed.keys() == {"input", "options"}:  # BeeAI
            return parsed["input"]
        if parsed.keys() == {"name", "arguments"} and "tool_arguments" not in found:
            return as_json(parsed["arguments"])
        if parsed.keys() == {"tool_name", "arguments"} and parsed["tool_name"] == facts.tool:  # Traceloop, of MCP
            return as_json(parsed["arguments"])
    return parsed


_WRAPPED = frozenset(("input_str", "kwargs", "options", "arguments"))
"""Each wrapper of arguments has one of these keys."""


def result_of(facts: Facts) -> Any:
    found = facts.found
    for name in ("tool_result", "code_output", "output"):
        if name in found:
            value = found[name]
            if type(value) is str and value[:1] not in _STRUCTURED:
                return value
            value = content_of(as_json(value))
            return as_json(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    if facts.span.events:
        messages = event_messages(facts.span.events, outgoing=True)
        if messages:
            return gist(messages[-1])
    return None


def _agent_inputs(facts: Facts) -> Columns:
    found = facts.found
    if "all_messages" in found:
        messages = conversation(found["all_messages"])
        asked = [message for message in messages or () if message["role"] == "user"]
        return {"message": gist(asked[0])} if asked else {}
    messages = incoming(facts)
    if messages:
        payload: Columns = {"message": gist(messages[-1])}
        if len(messages) > 1 and facts.kind == AGENT:
            payload["context"] = messages[:-1]
        return payload
    if "input" in found and found["input"] not in ("None", "null"):
        value = as_json(found["input"])
        if isinstance(value, Mapping):
            value = _task_of_output(value, found) or pick(value, TASK_KEYS)
        return {} if value is None else {"message": value}
    return {}


def _task_of_output(value: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
    """CrewAI's agent is given its task, which only its output tells, and what was found out before."""
    if value.keys() != {"agent", "context", "tools"}:
        return None
    return as_mapping(found.get("output")).get("description")


_STRUCTURED = frozenset('{["')

_CODE_KEYS = ("code", "script", "source", "python_code", "code_snippet", "command", "cmd", "query", "input", "__arg1")


def _code_inputs(facts: Facts) -> Columns:
    if facts.kind == AGENT:  # an agent that ran the code of the message it answered
        return {}
    arguments = called_with(facts)
    if isinstance(arguments, Mapping):
        for key in _CODE_KEYS:
            if isinstance(arguments.get(key), str):
                return {"code": arguments[key]}
        return {}
    if isinstance(arguments, str) and not arguments.startswith('{"memory_step"'):
        return {"code": arguments}
    return {}


def _handoff_inputs(facts: Facts) -> Columns:
    arguments = called_with(facts) if facts.tool is not None else None
    if isinstance(arguments, Mapping):
        arguments = {key: value for key, value in arguments.items() if key not in ("agent_name", "reason")}
    return {"context": arguments} if arguments not in (None, {}, [], "", "{}") else {}


def _inputs(facts: Facts, kind: str) -> Columns:
    """The `inputs` of an event of type `kind` (DESIGN section 3). What neighbours tell is added by the caller."""
    found = facts.found
    if "cmb_inputs" in found:
        value = as_json(found["cmb_inputs"])
        return dict(value) if isinstance(value, Mapping) else {"value": value}
    if kind == LLM:
        messages = incoming(facts)
        if messages is None and "input" in found:
            value = as_json(found["input"])
            messages = [{"role": "user", "content": pick(value, TASK_KEYS) if isinstance(value, Mapping) else value}]
        return {"messages": messages} if messages is not None else {}
    if kind == TOOL:
        payload: Columns = {"tool_name": facts.tool} if facts.tool is not None else {}
        if "tool_arguments" in found or "input" in found:
            payload["arguments"] = called_with(facts)
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


def _outputs(facts: Facts, kind: str) -> Columns:
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
        return _present("result", result_of(facts))
    if kind == CODE:
        if facts.kind == AGENT:
            return _present("result", strip_exit(reply_of(facts)))
        return _present("result", result_of(facts))
    if kind == APPROVAL:
        return _present("response", found.get("response"))
    if kind in (AGENT, CONTAINER):
        return _present("response", reply_of(facts))
    return {}


def _present(key: str, value: Any) -> Columns:
    return {} if value is None else {key: value}


def strip_exit(text: Any) -> Any:
    """AG2's reply of an executor without its head: `exitcode: 0 (execution succeeded)`, then `Code output: ...`."""
    if isinstance(text, str) and EXIT_REPLY.match(text) is not None:
        return text.partition("\n")[2].removeprefix("Code output: ")
    return text


# Meta


def _count(value: Any) -> int | None:
    if type(value) is int:
        return value if 0 <= value < 2**53 else None
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
    return value if isinstance(value, (int, float)) and 0 <= value < 1e15 else None


def _spent(facts: Facts) -> tuple[Columns, int | float | None]:
    """Tokens (keys of `meta`) and US dollars the span says were spent."""
    found = facts.found
    tokens: dict[str, int] = {}
    if not facts.shape.may_spend:
        return tokens, None
    total: int | None = None
    for name, key in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
        count = _count(found[name]) if name in found else None
        if count is not None:
            tokens[key] = count
            total = (total or 0) + count
    if total is None and "tokens_total" in found:
        total = _count(found["tokens_total"])
    if total is None and "usage" in found:
        usage = as_mapping(found["usage"])
        for keys, key in _USAGE_KEYS:
            count = next((count for count in (_count(usage.get(name)) for name in keys) if count is not None), None)
            if count is not None:
                tokens[key] = count
                total = (total or 0) + count
        whole = _count(usage.get("total", usage.get("total_tokens")))
        if total is None:
            total = whole
        elif whole is not None and whole > total:
            total = _add_details(tokens, usage, whole) or total
    if total is not None:
        tokens["tokens"] = total
        for name, key in _OTHER_TOKENS:
            count = _count(found[name]) if name in found else None
            if count is not None:
                tokens[key] = count
    cost = _amount(found.get("cost"))
    if cost is None and "costs" in found:
        costs = as_mapping(found["costs"])
        cost = _amount(costs.get("total", costs.get("total_cost")))
    return tokens, cost


def _add_details(tokens: dict[str, int], usage: Mapping[str, Any], whole: int) -> int | None:
    """Langfuse takes what was cached or reasoned out of `input` and `output` and says it beside them: all of it, where
    that makes the total it says."""
    sums = {}
    for side, key in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        counts = [_count(value) for name, value in usage.items() if name == side or str(name).startswith(f"{side}_")]
        sums[key] = sum(count for count in counts if count is not None)
    if sum(sums.values()) != whole:
        return None
    tokens.update(sums)
    for name, key in _DETAILS:
        count = _count(usage.get(name))
        if count is not None:
            tokens[key] = count
    return whole


_DETAILS = (
    ("input_cache_read", "cache_read_tokens"), ("input_cached_tokens", "cache_read_tokens"),
    ("input_cache_creation", "cache_write_tokens"), ("output_reasoning", "reasoning_tokens"),
    ("output_reasoning_tokens", "reasoning_tokens"),
)  # fmt: skip

_USAGE_KEYS = (
    (("input", "input_tokens", "prompt_tokens", "promptTokens"), "prompt_tokens"),
    (("output", "output_tokens", "completion_tokens", "completionTokens"), "completion_tokens"),
)
"""Usage as one structure (Langfuse, MLflow): the names its counts have."""

_OTHER_TOKENS = (
    ("tokens_cache_read", "cache_read_tokens"), ("tokens_cache_write", "cache_write_tokens"),
    ("tokens_reasoning", "reasoning_tokens"),
)  # fmt: skip


def _json_has(value: str | float) -> bool:
    """Not NaN and no infinity: in JSON they would be null, and a key with nothing to say is absent."""
    return type(value) is not float or math.isfinite(value)


def _meta(facts: Facts, kind: str) -> Columns:
    """The `meta` of an event of type `kind`, without what was spent and without the error."""
    found = facts.found
    meta: Columns = {}
    if kind in (LLM, AGENT):
        model = found.get("model", found.get("request_model"))
        if isinstance(model, str) and model[:1] == '"':  # MLflow writes any value as JSON
            model = as_json(model)
        if isinstance(model, str) and model:
            meta["model"] = model
        temperature = found.get("temperature")
        if temperature is None and kind == LLM and "invocation" in found:
            invocation = as_mapping(found["invocation"])
            temperature = invocation.get("temperature")
            if "model" not in meta and isinstance(invocation.get("model"), str):
                meta["model"] = invocation["model"]
        if isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and _json_has(temperature):
            meta["temperature"] = temperature
        if "finish_reason" in found:
            reason = as_json(found["finish_reason"])
            if isinstance(reason, list):
                reason = reason[0] if len(reason) == 1 else ", ".join(str(one) for one in reason[:8])
            if isinstance(reason, str) and reason:
                meta["finish_reason"] = reason
    for name, key in facts.shape.meta:
        value = found.get(name)
        if isinstance(value, (str, int, float)) and value not in ("", "<not specified>") and _json_has(value):
            meta[key] = value
    if kind in (CODE, HANDOFF) and facts.tool is not None:
        meta["tool_name"] = facts.tool
    return meta
