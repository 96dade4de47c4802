"""A run to an OTLP receiver (Jaeger, a Collector, another otel-cmb), to OTLP/JSON, or to one HTML page."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any
from urllib.parse import urlsplit

import orjson

from otel_cmb.config import Settings
from otel_cmb.errors import CMBError, ConfigurationError
from otel_cmb.event import Span
from otel_cmb.otlp import json_from_spans, request_from_spans
from otel_cmb.reader import Reader
from otel_cmb.transfer.progress import progress
from otel_cmb.transfer.spans import RunSpans

__all__ = ["ExportReport", "export"]

_log = logging.getLogger("otel_cmb")

MAX_SPANS = 512
MAX_BYTES = 3_000_000
"""Jaeger and the Collector take 4 MiB in one message unless told otherwise."""
RETRY_SECONDS = 60.0
CALL_SECONDS = 30.0
LONGEST_DETAILS = 300
"""Characters of what the receiver says."""
RETRYABLE = frozenset({
    "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED",
})
FORMS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(slots=True)
class ExportReport:
    run_id: str
    target: str
    spans: int = 0
    rejected: int = 0
    """Spans the receiver says it did not take."""
    message: str = ""

    @property
    def complete(self) -> bool:
        return not self.rejected

    def as_json(self) -> str:
        return orjson.dumps({
            "run_id": self.run_id, "target": self.target, "spans": self.spans, "rejected": self.rejected,
            "message": self.message, "complete": self.complete,
        }).decode()

    def as_text(self) -> str:
        text = f"run {self.run_id}: {self.spans} spans to {self.target}"
        return f"{text}; {self.rejected} of them were rejected: {self.message}" if self.rejected else text


def export(
    reader: Reader, run_id: str, target: str, settings: Settings, *, headers: Sequence[tuple[str, str]] = (),
    rate: float = 5_000, after: str | None = None,
) -> ExportReport:
    """Export a run. Returns when everything was written or answered.

    Raises :class:`ConfigurationError` for a target that is none, :class:`CMBError` when the receiver cannot be reached
    or refuses; its message has the `--after` with which the export goes on.
    """
    report = ExportReport(run_id, target)
    if target.startswith(("otlp://", "otlps://")):
        with RunSpans(reader, run_id, settings) as source:
            total = len(reader.lines(run_id, after=after))
            _send(source, report, headers=list(headers), rate=rate, after=after, total=total)
    elif target == "-":
        with RunSpans(reader, run_id, settings) as source:
            _write(source, report, sys.stdout.buffer, lines=False)
    elif target.endswith(".html"):
        from otel_cmb.ui.export import write_html

        try:
            report.spans = write_html(reader, run_id, target)
        except OSError as error:
            raise CMBError(f"{target} cannot be written: {error.strerror or error}") from error
    elif target.endswith(FORMS):
        with RunSpans(reader, run_id, settings) as source, _replacing(target) as file:
            _write(source, report, file, lines=".jsonl" in target[-9:])
    else:
        forms = ", ".join((*FORMS, ".html"))
        raise ConfigurationError(f"--to {target}: expected otlp://HOST:PORT, otlps://..., - or a file named {forms}")
    return report


# files


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as raw:
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="") as file:
                    yield file  # type: ignore[misc]
            else:
                yield raw
        os.replace(temporary, path)
    except OSError as error:
        raise CMBError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write(source: RunSpans, report: ExportReport, file: IO[bytes], *, lines: bool) -> None:
    """One OTLP/JSON document, or with `lines` one request per line; a page of the run is in memory at a time."""
    first = True
    if not lines:
        file.write(b'{"resourceSpans":[')
    with progress("export", None, unit="spans") as advance:
        for _, spans in source.pages():
            document = json_from_spans(spans)
            if lines:
                file.write(orjson.dumps(document) + b"\n")
            else:
                for group in document["resourceSpans"]:
                    file.write((b"" if first else b",\n") + orjson.dumps(group))
                    first = False
            report.spans += len(spans)
            advance(len(spans))
    if not lines:
        file.write(b"]}\n")
    file.flush()


# OTLP


def _batches(spans: list[Span]) -> Iterator[tuple[int, Any]]:
    """(number of spans, request) small enough for a receiver's limit; a span larger than that goes alone."""
    for start in range(0, len(spans), MAX_SPANS):
        part = spans[start : start + MAX_SPANS]
        request = request_from_spans(part)
        if len(part) == 1 or request.ByteSize() <= MAX_BYTES:
            yield len(part), request
            continue
        half = len(part) // 2
        yield from _batches(part[:half])
        yield from _batches(part[half:])


def _ended(span: Span) -> Span:
    """A span that is still running, as a receiver can show it: OTLP sends ended spans only."""
    return span if span.end_ns is not None else replace(span, end_ns=span.start_ns)


def _send(
    source: RunSpans, report: ExportReport, *, headers: list[tuple[str, str]], rate: float, after: str | None,
    total: int,
) -> None:
    import grpc
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

    parts = urlsplit(report.target)
    try:
        port = parts.port or 4317
    except ValueError:
        port = 0
    if not parts.hostname or not port or parts.path not in ("", "/"):
        raise ConfigurationError(f"--to {report.target}: expected otlp://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    options = [("grpc.max_send_message_length", -1)]
    channel = (
        grpc.secure_channel(f"{host}:{port}", grpc.ssl_channel_credentials(), options=options)
        if parts.scheme == "otlps" else grpc.insecure_channel(f"{host}:{port}", options=options)
    )
    began, done = time.monotonic(), after
    with channel, progress("export", total, unit="spans") as advance:
        stub: Any = TraceServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Export
        for cursor, spans in source.pages(after):
            for number, request in _batches([_ended(span) for span in spans]):
                answer = _call(lambda request=request: call(request, timeout=CALL_SECONDS, metadata=headers), done)  # type: ignore[misc]
                report.spans += number
                report.rejected += answer.partial_success.rejected_spans
                report.message = answer.partial_success.error_message or report.message
                advance(number)
                time.sleep(max(0.0, report.spans / rate - (time.monotonic() - began)))
            done = cursor


def _call(call: Callable[[], Any], done: str | None) -> Any:
    """The answer, after retries for about a minute where the receiver allows it."""
    import grpc

    deadline, pause, said = time.monotonic() + RETRY_SECONDS, 0.5, False
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code in RETRYABLE and time.monotonic() + pause < deadline and not _final(error):
                if not said:
                    _log.warning("otel-cmb: the receiver does not take the spans now (%s: %s); trying again for up to %.0f s",
                                 code, details[:LONGEST_DETAILS], RETRY_SECONDS)
                    said = True
                time.sleep(_asked(error) or pause)
                pause = min(pause * 2, 10.0)
                continue
            go_on = f"; go on with --after {done}" if done else ""
            raise CMBError(f"the receiver did not take the spans: {code}: {details[:LONGEST_DETAILS]}{go_on}") from error


def _trailer(error: Any) -> Any:
    """The RetryInfo of an answer: the trailer, or the standard status detail."""
    from google.rpc import error_details_pb2, status_pb2

    trailers = dict(error.trailing_metadata() or ())
    info = error_details_pb2.RetryInfo()
    if "google.rpc.retryinfo-bin" in trailers:
        return error_details_pb2.RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])
    if "grpc-status-details-bin" in trailers:
        for detail in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
            if detail.Unpack(info):
                return info
    return None


def _final(error: Any) -> bool:
    """RESOURCE_EXHAUSTED may be retried only where the receiver says when."""
    return error.code().name == "RESOURCE_EXHAUSTED" and _trailer(error) is None


def _asked(error: Any) -> float:
    info = _trailer(error)
    return 0.0 if info is None else min(info.retry_delay.seconds + info.retry_delay.nanos / 1e9, 30.0)
