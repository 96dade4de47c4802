"""Vercel's AI SDK: an outer span per call of the program, an inner `do...` span per call of the model."""

from otel_cmb.vocabulary.base import CONTAINER, LLM, TOOL, Vocabulary

VERSION = "5"
SOURCE = "https://ai-sdk.dev/docs/ai-sdk-core/telemetry#collected-data"

VOCABULARY = Vocabulary(
    name="vercel_ai",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "ai.operationId",
            {
                "ai.generateText": CONTAINER,
                "ai.streamText": CONTAINER,
                "ai.generateObject": CONTAINER,
                "ai.streamObject": CONTAINER,
                "ai.embed": CONTAINER,
                "ai.embedMany": CONTAINER,
                "ai.generateText.doGenerate": LLM,
                "ai.streamText.doStream": LLM,
                "ai.generateObject.doGenerate": LLM,
                "ai.streamObject.doStream": LLM,
                "ai.embed.doEmbed": LLM,
                "ai.embedMany.doEmbed": LLM,
                "ai.toolCall": TOOL,
            },
        ),
    ),
    fields={
        "agent_name": ("ai.telemetry.functionId",),
        "tool_name": ("ai.toolCall.name",),
        "tool_call_id": ("ai.toolCall.id",),
        "tool_arguments": ("ai.toolCall.args", "ai.toolCall.input"),
        "tool_result": ("ai.toolCall.result", "ai.toolCall.output"),
        "messages_in": ("ai.prompt.messages", "ai.prompt"),
        "messages_out": ("ai.response.text", "ai.response.object"),
        "calls_out": ("ai.response.toolCalls",),
        "model": ("ai.response.model",),
        "request_model": ("ai.model.id",),
        "provider": ("ai.model.provider",),
        "finish_reason": ("ai.response.finishReason",),
        "temperature": ("ai.settings.temperature",),
        "tokens_in": ("ai.usage.inputTokens", "ai.usage.promptTokens"),
        "tokens_out": ("ai.usage.outputTokens", "ai.usage.completionTokens"),
        "tokens_total": ("ai.usage.totalTokens",),
        "tokens_cache_read": ("ai.usage.cachedInputTokens",),
        "tokens_reasoning": ("ai.usage.reasoningTokens",),
    },
)
