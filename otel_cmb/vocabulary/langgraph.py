"""LangGraph's commands: a `goto` is a handoff from one node to another."""

from otel_cmb.vocabulary.base import CONTAINER, HANDOFF, Vocabulary

VERSION = "1.2.22"
SOURCE = "langgraph 1.2.22 under opentelemetry-instrumentation-langchain 0.62.4 (captures lg_traceloop)"

AGENT_STEPS = frozenset(("agent", "tools", "pre_model_hook", "post_model_hook", "generate_structured_response"))
"""The nodes of the graph that `create_react_agent` makes: `agent` is where its model is called."""

MODEL_STEPS = frozenset(("model", "agent"))
"""Where the graphs of `create_agent` and `create_react_agent` call their model. A graph with neither is one of agents or
of functions: it acts through them alone."""

NO_NAME = "LangGraph"
"""What a graph is called that was given no name."""

VOCABULARY = Vocabulary(
    name="langgraph",
    version=VERSION,
    source=SOURCE,
    present=(("langgraph.command.goto_node", HANDOFF),),
    fields={
        "handoff_from": ("langgraph.command.source_node",),
        "handoff_to": ("langgraph.command.goto_node",),
        "workflow_nodes": ("gen_ai.workflow.nodes",),
    },
    # The function of langgraph-supervisor that calls an agent: an agent by its name alone.
    overrides=((r"invoke_agent a?call_agent", CONTAINER),),
    scopes=("opentelemetry.instrumentation.genai.langchain",),
)
