"""What is served beside the receiver: the web page and Jaeger's two APIs, for those who may read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import Running, make_request, make_span, running

from otel_cmb import config
from otel_cmb.jaeger.proto import trace_storage_pb2 as storage
from otel_cmb.pipeline import Pipeline

TRACE = f"{7:032x}"
SESSION = str(uuid.uuid5(uuid.NAMESPACE_URL, "otel-cmb:session:default"))
"""The id of the session that runs made by us belong to."""


@pytest.fixture(params=["open", "tokens"])
def server(request: Any, tmp_path: Path) -> Iterator[Running]:
    known: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path}/e.db", "state_dir": str(tmp_path / "state")}
    flags: dict[str, Any] = {"jaeger_storage": "127.0.0.1:0"}
    if request.param == "tokens":
        (tmp_path / "tokens").write_text(f"reads-everything\nbound-token {SESSION}\nother-token elsewhere\n")
        flags["token_file"] = str(tmp_path / "tokens")
    pipeline = Pipeline(config.load({}, **known), per_trace_runs=True)
    try:
        with running(pipeline, general=known, web=True, **flags) as found:
            span = make_span(1, trace_id=TRACE, attributes={"gen_ai.operation.name": "chat"})
            with grpc.insecure_channel(str(found.receiver.addresses["jaeger"])) as channel:  # its writer is OTLP
                metadata = [("authorization", "Bearer reads-everything")]
                TraceServiceStub(channel).Export(make_request(span), timeout=20, metadata=metadata)
            pipeline.flush(10)
            yield found
    finally:
        pipeline.shutdown(5)


def get(server: Running, path: str, token: str | None = None, **headers: str) -> requests.Response:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return requests.get(server.http + path, headers=headers, timeout=20)


def services(server: Running, token: str | None) -> Any:
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(str(server.receiver.addresses["jaeger"])) as channel:
        call = channel.unary_unary(
            "/jaeger.storage.v2.TraceReader/GetServices",
            storage.GetServicesRequest.SerializeToString,
            storage.GetServicesResponse.FromString,
        )
        return list(call(storage.GetServicesRequest(), timeout=20, metadata=metadata).services)


def test_the_page_knows_where_jaeger_is(tmp_path: Path) -> None:
    known: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path}/e.db", "state_dir": str(tmp_path / "state")}
    pipeline = Pipeline(config.load({}, **known), per_trace_runs=True)
    try:
        with running(pipeline, general=known, web=True, jaeger_url="http://127.0.0.1:16686/") as found:
            with grpc.insecure_channel(found.grpc) as channel:
                TraceServiceStub(channel).Export(make_request(make_span(1)), timeout=20)
            pipeline.flush(10)
            assert get(found, "/api/info").json()["jaeger_url"] == "http://127.0.0.1:16686"
    finally:
        pipeline.shutdown(5)


def test_everything_is_read_by_who_may(server: Running) -> None:
    assert services(server, "reads-everything") == ["t"]
    assert get(server, "/api/v3/services", "reads-everything").json() == {"services": ["t"]}
    assert get(server, f"/api/traces/{TRACE}", "reads-everything").json()["data"][0]["traceID"] == TRACE
    assert "otel-cmb" in get(server, "/", "reads-everything").text
    assert len(get(server, "/api/runs", "reads-everything").json()["runs"]) == 1
    assert get(server, "/api/nothing/there", "reads-everything").status_code == 404


def test_nobody_else_reads(server: Running) -> None:
    if server.receiver.house.tokens is None:
        for path in ("/", "/api/runs", "/api/services", f"/api/traces/{TRACE}"):
            assert get(server, path).status_code == 200
            assert get(server, path, host="evil.example").status_code == 421
        return
    unknown, forbidden = (grpc.StatusCode.UNAUTHENTICATED, 401), (grpc.StatusCode.PERMISSION_DENIED, 403)
    for token, (code, status) in {None: unknown, "wrong-token": unknown, "bound-token": forbidden}.items():
        with pytest.raises(grpc.RpcError) as caught:
            services(server, token)
        assert caught.value.code() is code  # type: ignore[attr-defined]
        for path in ("/api/services", f"/api/traces/{TRACE}", "/api/v3/services"):
            assert get(server, path, token).status_code == status
    for path in ("/", "/api/runs", "/metrics"):
        assert get(server, path).status_code == 401


def test_a_bound_token_sees_its_session_only(server: Running) -> None:
    if server.receiver.house.tokens is None:
        assert len(get(server, "/api/runs").json()["runs"]) == 1
        return
    assert len(get(server, "/api/runs", "bound-token").json()["runs"]) == 1
    assert get(server, "/api/runs", "other-token").json()["runs"] == []
