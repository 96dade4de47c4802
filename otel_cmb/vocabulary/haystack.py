"""Haystack's own tracer: constant span names; who and what is in tags, payloads only where content tracing is on."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "3.4"
SOURCE = "https://docs.haystack.deepset.ai/docs/tracing and haystack-ai 3.4.0"

VOCABULARY = Vocabulary(
    name="haystack",
    version=VERSION,
    source=SOURCE,
    fields={
        "agent_name": ("haystack.component.name",),
        "tool_name": ("haystack.tool.name",),
        "tool_arguments": ("haystack.agent.step.tool.input",),
        "tool_result": ("haystack.agent.step.tool.output",),
        "error_type": ("haystack.tool.error",),
        "messages_in": ("haystack.agent.step.llm.input", "haystack.chat_generator.input"),
        "replies": ("haystack.agent.step.llm.output", "haystack.chat_generator.output"),
        "input": ("haystack.agent.input", "haystack.component.input", "haystack.pipeline.input_data"),
        "output": ("haystack.agent.output", "haystack.component.output", "haystack.pipeline.output_data"),
    },
    overrides=((r"Agent\.run(?:_async)?", AGENT),),  # OpenInference calls it a chain
    names=(
        (r"haystack\.agent\.run(?P<agent>)", AGENT),  # its name is on the component's span around it
        (r"haystack\.agent\.step\.llm", LLM),
        (r"haystack\.agent\.step\.tool", TOOL),
        (r"haystack\.(?:agent\.step|component\.run|(?:async_)?pipeline\.run)", CONTAINER),
    ),
)
