"""Our own attributes: a program in any language can set them. They outrank every other vocabulary, field by field."""

from otel_cmb.vocabulary.base import EVENT_TYPES, Vocabulary

VERSION = "1"
SOURCE = "DESIGN.md section 5"

VOCABULARY = Vocabulary(
    name="cmb",
    version=VERSION,
    source=SOURCE,
    discriminators=(("cmb.event.type", {kind: kind for kind in sorted(EVENT_TYPES)}),),
    fields={
        "event_type": ("cmb.event.type",),
        "event_subtype": ("cmb.event.subtype",),
        "agent_name": ("cmb.agent.name",),
        "agent_role": ("cmb.agent.role",),
        "cmb_inputs": ("cmb.inputs",),
        "cmb_outputs": ("cmb.outputs",),
        "cmb_meta": ("cmb.meta",),
        "error_message": ("cmb.error.message",),
    },
)
