"""OpenInference (Arize): one kind per span, payloads as `input.value` / `output.value` and flattened messages."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "0.1.24"
SOURCE = "https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md"

VOCABULARY = Vocabulary(
    name="openinference",
    version=VERSION,
    source=SOURCE,
    present=(("ag2.recipient.name", CONTAINER),),
    discriminators=(
        (
            "openinference.span.kind",
            {
                "AGENT": AGENT,
                "LLM": LLM,
                "EMBEDDING": LLM,
                "TOOL": TOOL,
                "CHAIN": CONTAINER,
                "RETRIEVER": CONTAINER,
                "RERANKER": CONTAINER,
                "GUARDRAIL": CONTAINER,
                "EVALUATOR": CONTAINER,
                "PROMPT": CONTAINER,
                "DECISION": CONTAINER,
            },
        ),
    ),
    fields={
        "oi_kind": ("openinference.span.kind",),
        "agent_name": ("agent.name", "agno.agent.name", "graph.node.name", "graph.node.id"),
        "agent_id": ("agent.id", "agno.agent.id"),
        "sender": ("ag2.sender.name",),
        "recipient": ("ag2.recipient.name",),
        "graph_parent": ("graph.node.parent_id",),
        "tool_name": ("tool.name", "tool_call.function.name"),
        "tool_call_id": ("tool_call.id", "tool.id", "message.tool_call_id"),
        "tool_arguments": ("tool_call.function.arguments",),
        "input": ("input.value",),
        "output": ("output.value",),
        "model": ("llm.model_name", "embedding.model_name", "reranker.model_name"),
        "provider": ("llm.provider", "llm.system"),
        "invocation": ("llm.invocation_parameters",),
        "finish_reason": ("llm.finish_reason",),
        "tokens_in": ("llm.token_count.prompt",),
        "tokens_out": ("llm.token_count.completion",),
        "tokens_total": ("llm.token_count.total",),
        "tokens_cache_read": ("llm.token_count.prompt_details.cache_read",),
        "tokens_cache_write": ("llm.token_count.prompt_details.cache_write",),
        "tokens_reasoning": ("llm.token_count.completion_details.reasoning",),
        "cost": ("llm.cost.total",),
        "session_id": ("session.id",),
        "user_id": ("user.id",),
        "metadata": ("metadata",),
        "tags": ("tag.tags",),
        "error_type": ("exception.type",),
    },
)
