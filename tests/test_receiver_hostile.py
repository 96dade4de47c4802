"""Thousands of malformed, truncated, oversized and hostile requests: the server goes on, its memory stays, good spans
are stored. The long form (`-m long`) sends a hundred thousand."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import TRACE, FakePipeline, Running, make_request, make_span, running

from otel_cmb import config, otlp
from otel_cmb.event import Link, SpanEvent
from otel_cmb.otlp_wire import varint
from otel_cmb.pipeline import Pipeline

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
JSON, PROTOBUF = "application/json", "application/x-protobuf"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(read_timeout=2, max_request_mib=4) as found:
        yield found


class Client:
    """One kept-alive HTTP connection, and one gRPC channel."""

    def __init__(self, server: Running) -> None:
        self._host, port = server.http.removeprefix("http://").split(":")
        self._port = int(port)
        self._connection = http.client.HTTPConnection(self._host, self._port, timeout=20)
        self._channel = grpc.insecure_channel(server.grpc)
        self._call = self._channel.unary_unary(EXPORT)

    def post(self, body: bytes, content_type: str = PROTOBUF, encoding: str | None = None) -> int:
        headers = {"content-type": content_type, **({"content-encoding": encoding} if encoding else {})}
        for attempt in (1, 2):
            try:
                self._connection.request("POST", "/v1/traces", body, headers)
                answer = self._connection.getresponse()
                answer.read()
                return answer.status
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if attempt == 2:
                    raise
        raise AssertionError

    def call(self, body: bytes) -> str:
        try:
            self._call(body, timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]
        return "OK"

    def close(self) -> None:
        self._connection.close()
        self._channel.close()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    found = Client(server)
    yield found
    found.close()


def still_serves(server: Running, client: Client) -> None:
    before = len(server.pipeline.spans)
    body = make_request(make_span(1)).SerializeToString()
    assert client.post(body) == 200
    assert client.call(body) == "OK"
    assert len(server.pipeline.spans) == before + 2
    house = server.receiver.house
    deadline = time.monotonic() + 60
    while (house.reading.inside or house.working.inside) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (house.reading.inside, house.reading.bytes, house.working.inside) == (0, 0, 0)
    assert server.receiver.intake.budget.used == 0


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


SEED = make_request(
    make_span(1, events=[SpanEvent("exception", 5, {"x": [1, {"y": None}]})]),
    make_span(2, links=[Link(TRACE, "a" * 16, "k=v", {"n": 1.5})], attributes={"deep": [[["x"]]], "b": b"\0\xff"}),
).SerializeToString()
SEED_JSON = orjson.dumps(otlp.json_from_spans([make_span(1, attributes={"a": [1, {"b": "c"}]}), make_span(2)]))
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"null",
    b"1e999",
    b"-1",
    b"NaN",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\x00",
    b"\xff",
    b'{"arrayValue":{"values":[',
    b'"traceId"',
    b'"spans"',
    b"9" * 400,
]


def mutated(random_: random.Random, data: bytes, tokens: list[bytes]) -> bytes:
    """The data after one to six small accidents."""
    body = bytearray(data)
    for _ in range(random_.randint(1, 6)):
        at = random_.randrange(len(body) + 1)
        kind = random_.randrange(6)
        if kind == 0 and body:
            body[at % len(body)] = random_.randrange(256)
        elif kind == 1:
            del body[at : at + random_.randint(1, 20)]
        elif kind == 2:
            body[at:at] = random_.choice(tokens)
        elif kind == 3:
            body[at:at] = body[at : at + random_.randint(1, 60)]
        elif kind == 4:
            del body[at:]
        else:
            body[at:at] = random_.randbytes(random_.randint(1, 8))
        body = body or bytearray(b"\0")
    return bytes(body)


def fuzz(server: Running, client: Client, count: int, seed: int) -> None:
    random_ = random.Random(seed)
    protobuf_tokens = [
        varint(2**63),
        b"\x0a\xff\xff\xff\x0f",
        b"\x0a\x00" * 20,
        b"\x07",
        b"\x0b",
        b"\xff" * 10,
        b"\x12\x10" + b"z" * 16,
    ]
    for n in range(count):
        if n % 2:
            body, content_type = mutated(random_, SEED, protobuf_tokens), PROTOBUF
        else:
            body, content_type = mutated(random_, SEED_JSON, TOKENS), JSON
        encoding = None
        if n % 7 == 0:
            body, encoding = gzip.compress(body, 1), "gzip"
            if n % 21 == 0:
                body = mutated(random_, body, [b"\0"])
        status = client.post(body, content_type, encoding)
        assert status in (200, 400, 413), (status, body, content_type, encoding)
        if n % 4 == 1:
            assert client.call(body) in ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), body
        if n % 500 == 0:
            server.pipeline.spans.clear()


def test_thousands_of_damaged_requests(server: Running, client: Client) -> None:
    fuzz(server, client, 2_500, seed=int(time.time()))
    still_serves(server, client)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_damaged_requests_leave_the_memory_as_it_was(server: Running, client: Client) -> None:
    fuzz(server, client, 5_000, seed=1)
    before = resident()
    fuzz(server, client, 100_000, seed=2)
    server.pipeline.spans.clear()
    assert resident() - before < 60_000_000
    still_serves(server, client)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from([JSON, PROTOBUF]), st.sampled_from([None, "gzip", "deflate"]))
def test_any_bytes_get_an_answer(
    server: Running, client: Client, body: bytes, content_type: str, encoding: str | None
) -> None:
    assert client.post(body, content_type, encoding) in (200, 400)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(json_values)
def test_any_json_anywhere_gets_an_answer_and_the_good_span_is_stored(
    server: Running, client: Client, value: Any
) -> None:
    good = otlp.json_from_spans([make_span(1)])
    good["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"] = value
    good["resourceSpans"].append(value)
    server.pipeline.spans.clear()
    assert client.post(json.dumps(good).encode(), JSON) == 200
    assert [span.name for span in server.pipeline.spans] == ["span 1"]


def bomb(size: int, wbits: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join([*(stream.compress(b"\0" * 1_048_576) for _ in range(size)), stream.flush()])


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_a_compression_bomb_is_refused_in_little_memory(
    server: Running, client: Client, encoding: str, wbits: int
) -> None:
    body = bomb(800, wbits)  # 800 MiB in less than one
    assert len(body) < 1_048_576
    before = resident()
    assert client.post(body, PROTOBUF, encoding) == 413
    assert client.call(body) == "RESOURCE_EXHAUSTED"
    assert resident() - before < 60_000_000
    assert client.post(gzip.compress(b"") * 100_000, PROTOBUF, "gzip") == 400
    still_serves(server, client)


def test_small_bytes_that_parse_into_large_memory_are_refused() -> None:
    with running() as server:
        client = Client(server)
        spans = b"\x12\x00" * 1_500_000
        nested = b"\x0a" + varint(len(spans) + len(varint(len(spans))) + 1) + b"\x12" + varint(len(spans)) + spans
        for body, content_type in (
            (b"\x0a\x00" * 10_000_000, PROTOBUF),
            (nested, PROTOBUF),
            (b'{"resourceSpans":[' + b"{}," * 5_000_000 + b"{}]}", JSON),
            (b"[" * 30_000_000, JSON),
        ):
            assert client.post(body, content_type) in (400, 413), body[:20]
        still_serves(server, client)
        client.close()


def test_deep_nesting_is_cut_or_malformed(server: Running, client: Client) -> None:
    for depth in (60, 200, 900, 5_000, 200_000):
        body = (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"%s","spanId":"%s","attributes":[{"key":"k","value":'
            % (TRACE.encode(), b"a" * 16)
            + b'{"arrayValue":{"values":[' * depth
            + b"]}}" * depth
            + b"}]}]}]}]}"
        )
        assert client.post(body, JSON) in ((200,) if depth <= 200 else (200, 400, 413))
        value = b""
        for _ in range(min(depth, 3_000)):
            value = b"\x2a" + varint(len(value) + len(varint(len(value))) + 1) + b"\x0a" + varint(len(value)) + value
        pair = b"\x0a\x01k\x12" + varint(len(value)) + value
        span = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8 + b"\x4a" + varint(len(pair)) + pair
        inner = b"\x12" + varint(len(span)) + span
        outer = b"\x12" + varint(len(inner)) + inner
        assert client.post(b"\x0a" + varint(len(outer)) + outer) == 200
    still_serves(server, client)


RAW = [
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"POST /v1/traces HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: x/y\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    b"\x00" * 100_000,
    b"POST " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_bytes_that_are_no_protocol(server: Running, client: Client, door: str) -> None:
    address = server.grpc if door == "grpc" else server.http.removeprefix("http://")
    host, port = address.split(":")
    for raw in RAW:
        with socket.create_connection((host, int(port)), timeout=5) as connection, contextlib.suppress(OSError):
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    still_serves(server, client)


def chunks(body: bytes) -> bytes:
    return b"%x;by=us\r\n" % len(body) + body + b"\r\n0\r\nx-cmb-run-id: of-the-trailer\r\ncontent-length: 3\r\n\r\n"


@pytest.mark.parametrize(("version", "lengths"), [
    (b"1.1", b"content-length: %d\r\ntransfer-encoding: chunked\r\n"),
    (b"1.1", b"transfer-encoding: chunked\r\ncontent-length: %d\r\n"),
    (b"1.0", b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n"),
])
@pytest.mark.parametrize("path", [b"/v1/traces", b"/healthz", b"/nowhere"])
def test_a_request_behind_one_with_two_ends_is_never_read(
    server: Running, client: Client, path: bytes, version: bytes, lengths: bytes
) -> None:
    """A proxy in front may take the second request for the body of the first, and so not look at it."""
    hidden = make_request(make_span(1)).SerializeToString()
    head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
    second = head + b"content-length: %d\r\n\r\n" % len(hidden) + hidden
    body = b"0\r\n\r\n" + second
    first = head.replace(b"1.1", version).replace(b"/v1/traces", path) + (lengths % len(body) if b"%" in lengths else lengths)
    server.pipeline.spans.clear()
    host, port = server.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(first + b"\r\n" + body)
        answer = b"".join(iter(partial(connection.recv, 65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert server.pipeline.spans == []
    still_serves(server, client)


def test_chunks_with_extensions_and_trailers_are_a_body_and_no_header(server: Running, client: Client) -> None:
    server.pipeline.spans.clear()
    bodies = [make_request(make_span(n)).SerializeToString() for n in range(1, 41)]
    head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ntransfer-encoding: chunked\r\n"
    ahead = [head + (b"connection: close\r\n" if body is bodies[-1] else b"") + b"\r\n" + chunks(body) for body in bodies]
    host, port = server.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"".join(ahead))  # all before the first answer
        answers = b"".join(iter(partial(connection.recv, 65_536), b""))
    assert answers.count(b"HTTP/1.1 200") == 40
    assert [span.name for span in server.pipeline.spans] == [f"span {n}" for n in range(1, 41)]
    assert {span.stamp.door_run_id for span in server.pipeline.spans} == {None}
    still_serves(server, client)


def test_half_open_connections_hold_nothing(server: Running, client: Client) -> None:
    host, port = server.http.removeprefix("http://").split(":")
    opened = [socket.create_connection((host, int(port))) for _ in range(200)]
    opened += [
        socket.create_connection((server.grpc.split(":")[0], int(server.grpc.split(":")[1]))) for _ in range(100)
    ]
    for n, connection in enumerate(opened):
        if n % 2:
            connection.sendall(b"POST /v1/tra")
    still_serves(server, client)
    for connection in opened:
        connection.close()


def test_senders_that_vanish_in_the_middle(server: Running, client: Client) -> None:
    host, port = server.http.removeprefix("http://").split(":")
    head = (
        b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n"
        b"content-type: application/x-protobuf\r\ncontent-length: 1000000\r\n\r\n"
    )
    for _ in range(100):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + b"x" * 50_000)
    still_serves(server, client)


def test_every_good_span_of_mixed_batches_under_fire_is_stored(tmp_path: Path) -> None:
    """Good senders and damaged requests at once, on the real pipeline: what was acknowledged is there."""
    known = {"database_url": f"sqlite:///{tmp_path}/e.db", "state_dir": str(tmp_path / "state")}
    pipeline = Pipeline(config.load({}, **known), per_trace_runs=True)
    acknowledged: list[int] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    try:
        with running(pipeline, general=known, read_timeout=2) as server:

            def good(first: int) -> None:
                try:
                    with grpc.insecure_channel(server.grpc) as channel:
                        stub = TraceServiceStub(channel)
                        for n in range(first, first + 30):
                            attributes = {"gen_ai.operation.name": "chat"}
                            spans = [make_span(k, trace_id=f"{n:032x}", attributes=attributes) for k in (1, 2)]
                            request = make_request(*spans)
                            request.resource_spans[0].scope_spans[0].spans.add(trace_id=b"short")
                            answer = stub.Export(request, timeout=30)
                            assert answer.partial_success.rejected_spans == 1
                            acknowledged.append(n)
                except BaseException as error:
                    failures.append(error)

            def bad() -> None:
                client, random_ = Client(server), random.Random(3)
                while not stop.is_set():
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        client.post(mutated(random_, SEED[:40], TOKENS))
                client.close()

            senders = [threading.Thread(target=good, args=(first,)) for first in (1_000, 2_000, 3_000)]
            noise = [threading.Thread(target=bad) for _ in range(2)]
            for thread in (*senders, *noise):
                thread.start()
            for thread in senders:
                thread.join(100)
            stop.set()
            for thread in noise:
                thread.join(30)
            assert failures == []
            assert pipeline.flush(30)
            assert pipeline.stats().balanced
    finally:
        pipeline.shutdown(5)
    connection = sqlite3.connect(tmp_path / "e.db")
    kept = {
        row[0]
        for row in connection.execute(
            "SELECT json_extract(meta, '$.otel.trace_id') FROM execution_events WHERE event_type = 'llm_call'"
        )
    }
    number = connection.execute("SELECT count(*) FROM execution_events WHERE event_type = 'llm_call'").fetchone()[0]
    connection.close()
    assert {f"{n:032x}" for n in acknowledged} <= kept
    assert len(acknowledged) == 90
    assert number >= 180


def test_the_fake_pipeline_is_what_the_receiver_needs() -> None:
    assert {"accept", "accept_logs", "stats", "sync"} <= set(dir(FakePipeline)) & set(dir(Pipeline))
