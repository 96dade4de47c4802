"""LangSmith's tracing through OpenTelemetry (`LANGSMITH_OTEL_ENABLED`): LangChain's runs, their metadata flattened."""

from otel_cmb.vocabulary.base import CONTAINER, LLM, TOOL, Vocabulary

VERSION = "0.15"
SOURCE = "https://docs.langchain.com/langsmith/trace-with-opentelemetry"

VOCABULARY = Vocabulary(
    name="langsmith",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "langsmith.span.kind",
            {
                "chain": CONTAINER,
                "llm": LLM,
                "embedding": LLM,
                "tool": TOOL,
                "retriever": CONTAINER,
                "prompt": CONTAINER,
                "parser": CONTAINER,
            },
        ),
    ),
    fields={
        "agent_name": ("langsmith.metadata.lc_agent_name",),
        "made_by": ("langsmith.metadata.ls_integration",),
        "graph_node": ("langsmith.metadata.langgraph_node",),
        "thread_id": ("langsmith.metadata.thread_id",),
        "request_model": ("langsmith.metadata.ls_model_name",),
        "temperature": ("langsmith.metadata.ls_temperature",),
    },
)
