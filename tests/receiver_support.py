"""A receiver in a thread, with the real doors on real sockets, in front of a pipeline made of a list."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_cmb import config
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.otlp import request_from_spans
from otel_cmb.receiver.server import Receiver
from otel_cmb.receiver.settings import load

TRACE = "0af7651916cd43dd8448eb211c80319c"


def make_span(n: int = 1, **changes: Any) -> Span:
    values: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": f"{n:016x}",
        "name": f"span {n}",
        "start_ns": 1_700_000_000_000_000_000 + n,
        "end_ns": 1_700_000_000_000_001_000 + n,
        "attributes": {"gen_ai.operation.name": "chat"},
        "resource": Resource({"service.name": "t"}),
        "scope": Scope("s", "1"),
    }
    return Span(**{**values, **changes})


def make_request(*spans: Span) -> ExportTraceServiceRequest:
    return request_from_spans(spans)


@dataclass
class FakeOutcome:
    received: int = 0
    committed: int = 0
    ignored: int = 0
    merged: int = 0
    refused: int = 0
    pending: int = 0
    lost: int = 0
    parked: dict[str, int] = field(default_factory=dict)
    settled: bool = True


class FakeTicket:
    def __init__(self, outcome: FakeOutcome, hold: threading.Event) -> None:
        self._outcome, self._hold = outcome, hold

    def wait(self, timeout: float | None = None) -> FakeOutcome:
        self._hold.wait(timeout)
        return self._outcome


class FakePipeline:
    """Takes everything at once unless told otherwise."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.logs: list[Any] = []
        self.synced = 0
        self.error: Exception | None = None
        self.outcome: FakeOutcome | None = None
        self.hold = threading.Event()
        self.hold.set()

    def accept(self, spans: list[Span]) -> FakeTicket:
        if self.error is not None:
            raise self.error
        self.spans.extend(spans)
        outcome = self.outcome or FakeOutcome(received=len(spans), committed=len(spans))
        return FakeTicket(outcome, self.hold)

    def accept_logs(self, records: list[Any]) -> None:
        self.logs.extend(records)

    def sync(self) -> None:
        self.synced += 1

    def unanswered(self) -> float:
        return 0.0

    def stats(self) -> dict[str, Any]:
        return {"received": len(self.spans), "committed": len(self.spans), "parked": {}}


@dataclass
class Running:
    receiver: Receiver
    pipeline: Any

    @property
    def grpc(self) -> str:
        return str(self.receiver.addresses["grpc"])

    @property
    def http(self) -> str:
        return f"http://{self.receiver.addresses['http']}"


@contextlib.contextmanager
def running(
    pipeline: Any = None, general: dict[str, Any] | None = None, *, web: bool = False, **flags: Any
) -> Iterator[Running]:
    pipeline = FakePipeline() if pipeline is None else pipeline
    flags = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_timeout": 2, **flags}
    settings, _ = load(flags, env={})
    receiver = Receiver(settings, config.load({}, **(general or {})), pipeline, web=web)
    ready, failed = threading.Event(), []
    loop_and_stop: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop_and_stop.extend((asyncio.get_running_loop(), stop))
        await receiver.run(stop, lambda _: ready.set())

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(20)
    if failed:
        raise failed[0]
    try:
        yield Running(receiver, pipeline)
    finally:
        loop, stop = loop_and_stop
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
        if failed:
            raise failed[0]
