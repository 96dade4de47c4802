"""Auto-instrumentation of AG2 0.x (package `autogen`): every agent, manager and executor, made before or after.

Classes are patched, and no objects but an agent whose function for human input the program has replaced;
`uninstrument()` puts everything back. Nothing is imported that the program does not import itself: a program without AG2
pays nothing.

What is wrapped is the table below; `ag2_agents`, `ag2_chats` and `ag2_code` say what each hook records.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import wrapt
from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from otel_cmb._version import __version__
from otel_cmb.instrumentation import threads
from otel_cmb.instrumentation.ag2_agents import AGENT, HUMAN, LLM, MANUAL, TOOL, USAGE
from otel_cmb.instrumentation.ag2_chats import AUTO, CHAT, CHATS, MESSAGE, RESUME, SELECT
from otel_cmb.instrumentation.ag2_code import BLOCKS, EXECUTOR, RUN_CODE
from otel_cmb.instrumentation.ag2_native import quieten
from otel_cmb.instrumentation.ag2_patch import Call, Hook, Hooks, Patcher, handle_internal_errors
from otel_cmb.instrumentation.ag2_state import use_tracer
from otel_cmb.instrumentation.ag2_tools import FUNCTIONS, Functions
from otel_cmb.instrumentation.chat_names import forget_names

__all__ = ["AG2Instrumentor"]

# Module, class (with every class below it), methods. AG2 0.11 to 0.14.
AGENT_CLASS = ("autogen.agentchat.conversable_agent", "ConversableAgent")
EXECUTOR_CLASS = ("autogen.coding.base", "CodeExecutor")
TABLE: tuple[tuple[tuple[str, str], Hooks], ...] = (
    (AGENT_CLASS, {
        "generate_reply": AGENT, "a_generate_reply": AGENT,
        "execute_function": TOOL, "a_execute_function": TOOL,
        "execute_code_blocks": BLOCKS, "run_code": RUN_CODE,
        "get_human_input": HUMAN, "a_get_human_input": HUMAN,
        "initiate_chat": CHAT, "a_initiate_chat": CHAT,
        "initiate_chats": CHATS, "a_initiate_chats": CHATS,
        "_process_message_before_send": MESSAGE,
    }),
    (("autogen.agentchat.groupchat", "GroupChatManager"), {"resume": RESUME, "a_resume": RESUME}),
    (("autogen.agentchat.groupchat", "GroupChat"), {
        "select_speaker": SELECT, "a_select_speaker": SELECT, "manual_select_speaker": MANUAL,
        "_auto_select_speaker": AUTO, "a_auto_select_speaker": AUTO,
    }),
    (("autogen.oai.client", "OpenAIWrapper"), {"create": LLM, "_update_usage": USAGE}),
    (EXECUTOR_CLASS, {"execute_code_blocks": EXECUTOR}),
)

EXECUTORS_LIKE = ("autogen.coding.jupyter.embedded_ipython_code_executor",)
"""Modules with executors that do not say so by their bases."""


def _find(where: tuple[str, str]) -> type:
    found: type = getattr(importlib.import_module(where[0]), where[1])
    return found


class AG2Instrumentor(BaseInstrumentor):  # type: ignore[misc]
    """`AG2Instrumentor().instrument()`; `tracer_provider=` for another provider than the global one."""

    _patcher = Patcher()
    _provider: trace.TracerProvider | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("ag2 >= 0.11, < 1",)

    def _instrument(self, **kwargs: Any) -> None:
        self._provider = kwargs.get("tracer_provider")
        use_tracer(None if self._provider is None else self._provider.get_tracer("otel_cmb", __version__))
        self._patcher.active = True
        threads.instrument()
        # Run at once where the module is imported already; otherwise when the program imports it.
        wrapt.register_post_import_hook(self._patch, "autogen")
        wrapt.register_post_import_hook(self._patch_native, "autogen.opentelemetry")
        for name in EXECUTORS_LIKE:
            wrapt.register_post_import_hook(self._patch_executors, name)

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._patcher.restore()
        threads.uninstrument()
        use_tracer(None)
        forget_names()

    def _patch(self, _module: Any) -> None:
        patcher = self._patcher
        if not patcher.active or patcher.patched:
            return
        for where, hooks in TABLE:
            with handle_internal_errors():
                patcher.watch(_find(where), {name: self._covering(hook) for name, hook in hooks.items()})
        with handle_internal_errors():
            patcher.wrap(_find(AGENT_CLASS), "__init__", Hook(self._cover))
        with handle_internal_errors():
            patcher.replace(_find(AGENT_CLASS), FUNCTIONS, Functions())

    def _covering(self, hook: Hook[Any]) -> Hook[Any]:
        if hook not in (AGENT, TOOL, CHAT):
            return hook

        def begin(owner: Any, call: Call) -> Any:
            self._cover(owner)
            return hook.begin(owner, call)

        return Hook(begin, hook.finish)

    def _cover(self, agent: Any, _call: Call | None = None) -> None:
        """Classes made since: the agent's, its executor's (which may only behave as one), and other executors'."""
        executor = _find(EXECUTOR_CLASS)
        self._patcher.ensure(type(agent))
        self._patcher.refresh(executor)
        with handle_internal_errors():
            for name in ("get_human_input", "a_get_human_input"):  # a program that has a window puts its own on one agent
                self._patcher.wrap_of_object(agent, name, HUMAN)
        if (found := getattr(agent, "_code_executor", None)) is not None:
            self._patcher.ensure(type(found), like=executor)

    def _patch_executors(self, module: Any) -> None:
        if self._patcher.active:
            with handle_internal_errors():
                executor = _find(EXECUTOR_CLASS)
                for found in list(vars(module).values()):
                    if isinstance(found, type) and found.__module__ == module.__name__:
                        self._patcher.ensure(found, like=executor)

    def _patch_native(self, _module: Any) -> None:
        if self._patcher.active:
            with handle_internal_errors():
                quieten(self._patcher, self._provider)
