"""Mastra: GenAI names beside the type of its own span."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "1"
SOURCE = "https://mastra.ai/docs/observability/tracing/overview"

VOCABULARY = Vocabulary(
    name="mastra",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "mastra.span.type",
            {
                "agent_run": AGENT,
                "model_generation": LLM,
                "llm_generation": LLM,
                "tool_call": TOOL,
                "mcp_tool_call": TOOL,
                "workflow_run": CONTAINER,
                "workflow_step": CONTAINER,
                "workflow_parallel": CONTAINER,
                "workflow_conditional": CONTAINER,
                "workflow_loop": CONTAINER,
                "processor_run": CONTAINER,
                "scorer_run": CONTAINER,
                "rag_ingestion": CONTAINER,
            },
        ),
    ),
)
