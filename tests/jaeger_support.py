"""Spans into a database by the store itself, and Jaeger's client at the other end of a real channel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from otel_cmb import config
from otel_cmb.event import Span, Stamp
from otel_cmb.items import Item
from otel_cmb.jaeger.grpc_server import add_servicers
from otel_cmb.jaeger.proto import capabilities_pb2 as capabilities
from otel_cmb.jaeger.proto import dependency_storage_pb2 as dependency
from otel_cmb.jaeger.proto import trace_storage_pb2 as storage
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.otlp import decode
from otel_cmb.search_index import as_string
from otel_cmb.store import Store


def store_spans(url: str, directory: Path, spans: Iterable[Span], batch: int = 512, **settings: Any) -> None:
    """Write the spans as a receiver with `--record all` would."""
    found = config.load({}, database_url=url, state_dir=str(directory), record="all", **settings)
    store = Store(found, str(directory), per_trace_runs=True)
    try:
        waiting = [replace(span, stamp=Stamp()) for span in spans]
        for start in range(0, len(waiting), batch):
            items = [Item(n, span=span) for n, span in enumerate(waiting[start : start + batch])]
            store.write(items)
            fates = {(item.outcome.result, item.outcome.reason) for item in items if item.outcome}
            assert {result for result, _ in fates} <= {"committed", "merged"}, fates
    finally:
        store.close()


class Client:
    """Jaeger's query service, as far as it talks to a remote storage."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, service: str, method: str, request: Any, response: Any, *, stream: bool = False) -> Any:
        path = f"/jaeger.storage.v2.{service}/{method}"
        make = self._channel.unary_stream if stream else self._channel.unary_unary
        return make(path, type(request).SerializeToString, response.FromString)(request, timeout=30)

    def chunks(self, method: str, request: Any) -> list[TracesData]:
        return list(self.call("TraceReader", method, request, TracesData, stream=True))

    def get_traces(self, *trace_ids: str) -> dict[str, list[Span]]:
        query = [storage.GetTraceParams(trace_id=bytes.fromhex(trace_id)) for trace_id in trace_ids]
        return traces_of(self.chunks("GetTraces", storage.GetTracesRequest(query=query)))

    def find_traces(self, **query: Any) -> dict[str, list[Span]]:
        return traces_of(self.chunks("FindTraces", storage.FindTracesRequest(query=parameters(**query))))

    def find_ids(self, **query: Any) -> list[str]:
        request = storage.FindTraceIDsRequest(query=parameters(**query))
        found = self.call("TraceReader", "FindTraceIDs", request, storage.FindTraceIDsResponse)
        return [item.trace_id.hex() for item in found.trace_ids]

    def summaries(self, **query: Any) -> list[Any]:
        request = storage.FindTraceSummariesRequest(query=parameters(**query))
        found = self.call(
            "TraceReader", "FindTraceSummaries", request, storage.FindTraceSummariesResponse, stream=True)
        return [summary for response in found for summary in response.summaries]

    def services(self) -> list[str]:
        return list(self.call(
            "TraceReader", "GetServices", storage.GetServicesRequest(), storage.GetServicesResponse).services)

    def operations(self, service: str, kind: str = "") -> list[tuple[str, str]]:
        request = storage.GetOperationsRequest(service=service, span_kind=kind)
        found = self.call("TraceReader", "GetOperations", request, storage.GetOperationsResponse)
        return [(item.name, item.span_kind) for item in found.operations]

    def dependencies(self, start_ns: int, end_ns: int) -> list[tuple[str, str, int]]:
        request = dependency.GetDependenciesRequest()
        set_time(request.start_time, start_ns)
        set_time(request.end_time, end_ns)
        found = self.call("DependencyReader", "GetDependencies", request, dependency.GetDependenciesResponse)
        return [(item.parent, item.child, item.call_count) for item in found.dependencies]

    def capabilities(self) -> Any:
        return self.call(
            "Capabilities", "GetCapabilities", capabilities.GetCapabilitiesRequest(),
            capabilities.GetCapabilitiesResponse).search


def traces_of(chunks: Iterable[TracesData]) -> dict[str, list[Span]]:
    """Traces by id, with Jaeger's own rules for chunks checked: not empty, one trace in each, a trace's consecutive."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: dict[str, list[Span]] = {}
    last = None
    for chunk in chunks:
        assert chunk.ByteSize() < 4 * 1_048_576
        spans = decode(ExportTraceServiceRequest.FromString(chunk.SerializeToString())).spans
        ids = {span.trace_id for span in spans}
        assert len(ids) == 1
        (trace_id,) = ids
        assert trace_id == last or trace_id not in found
        last = trace_id
        found.setdefault(trace_id, []).extend(spans)
    return found


def set_time(message: Any, ns: int) -> None:
    message.seconds, message.nanos = divmod(ns, 1_000_000_000)


def parameters(
    service: str = "", operation: str = "", attributes: dict[str, Any] | None = None, start: int | None = None,
    end: int | None = None, shortest: int = 0, longest: int = 0, depth: int = 1000,
) -> storage.TraceQueryParameters:
    """As Jaeger's query service sends them: every attribute as a string."""
    message = storage.TraceQueryParameters(service_name=service, operation_name=operation, search_depth=depth)
    for key, value in (attributes or {}).items():
        message.attributes.add(key=key).value.string_value = as_string(value)
    for name, ns in (("start_time_min", start), ("start_time_max", end)):
        if ns is not None:
            set_time(getattr(message, name), ns)
    for name, ns in (("duration_min", shortest), ("duration_max", longest)):
        if ns:
            set_time(getattr(message, name), ns)
    return message


@contextmanager
def served(url: str, allow: Any = None, unpack: Any = bytes, options: Any = (), **settings: Any) -> Iterator[str]:
    """The address of a storage server on a free port."""
    query = JaegerQuery(config.load({}, database_url=url, **settings))
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        server = grpc.aio.server(options=options)
        add_servicers(server, query, threads, allow, unpack)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        started.set_result((asyncio.get_running_loop(), stop, port))
        await stop.wait()
        await server.stop(0)

    with ThreadPoolExecutor(4) as threads:
        thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        thread.start()
        loop, stop, port = started.result(20)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive()
    query.close()


@contextmanager
def serving(url: str, **options: Any) -> Iterator[Client]:
    """A storage server on a free port, and a client of it."""
    with served(url, **options) as address, grpc.insecure_channel(address) as channel:
        yield Client(channel)


def normal(value: Any) -> Any:
    """Without order of attributes, and without what is not of the span itself; 1, 1.0 and True stay three things."""
    if isinstance(value, Span):
        return normal({item.name: getattr(value, item.name) for item in fields(value) if item.name != "stamp"})
    if is_dataclass(value):
        return normal({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, dict):
        return sorted((key, normal(item)) for key, item in value.items())
    if isinstance(value, list):
        return [normal(item) for item in value]
    return repr(value)
