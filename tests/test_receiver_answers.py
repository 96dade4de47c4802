"""Every row of OTLP's table of answers, by both doors, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import requests
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import TRACE, FakeOutcome, FakePipeline, Running, make_request, make_span, running

from otel_cmb import otlp
from otel_cmb.errors import JournalError
from otel_cmb.receiver import grpc_door

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def post(server: Running, data: bytes, path: str = "/v1/traces", **headers: str) -> requests.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return requests.post(server.http + path, data=data, headers={**PROTOBUF, **named}, timeout=20)


def export(server: Running, request: Any, metadata: Any = (), compression: Any = None) -> Any:
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        return TraceServiceStub(channel).Export(request, timeout=20, metadata=metadata, compression=compression)


def failure(server: Running, request: Any, metadata: Any = ()) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        export(server, request, metadata)
    return caught.value


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    trailers = dict(error.trailing_metadata())  # type: ignore[attr-defined]
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


def bad_span(name: str = "bad") -> Any:
    request = make_request(make_span(1), make_span(2))
    request.resource_spans[0].scope_spans[0].spans.add(trace_id=b"", span_id=b"", name=name)
    return request


# all stored


def test_stored_spans_are_answered_ok_with_nothing_to_say(server: Running) -> None:
    assert export(server, make_request(make_span(1))) == ExportTraceServiceResponse()
    answer = post(server, make_request(make_span(2)).SerializeToString())
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/x-protobuf"
    answer = requests.post(server.http + "/v1/traces", json=otlp.json_from_spans([make_span(3)]), timeout=5)
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["content-type"] == "application/json"
    assert [span.name for span in server.pipeline.spans] == ["span 1", "span 2", "span 3"]


def test_an_empty_request_is_ok(server: Running) -> None:
    assert export(server, make_request()) == ExportTraceServiceResponse()
    assert post(server, b"").status_code == 200
    assert requests.post(server.http + "/v1/traces", data="{}", headers=JSON, timeout=5).status_code == 200
    assert server.pipeline.spans == []


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_parameters_and_case_of_the_content_type_do_not_matter(server: Running, media_type: str) -> None:
    body = json.dumps(otlp.json_from_spans([make_span(1)]))
    assert requests.post(server.http + "/v1/traces", data=body, headers={"content-type": media_type}, timeout=5).ok
    assert len(server.pipeline.spans) == 1


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("identity", bytes),
        ("deflate", zlib.compress),
        ("GZIP", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
    ],
)
def test_compressed_bodies_are_read(server: Running, encoding: str, compress: Any) -> None:
    body = make_request(make_span(1, attributes={"text": "x" * 5_000})).SerializeToString()
    assert post(server, compress(body), content_encoding=encoding).status_code == 200
    as_json = json.dumps(otlp.json_from_spans([make_span(2)])).encode()
    headers = {**JSON, "content-encoding": encoding}
    assert (
        requests.post(server.http + "/v1/traces", data=compress(as_json), headers=headers, timeout=5).status_code == 200
    )
    assert len(server.pipeline.spans) == 2


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_compressed_messages_are_read(server: Running, compression: Any) -> None:
    export(server, make_request(make_span(1, attributes={"text": "x" * 5_000})), compression=compression)
    assert server.pipeline.spans[0].attributes == {"text": "x" * 5_000}


# some spans invalid


def test_invalid_spans_are_rejected_and_the_rest_stored(server: Running) -> None:
    answer = export(server, bad_span())
    assert answer.partial_success.rejected_spans == 1
    assert "'bad'" in answer.partial_success.error_message
    found = post(server, bad_span().SerializeToString())
    assert found.status_code == 200
    assert ExportTraceServiceResponse.FromString(found.content).partial_success.rejected_spans == 1
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": TRACE, "spanId": "1", "name": "bad"}]}]}]}
    partial = requests.post(server.http + "/v1/traces", json=body, timeout=5).json()["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "'bad'" in partial["errorMessage"]
    assert len(server.pipeline.spans) == 4


def test_one_span_with_broken_text_does_not_cost_its_batch(server: Running) -> None:
    data = make_request(*[make_span(n, name="QQQQ") for n in range(1, 4)]).SerializeToString()
    assert post(server, data.replace(b"QQQQ", b"Q\xff\xffQ", 1)).status_code == 200
    assert sorted(span.name for span in server.pipeline.spans) == ["QQQQ", "QQQQ", "Q\ufffd\ufffdQ"]


# malformed


@pytest.mark.parametrize("body", [b"junk", b"\x0a\xff", make_request(make_span(1)).SerializeToString()[:-4]])
def test_malformed_protobuf_is_an_invalid_argument(server: Running, body: bytes) -> None:
    answer = post(server, body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert status_pb2.Status.FromString(answer.content).code == 3
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    status = status_of(caught.value)
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == "body"


@pytest.mark.parametrize("body", ["junk", "[1]", '"x"', '{"resourceSpans": 5}', "[" * 5_000, ""])
def test_malformed_json_is_400_with_a_status_in_json(server: Running, body: str) -> None:
    answer = requests.post(server.http + "/v1/traces", data=body, headers=JSON, timeout=5)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["code"] == 3
    assert answer.json()["message"]


@pytest.mark.parametrize(("path", "expected", "body"), [
    ("/v1/traces", "resourceSpans", '{"resource_spans": []}'), ("/v1/logs", "resourceLogs", '{"resourceSpans": []}'),
    ("/v1/traces", "resourceSpans", '{"a\\n\\u001b[31m": 1, "resourceLogs": []}'),
])
def test_json_with_nothing_that_is_known_is_said_to_hold_nothing(
    server: Running, caplog: pytest.LogCaptureFixture, path: str, expected: str, body: str
) -> None:
    """The protocol wants unknown fields ignored; who writes `resource_spans` would wait for its spans for ever."""
    answer = post(server, body.encode(), path=path, **{"content-type": "application/json"})
    assert answer.status_code == 200
    [said] = answer.json()["partialSuccess"].values()
    assert f"expected {expected}" in said
    assert "nothing is stored" in said
    [record] = [record for record in caplog.records if "held nothing" in record.getMessage()]
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("body", ["{}", '{"resourceSpans": []}', '{"resourceSpans": [], "more": 1}'])
def test_json_without_spans_is_ok(server: Running, body: str) -> None:
    answer = post(server, body.encode(), **{"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b"x" * 1_000, mtime=0)[:-9], gzip.compress(b"a", mtime=0) + b"junk"])
def test_bodies_that_do_not_decompress_are_400(server: Running, body: bytes) -> None:
    assert post(server, body, content_encoding="gzip").status_code == 400


# cannot be taken now


def test_a_journal_that_takes_nothing_is_unavailable_with_a_hint(server: Running) -> None:
    server.pipeline.error = JournalError("disk full")
    error = failure(server, make_request(make_span(1)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    info = error_details_pb2.RetryInfo()
    assert status_of(error).details[0].Unpack(info)
    assert info.retry_delay.seconds >= 1
    trailer = dict(error.trailing_metadata())["google.rpc.retryinfo-bin"]  # type: ignore[attr-defined]
    assert error_details_pb2.RetryInfo.FromString(trailer) == info
    answer = post(server, make_request(make_span(1)).SerializeToString())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert status_pb2.Status.FromString(answer.content).code == 14


def test_lost_spans_are_never_answered_ok(server: Running) -> None:
    server.pipeline.outcome = FakeOutcome(received=1, lost=1)
    assert failure(server, make_request(make_span(1))).code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "outcome", [FakeOutcome(received=1, pending=1), FakeOutcome(received=1, parked={"run_not_found": 1})]
)
def test_what_is_not_committed_is_fsynced_before_the_answer(server: Running, outcome: FakeOutcome) -> None:
    server.pipeline.outcome = outcome
    export(server, make_request(make_span(1)))
    assert server.pipeline.synced == 1
    server.pipeline.outcome = None
    export(server, make_request(make_span(1)))
    assert server.pipeline.synced == 1


def test_a_missing_run_fails_the_request_when_that_is_the_policy() -> None:
    with running(general={"on_missing_run": "fail"}) as server:
        server.pipeline.outcome = FakeOutcome(received=1, parked={"run_not_found": 1})
        error = failure(server, make_request(make_span(1)))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
        assert post(server, make_request(make_span(1)).SerializeToString()).status_code == 400
        assert server.pipeline.synced == 2


def test_a_bug_of_ours_is_an_internal_error_and_the_server_goes_on(server: Running) -> None:
    server.pipeline.error = ZeroDivisionError("bug")
    assert failure(server, make_request(make_span(1))).code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
    assert post(server, make_request(make_span(1)).SerializeToString()).status_code == 500
    server.pipeline.error = None
    export(server, make_request(make_span(1)))
    assert len(server.pipeline.spans) == 1


# overload


def held(server: Running) -> FakePipeline:
    pipeline: FakePipeline = server.pipeline
    pipeline.hold.clear()
    return pipeline


def test_more_requests_than_allowed_are_told_to_come_back() -> None:
    with running(max_concurrent=1, answer_timeout=20) as server:
        pipeline = held(server)
        body = make_request(make_span(1)).SerializeToString()
        threads = [threading.Thread(target=post, args=(server, body)) for _ in range(2)]  # one works, one waits
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while server.receiver.house.working.inside < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        answer = post(server, body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        error = failure(server, make_request(make_span(1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert "google.rpc.retryinfo-bin" in dict(error.trailing_metadata())  # type: ignore[attr-defined]
        pipeline.hold.set()
        for thread in threads:
            thread.join(20)
        assert post(server, body).status_code == 200


def test_more_bytes_waiting_than_allowed_are_told_to_come_back() -> None:
    with running(max_waiting_mib=1, answer_timeout=1) as server:
        pipeline = held(server)
        big = make_request(make_span(1, attributes={"x": "y" * 700_000})).SerializeToString()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(post(server, big).status_code)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        pipeline.hold.set()
        assert set(answers) <= {200, 429}
        assert 429 in answers
        assert post(server, big).status_code == 200
        assert server.receiver.intake.budget.used == 0


# too large


def test_large_requests_are_refused_and_not_to_be_retried() -> None:
    with running(max_request_mib=1) as server:
        big = make_request(make_span(1, attributes={"x": "y" * 1_100_000}))
        data = big.SerializeToString()
        answer = post(server, data)
        assert answer.status_code == 413
        assert "retry-after" not in answer.headers
        error = failure(server, big)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert "google.rpc.retryinfo-bin" not in dict(error.trailing_metadata() or ())  # type: ignore[attr-defined]
        # also in chunks, whose length is not known before, and after decompression
        chunks = (data[n : n + 65_536] for n in range(0, len(data), 65_536))
        assert requests.post(server.http + "/v1/traces", data=chunks, headers=PROTOBUF, timeout=10).status_code == 413
        assert post(server, gzip.compress(data), content_encoding="gzip").status_code == 413
        with pytest.raises(grpc.RpcError) as caught:
            export(server, big, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert export(server, make_request(make_span(1))) == ExportTraceServiceResponse()
        assert len(server.pipeline.spans) == 1


def test_more_spans_than_allowed_are_refused() -> None:
    with running(max_spans=5) as server:
        request = make_request(*[make_span(n) for n in range(1, 7)])
        assert failure(server, request).code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert (
            requests.post(
                server.http + "/v1/traces", timeout=5, json=otlp.json_from_spans([make_span(n) for n in range(1, 7)])
            ).status_code
            == 413
        )
        assert server.pipeline.spans == []


# where and how


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({**PROTOBUF, "content-encoding": "br"}, 415),
        ({**PROTOBUF, "content-encoding": "gzip, gzip"}, 415),
    ],
)
def test_other_content_is_415(server: Running, headers: dict[str, str], status: int) -> None:
    assert requests.post(server.http + "/v1/traces", data=b"", headers=headers, timeout=5).status_code == status


@pytest.mark.parametrize("web", [False, True])
def test_other_methods_are_405_and_other_paths_404(web: bool) -> None:
    with running(web=web) as server:
        for path in ("/v1/traces", "/v1/logs"):
            for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
                answer = requests.request(method, server.http + path, timeout=5)
                assert answer.status_code == 405, method
                assert answer.headers["allow"] == "POST"
        for path in ("/", "/v1/metrics", "/v2/traces", "/runs/x"):
            assert post(server, b"", path=path).status_code == 404, path
        for path in ("/healthz", "/readyz", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                answer = requests.request(method, server.http + path, timeout=5)
                assert answer.status_code == 405, (path, method)
                assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}, (path, method)
            assert requests.head(server.http + path, timeout=5).status_code in (200, 503)
        assert requests.get(server.http + "/nowhere", timeout=5).status_code == 404
        assert requests.get(server.http + "/", timeout=5).status_code == (200 if web else 404)


def test_the_web_page_of_another_name_is_not_served() -> None:
    with running(web=True) as server:
        answer = requests.get(server.http + "/", headers={"host": "evil.example"}, timeout=5)
        assert answer.status_code == 421


def test_unknown_methods_of_grpc_are_unimplemented(server: Running) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


# the run of a request


def test_the_header_names_the_run(server: Running) -> None:
    export(server, make_request(make_span(1)), metadata=(("x-cmb-run-id", "run-7"),))
    post(server, make_request(make_span(2)).SerializeToString(), X_CMB_Run_Id="run-8")
    post(server, make_request(make_span(3)).SerializeToString())
    assert [span.stamp.door_run_id for span in server.pipeline.spans] == ["run-7", "run-8", None]


def test_a_run_id_that_cannot_be_one_is_malformed(server: Running) -> None:
    assert post(server, make_request(make_span(1)).SerializeToString(), X_CMB_Run_Id="r" * 300).status_code == 400


# logs


def log_request() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add()
        .scope_logs.add()
        .log_records.add(
            trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex("00f067aa0ba902b7"), event_name="gen_ai.user.message"
        )
    )
    otlp.set_value(record.body, {"content": "hello"})
    return request


def test_content_of_log_records_reaches_the_pipeline(server: Running) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        LogsServiceStub(channel).Export(log_request(), timeout=5)
    assert post(server, log_request().SerializeToString(), path="/v1/logs").status_code == 200
    assert requests.post(server.http + "/v1/logs", json={"resourceLogs": []}, timeout=5).json() == {}
    assert len(server.pipeline.logs) == 2
    first = server.pipeline.logs[0]
    assert (first.trace_id, first.span_id) == (TRACE, "00f067aa0ba902b7")
    assert first.attributes["gen_ai.input.messages"][0]["parts"] == [{"type": "text", "content": "hello"}]
    assert server.pipeline.synced == 2


# health and metrics


def test_health_says_serving(server: Running) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "opentelemetry.proto.collector.trace.v1.TraceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for path in ("/healthz", "/readyz"):
        assert requests.get(server.http + path, timeout=5).status_code == 200


def test_metrics_tell_what_became_of_the_spans_and_the_requests(server: Running) -> None:
    export(server, bad_span())
    post(server, b"junk")
    answer = requests.get(server.http + "/metrics", timeout=5)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'otel_cmb_spans_total{result="committed"} 2' in lines
    assert 'otel_cmb_receiver_requests_total{door="grpc",signal="traces",answer="ok"} 1' in lines
    assert 'otel_cmb_receiver_requests_total{door="http",signal="traces",answer="malformed"} 1' in lines
    assert "otel_cmb_receiver_rejected_spans_total 1" in lines


# clients that are slow, half open or gone


def test_a_body_that_does_not_come_ends_and_holds_nothing() -> None:
    with running(read_timeout=0.5) as server:
        host, port = server.http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{"
            )
            assert b"408" in slow.recv(100)
        assert server.receiver.house.reading.inside == 0
        assert server.receiver.house.working.inside == 0


def test_a_message_that_does_not_come_ends_and_holds_nothing() -> None:
    with running(read_timeout=0.5) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            forever = threading.Event()

            def never() -> Iterator[bytes]:
                forever.wait(10)
                yield b""

            call = channel.stream_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
            with pytest.raises(grpc.RpcError) as caught:
                call(never(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
            forever.set()
        assert server.receiver.house.reading.inside == 0


def test_a_call_that_ends_before_its_message_is_answered(server: Running) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert "ended before its message" in (caught.value.details() or "")  # type: ignore[attr-defined]
    assert server.receiver.house.reading.inside == 0


def test_a_client_that_never_settles_how_it_speaks_http2_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = grpc_door.server_options

    def hasty(*arguments: Any) -> list[tuple[str, Any]]:
        return [(name, 500 if name == "grpc.http2.settings_timeout" else value) for name, value in real(*arguments)]

    monkeypatch.setattr(grpc_door, "server_options", hasty)
    with running() as server:
        host, port = server.grpc.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # settings, never an ACK
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4_096):
                    pass
        assert export(server, make_request(make_span(1))) is not None


def test_connections_that_send_no_request_or_half_a_head_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.receiver.connections.HEADER_SECONDS", 1)
    with running() as server:
        host, port = server.http.removeprefix("http://").split(":")
        silent, half, after = (socket.create_connection((host, int(port))) for _ in range(3))
        half.sendall(b"POST /v1/tra")
        after.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok\n"):
            answer += after.recv(500)
        after.sendall(b"GET /heal")  # the second request of a kept connection
        kept = http.client.HTTPConnection(host, int(port), timeout=30)
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        for connection in (silent, half, after):
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
            connection.close()
        time.sleep(0.5)
        assert kept.sock is not None
        kept.sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")  # one that is only idle is still there
        assert b"200" in kept.sock.recv(500)
        kept.close()


def test_connections_beyond_the_limit_are_closed() -> None:
    with running(max_connections=5) as server:
        host, port = server.http.removeprefix("http://").split(":")
        opened = [socket.create_connection((host, int(port))) for _ in range(8)]
        for connection in opened:
            connection.settimeout(30)
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answered = 0
        for connection in opened:
            with contextlib.suppress(OSError):
                answered += b"200" in connection.recv(100)
            connection.close()
        assert answered == 5


def test_a_client_that_goes_away_leaves_its_place() -> None:
    with running(answer_timeout=5) as server:
        pipeline = held(server)
        with pytest.raises(grpc.RpcError), grpc.insecure_channel(server.grpc) as channel:
            TraceServiceStub(channel).Export(make_request(make_span(1)), timeout=0.2)
        pipeline.hold.set()
        deadline = time.monotonic() + 60
        while server.receiver.house.working.inside and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.receiver.house.working.inside == 0
        assert server.receiver.house.reading.inside == 0
