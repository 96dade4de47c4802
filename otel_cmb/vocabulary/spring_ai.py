"""Spring AI's observations: GenAI names on a model's call, its own on what is around it (operation `framework`)."""

from otel_cmb.vocabulary.base import CONTAINER, TOOL, Vocabulary

VERSION = "2.0"
SOURCE = "https://docs.spring.io/spring-ai/reference/observability/index.html"

VOCABULARY = Vocabulary(
    name="spring_ai",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "spring.ai.kind",
            {"chat_client": CONTAINER, "advisor": CONTAINER, "vector_store": CONTAINER, "tool_call": TOOL},
        ),
    ),
    fields={
        "tool_name": ("spring.ai.tool.definition.name",),
        "tool_arguments": ("spring.ai.tool.call.arguments",),
        "tool_result": ("spring.ai.tool.call.result",),
        "conversation_id": ("spring.ai.chat.client.conversation.id",),
    },
)
