"""Hundreds of idle and dribbling clients on both doors: a good exporter is answered as if it were alone."""

from __future__ import annotations

import contextlib
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import certificates
import grpc
import pytest
import requests
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from receiver_support import Running, make_request, make_span, running

IDLE, SLOW = 200, 50

BODY = make_request(make_span(1)).SerializeToString()
HEAD = (b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
        b"content-length: 100000\r\n\r\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1"""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A literal that is not indexed (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
EXPORT = frame(1, 4, 1, b"".join([
    header(b":method", b"POST"), header(b":scheme", b"http"), header(b":authority", b"x"),
    header(b":path", b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
    header(b"content-type", b"application/grpc"), header(b"te", b"trailers"),
]))
DRIBBLE = {  # what a slow client begins with, then the same few bytes again and again
    "grpc": (PREFACE + EXPORT + frame(0, 0, 1, b"\0" + struct.pack(">I", 100_000)), frame(0, 0, 1, b"x")),
    "http": (HEAD, b"x"),
}
BEGUN = {"grpc": (b"", b"PRI * HT", PREFACE, PREFACE + EXPORT), "http": (b"", b"POST /v1/tra", HEAD, HEAD + b"x")}
"""How far idle clients of a door came."""


@contextlib.contextmanager
def crowd(server: Running) -> Iterator[list[socket.socket]]:
    addresses = {"grpc": server.grpc.split(":"), "http": server.http.removeprefix("http://").split(":")}
    everybody: list[socket.socket] = []
    slow: list[tuple[socket.socket, bytes]] = []
    for door, (host, port) in addresses.items():
        for n in range(IDLE + SLOW):
            connection = socket.create_connection((host, int(port)), timeout=20)
            everybody.append(connection)
            begun = DRIBBLE[door][0] if n < SLOW else BEGUN[door][n % 4]
            connection.sendall(begun)
            if n < SLOW:
                slow.append((connection, DRIBBLE[door][1]))
    enough = threading.Event()

    def dribble() -> None:
        while not enough.wait(0.1):
            for connection, piece in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(piece)

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield everybody
    finally:
        enough.set()
        thread.join()
        for connection in everybody:
            connection.close()


def ended_span() -> ReadableSpan:
    span = TracerProvider().get_tracer("t").start_span("good")
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def test_idle_and_dribbling_clients_keep_no_exporter_waiting() -> None:
    with running(max_concurrent=2, read_timeout=200) as server, crowd(server) as everybody:
        house = server.receiver.house
        deadline = time.monotonic() + 100
        # gRPC's silent streams and HTTP's unfinished bodies are inside, and hold no thread
        expected = 2 * SLOW + IDLE // 4 + 2 * (IDLE // 4)
        while house.reading.inside < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert house.reading.inside == expected
        assert house.working.inside == 0
        exporter = OTLPSpanExporter(endpoint=server.grpc, insecure=True, timeout=60)
        session = requests.Session()
        took: list[float] = []
        span = ended_span()
        for _ in range(20):
            started = time.monotonic()
            assert exporter.export([span]) is SpanExportResult.SUCCESS
            between = time.monotonic()
            found = session.post(server.http + "/v1/traces", BODY, timeout=60,
                                 headers={"content-type": "application/x-protobuf"})
            assert found.status_code == 200
            took += [between - started, time.monotonic() - between]
        exporter.shutdown()
        assert statistics.median(took) < 2  # some milliseconds on a quiet machine; behind the others it would be minutes
        assert max(took) < 20
        assert len(server.pipeline.spans) == 40
        assert len(everybody) == 2 * (IDLE + SLOW)


def test_their_time_ends() -> None:
    with running(read_timeout=1) as server, crowd(server):
        house = server.receiver.house
        began = IDLE // 4  # of the idle ones, in each of the ways
        expected = {("http", "traces", "slow"): SLOW + 2 * began, ("grpc", "traces", "slow"): SLOW + began}
        answers = server.receiver.intake.requests
        deadline = time.monotonic() + 100
        while ({key: answers[key] for key in expected} != expected or house.reading.inside) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {key: answers[key] for key in expected} == expected
        assert (house.reading.inside, house.reading.bytes, house.working.inside) == (0, 0, 0)


def test_clients_that_never_finish_their_handshake_keep_nobody_waiting(made: Path) -> None:
    flags = {"tls_cert": str(made / "server1.crt"), "tls_key": str(made / "server1.key")}
    with running(**flags) as server:
        addresses = [server.grpc.split(":"), server.http.removeprefix("http://").split(":")]
        waiting = [socket.create_connection((host, int(port))) for host, port in addresses for _ in range(IDLE)]
        hello = ssl.MemoryBIO()
        client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        half = hello.read()[:100]
        for n, connection in enumerate(waiting):
            if n % 2:
                connection.sendall(half)
        url = server.http.replace("http://", "https://")
        took = []
        for _ in range(10):
            started = time.monotonic()
            found = requests.post(url + "/v1/traces", BODY, timeout=60, verify=str(made / "ca1.crt"),
                                  headers={"content-type": "application/x-protobuf"})
            assert found.status_code == 200
            took.append(time.monotonic() - started)
        exporter = OTLPSpanExporter(
            endpoint=f"https://localhost:{addresses[0][1]}", timeout=60,
            credentials=grpc.ssl_channel_credentials((made / "ca1.crt").read_bytes()))
        started = time.monotonic()
        assert exporter.export([ended_span()]) is SpanExportResult.SUCCESS
        took.append(time.monotonic() - started)
        exporter.shutdown()
        assert max(took) < 20
        for connection in waiting:
            connection.close()
