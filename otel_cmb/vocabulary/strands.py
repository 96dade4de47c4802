"""Strands Agents: GenAI names, payloads in span events, and operations of its own."""

from otel_cmb.vocabulary.base import CONTAINER, Vocabulary

VERSION = "1"
SOURCE = "strands-agents 1 (capture strands)"

VOCABULARY = Vocabulary(
    name="strands",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "gen_ai.operation.name",
            {"invoke_swarm": CONTAINER, "invoke_graph": CONTAINER, "invoke_multiagent": CONTAINER},
        ),
    ),
)
