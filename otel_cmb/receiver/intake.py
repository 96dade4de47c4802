"""A request's bytes to spans to the pipeline to an answer. Knows no transport; runs in a worker thread."""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import BoundedSemaphore, Lock
from typing import Any, Protocol

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_cmb.errors import CMBError, JournalError
from otel_cmb.event import Span
from otel_cmb.otlp import (
    Decoded,
    MalformedError,
    SpanContent,
    count_spans,
    decode,
    log_records_from_json,
    log_records_from_request,
)
from otel_cmb.otlp_json import read_json
from otel_cmb.otlp_shallow import Shallow, TooManySpansError
from otel_cmb.otlp_wire import TooManyPartsError, check_parts, parse
from otel_cmb.receiver.answers import Answer
from otel_cmb.receiver.gate import Budget
from otel_cmb.receiver.tokens import Caller

__all__ = ["Intake", "Limits", "Pipeline", "inflate"]

_LOG = logging.getLogger("otel_cmb.receiver")
MIB = 1_048_576
LARGE = 2 * MIB
"""Above this size the number of messages is checked before parsing; below it the parser's memory is small enough."""
MAX_GZIP_MEMBERS = 64
MAX_RUN_ID = 255
DECODERS = 2
"""Requests decoded at once: decoding holds the interpreter, more at once only takes more memory."""
WBITS = {"gzip": 31, "deflate": 15}


class TooLargeError(ValueError):
    """More bytes, spans or parts than the limits allow."""


class NothingKnownError(ValueError):
    """JSON without anything the receiver knows: unknown fields are ignored, as the protocol demands, but not in silence."""


class Pipeline(Protocol):
    """What the receiver asks of :class:`otel_cmb.pipeline.Pipeline`."""

    def accept(self, spans: list[Span]) -> Any: ...
    def accept_logs(self, records: Sequence[SpanContent]) -> Any: ...
    def sync(self) -> None: ...
    def stats(self) -> Any: ...
    def unanswered(self) -> float: ...


class Limits:
    """The limits of one request."""

    def __init__(self, max_bytes: int = 64 * MIB, max_spans: int = 100_000, max_parts: int = 2_000_000) -> None:
        self.max_bytes = max_bytes
        self.max_spans = max_spans
        self.max_parts = max_parts


def inflate(data: bytes, encoding: str, limit: int) -> bytes:
    """The decompressed body, never more than `limit` bytes of it in memory.

    Raises :class:`MalformedError` for bytes that are no such stream, :class:`TooLargeError` beyond the limit.
    """
    pieces: list[bytes] = []
    total = members = 0
    while data:
        members += 1
        if members > MAX_GZIP_MEMBERS:
            raise MalformedError(f"more than {MAX_GZIP_MEMBERS} {encoding} members in one body")
        stream = zlib.decompressobj(WBITS[encoding])
        try:
            piece = stream.decompress(data, limit - total + 1)
        except zlib.error as error:
            raise MalformedError(f"the body is not {encoding}: {error}") from error
        total += len(piece)
        if total > limit:
            raise TooLargeError(f"more than {limit} bytes after decompression")
        if not stream.eof:
            raise MalformedError(f"the {encoding} body ends too early")
        pieces.append(piece)
        data = stream.unused_data.lstrip(b"\0")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Intake:
    """Takes requests and answers when their spans are safe.

    `answer_timeout`: seconds a request waits for its commit; what is still pending then is fsynced in the journal and
    the answer is OK. `closing` answers everything with "unavailable".
    """

    def __init__(
        self, pipeline: Pipeline, limits: Limits, *, answer_timeout: float = 5.0, budget_bytes: int = 256 * MIB,
        fail_on_missing_run: bool = False, clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.pipeline = pipeline
        self.limits = limits
        self.closing = False
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """(door, signal, situation) -> requests"""
        self.rejected_spans = 0
        """Spans without usable ids: answered by `partial_success`, never seen by the pipeline."""
        self.budget = Budget(budget_bytes)
        self._answer_timeout = answer_timeout
        self._fail_on_missing_run = fail_on_missing_run
        self._clock = clock
        self._decoders = BoundedSemaphore(DECODERS)
        self._shallow = Shallow()
        self._lock = Lock()

    def count(self, door: str, signal: str, answer: Answer) -> Answer:
        """Count an answer that never reached :meth:`take`, and give it back."""
        with self._lock:
            self.requests[door, signal, answer.situation] += 1
            if signal == "traces" and answer.situation == "ok":
                self.rejected_spans += answer.rejected
        return answer

    def take(
        self, door: str, signal: str, body: bytes, *, as_json: bool = False, encoding: str = "identity",
        caller: Caller = Caller(),  # noqa: B008  (frozen)
    ) -> Answer:
        """The answer to one request. Never raises; a bug of ours is logged with its traceback and answered as such."""
        try:
            answer = self._take(signal, body, as_json, encoding, caller)
        except (TooLargeError, TooManyPartsError, TooManySpansError) as error:
            answer = Answer("too_large", f"{error}; send smaller requests")
        except NothingKnownError as error:
            _LOG.warning("a request held nothing to store: %s", error)
            answer = Answer("ok", str(error))
        except MalformedError as error:
            answer = Answer("malformed", str(error), violations=[str(error)])
        except (JournalError, CMBError, OSError) as error:
            _LOG.error("cannot take spans: %s", error)
            answer = Answer("unavailable", f"cannot take spans now: {error}", retry_after=5)
        except MemoryError:
            answer = Answer("overloaded", "not enough memory for this request now", retry_after=5)
        except Exception as error:  # noqa: BLE001  (the sender must get an answer; nothing was acknowledged)
            _LOG.exception("a %s request failed in the server", signal)
            answer = Answer("internal", f"the server failed on this request: {type(error).__name__}")
        return self.count(door, signal, answer)

    def _take(self, signal: str, body: bytes, as_json: bool, encoding: str, caller: Caller) -> Answer:
        if self.closing:
            return Answer("unavailable", "the server is shutting down")
        if caller.run_id is not None and not 0 < len(caller.run_id) <= MAX_RUN_ID:
            raise MalformedError(f"x-cmb-run-id has {len(caller.run_id)} characters, expected 1 to {MAX_RUN_ID}")
        if len(body) > self.limits.max_bytes:
            raise TooLargeError(f"{len(body)} bytes, the limit is {self.limits.max_bytes}")
        # a compressed body may become this large; an honest one is rarely more than ten times its size
        size = len(body) if encoding == "identity" else min(len(body) * 10, self.limits.max_bytes)
        if not self.budget.take(size, self._answer_timeout):
            return Answer("overloaded", "too many requests wait for their commit")
        try:
            with self._decoders:
                if encoding != "identity":
                    body = inflate(body, encoding, self.limits.max_bytes)
                work = self._traces(body, as_json) if signal == "traces" else self._logs(body, as_json)
            del body
            return self._store(work, caller) if isinstance(work, Decoded) else self._join(work, caller)
        finally:
            self.budget.give(size)

    def _check(self, kind: type[Message], body: bytes) -> None:
        if len(body) > LARGE:
            check_parts(body, self.limits.max_parts, kind)

    def _json(self, body: bytes, expected: str) -> Any:
        if len(body) > LARGE and body.count(b"{") + body.count(b"[") > 2 * self.limits.max_parts:
            raise TooLargeError(f"more than {2 * self.limits.max_parts} JSON objects in one request")
        found = read_json(body)
        if isinstance(found, dict) and found and expected not in found:
            keys = ", ".join(map(repr, list(found)[:5]))[:200]
            raise NothingKnownError(f"found {keys}, expected {expected} (field names are lowerCamelCase): nothing is stored")
        return found

    def _traces(self, body: bytes, as_json: bool) -> Decoded:
        if as_json:
            decoded = decode(self._json(body, "resourceSpans"), self._clock())
        else:
            self._check(ExportTraceServiceRequest, body)
            found = self._shallow.decode(body, self._clock(), self.limits.max_spans)
            if found is not None:
                return found
            request, unreadable = parse(ExportTraceServiceRequest, body)
            if (number := count_spans(request)) > self.limits.max_spans:
                raise TooLargeError(f"{number} spans in one request, the limit is {self.limits.max_spans}")
            decoded = decode(request, self._clock())
            decoded.rejected.extend(unreadable)
        if (number := len(decoded.spans) + len(decoded.rejected)) > self.limits.max_spans:
            raise TooLargeError(f"{number} spans in one request, the limit is {self.limits.max_spans}")
        return decoded

    def _logs(self, body: bytes, as_json: bool) -> list[SpanContent]:
        if as_json:
            return log_records_from_json(self._json(body, "resourceLogs"))
        self._check(ExportLogsServiceRequest, body)
        request, _ = parse(ExportLogsServiceRequest, body)
        return log_records_from_request(request)

    def _store(self, decoded: Decoded, caller: Caller) -> Answer:
        rejected = decoded.rejected
        if rejected:
            _LOG.warning("%d spans rejected, first: %s", len(rejected), rejected[0])
        message = _first(rejected)
        if not decoded.spans:
            return Answer("ok", message, rejected=len(rejected))
        _stamp(decoded.spans, caller)
        received = len(decoded.spans)
        ticket = self.pipeline.accept(decoded.spans)
        decoded.spans = []
        # of a database that has just kept others waiting that long, nobody waits for an answer
        hangs = self.pipeline.unanswered() > self._answer_timeout
        outcome = ticket.wait(0.0 if hangs else self._answer_timeout)
        if outcome.lost:
            return Answer("unavailable", f"{outcome.lost} spans could not be kept: the journal is full", retry_after=5)
        if outcome.pending or outcome.parked:
            self.pipeline.sync()
        if outcome.refused:
            why = f"{outcome.refused} spans name a run of another session than the token's {caller.session_id!r}"
            if outcome.refused == received and not rejected:
                return Answer("refused", why)
            message = f"{message}; {why}" if message else why
        missing = outcome.parked.get("run_not_found", 0)
        if missing and self._fail_on_missing_run:
            return Answer(
                "run_missing",
                f"{missing} spans name a run that is not in the database; they are kept (`otel-cmb parked list`)",
            )
        return Answer("ok", message, rejected=len(rejected) + outcome.refused)

    def _join(self, records: list[SpanContent], caller: Caller) -> Answer:
        if records:
            for record in records:
                record.bound_session_id = caller.session_id
            self.pipeline.accept_logs(records)
            self.pipeline.sync()
        return Answer()


def _stamp(spans: Iterable[Span], caller: Caller) -> None:
    if caller.run_id is None and caller.session_id is None:
        return
    for span in spans:
        span.stamp.door_run_id = caller.run_id
        span.stamp.bound_session_id = caller.session_id


def _first(rejected: list[str]) -> str:
    if not rejected:
        return ""
    return rejected[0] if len(rejected) == 1 else f"{rejected[0]} (and {len(rejected) - 1} more)"
