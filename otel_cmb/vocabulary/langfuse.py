"""Langfuse's SDKs: a type per observation, payloads and usage as JSON."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "3"
SOURCE = "https://langfuse.com/integrations/native/opentelemetry#property-mapping"

VOCABULARY = Vocabulary(
    name="langfuse",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "langfuse.observation.type",
            {
                "generation": LLM,
                "embedding": LLM,
                "agent": AGENT,
                "tool": TOOL,
                "chain": CONTAINER,
                "retriever": CONTAINER,
                "evaluator": CONTAINER,
                "guardrail": CONTAINER,
            },
        ),
    ),
    fields={
        "agent_name": ("langfuse.observation.metadata.lc_agent_name",),
        "made_by": ("langfuse.observation.metadata.ls_integration",),
        "graph_node": ("langfuse.observation.metadata.langgraph_node",),
        "input": ("langfuse.observation.input",),
        "output": ("langfuse.observation.output",),
        "model": ("langfuse.observation.model.name",),
        "invocation": ("langfuse.observation.model.parameters",),
        "usage": ("langfuse.observation.usage_details",),
        "costs": ("langfuse.observation.cost_details",),
        "task_status": ("langfuse.observation.level",),
        "session_id": ("langfuse.session.id",),
        "user_id": ("langfuse.user.id",),
    },
)
