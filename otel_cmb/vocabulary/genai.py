"""OpenTelemetry's semantic conventions for generative AI, with the names they replaced.

Current names first, then those of older versions that instrumentations still emit.
"""

from otel_cmb.vocabulary.base import AGENT, CODE, CONTAINER, HANDOFF, LLM, PLAIN, TOOL, Vocabulary

VERSION = "1.41"
SOURCE = (
    "https://github.com/open-telemetry/semantic-conventions-genai and, for the older names, "
    "https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/gen-ai/README.md"
)

OPERATIONS = {
    "chat": LLM,
    "chat.completions": LLM,
    "text.completions": LLM,
    "response": LLM,
    "text_completion": LLM,
    "generate_content": LLM,
    "completion": LLM,
    "responses": LLM,
    "fetch_response": LLM,
    "embeddings": LLM,
    "embedding": LLM,
    "invoke_agent": AGENT,
    "execute_tool": TOOL,
    "execute_code": CODE,
    "handoff": HANDOFF,
    "goto": HANDOFF,
    "agent": AGENT,
    "tool": TOOL,
    "invoke_workflow": CONTAINER,
    "workflow": CONTAINER,
    "plan": CONTAINER,
    "invoke_agent_group": CONTAINER,
    "retrieval": CONTAINER,
    "search_memory": CONTAINER,
    "create_memory": CONTAINER,
    "update_memory": CONTAINER,
    "upsert_memory": CONTAINER,
    "delete_memory": CONTAINER,
    "create_memory_store": CONTAINER,
    "delete_memory_store": CONTAINER,
    "create_agent": PLAIN,
}

VOCABULARY = Vocabulary(
    name="genai",
    version=VERSION,
    source=SOURCE,
    discriminators=(("gen_ai.operation.name", OPERATIONS),),
    present=(("gen_ai.agent.handoff.target.name", HANDOFF),),
    fields={
        "operation": ("gen_ai.operation.name",),
        "agent_name": ("gen_ai.agent.name",),
        "agent_id": ("gen_ai.agent.id",),
        "agent_description": ("gen_ai.agent.description",),
        "handoff_from": ("gen_ai.agent.handoff.source.name",),
        "handoff_to": ("gen_ai.agent.handoff.target.name",),
        "workflow_name": ("gen_ai.workflow.name",),
        "tool_name": ("gen_ai.tool.name",),
        "tool_call_id": ("gen_ai.tool.call.id",),
        "tool_type": ("gen_ai.tool.type",),
        "tool_arguments": ("gen_ai.tool.call.arguments", "gen_ai.tool.input", "gen_ai.tool.arguments"),
        "tool_result": ("gen_ai.tool.call.result", "gen_ai.tool.output", "gen_ai.tool.result", "gen_ai.tool.message"),
        "system": ("gen_ai.system_instructions",),
        "messages_in": ("gen_ai.input.messages", "gen_ai.prompt"),
        "messages_out": ("gen_ai.output.messages", "gen_ai.completion"),
        "model": ("gen_ai.response.model",),
        "request_model": ("gen_ai.request.model",),
        "provider": ("gen_ai.provider.name", "gen_ai.system"),
        "temperature": ("gen_ai.request.temperature",),
        "finish_reason": ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason", "anthropic.message.stop_reason"),
        "conversation_id": ("gen_ai.conversation.id",),
        "data_source_id": ("gen_ai.data_source.id",),
        "tokens_in": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
        "tokens_out": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
        "tokens_total": ("gen_ai.usage.total_tokens",),
        "tokens_cache_read": (
            "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.cache_read_input_tokens",
            "gen_ai.usage.details.cache_read_tokens",
        ),
        "tokens_cache_write": (
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
            "gen_ai.usage.cache_write_input_tokens",
            "gen_ai.usage.details.cache_write_tokens",
        ),
        "tokens_reasoning": (
            "gen_ai.usage.reasoning.output_tokens",
            "gen_ai.usage.reasoning_tokens",
            "gen_ai.usage.details.reasoning_tokens",
        ),
        "task_status": ("gen_ai.tool.status", "tool.status"),
        "cost": ("gen_ai.usage.cost", "gen_ai.usage.total_cost", "gen_ai.cost.total_cost"),
        "error_type": ("error.type",),
        "error_message": ("error.message", "error.msg"),
    },
    names=(
        (r"invoke_agent (?P<agent>.+)", AGENT),
        (r"execute_tool (?P<tool>.+)", TOOL),
        (r"execute_code (?P<agent>.+)", CODE),
        (r"invoke_workflow(?: .+)?", CONTAINER),
        (r"create_agent .+", PLAIN),
    ),
)
