"""Who may send: loopback by default, tokens, tokens bound to a session. TLS is in test_receiver_tls.py."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from fault_support import wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import FakeOutcome, Running, make_request, make_span, running

from otel_cmb.errors import ConfigurationError
from otel_cmb.receiver.settings import Address, load
from otel_cmb.receiver.tokens import TokenFile

BODY = make_request(make_span(1)).SerializeToString()


def post(server: Running, token: str | None = None, scheme: str = "Bearer") -> requests.Response:
    headers = {"content-type": "application/x-protobuf"}
    if token is not None:
        headers["authorization"] = f"{scheme} {token}"
    return requests.post(f"{server.http}/v1/traces", data=BODY, headers=headers, timeout=10)


def export(server: Running, token: str | None = None, spans: int = 1) -> Any:
    metadata = [("authorization", f"Bearer {token}")] if token is not None else []
    with grpc.insecure_channel(server.grpc) as channel:
        request = make_request(*[make_span(n + 1) for n in range(spans)])
        return TraceServiceStub(channel).Export(request, timeout=10, metadata=metadata)


def code(server: Running, token: str | None = None) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        export(server, token)
    return caught.value.code()  # type: ignore[attr-defined]


# addresses


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.9.9.9:0"])
def test_loopback_needs_nothing(address: str) -> None:
    load({"grpc": address, "http": address}, env={})


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.168.1.5:4318", "db.example:4318"])
@pytest.mark.parametrize("door", ["grpc", "http", "jaeger_storage"])
def test_other_addresses_need_tls_and_a_token_or_insecure(
    address: str, door: str, tmp_path: Path
) -> None:
    file = tmp_path / "any.pem"
    file.touch()
    tls = {"tls_cert": str(file), "tls_key": str(file)}
    with pytest.raises(ConfigurationError, match="--tls-cert"):
        load({door: address}, env={})
    with pytest.raises(ConfigurationError, match="--tls-cert"):
        load({door: address, "token_file": "tokens"}, env={})
    with pytest.raises(ConfigurationError, match="--token-file"):
        load({door: address, **tls}, env={})
    with pytest.raises(ConfigurationError, match="--token-file"):  # mutual TLS is no token, it comes on top
        load({door: address, "tls_client_ca": str(file), **tls}, env={})
    load({door: address, "insecure": True}, env={})
    load({door: address, "token_file": "tokens", **tls}, env={})
    load({door: address, "token_file": "tokens", "tls_client_ca": str(file), **tls}, env={})


@pytest.mark.parametrize("text", ["4317", ":4317", "host", "::1:4317", "h:99999", "h:x", "[::1:5", ""])
def test_addresses_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--grpc: found .*HOST:PORT"):
        load({"grpc": text}, env={})


def test_an_address_in_use_is_a_configuration_error() -> None:
    with running() as server:
        with pytest.raises(ConfigurationError, match="--grpc"), running(grpc=server.grpc):
            pass
        with pytest.raises(ConfigurationError, match="--http"), running(http=server.http.removeprefix("http://")):
            pass


def test_addresses_print_as_they_are_written() -> None:
    assert str(Address("::1", 4317)) == "[::1]:4317"
    assert str(Address("127.0.0.1", 4317)) == "127.0.0.1:4317"


# tokens


def token_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tokens"
    path.write_text(text)
    return str(path)


def test_only_valid_tokens_come_in(tmp_path: Path) -> None:
    with running(token_file=token_file(tmp_path, "# senders\nsecret-token-1\n\nsecret-token-2\n")) as server:
        for token in (None, "", "secret-token", "secret-token-11", "Secret-token-1", "secret-token-1 x", "\xe9" * 20):
            answer = post(server, token)
            assert answer.status_code == 401, token
            assert answer.headers["www-authenticate"] == "Bearer"
        assert post(server, "secret-token-1", scheme="Basic").status_code == 401
        assert post(server, "secret-token-1", scheme="bearer").status_code == 200
        for token in (None, "secret-token", "other-token"):
            assert code(server, token) is grpc.StatusCode.UNAUTHENTICATED
        export(server, "secret-token-2")
        assert len(server.pipeline.spans) == 2
        assert requests.get(server.http + "/healthz", timeout=5).status_code == 200
        assert requests.get(server.http + "/metrics", timeout=5).status_code == 401
        header = {"authorization": "Bearer secret-token-1"}
        assert requests.get(server.http + "/metrics", headers=header, timeout=5).status_code == 200


def test_a_request_without_token_is_refused_before_it_is_received(tmp_path: Path) -> None:
    with (
        running(token_file=token_file(tmp_path, "secret-token-1")) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        sent = []

        def body() -> Any:
            for n in range(1_000):
                sent.append(n)
                time.sleep(0.02)
                yield b"x" * 1_000

        call = channel.stream_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(body(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        assert len(sent) < 500


def test_who_has_no_token_takes_nobodys_place(tmp_path: Path) -> None:
    """What was seen: a thousand requests without a token, none of which sent its body, and exporters were told to come back."""
    with running(token_file=token_file(tmp_path, "secret-token-1")) as server:
        host, port = server.http.removeprefix("http://").split(":")
        strangers = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
        for stranger in strangers:
            stranger.sendall(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
                             b"content-length: 100000\r\n\r\nx")
        answers = server.receiver.intake.requests
        wait_for(lambda: answers["http", "traces", "unauthenticated"] == len(strangers))
        assert server.receiver.house.reading.inside == 0
        for stranger in strangers:
            stranger.close()


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_tokens(tmp_path: Path, caplog: Any) -> None:
    path = token_file(tmp_path, "first-token\n")
    tokens = TokenFile(path)

    def becomes(token: str, expected: bool) -> bool:
        deadline = time.monotonic() + 60
        while (tokens.find(f"Bearer {token}") is not None) != expected:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    Path(path).write_text("second-token session-2\n")
    assert becomes("second-token", expected=True)
    assert tokens.find("Bearer first-token") is None
    found = tokens.find("Bearer second-token")
    assert found is not None
    assert found.session_id == "session-2"
    Path(path).write_text("a b c d\n")
    wait_for(lambda: tokens.find("Bearer second-token") is None or "stay valid" in caplog.text)
    assert tokens.find("Bearer second-token") is not None
    assert "stay valid" in caplog.text
    assert "second-token" not in caplog.text
    os.unlink(path)
    time.sleep(0.7)
    assert tokens.find("Bearer second-token") is not None
    Path(path).write_text("third-token\n")
    assert becomes("third-token", expected=True)


def test_a_token_file_with_a_byte_order_mark_has_the_token_that_is_seen(tmp_path: Path) -> None:
    tokens = TokenFile(token_file(tmp_path, "\ufefffirst-token\n"))
    assert tokens.find("Bearer first-token") is not None


@pytest.mark.parametrize(
    ("text", "says"), [("", "no token"), ("# only\n", "no token"), ("short", "line 1"), ("\n\na b c", "line 3"),
                       ("same-token one\nsame-token", "line 2: the token of line 1 again")]
)
def test_a_token_file_that_cannot_work_is_an_error_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        TokenFile(token_file(tmp_path, text))
    assert "short" not in str(caught.value).replace("shorter", "")


def test_a_token_file_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"), running(token_file=str(tmp_path / "nowhere")):
        pass


def test_a_bound_token_stamps_its_session_and_refusals_are_answered(tmp_path: Path) -> None:
    with running(token_file=token_file(tmp_path, "bound-token session-1\nfree-token\n")) as server:
        export(server, "bound-token")
        post(server, "free-token")
        assert [span.stamp.bound_session_id for span in server.pipeline.spans] == ["session-1", None]
        server.pipeline.outcome = FakeOutcome(received=1, refused=1)
        assert code(server, "bound-token") is grpc.StatusCode.PERMISSION_DENIED
        assert post(server, "bound-token").status_code == 403
        server.pipeline.outcome = FakeOutcome(received=2, committed=1, refused=1)
        answer = export(server, "bound-token", spans=2)
        assert answer.partial_success.rejected_spans == 1
        assert "session" in answer.partial_success.error_message
