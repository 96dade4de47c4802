"""LangWatch's SDK: a type per span, and payloads in an envelope that says what they are."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "1.4"
SOURCE = "https://docs.langwatch.ai/integration/python/reference and langwatch 1.4.0"

VOCABULARY = Vocabulary(
    name="langwatch",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "langwatch.span.type",
            {
                "llm": LLM,
                "agent": AGENT,
                "tool": TOOL,
                "chain": CONTAINER,
                "rag": CONTAINER,
                "guardrail": CONTAINER,
                "evaluation": CONTAINER,
                "workflow": CONTAINER,
                "component": CONTAINER,
                "module": CONTAINER,
                "task": CONTAINER,
            },
        ),
    ),
    fields={
        "input_envelope": ("langwatch.input",),
        "output_envelope": ("langwatch.output",),
        "thread_id": ("langwatch.thread.id",),
    },
)
