"""Traceloop's OpenLLMetry: `traceloop.*` beside the GenAI names, current and old."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, HANDOFF, LLM, TOOL, Vocabulary

VERSION = "0.62.4"
SOURCE = "https://github.com/traceloop/openllmetry/tree/0.62.4/packages/opentelemetry-semantic-conventions-ai"

VOCABULARY = Vocabulary(
    name="traceloop",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        ("gen_ai.operation.name", {"execute_task": CONTAINER}),
        (
            "traceloop.span.kind",
            {"workflow": CONTAINER, "task": CONTAINER, "agent": AGENT, "tool": TOOL, "handoff": HANDOFF},
        ),
        (
            "llm.request.type",
            {
                "chat": LLM,
                "completion": LLM,
                "response": LLM,
                "embedding": LLM,
                "rerank": CONTAINER,
                # LiteLLM's own telemetry: the function that was called.
                "acompletion": LLM,
                "text_completion": LLM,
                "atext_completion": LLM,
                "responses": LLM,
                "aresponses": LLM,
                "aembedding": LLM,
                "anthropic_messages": LLM,
            },
        ),
    ),
    fields={
        "agent_name": ("traceloop.association.properties.lc_agent_name", "gen_ai.task.name"),
        "graph_node": ("traceloop.association.properties.langgraph_node",),
        "entity_name": ("traceloop.entity.name",),
        "workflow_name": ("traceloop.workflow.name",),
        "span_kind": ("traceloop.span.kind",),
        "task_status": ("gen_ai.task.status",),
        "input": ("traceloop.entity.input", "gen_ai.task.input"),
        "output": ("traceloop.entity.output", "gen_ai.task.output"),
        "handoff_from": ("gen_ai.handoff.from_agent",),
        "handoff_to": ("gen_ai.handoff.to_agent",),
        "request_model": ("llm.request.model",),
        "model": ("llm.response.model",),
        "tokens_in": ("llm.usage.prompt_tokens",),
        "tokens_out": ("llm.usage.completion_tokens",),
        "tokens_total": ("llm.usage.total_tokens",),
        "session_id": ("traceloop.association.properties.session_id",),
        "thread_id": ("traceloop.association.properties.thread_id",),
    },
    names=(
        (r"(?P<agent>.+)\.agent", AGENT),
        (r"(?P<tool>.+)\.tool", TOOL),
        (r".+\.workflow", CONTAINER),
        (r".+\.task", CONTAINER),
    ),
    scopes=("opentelemetry.instrumentation.", "traceloop."),
)
