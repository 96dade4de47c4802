"""Logfire: span types, log levels, and pending records that repeat a span at its start."""

from otel_cmb.vocabulary.base import AGENT, CONTAINER, HANDOFF, NEVER, TOOL, Vocabulary

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
        # What its instrumentation of the OpenAI Agents SDK and of LLM clients calls its payloads.
        "plain_name": ("name",),
        "input": ("input",),
        "output": ("output",),
        "messages_in": ("raw_input", "request_data"),
        "rpc": ("request",),
        "messages_out": ("response", "response_data"),
    },
    names=(
        (r"Agent run: .*", AGENT),
        (r"Function: .*", TOOL),
        (r"Handoff: .*", HANDOFF),
        (r"OpenAI Agents trace: .*", CONTAINER),
        (r"Task: .*", CONTAINER),
        (r"Turn .* for agent .*", CONTAINER),
        (r"Guardrail .*", CONTAINER),
        (r"MCP request: tools/call (?P<tool>.+)", TOOL),
    ),
    scopes=("logfire.openai_agents", "logfire.mcp"),
)
