"""BeeAI under OpenInference: it makes spans of events too (`tool.custom.f.error`), with the kind of who sent them."""

from otel_cmb.vocabulary.base import PLAIN, Vocabulary

VERSION = "0.1.85"
SOURCE = "beeai-framework 0.1.85 under openinference-instrumentation-beeai 0.1.30"

VOCABULARY = Vocabulary(
    name="beeai",
    version=VERSION,
    source=SOURCE,
    present=(("metadata.path", PLAIN),),
)
