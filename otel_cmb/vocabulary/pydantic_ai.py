"""pydantic-ai's own instrumentation, settings versions 2 to 6. Version 2 has its own names for tool payloads."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, TOOL, Vocabulary

VERSION = "2.68.0"
SOURCE = "https://ai.pydantic.dev/logfire/ and pydantic_ai/_instrumentation.py of pydantic-ai-slim 2.68.0"

VOCABULARY = Vocabulary(
    name="pydantic_ai",
    version=VERSION,
    source=SOURCE,
    fields={
        "agent_name": ("agent_name",),
        "request_model": ("model_name",),
        "tool_arguments": ("tool_arguments",),
        "tool_result": ("tool_response",),
        "all_messages": ("pydantic_ai.all_messages", "all_messages_events"),
        "final_result": ("final_result",),
        "tokens_in": ("gen_ai.aggregated_usage.input_tokens",),
        "tokens_out": ("gen_ai.aggregated_usage.output_tokens",),
        "tokens_cache_read": ("gen_ai.aggregated_usage.cache_read.input_tokens",),
        "tokens_reasoning": ("gen_ai.aggregated_usage.details.reasoning_tokens",),
        "cost": ("operation.cost",),
        "agent_call_id": ("gen_ai.agent.call.id",),
    },
    names=((r"agent run(?P<agent>)", AGENT), (r"running tool", TOOL), (r"running \d+ tools?", CONTAINER)),
    scopes=("pydantic-ai",),
)
