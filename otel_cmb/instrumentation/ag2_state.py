"""Where the AG2 hooks are, carried in the OpenTelemetry context, and how they read what AG2 hands them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import create_key, get_value

from otel_cmb.block import TRACER_KEY
from otel_cmb.payload import text_of

__all__ = [
    "CHAT_KEY", "GROUP_KEY", "Group", "agent_name", "first_config", "group", "innermost", "is_tool_executor",
    "message_text", "model_of", "use_tracer", "values",
]

ACT_KEY = create_key("otel_cmb-ag2-act")
CHAT_KEY = create_key("otel_cmb-ag2-chat")
GROUP_KEY = create_key("otel_cmb-ag2-group")

TOOL_EXECUTOR = "GroupToolExecutor"

_tracer: list[trace.Tracer] = []


def use_tracer(tracer: trace.Tracer | None) -> None:
    """The tracer of the provider that `instrument()` was given; `None`: the global provider's."""
    _tracer[:] = [] if tracer is None else [tracer]


def innermost() -> tuple[object, ...]:
    """Which act the code is directly in: an override that calls its base does not act twice."""
    act = get_value(ACT_KEY)
    return act if isinstance(act, tuple) else ()


def values(*act: object) -> dict[str, object]:
    """Context values of an act: who it is, and the tracer for what happens inside."""
    found: dict[str, object] = {ACT_KEY: act}
    if _tracer:
        found[TRACER_KEY] = _tracer[0]
    return found


class Group:
    """One group chat that is going on, from its manager's point of view."""

    def __init__(self) -> None:
        self.actor: Any = None
        """The agent that acted last; the framework's own tool executor acts for it."""
        self.first = True
        """No speaker has been selected yet."""
        self.reason: str | None = None
        """The tool that named the next speaker."""
        self.transfer: tuple[Any, str] | None = None
        """A transfer tool has run and the selection that follows it has not: the agent and the target's name."""
        self.introduced: set[str] = set()
        self.selecting = False


def group() -> Group | None:
    found = get_value(GROUP_KEY)
    return found if isinstance(found, Group) else None


def agent_name(agent: Any) -> str:
    name = getattr(agent, "name", None)
    return name if isinstance(name, str) else type(agent).__name__


def is_tool_executor(agent: Any) -> bool:
    """Whether this is the agent that AG2 adds to group chats to run the tools of the others."""
    return any(base.__name__ == TOOL_EXECUTOR for base in type(agent).__mro__)


def first_config(client: Any) -> Mapping[str, Any]:
    """The first entry of an `OpenAIWrapper`'s configuration list."""
    configs = getattr(client, "_config_list", None)
    first = configs[0] if isinstance(configs, list) and configs else None
    return first if isinstance(first, Mapping) else {}


def model_of(agent: Any) -> str | None:
    """The first model of the agent's configuration."""
    model = first_config(getattr(agent, "client", None)).get("model")
    return model if isinstance(model, str) else None


def message_text(message: Any) -> str | None:
    """A message as a person reads it: its text, or the calls it asks for; `None` where there is neither."""
    if not isinstance(message, Mapping):
        return None if message is None else text_of(message)
    content = message.get("content")
    if isinstance(content, list):
        texts = [item.get("text") if isinstance(item, Mapping) else item for item in content]
        content = "\n".join(text for text in texts if isinstance(text, str)) or text_of(content)
    calls = [call.get("function") or {} for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
    if isinstance(function := message.get("function_call"), Mapping):
        calls.append(function)
    # A group chat turns the missing content of a call into the text "None".
    lines = [] if content in (None, "") or (calls and content == "None") else [text_of(content)]
    lines += [f"{call.get('name')}({call.get('arguments') or ''})" for call in calls]
    return "\n".join(lines) if lines or content == "" else None
