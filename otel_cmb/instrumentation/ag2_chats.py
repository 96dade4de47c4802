"""What AG2 agents do together: chats and the nodes they are, messages, and who speaks next in a group."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Token
from typing import Any

from opentelemetry.context import Context, attach, create_key, get_value, set_value

from otel_cmb import context, spans
from otel_cmb.block import Block, inputs_of, label, meta_of
from otel_cmb.instrumentation.ag2_patch import Act, Call, Doing, Hook
from otel_cmb.instrumentation.ag2_state import (
    CHAT_KEY,
    Group,
    agent_name,
    group,
    innermost,
    is_tool_executor,
    message_text,
    values,
)
from otel_cmb.instrumentation.chat_names import next_name

__all__ = ["AUTO", "CHAT", "CHATS", "MESSAGE", "RESUME", "SELECT"]

MANAGER = "GroupChatManager"
QUIET_KEY = create_key("otel_cmb-ag2-quiet")
SENDER_KEY = create_key("otel_cmb-ag2-sender")


# A chat: initiate_chat(recipient, ...); several: initiate_chats(chat_queue).

class Chat(Doing[Block, Any]):
    """A chat and, at the top, the node it is: the note."""

    def end(self, error: BaseException | None = None) -> None:
        super().end(error)
        if self.note is not None:
            self.note.__exit__(None if error is None else type(error), error, None)


def begin_chat(initiator: Any, call: Call) -> Act | None:
    recipient = call.get(0, "recipient")
    act = ("chat", id(initiator), id(recipient))
    if innermost() == act:
        return None
    sender, to = agent_name(initiator), agent_name(recipient)
    max_turns = call.get(4, "max_turns")
    block = _container(f"conversation {label(sender)} -> {label(to)}", sender, {"recipient": to}, act, max_turns)
    block.values[CHAT_KEY] = True
    node = None
    if not get_value(CHAT_KEY) and context.current().node_id is None:
        node = context.node(next_name(), node_type="agent", agent=to)
        node.__enter__()
    try:
        return Chat(block.start(), node)
    except BaseException as error:
        if node is not None:
            node.__exit__(type(error), error, None)
        raise


def _container(
    name: str, sender: str, said: Mapping[str, Any], act: tuple[object, ...], max_turns: Any = None
) -> Block:
    attributes = {"cmb.event.type": "info", "cmb.agent.name": sender, **inputs_of(sender=sender, **said),
                  **meta_of(max_turns=max_turns)}
    return Block(name, attributes, values=values(*act))


def begin_chats(initiator: Any, call: Call) -> Act | None:
    act = ("chats", id(initiator))
    if innermost() == act:
        return None
    queue = call.get(0, "chat_queue") or []
    recipients = [agent_name(chat.get("recipient")) for chat in queue if isinstance(chat, Mapping)]
    sender = agent_name(initiator)
    return _container(f"conversations {label(sender)}", sender, {"recipients": recipients}, act).start()


CHAT: Hook[Any] = Hook(begin_chat)
CHATS: Hook[Any] = Hook(begin_chats)


# A message: _process_message_before_send(message, recipient, silent) -> message, once per send and a_send.

class Marked:
    """A mark in the context, and no span."""

    def __init__(self, key: str, value: object):
        self._token: Token[Context] = attach(set_value(key, value))

    def end(self, error: BaseException | None = None) -> None:  # noqa: ARG002 - the protocol of an act
        context.detach(self._token)


class Sending(Marked):
    """The mark keeps an override that calls its base from sending twice."""

    def __init__(self, sender: Any, recipient: Any):
        self.sender, self.recipient = sender, recipient
        super().__init__(SENDER_KEY, id(sender))


def begin_message(sender: Any, call: Call) -> Act | None:
    if get_value(QUIET_KEY) or get_value(SENDER_KEY) == id(sender):
        return None
    return Sending(sender, call.get(1, "recipient"))


def finish_message(sending: Sending, message: Any) -> None:
    sender, recipient = agent_name(sending.sender), agent_name(sending.recipient)
    text = message_text(message)
    if text is None:
        return  # AG2 refuses it: no content and no call
    if any(base.__name__ == MANAGER for base in type(sending.sender).__mro__):
        # A manager passes on what one agent told it: that message is recorded already, from its author.
        author = message.get("name") if isinstance(message, Mapping) else None
        if author not in (None, sender):
            return
        chat, listeners = group(), getattr(getattr(sending.sender, "groupchat", None), "agents", ())
        if chat is not None and sending.recipient in listeners:
            if text in chat.introduced:
                return
            chat.introduced.add(text)
            recipient = "all"
    spans.message(sender, recipient, text)


MESSAGE: Hook[Any] = Hook(begin_message, finish_message)


# GroupChatManager.resume loads old messages by sending them again: they are no messages now.

RESUME: Hook[Any] = Hook(lambda _manager, _call: Marked(QUIET_KEY, True))


# Who speaks next: GroupChat.select_speaker(last_speaker, selector) -> agent.

class Selecting:
    def __init__(self, chat: Any, group: Group, last_speaker: Any):
        self.chat, self.group, self.last_speaker = chat, group, last_speaker
        group.selecting = True

    def end(self, error: BaseException | None = None) -> None:  # noqa: ARG002 - the protocol of an act
        self.group.selecting = False


def begin_select(chat: Any, call: Call) -> Act | None:
    found = group()
    if found is None or found.selecting:
        return None  # no manager's turn, or an override that calls its base
    return Selecting(chat, found, call.get(0, "last_speaker"))


def finish_select(selecting: Selecting, selected: Any) -> None:
    """Record a handoff when the agent that acts is about to change. The framework's tool executor acts for the agent
    that called it, and the first speaker of a pattern is where the chat begins, not somebody's successor."""
    state = selecting.group
    actor = state.actor if is_tool_executor(selecting.last_speaker) else selecting.last_speaker
    first, state.first = state.first, False
    state.actor = actor
    if selected is None or is_tool_executor(selected):
        return
    reason, state.reason, state.transfer, state.actor = state.reason, None, None, selected
    begins = first and (_is_pattern(selecting.chat) or actor not in selecting.chat.agents)
    if actor is not None and actor is not selected and not begins:
        spans.handoff(agent_name(actor), agent_name(selected), reason=reason or _method(selecting.chat))


def _is_pattern(chat: Any) -> bool:
    """Whether AG2's patterns drive this group chat (`initiate_group_chat`), or a person built it by hand."""
    return "create_group_transition" in getattr(chat.speaker_selection_method, "__qualname__", "")


def _method(chat: Any) -> str:
    method = chat.speaker_selection_method
    if isinstance(method, str):
        return method
    return "after_work" if _is_pattern(chat) else str(getattr(method, "__name__", "custom"))


def begin_auto(_chat: Any, _call: Call) -> None:
    """A model selects: the reason, unless a tool has asked for it."""
    if (found := group()) is not None and found.reason is None:
        found.reason = "auto"


SELECT: Hook[Any] = Hook(begin_select, finish_select)
AUTO: Hook[Any] = Hook(begin_auto)
