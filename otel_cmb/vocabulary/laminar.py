"""Laminar's SDK: a type per span, and payloads as JSON. A function it only observes has the type `DEFAULT`: no act."""

from otel_cmb.vocabulary.base import CONTAINER, LLM, TOOL, Vocabulary

VERSION = "0.7.16"
SOURCE = "https://github.com/lmnr-ai/lmnr-python and lmnr 0.7.16"

VOCABULARY = Vocabulary(
    name="laminar",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "lmnr.span.type",
            {
                "LLM": LLM,
                "TOOL": TOOL,
                "PIPELINE": CONTAINER,
                "EXECUTOR": CONTAINER,
                "EVALUATOR": CONTAINER,
                "HUMAN_EVALUATOR": CONTAINER,
                "EVALUATION": CONTAINER,
            },
        ),
    ),
    fields={
        "input": ("lmnr.span.input",),
        "output": ("lmnr.span.output",),
        "session_id": ("lmnr.association.properties.session_id",),
        "user_id": ("lmnr.association.properties.user_id",),
    },
)
