"""What a caller of Jaeger's gRPC API can take from the server: little, and nothing before it may ask."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from jaeger_support import Client, served, store_spans
from receiver_support import running

from otel_cmb.event import Resource, Span
from otel_cmb.jaeger.proto import trace_storage_pb2 as storage

READER = "/jaeger.storage.v2.TraceReader/"
T0 = 1_770_000_000_000_000_000


def span(trace: int, number: int = 1, **fields: Any) -> Span:
    return Span(f"{trace:032x}", f"{number:016x}", "op", T0, T0 + 1, resource=Resource({"service.name": "svc"}), **fields)


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


@pytest.fixture
def door(sqlite_url: str, state_dir: Path) -> Iterator[str]:
    """Jaeger's port of a receiver, with everything that stands before it there."""
    store_spans(sqlite_url, state_dir, [span(1)])
    known = {"database_url": sqlite_url, "state_dir": str(state_dir)}
    with running(general=known, jaeger_storage="127.0.0.1:0") as server:
        yield str(server.receiver.addresses["jaeger"])


def test_compressed_questions_are_understood(door: str) -> None:
    request = storage.GetOperationsRequest(service="svc", span_kind="")
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
        with grpc.insecure_channel(door, compression=compression) as channel:
            call = channel.unary_unary(
                READER + "GetOperations", storage.GetOperationsRequest.SerializeToString,
                storage.GetOperationsResponse.FromString)
            assert [found.name for found in call(request, timeout=10).operations] == ["op"]
            assert Client(channel).find_traces(service="svc")


BOMBS = """
import sys, grpc
address, *methods = sys.argv[1:]
with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
    for method in methods:
        try:
            print(method, list(channel.unary_stream(method)(bytes(200_000_000), timeout=60)))
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""


def test_a_compression_bomb_is_refused_in_little_memory(door: str) -> None:
    """The sender, which holds 200 MB of nothing and sends 200 kB, is a process of its own."""
    export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    highest, before = 0, resident()
    sender = subprocess.Popen(
        [sys.executable, "-c", BOMBS, door, READER + "GetServices", READER + "FindTraces", export],
        stdout=subprocess.PIPE, text=True)
    while sender.poll() is None:
        highest = max(highest, resident())
        time.sleep(0.005)
    assert sender.stdout is not None
    jaegers, otlps = "more than 4194304 bytes after decompression", "more than 67108864 bytes after decompression"
    assert sender.stdout.read().splitlines() == [
        f"INVALID_ARGUMENT {jaegers}", f"INVALID_ARGUMENT {jaegers}",
        f"RESOURCE_EXHAUSTED {otlps}; send smaller requests"]
    assert highest - before < 180_000_000  # OTLP's writer may take 64 MiB, and other tests left threads in this process
    with grpc.insecure_channel(door) as channel:
        assert Client(channel).services() == ["svc"]


def test_large_questions_and_those_that_are_none_are_refused(door: str) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(door, options=options) as channel:
        for method in ("GetServices", "GetOperations"):
            call = channel.unary_unary(READER + method)
            code, text = refusal(lambda call=call: call(b"\x0a" + b"\x85\x80\x80\x02" + b"x" * 4_194_309, timeout=10))
            assert (code, text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "a question may have 4194304 bytes")
            assert refusal(lambda call=call: call(b"\x0b", timeout=10))[0] is grpc.StatusCode.INVALID_ARGUMENT
            assert refusal(lambda call=call: call(gzip.compress(b"x")[:9], timeout=10))[0] is (
                grpc.StatusCode.INVALID_ARGUMENT)
            assert refusal(lambda call=call: call(zlib.compress(b"\x0b"), timeout=10))[0] is (
                grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal(lambda: call(b"x" * 70_000_000, timeout=20))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert Client(channel).services() == ["svc"]


def test_who_may_not_ask_is_told_before_the_question_is_received(sqlite_url: str) -> None:
    def allow(_: Any) -> tuple[grpc.StatusCode, str]:
        return grpc.StatusCode.PERMISSION_DENIED, "not you"

    sent = []

    def slowly() -> Iterator[bytes]:
        for n in range(500):
            sent.append(n)
            time.sleep(0.02)
            yield b"x" * 1_000

    with served(sqlite_url, allow) as address, grpc.insecure_channel(address) as channel:
        for make in (channel.stream_unary, channel.stream_stream):
            name = "GetServices" if make == channel.stream_unary else "FindTraces"
            assert refusal(lambda make=make, name=name: list(make(READER + name)(slowly(), timeout=10))) == (
                grpc.StatusCode.PERMISSION_DENIED, "not you")
    assert len(sent) < 400


def silence(never: threading.Event) -> Iterator[bytes]:
    """A question that does not come."""
    never.wait(20)
    yield b""


def test_a_question_that_does_not_come_ends(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.jaeger.calls.SECONDS", 0.3)
    never = threading.Event()

    with served(sqlite_url) as address, grpc.insecure_channel(address) as channel:
        call = channel.stream_unary(READER + "GetServices")
        assert refusal(lambda: call(silence(never), timeout=10))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()
        assert Client(channel).services() == []


def test_more_calls_than_allowed_are_told_to_come_back(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.jaeger.calls.AT_ONCE", 5)
    never = threading.Event()

    with served(sqlite_url) as address, grpc.insecure_channel(address) as channel:
        waiting = []
        deadline = time.monotonic() + 60
        while True:  # one more each time: one that comes while the server still lets go of an answered call is refused itself
            waiting.append(channel.stream_unary(READER + "GetServices").future(silence(never), timeout=90))
            try:
                Client(channel).services()
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
                break
            assert time.monotonic() < deadline
        for call in waiting:
            call.cancel()
        never.set()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert Client(channel).services() == []
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline


def test_clients_that_do_not_take_their_answers_hold_nobody_up(
    database_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("otel_cmb.jaeger.calls.SECONDS", 1.5)
    store_spans(database_url, state_dir, [
        span(1, number, attributes={"text": "x" * 10_000}) for number in range(1, 1_200)  # twelve megabytes
    ])
    with served(database_url) as address:
        question = storage.GetTracesRequest(query=[storage.GetTraceParams(trace_id=bytes(15) + b"\1")])
        lazy, calls = [], []
        try:
            for _ in range(12):  # three for each of the server's threads
                channel = grpc.insecure_channel(address, options=[
                    ("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)])
                lazy.append(channel)
                calls.append(channel.unary_stream(READER + "GetTraces")(question.SerializeToString()))
                next(calls[-1])
            with grpc.insecure_channel(address) as channel:
                started = time.monotonic()
                assert Client(channel).services() == ["svc"]
                assert sum(map(len, Client(channel).get_traces(f"{1:032x}").values())) == 1_199
                took = time.monotonic() - started
                print(f"answered after {took:.1f} s")
                assert took < 5
            deadline = time.monotonic() + 60
            while caplog.text.count("took no piece") < 12 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert caplog.text.count("took no piece") == 12
        finally:
            for channel in lazy:
                channel.close()
