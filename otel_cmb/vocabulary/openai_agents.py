"""OpenAI Agents SDK: names that its instrumentations share beside GenAI and OpenInference."""

from otel_cmb.vocabulary.base import AGENT, HANDOFF, Vocabulary

VERSION = "0.24.0"
SOURCE = "openai-agents 0.24.0 under openinference 2.6.0 (captures oaia_oi), Traceloop 0.62.4 and logfire 5.2.0"

VOCABULARY = Vocabulary(
    name="openai_agents",
    version=VERSION,
    source=SOURCE,
    fields={"handoff_from": ("from_agent",), "handoff_to": ("to_agent",)},
    names=((r".+ → .+\.handoff", HANDOFF), (r"(?P<agent>.+)\.agent", AGENT)),
    scopes=("opentelemetry.instrumentation.openai_agents",),
)
