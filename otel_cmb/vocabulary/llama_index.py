"""LlamaIndex under OpenInference: helpers of a model that prepare a call carry the kind of a call; the steps of an agent
say whose they are only in the text of the events that go in and out."""

from otel_cmb.vocabulary.base import CONTAINER, Vocabulary

VERSION = "0.14"
SOURCE = "llama-index-core 0.14 under openinference-instrumentation-llama-index 4 (captures llama_index_oi)"

VOCABULARY = Vocabulary(
    name="llama_index",
    version=VERSION,
    source=SOURCE,
    overrides=((r".+\._prepare_\w+", CONTAINER), (r".+\.get_tool_calls_from_response", CONTAINER)),
    scopes=("openinference.instrumentation.llama_index",),
    steps=((".call_tool", "tools"),),
    told=(("current_agent_name='", "'"),),
)
