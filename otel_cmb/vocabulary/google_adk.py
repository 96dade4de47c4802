"""Google ADK's own instrumentation (scope `gcp.vertex.agent`), both telemetry schema versions."""

from otel_cmb.vocabulary.base import CONTAINER, LLM, NEVER, Vocabulary

VERSION = "2.13.0"
SOURCE = "https://github.com/google/adk-python/blob/v2.13.0/src/google/adk/telemetry/tracing.py"

VOCABULARY = Vocabulary(
    name="google_adk",
    version=VERSION,
    source=SOURCE,
    discriminators=(("gen_ai.tool.name", {"(merged tools)": NEVER, "(merged)": NEVER}),),
    fields={
        "tool_arguments": ("gcp.vertex.agent.tool_call_args",),
        "tool_result": ("gcp.vertex.agent.tool_response",),
        "messages_in": ("gcp.vertex.agent.llm_request",),
        "messages_out": ("gcp.vertex.agent.llm_response",),
        "session_id": ("gcp.vertex.agent.session_id",),
        "invocation_id": ("gcp.vertex.agent.invocation_id",),
    },
    names=(
        (r"execute_tool \(merged(?: tools)?\)", NEVER),
        (r"invocation", CONTAINER),
        (r"call_llm", LLM),
        (r"generate_content (?P<model>.+)", LLM),
        (r"agent_run \[(?P<agent>.+)\]", "agent_call"),
        (r"send_data", CONTAINER),
    ),
    scopes=("gcp.vertex.agent",),
)
