"""Jaeger's remote storage API v2 over gRPC: TraceReader, DependencyReader, Capabilities.

The writer of this API is OTLP's TraceService, which the receiver serves on the same port. Handlers are plain functions
and generators that run in threads; `calls` is between them and `grpc.aio`.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from otel_cmb.jaeger.calls import Allow, BadQueryError, Calls, Receive, received
from otel_cmb.jaeger.encode import traces_data
from otel_cmb.jaeger.match import TraceQuery
from otel_cmb.jaeger.proto import capabilities_pb2 as capabilities
from otel_cmb.jaeger.proto import dependency_storage_pb2 as dependency
from otel_cmb.jaeger.proto import trace_storage_pb2 as storage
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.jaeger.summary import Summary
from otel_cmb.otlp_proto import value_of
from otel_cmb.search_index import as_string

__all__ = ["SERVICE_NAMES", "add_servicers"]

READER, DEPENDENCIES, CAPABILITIES = (
    "jaeger.storage.v2.TraceReader", "jaeger.storage.v2.DependencyReader", "jaeger.storage.v2.Capabilities")
SERVICE_NAMES = (READER, DEPENDENCIES, CAPABILITIES, "jaeger.storage.v2.TraceWriter")
"""Names under which grpc.health answers SERVING, besides the empty one."""

DEFAULT_DEPTH = 100
MAX_DEPTH = 10_000
_SUMMARIES = 50
"""Summaries in one message: a few kilobytes."""


def add_servicers(
    server: Any, query: JaegerQuery, threads: Executor, allow: Allow | None = None,
    unpack: Callable[[bytes], bytes] = bytes, receive: Receive = received,
) -> None:
    """Serve the three services on a `grpc.aio` server, working in `threads`. `allow` is asked before each call, and
    says how one ends that it does not allow. `unpack` decompresses questions, where gRPC was told not to. `receive`
    gives a call's question, or ends the call."""
    handlers, calls = _Handlers(query), Calls(threads, allow, unpack, receive)
    for service, methods in _METHODS.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {
            name: calls.handler(_answer(getattr(handlers, function), request, streams), streams=streams)
            for name, (function, request, streams) in methods.items()
        }),))


def _answer(function: Callable[..., Any], request: Any, streams: bool) -> Callable[[bytes], Iterator[bytes]]:
    def answer(question: bytes) -> Iterator[bytes]:
        try:
            message = request.FromString(question)
        except DecodeError as error:
            raise BadQueryError(f"the question is no {request.DESCRIPTOR.name}") from error
        found = function(message)
        yield from map(_bytes, found if streams else (found,))

    return answer


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class _Handlers:
    def __init__(self, query: JaegerQuery) -> None:
        self._query = query

    def get_traces(self, request: storage.GetTracesRequest) -> Iterator[bytes]:
        ids = [item.trace_id.hex() for item in request.query if len(item.trace_id) == 16]
        for spans in self._query.traces(ids):
            yield from traces_data(spans)

    def get_services(self, _: storage.GetServicesRequest) -> storage.GetServicesResponse:
        return storage.GetServicesResponse(services=self._query.services())

    def get_operations(self, request: storage.GetOperationsRequest) -> storage.GetOperationsResponse:
        found = self._query.operations(request.service, request.span_kind)
        return storage.GetOperationsResponse(
            operations=[storage.Operation(name=name, span_kind=kind) for name, kind in found])

    def find_traces(self, request: storage.FindTracesRequest) -> Iterator[bytes]:
        for spans in self._query.find(_query(request.query)):
            yield from traces_data(spans)

    def find_trace_ids(self, request: storage.FindTraceIDsRequest) -> storage.FindTraceIDsResponse:
        response = storage.FindTraceIDsResponse()
        page = _Page(request.query)
        for summary in page.take(self._query.summaries(page.query)):
            item = response.trace_ids.add(trace_id=bytes.fromhex(summary.trace_id))
            _set_time(item.start, summary.start_ns)
            _set_time(item.end, summary.end_ns)
        response.next_page_token = page.next_token
        return response

    def find_trace_summaries(
        self, request: storage.FindTraceSummariesRequest
    ) -> Iterator[storage.FindTraceSummariesResponse]:
        page = _Page(request.query)
        found = page.take(self._query.summaries(page.query))
        response = storage.FindTraceSummariesResponse()
        for summary in found:
            if len(response.summaries) >= _SUMMARIES:
                yield response
                response = storage.FindTraceSummariesResponse()
            _fill_summary(response.summaries.add(), summary)
        response.next_page_token = page.next_token
        if response.summaries:
            yield response

    def get_dependencies(self, request: dependency.GetDependenciesRequest) -> dependency.GetDependenciesResponse:
        end_ns = _time(request.end_time) if request.HasField("end_time") else 2**63 - 1
        found = self._query.dependencies(_time(request.start_time), end_ns)
        return dependency.GetDependenciesResponse(dependencies=[
            dependency.Dependency(parent=parent, child=child, call_count=count, source="otel-cmb")
            for parent, child, count in found
        ])

    def get_capabilities(self, _: capabilities.GetCapabilitiesRequest) -> capabilities.GetCapabilitiesResponse:
        return capabilities.GetCapabilitiesResponse(search=capabilities.SearchCapabilities(
            without_service_name=True, same_span_conjunction=True))


_METHODS: dict[str, dict[str, tuple[str, Any, bool]]] = {
    READER: {
        "GetTraces": ("get_traces", storage.GetTracesRequest, True),
        "GetServices": ("get_services", storage.GetServicesRequest, False),
        "GetOperations": ("get_operations", storage.GetOperationsRequest, False),
        "FindTraces": ("find_traces", storage.FindTracesRequest, True),
        "FindTraceIDs": ("find_trace_ids", storage.FindTraceIDsRequest, False),
        "FindTraceSummaries": ("find_trace_summaries", storage.FindTraceSummariesRequest, True),
    },
    DEPENDENCIES: {"GetDependencies": ("get_dependencies", dependency.GetDependenciesRequest, False)},
    CAPABILITIES: {"GetCapabilities": ("get_capabilities", capabilities.GetCapabilitiesRequest, False)},
}


def _time(message: Any) -> int:
    return int(message.seconds) * 1_000_000_000 + int(message.nanos)


def _set_time(message: Any, ns: int) -> None:
    message.seconds, message.nanos = divmod(ns, 1_000_000_000)


def _query(message: storage.TraceQueryParameters) -> TraceQuery:
    if message.HasField("filter"):
        raise BadQueryError("structured filters are not served, see Capabilities; send service_name, attributes, ...")
    return TraceQuery(
        service=message.service_name,
        operation=message.operation_name,
        attributes={item.key: as_string(value_of(_any_value(item.value))) for item in message.attributes},
        start_min_ns=_time(message.start_time_min) if message.HasField("start_time_min") else None,
        start_max_ns=_time(message.start_time_max) if message.HasField("start_time_max") else None,
        duration_min_ns=max(_time(message.duration_min), 0),
        duration_max_ns=max(_time(message.duration_max), 0),
        limit=min(message.search_depth, MAX_DEPTH) if message.search_depth > 0 else DEFAULT_DEPTH,
    )


def _any_value(message: Any) -> Any:
    """OTLP's AnyValue of Jaeger's copy of it."""
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

    return AnyValue.FromString(message.SerializeToString())


class _Page:
    """One page of a search: the whole of it, unless the client asks for pages. A token is how many came before."""

    def __init__(self, message: storage.TraceQueryParameters) -> None:
        self.query = _query(message)
        self.next_token = ""
        self._offset = 0
        self._size = 0
        if message.HasField("pagination"):
            self._size = min(message.pagination.page_size or self.query.limit, MAX_DEPTH)
            self._offset = _offset(message.pagination.page_token)
            self.query.limit = self._offset + self._size + 1

    def take(self, found: Iterator[Summary]) -> Iterator[Summary]:
        if not self._size:
            yield from found
            return
        yield from itertools.islice(found, self._offset, self._offset + self._size)
        if next(found, None) is not None:
            self.next_token = base64.urlsafe_b64encode(str(self._offset + self._size).encode()).decode().rstrip("=")


def _offset(token: str) -> int:
    if not token:
        return 0
    try:
        offset = int(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except ValueError:
        offset = -1
    if not 0 <= offset <= 1_000_000:
        raise BadQueryError(f"page_token: found {token[:40]!r}, expected the next_page_token of the page before")
    return offset


def _fill_summary(message: storage.TraceSummary, summary: Summary) -> None:
    message.trace_id = bytes.fromhex(summary.trace_id)
    message.root_service_name, message.root_operation_name = summary.root_service, summary.root_operation
    message.min_start_time_unix_nano, message.max_end_time_unix_nano = summary.start_ns, summary.end_ns
    message.span_count, message.error_span_count = summary.spans, summary.errors
    message.orphan_span_count = summary.orphans
    for name, (count, errors) in summary.services.items():
        message.services.add(name=name, span_count=count, error_span_count=errors)
