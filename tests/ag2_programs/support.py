"""Fixtures and a reader of recorded spans for the AG2 tests."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from scripted_server import ScriptedServer, call, calls, say

__all__ = ["Recorded", "ScriptedServer", "call", "calls", "llm", "python", "say"]


def llm(server: ScriptedServer) -> dict[str, Any]:
    config = {"model": "gpt-4o-mini", "api_key": "none", "base_url": server.base_url}
    return {"config_list": [config], "cache_seed": None}


def python(code: str) -> dict[str, Any]:
    return say(f"```python\n{code}\n```")


class Recorded:
    """The spans of one test, by what they say."""

    def __init__(self, exporter: InMemorySpanExporter):
        self.exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time)

    def of(self, event_type: str, subtype: str | None = None) -> list[ReadableSpan]:
        found = []
        for span in self.spans:
            kind = span.attributes.get("cmb.event.type")
            if kind is None and span.attributes.get("gen_ai.operation.name") == "execute_tool":
                kind = "tool_call"
            if kind == event_type and (span.attributes.get("cmb.event.subtype") == "message") == (subtype == "message"):
                found.append(span)
        return found

    def agents(self) -> Counter[str]:
        return Counter(span.attributes["gen_ai.agent.name"] for span in self.of("agent_call"))

    def tools(self) -> list[tuple[str, str]]:
        return [(span.attributes["gen_ai.tool.name"], failed(span)) for span in self.of("tool_call")]

    def handoffs(self) -> list[tuple[str, str]]:
        found = [inputs(span) for span in self.of("handoff")]
        return [(item["from_agent"], item["to_agent"]) for item in found]

    def codes(self) -> list[tuple[int, str]]:
        return [(meta(span).get("exit_code"), failed(span)) for span in self.of("code_exec")]

    def files(self) -> list[tuple[str, str]]:
        return sorted((Path(inputs(span)["file_path"]).name, inputs(span)["file_type"]) for span in self.of("file_gen"))

    def messages(self) -> list[tuple[str, str]]:
        return [(inputs(span)["sender"], inputs(span)["recipient"]) for span in self.of("agent_call", "message")]

    def tokens(self) -> tuple[int, int]:
        """Number of model calls and tokens spent, input and output."""
        calls_ = self.of("llm_call")
        keys = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
        return len(calls_), sum(span.attributes.get(key, 0) for span in self.spans for key in keys)

    def nodes(self) -> list[str]:
        return [span.attributes["cmb.node.id"] for span in self.spans if span.name.startswith("node ")]

    def roots(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.parent is None]

    def traces(self) -> int:
        return len({span.context.trace_id for span in self.spans})

    def parent(self, span: ReadableSpan) -> ReadableSpan | None:
        return next((other for other in self.spans
                     if span.parent is not None and other.context.span_id == span.parent.span_id), None)

    def names(self) -> list[str]:
        return [span.name for span in self.spans]


def failed(span: ReadableSpan) -> str:
    return "failed" if span.status.status_code is StatusCode.ERROR else "ok"


def _json(span: ReadableSpan, key: str) -> dict[str, Any]:
    return json.loads(span.attributes.get(key) or "{}")


def inputs(span: ReadableSpan) -> dict[str, Any]:
    return _json(span, "cmb.inputs")


def outputs(span: ReadableSpan) -> dict[str, Any]:
    return _json(span, "cmb.outputs")


def meta(span: ReadableSpan) -> dict[str, Any]:
    return _json(span, "cmb.meta")
