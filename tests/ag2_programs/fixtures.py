"""Pytest fixtures of the AG2 tests."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from ag2_programs.support import Recorded
from otel_cmb.instrumentation.ag2 import AG2Instrumentor


@pytest.fixture
def global_provider(monkeypatch: pytest.MonkeyPatch):
    """A provider of this test's own, installed globally, and what was there before put back."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    provider.recorded = Recorded(exporter)
    yield provider
    provider.shutdown()


@pytest.fixture
def recorded(global_provider, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("OTEL_CMB_TESTING", "1")
    monkeypatch.chdir(tmp_path)
    instrumentor = AG2Instrumentor()
    instrumentor.instrument()
    yield global_provider.recorded
    instrumentor.uninstrument()
