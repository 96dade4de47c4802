"""What the receiver says in which situation: one table, two transports.

Source: opentelemetry-proto v1.11.0, docs/specification.md (OTLP/gRPC and OTLP/HTTP response). Retryable answers carry
`google.rpc.RetryInfo` twice: as the standard status detail, and as the trailer that the Python exporter reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["SITUATIONS", "Answer", "Situation", "body_of", "trailers_of"]

MAX_MESSAGE = 1_000
"""Longest text of an answer; gRPC carries it in a header."""


@dataclass(frozen=True, slots=True)
class Situation:
    grpc: str
    """Name of the gRPC status code."""
    code: int
    """Its number (google.rpc.Code)."""
    http: int
    retry: bool = False


SITUATIONS: dict[str, Situation] = {
    "ok": Situation("OK", 0, 200),
    "malformed": Situation("INVALID_ARGUMENT", 3, 400),
    "run_missing": Situation("FAILED_PRECONDITION", 9, 400),
    "unauthenticated": Situation("UNAUTHENTICATED", 16, 401),
    "refused": Situation("PERMISSION_DENIED", 7, 403),
    "slow": Situation("DEADLINE_EXCEEDED", 4, 408),
    "too_large": Situation("RESOURCE_EXHAUSTED", 8, 413),
    "media_type": Situation("UNIMPLEMENTED", 12, 415),
    "overloaded": Situation("RESOURCE_EXHAUSTED", 8, 429, retry=True),
    "internal": Situation("INTERNAL", 13, 500),
    "unavailable": Situation("UNAVAILABLE", 14, 503, retry=True),
}


@dataclass(slots=True)
class Answer:
    """The outcome of one request. `rejected` spans of an OK answer will not be stored and must not be sent again."""

    situation: str = "ok"
    message: str = ""
    rejected: int = 0
    retry_after: int = 1
    """Seconds a client should wait before it tries again, where the situation allows it."""
    violations: list[str] = field(default_factory=list)
    """What is wrong with a malformed request (google.rpc.BadRequest)."""

    @property
    def row(self) -> Situation:
        return SITUATIONS[self.situation]

    @property
    def text(self) -> str:
        return self.message[:MAX_MESSAGE]


def _status(answer: Answer) -> Any:
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=answer.row.code, message=answer.text)
    if answer.row.retry:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.seconds = answer.retry_after
        status.details.add().Pack(info)
    if answer.violations:
        bad = error_details_pb2.BadRequest()
        for text in answer.violations[:20]:
            bad.field_violations.add(field="body", description=text[:MAX_MESSAGE])
        status.details.add().Pack(bad)
    return status


def trailers_of(answer: Answer) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata of a gRPC error."""
    from google.rpc import error_details_pb2

    trailers: list[tuple[str, bytes]] = [("grpc-status-details-bin", _status(answer).SerializeToString())]
    if answer.row.retry:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.seconds = answer.retry_after
        trailers.append(("google.rpc.retryinfo-bin", info.SerializeToString()))
    return tuple(trailers)


def response_of(answer: Answer, signal: str) -> Any:
    """The response message of an OK answer; `partial_success` is set only when there is something to say."""
    if signal == "logs":
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

        logs = ExportLogsServiceResponse()
        if answer.rejected or answer.message:
            logs.partial_success.rejected_log_records = answer.rejected
            logs.partial_success.error_message = answer.text
        return logs
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    traces = ExportTraceServiceResponse()
    if answer.rejected or answer.message:
        traces.partial_success.rejected_spans = answer.rejected
        traces.partial_success.error_message = answer.text
    return traces


def body_of(answer: Answer, signal: str, as_json: bool) -> bytes:
    """The HTTP body: the OTLP response of an OK answer, `google.rpc.Status` of any other."""
    message = response_of(answer, signal) if answer.situation == "ok" else _status(answer)
    if not as_json:
        data: bytes = message.SerializeToString()
        return data
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message, indent=None).encode()
