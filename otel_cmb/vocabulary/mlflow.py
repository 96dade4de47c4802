"""MLflow's tracing, exported as OTLP: every value is JSON, a span's type too."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM, TOOL, Vocabulary

VERSION = "3"
SOURCE = "https://mlflow.org/docs/latest/genai/concepts/span/"

KINDS = {
    "AGENT": AGENT,
    "CHAT_MODEL": LLM,
    "LLM": LLM,
    "EMBEDDING": LLM,
    "TOOL": TOOL,
    "CHAIN": CONTAINER,
    "WORKFLOW": CONTAINER,
    "TASK": CONTAINER,
    "RETRIEVER": CONTAINER,
    "RERANKER": CONTAINER,
    "PARSER": CONTAINER,
    "MEMORY": CONTAINER,
    "GUARDRAIL": CONTAINER,
    "EVALUATOR": CONTAINER,
}

VOCABULARY = Vocabulary(
    name="mlflow",
    version=VERSION,
    source=SOURCE,
    discriminators=(("mlflow.spanType", KINDS | {f'"{name}"': kind for name, kind in KINDS.items()}),),
    fields={
        "input": ("mlflow.spanInputs",),
        "output": ("mlflow.spanOutputs",),
        "model": ("mlflow.llm.model",),
        "usage": ("mlflow.chat.tokenUsage",),
        "costs": ("mlflow.llm.cost",),
    },
)
