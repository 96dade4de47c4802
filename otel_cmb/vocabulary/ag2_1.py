"""AG2 1.x's own instrumentation (package `ag2`): the span types its middleware and hub add to those of 0.x."""

from otel_cmb.vocabulary.base import CONTAINER, NEVER, PLAIN, Vocabulary

VERSION = "1.2.1"
SOURCE = "https://github.com/ag2ai/ag2/blob/v1.2.1/ag2/_telemetry_consts.py"

VOCABULARY = Vocabulary(
    name="ag2_1",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "ag2.span.type",
            {
                "usage": NEVER,
                "channel": CONTAINER,
                "task": CONTAINER,
                "envelope": PLAIN,
                "agent_lifetime": PLAIN,
                "agent_event": PLAIN,
            },
        ),
    ),
    fields={
        "tokens_reasoning": ("gen_ai.usage.thinking_tokens",),
        "channel_id": ("ag2.network.channel_id",),
        "workflow_name": ("ag2.network.manifest_type",),
        "task_name": ("ag2.network.task_name",),
    },
    names=((r"record_usage .+", NEVER), (r"network\.channel .+", CONTAINER)),
    scopes=("opentelemetry.instrumentation.ag2",),
)
