"""`configure()`: one call that installs the tracer provider of a program."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider

from otel_cmb import config
from otel_cmb.database_url import check_url
from otel_cmb.processor import CMBSpanProcessor

__all__ = ["configure", "install_processor", "otlp_processor"]

ATTRIBUTE_LIMIT = 2048
"""The SDK's default of 128 attributes drops a span's oldest first: run id and model of a long chat."""


def configure(
    database_url: str | None = None, otlp_endpoint: str | None = None, service_name: str | None = None,
    instrument: bool = True, **settings: Any,
) -> TracerProvider:
    """Install a tracer provider that writes agent spans into the database, and return it.

    `otlp_endpoint` (or the standard `OTEL_EXPORTER_OTLP_*` variables) adds the standard OTLP exporter beside it; a dead
    endpoint costs the database nothing. `instrument` switches on, for each installed framework, the best available
    instrumentor once. `settings` are those of `docs/settings.md`. Called again, or under `otel-cmb run`, it uses the
    provider that is there.

    Raises :class:`~otel_cmb.errors.ConfigurationError` for a wrong setting or a URL that cannot work. Does not connect: a
    server that is away is an outage, and spans wait in the journal.
    """
    loaded = config.load(database_url=database_url, **settings)
    check_url(loaded)
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        attributes = {SERVICE_NAME: service_name} if service_name else {}
        limits = None if os.environ.get("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT") else SpanLimits(
            max_span_attributes=ATTRIBUTE_LIMIT)
        provider = TracerProvider(resource=Resource.create(attributes), span_limits=limits)
        trace.set_tracer_provider(provider)
    install_processor(provider, CMBSpanProcessor(database_url=database_url, **settings))
    if (otlp := otlp_processor(otlp_endpoint)) is not None and not getattr(provider, "_otel_cmb_otlp", False):
        provider.add_span_processor(otlp)
        provider._otel_cmb_otlp = True  # type: ignore[attr-defined] # a mark, so that a second call adds none
    if instrument:
        from otel_cmb.instrumentation import instrument_frameworks

        instrument_frameworks()
    return provider


def install_processor(provider: TracerProvider, processor: CMBSpanProcessor) -> CMBSpanProcessor:
    """Add the processor unless one of the same pipeline is there; the one that is at work."""
    installed: list[CMBSpanProcessor] = getattr(provider, "_otel_cmb_processors", [])
    for known in installed:
        if known.pipeline is processor.pipeline:
            return known
    provider.add_span_processor(processor)
    provider._otel_cmb_processors = [*installed, processor]  # type: ignore[attr-defined]
    return processor


def otlp_processor(endpoint: str | None) -> SpanProcessor | None:
    """The standard exporter behind the standard batch processor, if an endpoint is given here or in the environment.

    gRPC unless `OTEL_EXPORTER_OTLP_(TRACES_)PROTOCOL` says http, or the endpoint is one for HTTP (port 4318, or a path).
    """
    environment = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not (endpoint or environment):
        return None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    protocol = (os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "")
    split = urlsplit(endpoint or environment or "")
    exporter: SpanExporter
    if protocol.startswith("http") or (not protocol and (split.port == 4318 or split.path not in ("", "/"))):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPExporter

        url = endpoint
        if url is not None and split.path in ("", "/"):
            url = url.rstrip("/") + "/v1/traces"
        exporter = HTTPExporter(endpoint=url)
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter

        insecure = None if endpoint is None else split.scheme != "https"
        exporter = GRPCExporter(endpoint=endpoint, insecure=insecure)
    return BatchSpanProcessor(exporter)
