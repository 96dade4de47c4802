"""The other half of every span: the standard OTLP exporter beside ours, towards a real server, a dead one, or none."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp_server import OTLPServer

from otel_cmb import CMBSpanProcessor, open_reader
from otel_cmb.event import event_id
from otel_cmb.setup import otlp_processor


def exporter_for(endpoint: str | None) -> GRPCExporter | HTTPExporter | None:
    processor = otlp_processor(endpoint)
    if processor is None:
        return None
    assert isinstance(processor, BatchSpanProcessor)
    exporter = processor.span_exporter
    processor.shutdown()
    assert isinstance(exporter, (GRPCExporter, HTTPExporter))
    return exporter


@pytest.mark.parametrize(("endpoint", "environment", "kind", "where"), [
    ("http://127.0.0.1:4317", {}, GRPCExporter, "127.0.0.1:4317"),
    ("http://127.0.0.1:4318", {}, HTTPExporter, "http://127.0.0.1:4318/v1/traces"),
    ("http://jaeger:9999/some/where", {}, HTTPExporter, "http://jaeger:9999/some/where"),
    ("http://jaeger:9999", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, HTTPExporter, "http://jaeger:9999/v1/traces"),
    (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9999"}, GRPCExporter, "127.0.0.1:9999"),
    (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, HTTPExporter, "http://127.0.0.1:4318/v1/traces"),
    (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9998"}, GRPCExporter, "127.0.0.1:9998"),
])
def test_the_endpoint_decides_the_protocol_unless_the_standard_variable_does(
    endpoint: str | None, environment: dict[str, str], kind: type, where: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exporter = exporter_for(endpoint)
    assert type(exporter) is kind
    assert exporter._endpoint == where  # what the exporter made of it is not public


def test_without_an_endpoint_nothing_is_sent_anywhere() -> None:
    assert otlp_processor(None) is None


def test_the_server_gets_every_span_and_the_database_the_events_among_them(sqlite_url: str, state_dir: object) -> None:
    """Containers and foreign spans go to Jaeger whole; of the rows each one is a span that arrived there too."""
    with OTLPServer() as server:
        provider = TracerProvider()
        provider.add_span_processor(CMBSpanProcessor(database_url=sqlite_url, state_dir=str(state_dir)))
        otlp = otlp_processor(server.endpoint)
        assert otlp is not None
        provider.add_span_processor(otlp)
        tracer = provider.get_tracer("program")
        with tracer.start_as_current_span("GET /answer"), tracer.start_as_current_span(
            "invoke_agent engineer", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "engineer"},
        ) as span:
            span.set_attribute("answer", 42)
        assert provider.force_flush()
        provider.shutdown()
    with open_reader(sqlite_url) as reader:
        [event] = reader.events(reader.resolve("latest"))
    by_id = {event_id(span.trace_id.hex(), span.span_id.hex()): span for span in server.spans()}
    assert sorted(span.name for span in by_id.values()) == ["GET /answer", "invoke_agent engineer"]
    assert by_id[event.id].name == "invoke_agent engineer"
    assert event.meta["otel"]["start_ns"] == by_id[event.id].start_time_unix_nano
    assert event.meta["otel"]["end_ns"] == by_id[event.id].end_time_unix_nano


def test_a_dead_endpoint_costs_the_database_nothing(
    sqlite_url: str, state_dir: object, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    provider = TracerProvider()
    processor = CMBSpanProcessor(database_url=sqlite_url, state_dir=str(state_dir))
    otlp = otlp_processor("http://127.0.0.1:1")
    assert otlp is not None
    provider.add_span_processor(processor)
    provider.add_span_processor(otlp)
    tracer = provider.get_tracer("program")
    for n in range(100):
        with tracer.start_as_current_span("invoke_agent", attributes={
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {n}"}):
            pass
    assert processor.force_flush()
    stats = processor.stats()
    assert (stats.received, stats.committed, stats.pending) == (100, 100, 0)
    provider.shutdown()
