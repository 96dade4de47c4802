"""AG2 0.x's own instrumentation (`autogen.opentelemetry`). It names its spans at the start and sets every attribute
later, so a running span is known by its name alone."""

from otel_cmb.vocabulary.base import AGENT, APPROVAL, CODE, CONTAINER, LLM, SPEAKER, TOOL, Vocabulary

VERSION = "0.14.0"
SOURCE = "https://github.com/ag2ai/ag2/tree/v0.14.0/autogen/opentelemetry"

VOCABULARY = Vocabulary(
    name="ag2_0",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "ag2.span.type",
            {
                "conversation": CONTAINER,
                "multi_conversation": CONTAINER,
                "agent": AGENT,
                "llm": LLM,
                "tool": TOOL,
                "code_execution": CODE,
                "human_input": APPROVAL,
                "speaker_selection": SPEAKER,
            },
        ),
        (
            "gen_ai.operation.name",
            {
                "conversation": CONTAINER,
                "initiate_chats": CONTAINER,
                "await_human_input": APPROVAL,
                "speaker_selection": SPEAKER,
            },
        ),
    ),
    fields={
        "exit_code": ("ag2.code_execution.exit_code",),
        "code_output": ("ag2.code_execution.output",),
        "prompt": ("ag2.human_input.prompt",),
        "response": ("ag2.human_input.response",),
        "selected": ("ag2.speaker_selection.selected",),
        "candidates": ("ag2.speaker_selection.candidates",),
        "max_turns": ("gen_ai.conversation.max_turns",),
        "turns": ("gen_ai.conversation.turns",),
        "chats_mode": ("ag2.chats.mode",),
        "chats_recipients": ("ag2.chats.recipients",),
    },
    names=(
        (r"conversation (?P<agent>.+)", CONTAINER),
        (r"chat (?P<model>.+)", LLM),
        (r"(?:agent\.)?initiate_chats", CONTAINER),
        (r"await_human_input (?P<agent>.+)", APPROVAL),
        (r"speaker_selection", SPEAKER),
    ),
    scopes=("opentelemetry.instrumentation.ag2",),
)
