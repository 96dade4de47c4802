"""DSPy under OpenInference: modules are chains; those that choose tools are agents."""

from otel_cmb.vocabulary.base import AGENT, Vocabulary

VERSION = "3.4"
SOURCE = "dspy 3.4.1 under openinference-instrumentation-dspy 0.1.48"

VOCABULARY = Vocabulary(
    name="dspy",
    version=VERSION,
    source=SOURCE,
    overrides=((r"(?:ReAct|CodeAct)\.a?forward", AGENT),),
    scopes=("openinference.instrumentation.dspy",),
)
