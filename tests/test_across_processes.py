"""A call that goes on in another process hangs below the event it was made in, also where nothing in between is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_support import events, tracing
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider

from otel_cmb import spans
from otel_cmb.block import TRACER_KEY
from otel_cmb.pipeline import forget_pipelines

OTHER = """
import json, sys
from opentelemetry.context import attach
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from otel_cmb import CMBSpanProcessor
provider = TracerProvider()
provider.add_span_processor(CMBSpanProcessor(sys.argv[1], state_dir=sys.argv[2]))
attach(extract(json.loads(sys.argv[3])))
tracer = provider.get_tracer("other")
with tracer.start_as_current_span("POST /answer"):
    with tracer.start_as_current_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "far"}):
        pass
    with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        pass
assert provider.force_flush(20_000)
"""


@pytest.mark.parametrize("carried", [True, False])
def test_baggage_names_the_nearest_event(sqlite_url: str, state_dir: Path, tmp_path: Path, carried: bool) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        token = otel_context.attach(otel_context.set_value(TRACER_KEY, tracer))
        with spans.agent_call("near"), spans.tool_call("ask_far"):
            carrier: dict[str, str] = {}
            # The client's own span is not recorded by anybody.
            client = trace.SpanContext(trace.get_current_span().get_span_context().trace_id, 0xABCDEF, is_remote=False,
                                       trace_flags=trace.TraceFlags(1))
            inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(client)))
            if not carried:
                del carrier["baggage"]
            subprocess.run([sys.executable, "-c", OTHER, sqlite_url, str(tmp_path / "elsewhere"), json.dumps(carrier)], check=True)
        otel_context.detach(token)
        assert processor.force_flush(10_000)
    forget_pipelines()
    rows = {(row["event_type"], row["agent_name"]): row for row in events(sqlite_url).values()}
    near, far = rows["agent_call", "near"], rows["agent_call", "far"]
    asked = rows["tool_call", "near"]
    assert asked["parent_event_id"] == near["id"]
    assert (far["parent_event_id"], far["depth"]) == ((asked["id"], 2) if carried else (None, 0))
    if carried:
        assert {row["parent_event_id"] for row in rows.values() if row["event_type"] == "llm_call"} == {asked["id"]}
        assert {row["run_id"] for row in rows.values()} == {near["run_id"]}


def test_within_a_process_nobody_needs_to_be_told(sqlite_url: str, state_dir: Path) -> None:
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        token = otel_context.attach(otel_context.set_value(TRACER_KEY, tracer))
        with spans.agent_call("near"), spans.tool_call("look"):
            pass
        otel_context.detach(token)
        assert processor.force_flush(10_000)
    forget_pipelines()
    assert all("cmb.parent_event_id" not in json.dumps(row) for row in events(sqlite_url).values())


def test_a_span_of_a_provider_that_is_not_written_breaks_no_tree(sqlite_url: str, state_dir: Path) -> None:
    """As with other processes: what is between is known to nobody here. Within a provider no span carries the name."""
    elsewhere = TracerProvider().get_tracer("elsewhere")
    chat = {"gen_ai.operation.name": "chat"}
    with tracing(sqlite_url, state_dir) as (tracer, processor):
        token = otel_context.attach(otel_context.set_value(TRACER_KEY, tracer))
        with spans.agent_call("near"):
            with elsewhere.start_as_current_span("between"), tracer.start_as_current_span("chat", attributes=chat) as below:
                assert "cmb.parent_event_id" in below.attributes
            with tracer.start_as_current_span("execute_tool f", attributes={"gen_ai.operation.name": "execute_tool"}) as tool:
                inside = otel_context.get_current()
            assert "cmb.parent_event_id" not in tool.attributes
            tracer.start_span("chat", inside, attributes=chat).end()  # after its parent has ended
        otel_context.detach(token)
        assert processor.force_flush(10_000)
    rows = list(events(sqlite_url).values())
    [near], [called] = ([row for row in rows if row["event_type"] == kind] for kind in ("agent_call", "tool_call"))
    chats = [row for row in rows if row["event_type"] == "llm_call"]
    assert [(row["parent_event_id"], row["depth"]) for row in chats] == [(near["id"], 1), (called["id"], 2)]
