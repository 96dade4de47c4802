"""What spans around a span make of it, before acts are put together: agents that are graphs, and what belongs inside of
a span but hangs beside it.

Instrumentations of LangChain call a runnable an agent where its name contains the word, so that in the graph that
`create_react_agent` makes its node `agent` is one and the graph, which bears the agent's name, is none. LlamaIndex under
OpenInference has chains alone.
"""

from __future__ import annotations

from dataclasses import replace

from otel_cmb.assemble_tree import Node, encloses
from otel_cmb.mapper import Facts
from otel_cmb.mapper_results import unquoted
from otel_cmb.messages import as_json
from otel_cmb.vocabulary.base import AGENT, CONTAINER, LLM
from otel_cmb.vocabulary.langgraph import AGENT_STEPS, MODEL_STEPS, NO_NAME

__all__ = ["find_agents"]

LONE_AGENT = "BaseWorkflowAgent."
"""How names of the steps of an agent of LlamaIndex begin that runs alone; in a workflow of agents they begin otherwise."""


def find_agents(nodes: list[Node]) -> list[Node]:
    """Makes agents of the graphs that are one, and puts inside of a span what belongs there and hangs beside it. `nodes`
    and the answer have parents first. Linear in their number."""
    graphs: dict[int, Node] = {}
    untidy: dict[int, Node] = {}
    for node in [node for node in nodes if node.facts.shape.around]:
        parent = node.parent
        found = node.facts.found
        if node.kind == AGENT and not node.facts.explicit and _only_holds(node):
            node.kind = CONTAINER
        if parent is None:
            continue
        if "graph_node" in found:
            one_scope = parent.facts.span.scope.name == node.facts.span.scope.name  # else it is the program's own span
            if one_scope and parent.live and _is_model_step(node):
                graphs[id(parent)] = parent
        elif _is_leaf(node) or _is_log(node):
            untidy[id(parent)] = parent
    moved = False
    for parent in untidy.values():
        moved |= _tidy(parent)
    made: set[int] = set()
    for graph in reversed(graphs.values()):  # the innermost first: each span is gone through for one graph alone
        name = _name_of(graph)
        if name is not None:
            _become(graph, name, made)
            made.add(id(graph))
    if not moved:
        return nodes
    ordered = [node for node in nodes if node.parent is None]
    for node in ordered:  # it grows while it is gone through
        ordered.extend(node.children)
    return ordered


def _only_holds(node: Node) -> bool:
    """Traceloop calls every graph and every sequence an agent: a graph that has no step where a model is called acts
    through its nodes alone, and what bears the kind of a workflow is the run of the agent it is inside of, if of any."""
    facts, parent = node.facts, node.parent
    nodes = facts.found.get("workflow_nodes")
    if nodes is not None:
        named = as_json(nodes)
        return isinstance(named, (list, tuple)) and bool(named) and MODEL_STEPS.isdisjoint(map(str, named))
    if facts.found.get("span_kind") != "workflow" or not facts.span.name.endswith(".workflow"):
        return False
    if parent is not None and parent.kind == AGENT and parent.facts.agent == facts.agent:
        return False
    return not any(_runnable(child.facts) in MODEL_STEPS for child in node.children)


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


def _become(graph: Node, name: str, made: set[int]) -> None:
    """`graph` is the agent `name`, and all that is inside of it is its doing, as far as no other agent is inside: `made`
    are those that are one already."""
    graph.kind = AGENT
    graph.best = _acting(graph.facts, AGENT, name)
    waiting = list(graph.children)
    while waiting:
        node = waiting.pop()
        facts = node.facts
        if facts.explicit or id(node) in made:
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
            memo=None,  # a union or a reply that was worked out while the graph was not known holds what it said then
        )  # fmt: skip
        known = memo["acting"] = (kind, name, copy)
    return known[2]


LOOK_BACK = 64
"""How many spans before one, inside the same, it may belong to."""


def _tidy(parent: Node) -> bool:
    """Puts what hangs beside the span it belongs inside of there."""
    kept: list[Node] = []
    for node in parent.children:
        place = next((at for at in range(len(kept) - 1, max(len(kept) - LOOK_BACK, 0) - 1, -1) if _holds(kept[at], node)), None)
        if place is not None:
            _put(kept[place], node)
            continue
        if _is_leaf(node):  # a coarse clock gave what it holds the same start
            place = next((at for at in range(max(len(kept) - LOOK_BACK, 0), len(kept)) if _holds(node, kept[at])), None)
            if place is not None:
                _put(node, kept.pop(place))
        kept.append(node)
    moved = len(kept) < len(parent.children)
    parent.children = kept
    return moved


def _put(outer: Node, inner: Node) -> None:
    outer.children = [inner]
    inner.parent = outer


def _is_leaf(node: Node) -> bool:
    """Traceloop's span of an agent inside a graph: what the agent does hangs on the one beside it."""
    return node.kind in (AGENT, CONTAINER) and not node.children and "workflow_nodes" in node.facts.found


def _is_log(node: Node) -> bool:
    """Logfire's span of a streamed call ends before its stream does: the answer and what it spent come in a log record."""
    return node.kind == LLM and node.facts.found.get("span_type") == "log"


def _holds(outer: Node, inner: Node) -> bool:
    a, b = outer.facts, inner.facts
    one, other = a.span, b.span
    if outer.children or one.scope.name != other.scope.name or other.start_ns < one.start_ns:
        return False
    if _is_leaf(outer):
        return (
            b.found.get("operation") == "execute_task"
            and _runnable(b) == a.agent
            and encloses(outer, inner)
        )
    return (
        outer.kind == LLM and _is_log(inner) and not _is_log(outer)
        and "tokens_in" not in a.found and "messages_out" not in a.found
        and all(a.found.get(name) == b.found.get(name) for name in ("messages_in", "request_model"))
    )  # fmt: skip
