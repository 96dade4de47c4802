"""Logfire: span types, log levels, and pending records that repeat a span at its start."""

from otel_cmb.vocabulary.base import NEVER, Vocabulary

VERSION = "5.2.0"
SOURCE = "https://github.com/pydantic/logfire/blob/v5.2.0/logfire/_internal/constants.py"

VOCABULARY = Vocabulary(
    name="logfire",
    version=VERSION,
    source=SOURCE,
    discriminators=(("logfire.span_type", {"pending_span": NEVER}),),
    fields={
        "span_type": ("logfire.span_type",),
        "level": ("logfire.level_num",),
        "message": ("logfire.msg",),
    },
)
