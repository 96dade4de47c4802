"""A real OTLP server over gRPC in the test's own process: what arrives is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class OTLPServer(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves on a free port of the loopback address while in the block."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Any]:
        return [span for request in self.requests for of_resource in request.resource_spans
                for of_scope in of_resource.scope_spans for span in of_scope.spans]

    def resource_attribute(self, name: str) -> str | None:
        for request in self.requests:
            for of_resource in request.resource_spans:
                for attribute in of_resource.resource.attributes:
                    if attribute.key == name:
                        return str(attribute.value.string_value)
        return None

    def __enter__(self) -> OTLPServer:  # noqa: PYI034 - `Self` is newer than Python 3.10
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
