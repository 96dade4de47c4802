"""Model Context Protocol, as the semantic conventions describe it: only a call of a tool is an act."""

from otel_cmb.vocabulary.base import PLAIN, TOOL, Vocabulary

VERSION = "1.41"
SOURCE = "https://github.com/open-telemetry/semantic-conventions-genai (mcp)"

VOCABULARY = Vocabulary(
    name="mcp",
    version=VERSION,
    source=SOURCE,
    discriminators=(
        (
            "mcp.method.name",
            {
                "tools/call": TOOL,
                "initialize": PLAIN,
                "tools/list": PLAIN,
                "resources/read": PLAIN,
                "prompts/get": PLAIN,
            },
        ),
    ),
    fields={"tool_name": ("mcp.tool.name",), "session_id": ("mcp.session.id",)},
    names=((r"tools/call (?P<tool>.+)", TOOL),),
)
