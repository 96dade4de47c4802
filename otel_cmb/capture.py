"""Whose content is kept: prompts, answers, arguments, results and code of the event types the settings name.

Which attributes are content is a table (:data:`CONTENT_KEYS`, :data:`CONTENT_PREFIXES`), from the vocabularies' own
documents as of 2026-08. What stays says that something happened, when, by whom, how long and at what cost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from otel_cmb.environment import Variable
from otel_cmb.event import Span

__all__ = ["CONTENT_KEYS", "CONTENT_PREFIXES", "ENVIRONMENT", "Capture", "keeps_all", "strip_content"]

ENVIRONMENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_variable = Variable(ENVIRONMENT)

CONTENT_KEYS = frozenset({
    # cmb.*
    "cmb.inputs", "cmb.outputs",
    # GenAI semantic conventions, current and before
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.definitions",
    "gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "gen_ai.prompt", "gen_ai.completion",
    "gen_ai.tool.message",
    "gen_ai.task.input", "gen_ai.task.output", "gen_ai.retrieval.query.text", "gen_ai.retrieval.documents",
    "gen_ai.event.content", "gen_ai.request.instructions", "gen_ai.tool.input", "gen_ai.tool.output",
    # AG2
    "ag2.code_execution.output", "ag2.human_input.prompt", "ag2.human_input.response", "ag2.chats.summaries",
    "ag2.chats.prerequisites",
    # OpenInference
    "input.value", "output.value", "llm.prompts", "llm.completions", "llm.function_call", "tool.parameters",
    "tool_call.function.arguments", "embedding.text", "reranker.query", "crew_tasks", "crew_inputs",
    # Traceloop
    "traceloop.entity.input", "traceloop.entity.output", "traceloop.prompt.template_variables",
    # pydantic-ai, Logfire, smolagents, OpenAI Agents, Google ADK
    "pydantic_ai.all_messages", "all_messages_events", "events", "tool_arguments", "tool_response", "final_result",
    "request_data", "response_data", "model_request_parameters", "smolagents.task", "task", "mcp.tool.arguments",
    "gcp.vertex.agent.llm_request", "gcp.vertex.agent.llm_response", "gcp.vertex.agent.tool_call_args",
    "gcp.vertex.agent.tool_response", "gcp.vertex.agent.data",
    # of span events
    "content", "message", "body", "arguments", "result",
})
CONTENT_PREFIXES = (
    "llm.input_messages.", "llm.output_messages.", "llm.prompt_template.", "llm.prompts.", "llm.completions.",
    "gen_ai.prompt.", "gen_ai.completion.", "llm.tools.", "llm.request.functions.", "retrieval.documents.",
    "reranker.input_documents.", "reranker.output_documents.", "embedding.embeddings.", "input.value.", "output.value.",
)

# What says an event's type before the mapper has seen the span: key, then value -> type.
_TYPES: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("gen_ai.operation.name", {
        "chat": "llm_call", "text_completion": "llm_call", "generate_content": "llm_call", "embeddings": "llm_call",
        "execute_tool": "tool_call", "invoke_agent": "agent_call", "create_agent": "agent_call",
        "execute_code": "code_exec", "invoke_workflow": "info", "conversation": "info",
        "await_human_input": "approval_requested",
    }),
    ("ag2.span.type", {
        "agent": "agent_call", "llm": "llm_call", "tool": "tool_call", "code_execution": "code_exec",
        "human_input": "approval_requested", "speaker_selection": "handoff", "handoff": "handoff",
        "conversation": "info", "multi_conversation": "info",
    }),
    ("openinference.span.kind", {
        "LLM": "llm_call", "EMBEDDING": "llm_call", "TOOL": "tool_call", "AGENT": "agent_call", "CHAIN": "info",
    }),
    ("traceloop.span.kind", {"tool": "tool_call", "agent": "agent_call", "task": "info", "workflow": "info"}),
)


@dataclass(frozen=True, slots=True)
class Capture:
    """What content is kept. Make it once with :meth:`of`, then :meth:`strip` every span."""

    types: frozenset[str] | None
    """Event types whose content is kept; `None`: all."""
    attributes: bool = True
    events: bool = True

    @classmethod
    def of(cls, capture: Iterable[str], environ: Mapping[str, str] | None = None) -> Capture:
        """From the setting `capture` (`all`, `none`, or event types) and the standard variable
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT: `true`/`span_and_event`, `span_only`, `event_only`,
        `false`/`no_content`. The stricter of the two holds; another value of the variable keeps nothing, as it does in
        the conventions' own instrumentations."""
        names = frozenset(capture)
        types = None if "all" in names else frozenset() if "none" in names else names
        value = (os.environ if environ is None else environ).get(ENVIRONMENT, "").strip().lower()
        attributes = value in {"", "true", "1", "span_and_event", "span_only"}
        events = value in {"", "true", "1", "span_and_event", "event_only"}
        return cls(types, attributes, events)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is taken away."""
        return self.types is None and self.attributes and self.events

    def strip(self, span: Span, event_type: str | None = None) -> int:
        """Take away the content that is not kept; returns how many attributes went. `event_type` is guessed from the
        span when it is not given; of a span whose type nobody knows nothing is kept unless all is."""
        if self.keeps_all:
            return 0
        kept = self.types is None or (event_type or _type_of(span.attributes)) in self.types
        removed = 0
        if not (kept and self.attributes):
            before = len(span.attributes)
            span.attributes = _without_content(span.attributes)
            removed += before - len(span.attributes)
        if not (kept and self.events):
            for event in span.events:
                before = len(event.attributes)
                event.attributes = _without_content(event.attributes)
                removed += before - len(event.attributes)
        return removed


def strip_content(span: Span, capture: Iterable[str], event_type: str | None = None) -> int:
    """:meth:`Capture.strip` for a setting as it is, with the environment as it is now."""
    return _cached(tuple(capture), _variable.get() or "").strip(span, event_type)


def keeps_all(capture: tuple[str, ...]) -> bool:
    """Whether :func:`strip_content` takes nothing away, whatever the span is."""
    if (variable := _variable.get()) is None:
        return "all" in capture
    return _cached(capture, variable).keeps_all


@lru_cache(maxsize=64)
def _cached(capture: tuple[str, ...], variable: str) -> Capture:
    return Capture.of(capture, {ENVIRONMENT: variable})


def _type_of(attributes: Mapping[str, Any]) -> str | None:
    if "cmb.event.type" in attributes:
        return str(attributes["cmb.event.type"])
    for key, types in _TYPES:
        value = attributes.get(key)
        if isinstance(value, str) and value in types:
            return types[value]
    return None


def _without_content(attributes: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value for key, value in attributes.items()
        if key not in CONTENT_KEYS and not key.startswith(CONTENT_PREFIXES)
    }
    return kept if len(kept) < len(attributes) else attributes
