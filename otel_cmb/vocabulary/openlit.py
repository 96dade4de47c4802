"""OpenLIT: GenAI names, and operations of its own for what frameworks do around their agents."""

from otel_cmb.vocabulary.base import CONTAINER, Vocabulary

VERSION = "1.34"
SOURCE = "https://github.com/openlit/openlit/blob/main/sdk/python/src/openlit/semcov/__init__.py (openlit 1.34.43)"

VOCABULARY = Vocabulary(
    name="openlit",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "gen_ai.operation.name",
            {"team": CONTAINER, "graph_execution": CONTAINER, "user_prompt_processing": CONTAINER, "memory": CONTAINER},
        ),
    ),
    fields={
        "tool_arguments": ("gen_ai.tool.args",),
        "input": ("gen_ai.workflow.input",),
        "output": ("gen_ai.workflow.output",),
        "handoff_to": ("gen_ai.handoff.target_agent",),
    },
)
