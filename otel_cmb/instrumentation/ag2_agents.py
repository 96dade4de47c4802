"""What one AG2 agent does: answers, calls tools, calls a model, asks a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.context import create_key, get_value

from otel_cmb import spans
from otel_cmb.block import label
from otel_cmb.instrumentation.ag2_patch import Act, Call, Doing, Hook
from otel_cmb.instrumentation.ag2_state import (
    GROUP_KEY,
    Group,
    agent_name,
    first_config,
    group,
    innermost,
    is_tool_executor,
    message_text,
    model_of,
    values,
)
from otel_cmb.instrumentation.ag2_tools import RAISED_KEY, Raised
from otel_cmb.payload import text_of

__all__ = ["AGENT", "HUMAN", "LLM", "MANUAL", "TOOL", "USAGE"]

ROLES = (
    ("GroupChatManager", "manager"), ("GroupToolExecutor", "tool_executor"), ("UserProxyAgent", "user_proxy"),
    ("AssistantAgent", "assistant"),
)
NO_HANDOVER = ("TerminateTarget", "StayTarget")
"""Targets of a transfer tool that hand over to nobody: the call is a tool call like others."""


def _role(agent: Any) -> str | None:
    names = {base.__name__ for base in type(agent).__mro__}
    return next((role for name, role in ROLES if name in names), None)


# An agent answers: generate_reply(messages=None, sender=None, exclude=()).

class Managing(Doing[spans.AgentCall, Group]):
    """The answer of a group chat's manager is the whole chat: what it leaves undone is settled at its end."""

    def end(self, error: BaseException | None = None) -> None:
        if self.note.transfer is not None:
            agent, target = self.note.transfer
            spans.handoff(agent_name(agent), target, reason=self.note.reason)
        super().end(error)


def begin_agent(agent: Any, call: Call) -> Act | None:
    act = ("agent", id(agent), call.function)
    around = innermost()
    if around[:2] == act[:2] and around[2] is not call.function:
        return None  # an override that calls its base; the same method again is an agent that asks itself
    messages, sender = call.get(0, "messages"), call.get(1, "sender")
    if messages is None and sender is not None:
        messages = getattr(agent, "_oai_messages", {}).get(sender)
    name, role = agent_name(agent), _role(agent)
    block = spans.agent_call(
        name, message_text(messages[-1]) if messages else None, role=role, model=model_of(agent),
        sender=None if sender is None else agent_name(sender),
    )
    block.values.update(values(*act))
    if role != "manager":
        return Doing(block.start(), None)
    chat = Group()
    block.values[GROUP_KEY] = chat
    return Managing(block.start(), chat)


def finish_agent(doing: Doing[spans.AgentCall, Any], reply: Any) -> None:
    if reply is not None:
        text = message_text(reply)
        doing.block.set_response(reply if text is None else text)


AGENT: Hook[Any] = Hook(begin_agent, finish_agent)


# A tool: execute_function(func_call, call_id=None, verbose=False) -> (succeeded, {"name", "role", "content"}).

class Transfer:
    """A transfer tool is no tool call: the handoff it asks for is recorded when the next speaker is selected."""

    def __init__(self, found: Group, tool: str, target: Any):
        self._group, self._tool, self._target = found, tool, target

    def end(self, error: BaseException | None = None) -> None:
        if error is None:
            self._group.reason = self._tool
            self._group.transfer = (self._group.actor, self._target)


def begin_tool(agent: Any, call: Call) -> Act | None:
    function = call.get(0, "func_call")
    function = function if isinstance(function, Mapping) else {}
    name, call_id = text_of(function.get("name") or ""), call.get(1, "call_id")
    act = ("tool", id(agent), name, call_id)
    if innermost() == act:
        return None
    actor, chat = agent_name(agent), None
    if is_tool_executor(agent):
        originator, chat = getattr(agent, "_tool_call_originator", None), group()
        actor = originator or actor
        target = _transfer_target(agent, originator, name)
        if chat is not None and target is not None:
            return Transfer(chat, name, target)
    block, raised = spans.tool_call(name, function.get("arguments"), call_id=call_id, agent_name=actor), Raised(agent, name)
    block.values.update({**values(*act), RAISED_KEY: raised})
    return Doing(block.start(), (chat, name, raised))


def _transfer_target(executor: Any, originator: Any, tool: str) -> str | None:
    """Name of the target if this tool is one that AG2 made for a handoff condition of the agent that calls it."""
    chat = getattr(getattr(executor, "_group_manager", None), "groupchat", None)
    agent = chat.agent_by_name(originator) if chat is not None and isinstance(originator, str) else None
    for condition in getattr(getattr(agent, "handoffs", None), "llm_conditions", ()):
        if condition.llm_function_name == tool and type(condition.target).__name__ not in NO_HANDOVER:
            return str(condition.target.display_name())
    return None


def finish_tool(doing: Transfer | Doing[spans.ToolCall, tuple[Group | None, str, Raised]], result: Any) -> None:
    if isinstance(doing, Transfer):
        return
    block, (chat, name, raised) = doing.block, doing.note
    error = raised.take()
    succeeded, answer = result
    content = answer.get("content") if isinstance(answer, Mapping) else answer
    if not succeeded:
        # An async tool that is called by the synchronous method fails with AG2's own KeyError, from the thread it runs in.
        message = text_of(content) if error is None else str(error) or type(error).__name__
        block.set("error.type", "ToolError")  # no such tool, or arguments that are none
        block.fail(message[len("Error: "):] if message.startswith("Error: ") else message)
        block.end(error)
        return
    # A ReplyResult answers with its message; its target becomes a handoff.
    block.set_result(str(content) if type(content).__name__ == "ReplyResult" else content)
    if chat is not None and getattr(content, "target", None) is not None:
        chat.reason = name


TOOL: Hook[Any] = Hook(begin_tool, finish_tool)


# A model: OpenAIWrapper.create(**config).

def begin_llm(wrapper: Any, call: Call) -> Act | None:
    if innermost()[:1] == ("llm",):
        return None
    config, first = call.kwargs, first_config(wrapper)
    agent = config.get("agent")
    block = spans.llm_call(
        config.get("model") or first.get("model"), config.get("messages"),
        temperature=config.get("temperature", first.get("temperature")), provider=first.get("api_type"),
        agent_name=None if agent is None else agent_name(agent),
    )
    usage = Usage()
    block.values.update({**values("llm", id(wrapper)), USAGE_KEY: usage})
    return Doing(block.start(), usage)


USAGE_KEY = create_key("otel_cmb-ag2-usage")


class Usage:
    """What AG2 enters into its own books for one call."""

    cached = False


def begin_usage(_wrapper: Any, call: Call) -> None:
    """`_update_usage(actual_usage, total_usage)`: an answer from the cache has no actual usage."""
    usage = get_value(USAGE_KEY)
    if isinstance(usage, Usage):
        usage.cached = call.get(0, "actual_usage") is None and call.get(1, "total_usage") is not None


def _entry(values_of: Any, *names: str) -> Any:
    for name in names:
        found = values_of.get(name) if isinstance(values_of, Mapping) else getattr(values_of, name, None)
        if found is not None:
            return found
    return None


def finish_llm(doing: Doing[spans.LLMCall, Usage], response: Any) -> None:
    block = doing.block
    usage = _entry(response, "usage")
    tokens = (_entry(usage, "prompt_tokens", "input_tokens"), _entry(usage, "completion_tokens", "output_tokens"))
    cost = _entry(response, "cost")
    if doing.note.cached:  # nothing was spent now
        block.set("cmb.meta", '{"cached": true}')
        tokens, cost = (None, None), None
    block.set_usage(_entry(response, "model"), tokens[0], tokens[1], cost)
    messages, reasons = [], []
    for choice in _entry(response, "choices") or []:
        message = _entry(choice, "message")
        dump = getattr(message, "model_dump", None)
        content = dump(exclude_none=True) if callable(dump) else message
        if reason := _entry(choice, "finish_reason"):
            reasons.append(text_of(reason))
            content = {**content, "finish_reason": text_of(reason)} if isinstance(content, Mapping) else content
        messages.append(content)
    if not messages and (text := _entry(response, "text")):
        messages = [{"role": "assistant", "content": text}]
    if messages:
        block.set_response(messages)
    if reasons:
        block.set("gen_ai.response.finish_reasons", reasons)


LLM: Hook[Any] = Hook(begin_llm, finish_llm)
USAGE: Hook[Any] = Hook(begin_usage)


# A person: get_human_input(prompt, *, iostream=None); GroupChat.manual_select_speaker(agents=None).

def begin_human(agent: Any, call: Call) -> Act | None:
    if innermost()[:1] == ("human",):
        return None
    block = spans.approval(call.get(0, "prompt"), agent_name=agent_name(agent))
    block.values.update(values("human", id(agent)))
    return block.start()


def finish_human(block: spans.Approval, response: Any) -> None:
    block.set_response(response)


def begin_manual(chat: Any, call: Call) -> Act | None:
    agents = call.get(0, "agents") or getattr(chat, "agents", [])
    block = spans.approval("Select the next speaker: " + ", ".join(label(agent_name(agent)) for agent in agents))
    block.values.update(values("human", id(chat)))
    return block.start()


def finish_manual(block: spans.Approval, selected: Any) -> None:
    block.set_response("" if selected is None else agent_name(selected))


HUMAN: Hook[Any] = Hook(begin_human, finish_human)
MANUAL: Hook[Any] = Hook(begin_manual, finish_manual)
