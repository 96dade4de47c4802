"""The workload of every benchmark: traces of 20 spans, four levels, 12 attributes, a 600-byte prompt, a 400-byte output."""

from __future__ import annotations

import random
from collections.abc import Iterator

import orjson

from otel_cmb.event import Resource, Scope, Span

SPANS_PER_TRACE = 20
RUN = "bench-run"
_WORDS = ("galaxy", "redshift", "spectrum", "figure", "table", "engineer", "planner", "result", "therefore", "dataset")
RESOURCE = Resource({"service.name": "bench", "service.version": "1", "telemetry.sdk.language": "python"})
SCOPE = Scope("bench", "1.0")


def text(chance: random.Random, size: int) -> str:
    """Words up to `size` bytes."""
    words: list[str] = []
    length = 0
    while length < size:
        word = chance.choice(_WORDS)
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:size]


def _message(role: str, content: str) -> str:
    return orjson.dumps([{"role": role, "parts": [{"type": "text", "content": content}]}]).decode()


def attributes(chance: random.Random, operation: str, agent: str) -> dict[str, object]:
    """Twelve attributes as an agent framework sets them."""
    prompt, output = text(chance, 600), text(chance, 400)
    common: dict[str, object] = {
        "gen_ai.operation.name": operation, "gen_ai.agent.name": agent, "gen_ai.provider.name": "openai",
        "app.stage": "analysis", "app.attempt": chance.randrange(5), "app.score": chance.random(), "app.cached": False,
    }
    if operation == "execute_tool":
        common.update({
            "gen_ai.tool.name": chance.choice(("search", "plot", "fit")), "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": f"call_{chance.getrandbits(40):010x}",
            "gen_ai.tool.call.arguments": orjson.dumps({"query": prompt}).decode(), "gen_ai.tool.call.result": output})
    else:
        common.update({
            "gen_ai.request.model": "gpt-4.1", "gen_ai.input.messages": _message("user", prompt),
            "gen_ai.output.messages": _message("assistant", output),
            "gen_ai.usage.input_tokens": chance.randrange(50, 500), "gen_ai.usage.output_tokens": chance.randrange(20, 200)})
    return common


_SHAPE = (  # parent's position, operation: planner > three agents > llm and tool calls, one tool calls the llm again
    (None, "invoke_agent"), (0, "invoke_agent"), (1, "chat"), (1, "execute_tool"), (1, "chat"), (1, "execute_tool"), (5, "chat"),
    (0, "invoke_agent"), (7, "chat"), (7, "execute_tool"), (7, "chat"), (7, "execute_tool"), (11, "chat"),
    (0, "invoke_agent"), (13, "chat"), (13, "execute_tool"), (13, "chat"), (13, "execute_tool"), (17, "chat"), (13, "chat"),
)
_AGENTS = ("planner", "engineer", "researcher", "reviewer")


def spans(count: int, *, seed: int = 1, run: str = RUN, start_ns: int = 1_766_000_000_000_000_000) -> Iterator[Span]:
    """`count` ended spans, whole traces one after the other, children before parents as exporters send them."""
    chance = random.Random(seed)
    made = 0
    while made < count:
        trace_id = f"{chance.getrandbits(128) | 1:032x}"
        ids = [f"{chance.getrandbits(64) | 1:016x}" for _ in _SHAPE]
        base = start_ns + made * 10_000_000
        trace = []
        agent = -1
        for n, (parent, operation) in enumerate(_SHAPE):
            if operation == "invoke_agent":
                agent += 1
            found = attributes(chance, operation, _AGENTS[agent])
            found["cmb.run.id"] = run
            trace.append(Span(
                trace_id, ids[n], f"{operation} {found.get('gen_ai.tool.name', found['gen_ai.agent.name'])}",
                base + n * 1_000_000, base + n * 1_000_000 + (40 - 2 * n) * 1_000_000,
                None if parent is None else ids[parent], attributes=found, resource=RESOURCE, scope=SCOPE))
        for span in reversed(trace):
            if made < count:
                made += 1
                yield span
