"""smolagents under OpenInference: the steps of a CodeAgent are its code executions."""

from otel_cmb.vocabulary.base import Vocabulary

VERSION = "1.26"
SOURCE = "smolagents 1.26 under openinference-instrumentation-smolagents 0.1.43 (captures smol_oi)"

VOCABULARY = Vocabulary(
    name="smolagents",
    version=VERSION,
    source=SOURCE,
    fields={"max_steps": ("smolagents.max_steps",), "task_name": ("smolagents.task",)},
)
