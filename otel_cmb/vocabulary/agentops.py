"""AgentOps' SDK: decorators with a kind of their own, and instrumentations of clients that use GenAI's older names."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "0.4.21"
SOURCE = "https://github.com/AgentOps-AI/agentops/tree/v0.4.21/agentops/semconv and agentops 0.4.21"

KINDS = ("agent", "tool", "task", "operation", "workflow", "session", "chain", "guardrail", "entity")

VOCABULARY = Vocabulary(
    name="agentops",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "agentops.span.kind",
            {
                "agent": AGENT,
                "tool": TOOL,
                "llm": LLM,
                "session": CONTAINER,
                "workflow": CONTAINER,
                "task": CONTAINER,
                "operation": CONTAINER,
                "chain": CONTAINER,
                "guardrail": CONTAINER,
            },
        ),
        ("gen_ai.request.type", {"chat": LLM, "completion": LLM, "embedding": LLM, "embeddings": LLM}),
    ),
    fields={
        "input": tuple(f"agentops.{kind}.input" for kind in KINDS),
        "output": tuple(f"agentops.{kind}.output" for kind in KINDS),
    },
)
