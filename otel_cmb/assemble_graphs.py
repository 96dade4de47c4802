"""What spans around a span make of it, before acts are put together: agents that are graphs, and what belongs inside of
a span but hangs beside it.

Instrumentations of LangChain call a runnable an agent where its name contains the word, so that in the graph that
`create_react_agent` makes its node `agent` is one and the graph, which bears the agent's name, is none. LlamaIndex under
OpenInference has chains alone.
"""

from __future__ import annotations

from dataclasses import replace

from otel_cmb.assemble_tree import Node
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import unquoted
from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM
from otel_cmb.vocabulary.langgraph import AGENT_STEPS, NO_NAME

__all__ = ["find_agents"]

LONE_AGENT = "BaseWorkflowAgent."
"""How names of the steps of an agent of LlamaIndex begin that runs alone; in a workflow of agents they begin otherwise."""


def find_agents(nodes: list[Node]) -> list[Node]:
    """Makes agents of the graphs that are one, and puts inside of a span what belongs there and hangs beside it. `nodes`
    and the answer have parents first."""
    moved = False
    graphs: dict[int, Node] = {}
    for node in [node for node in nodes if node.facts.shape.around]:
        found = node.facts.found
        if "graph_node" in found:
            parent = node.parent
            if parent is not None and parent.live and _is_model_step(node):
                graphs[id(parent)] = parent
        elif node.kind == AGENT:
            if not node.children and "workflow_nodes" in found:
                moved |= _hold(node)
        elif node.kind == LLM and found.get("span_type") == "log":
            moved |= _follow(node)
    for graph in graphs.values():
        name = _name_of(graph)
        if name is not None:
            _become(graph, name)
    if not moved:
        return nodes
    ordered = [node for node in nodes if node.parent is None]
    for node in ordered:  # it grows while it is gone through
        ordered.extend(node.children)
    return ordered


def _runnable(facts: Facts) -> str:
    name = facts.found.get("entity_name")
    return name if isinstance(name, str) and name else facts.span.name


def _is_model_step(node: Node) -> bool:
    facts = node.facts
    return facts.span.name.startswith(LONE_AGENT) or (unquoted(facts.found["graph_node"]) == "agent" == _runnable(facts))


def _name_of(graph: Node) -> str | None:
    """The name of the agent that a graph is, or `None` where it is another graph."""
    if graph.facts.explicit or graph.kind not in (AGENT, CONTAINER):
        return None
    own = _runnable(graph.facts)
    name: str | None = None
    for child in graph.children:
        facts = child.facts
        if facts.span.name.startswith(LONE_AGENT):
            name = name or facts.agent
        elif "graph_node" in facts.found:
            step = unquoted(facts.found["graph_node"])
            if step == _runnable(facts) and step not in AGENT_STEPS:
                return None
            name = own
    return name if name != NO_NAME else None


def _become(graph: Node, name: str) -> None:
    """`graph` is the agent `name`, and all that is inside of it is its doing, as far as no other agent is inside."""
    graph.kind = AGENT
    graph.best = _acting(graph.facts, AGENT, name)
    waiting = list(graph.children)
    while waiting:
        node = waiting.pop()
        facts = node.facts
        if facts.explicit:
            continue
        if node.kind == AGENT:
            if facts.agent not in AGENT_STEPS:
                continue
            node.kind = CONTAINER
        if facts.agent is not None and not facts.bare:
            node.best = _acting(facts, node.kind, name)
        waiting.extend(node.children)


def _acting(facts: Facts, kind: str, name: str) -> Facts:
    """These facts, of what the agent `name` did; the same object for the same question, so that what was worked out of
    it is not lost while a trace grows."""
    memo = facts.memo
    if memo is None:
        memo = facts.memo = {}
    known: tuple[str, str, Facts] | None = memo.get("acting")
    if known is None or known[0] != kind or known[1] != name:
        found = facts.found
        if kind == AGENT and facts.span.scope.name.endswith("llama_index"):  # the workflow's state: its models show the words
            found = {key: value for key, value in found.items() if key not in ("input", "output")}
        copy = replace(
            facts, kind=kind, agent=name, found=found, payload=None, event=None, event_key=None,
            memo={key: value for key, value in memo.items() if key != "acting"},
        )  # fmt: skip
        known = memo["acting"] = (kind, name, copy)
    return known[2]


def _hold(agent: Node) -> bool:
    """Traceloop's span of an agent inside a graph is a leaf, and what the agent does hangs on the one beside it."""
    parent = agent.parent
    if parent is None or agent.facts.agent is None:
        return False
    span = agent.facts.span
    for other in parent.children:
        facts = other.facts
        if (
            other is not agent
            and facts.found.get("operation") == "execute_task"
            and _runnable(facts) == agent.facts.agent
            and facts.span.scope.name == span.scope.name
            and facts.span.start_ns >= span.start_ns
            and (span.end_ns is None or (facts.span.end_ns is not None and facts.span.end_ns <= span.end_ns))
        ):
            parent.children = [child for child in parent.children if child is not other]
            agent.children = [other]
            other.parent = agent
            return True
    return False


def _follow(log: Node) -> bool:
    """Logfire's span of a streamed call ends before its stream does: the answer and what it spent come in a log record
    beside it, which goes on with the latest call of the same question that has no answer."""
    parent = log.parent
    if parent is None:
        return False
    told = log.facts
    for other in reversed(parent.children):
        facts = other.facts
        if (
            other.kind == LLM and not other.children and other is not log
            and facts.span.start_ns <= told.span.start_ns
            and facts.span.scope.name == told.span.scope.name
            and "tokens_in" not in facts.found and "messages_out" not in facts.found
            and all(facts.found.get(name) == told.found.get(name) for name in ("messages_in", "request_model"))
        ):  # fmt: skip
            parent.children = [child for child in parent.children if child is not log]
            other.children = [log]
            log.parent = other
            return True
    return False
