"""The calls of Jaeger's pages and of Grafana's data source, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jaeger_support import store_spans
from starlette.applications import Starlette
from starlette.testclient import TestClient

from otel_cmb import config
from otel_cmb.event import STATUS_ERROR, Link, Resource, Scope, Span, SpanEvent
from otel_cmb.jaeger.http import routes
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.jaeger.v1 import duration_ns
from otel_cmb.otlp import decode, json_from_spans

T0 = 1_770_000_000_123_456_789
START, END = "2026-02-02T02:00:00Z", "2026-02-02T03:00:00.999999999Z"
ONE, TWO = "0" * 31 + "1", "a" * 32

SPANS = [
    Span(ONE, "1" * 16, "GET /", T0, T0 + 5_000_000, kind=2, status_code=STATUS_ERROR, status_message="bad",
         attributes={"text": "x", "n": 2**60, "f": 0.5, "yes": True, "raw": b"\xff", "list": [1, "a"], "none": None},
         events=[SpanEvent("log", T0 + 1000, {"k": "v"})], links=[Link(TWO, "3" * 16)],
         resource=Resource({"service.name": "front", "host": "h"}), scope=Scope("lib", "1.0"), trace_state="a=b"),
    Span(ONE, "2" * 16, "query", T0 + 2_000_000, T0 + 3_000_000, parent_span_id="1" * 16, kind=3, dropped_attributes=2,
         resource=Resource({"service.name": "back/end"})),
    Span(TWO, "3" * 16, "alone", T0 + 60_000_000_000, T0 + 61_000_000_000, resource=Resource()),
]


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[TestClient]:
    query = JaegerQuery(config.load({}, database_url=url))
    try:
        with TestClient(Starlette(routes=routes(query, **options))) as client:
            yield client
    finally:
        query.close()


@pytest.fixture
def client(database_url: str, state_dir: Path) -> Iterator[TestClient]:
    store_spans(database_url, state_dir, SPANS)
    with client_of(database_url) as client:
        yield client


def get(client: TestClient, path: str, status: int = 200, **parameters: Any) -> Any:
    response = client.get(path, params=parameters)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def test_v1(client: TestClient) -> None:
    assert get(client, "/api/services")["data"] == ["back/end", "front"]
    assert get(client, "/api/services/front/operations")["data"] == ["GET /"]
    assert get(client, "/api/services/back%2Fend/operations")["data"] == ["query"]
    assert get(client, "/api/operations", service="front")["data"] == [{"name": "GET /", "spanKind": "server"}]
    assert "service" in get(client, "/api/operations", 400)["errors"][0]["msg"]
    assert get(client, "/api/dependencies", endTs=T0 // 10**6 + 1000, lookback=3_600_000)["data"] == [
        {"parent": "front", "child": "back/end", "callCount": 1}]

    (trace,) = get(client, "/api/traces/1")["data"]
    assert trace["traceID"] == ONE
    assert {key: value["serviceName"] for key, value in trace["processes"].items()} == {"p1": "front", "p2": "back/end"}
    assert trace["processes"]["p1"]["tags"] == [{"key": "host", "type": "string", "value": "h"}]
    root, child = trace["spans"]
    assert (root["startTime"], root["duration"], root["operationName"]) == (T0 // 1000, 5000, "GET /")
    tags = {tag["key"]: (tag["type"], tag["value"]) for tag in root["tags"]}
    assert tags == {
        "text": ("string", "x"), "n": ("int64", str(2**60)), "f": ("float64", 0.5), "yes": ("bool", True),
        "raw": ("binary", "/w=="), "list": ("string", '[1, "a"]'), "none": ("string", ""),
        "span.kind": ("string", "server"),
        "error": ("bool", True), "otel.status_code": ("string", "ERROR"), "otel.status_description": ("string", "bad"),
        "otel.scope.name": ("string", "lib"), "otel.scope.version": ("string", "1.0"),
        "w3c.tracestate": ("string", "a=b"),
    }
    assert root["logs"] == [{"timestamp": (T0 + 1000) // 1000, "fields": [
        {"key": "event", "type": "string", "value": "log"}, {"key": "k", "type": "string", "value": "v"}]}]
    assert root["references"] == [{"refType": "FOLLOWS_FROM", "traceID": TWO, "spanID": "3" * 16}]
    assert child["references"] == [{"refType": "CHILD_OF", "traceID": ONE, "spanID": "1" * 16}]
    assert child["warnings"] == ["2 attributes were dropped before the span was recorded"]

    missing = get(client, "/api/traces/404", 404)
    assert missing["errors"] == [{"code": 404, "msg": "trace not found"}]
    assert "hex" in get(client, "/api/traces/odd", 400)["errors"][0]["msg"]


def test_v1_search(client: TestClient) -> None:
    time_range = {"start": T0 // 1000 - 1000, "end": T0 // 1000 + 3_600_000_000}

    def found(**parameters: Any) -> list[str]:
        return [trace["traceID"] for trace in get(client, "/api/traces", **time_range, **parameters)["data"]]

    assert found(service="front") == [ONE]
    assert found() == [TWO, ONE]
    assert found(limit=1) == [TWO]
    assert found(service="front", operation="query") == []
    assert found(service="back/end", operation="query", minDuration="1ms", maxDuration="1.5ms") == [ONE]
    assert found(service="front", minDuration="6ms") == []
    assert found(service="front", tags=json.dumps({"text": "x", "yes": "true", "error": "true"})) == [ONE]
    assert found(tags=json.dumps({"n": 2**60})) == [ONE]
    assert found(tag="text:x") == [ONE]
    assert found(traceID="1") == [ONE]
    assert get(client, "/api/traces", service="front")["data"] == []  # the last two days have none
    for wrong in ({"tags": "x"}, {"tag": "x"}, {"minDuration": "5"}, {"limit": "many"}, {"end": "now"}):
        assert get(client, "/api/traces", 400, **wrong)["errors"][0]["code"] == 400


def test_v3(client: TestClient) -> None:
    assert get(client, "/api/v3/services") == {"services": ["back/end", "front"]}
    assert get(client, "/api/v3/operations", service="front") == {
        "operations": [{"name": "GET /", "spanKind": "server"}]}
    body = get(client, f"/api/v3/traces/{ONE}")
    spans = decode(body["result"]).spans
    assert [span.name for span in spans] == ["GET /", "query"]
    assert spans[0].attributes == {**SPANS[0].attributes, "none": ""}
    wire = body["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert wire["startTimeUnixNano"] == str(T0)
    assert "parentSpanId" not in wire
    assert get(client, "/api/v3/traces/404", 404) == {"error": {"httpCode": 404, "message": "trace not found"}}


def test_v3_search(client: TestClient) -> None:
    def parameters(camel: bool = True, **more: str) -> dict[str, str]:
        times = ("query.startTimeMin", "query.startTimeMax") if camel else (
            "query.start_time_min", "query.start_time_max")
        return {times[0]: START, times[1]: END, **more}

    found = get(client, "/api/v3/trace-summaries", **parameters())["summaries"]
    assert [item["traceId"] for item in found] == [TWO, ONE]
    assert found[1] == {
        "traceId": ONE, "traceID": ONE, "rootServiceName": "front", "rootOperationName": "GET /",
        "minStartTimeUnixNano": str(T0), "maxEndTimeUnixNano": str(T0 + 5_000_000), "spanCount": 2, "errorSpanCount": 1,
        "orphanSpanCount": 0, "services": [
            {"name": "back/end", "spanCount": 1, "errorSpanCount": 0},
            {"name": "front", "spanCount": 1, "errorSpanCount": 1}]}
    wanted = parameters(camel=False, **{
        "query.service_name": "front", "query.span_name": "GET /", "query.num_traces": "5", "query.duration_min": "1ms",
        "query.duration_max": "1h", "query.attributes": '{"yes":"true"}'})
    assert [item["traceId"] for item in get(client, "/api/v3/trace-summaries", **wanted)["summaries"]] == [ONE]
    assert len(decode(get(client, "/api/v3/traces", **wanted)["result"]).spans) == 2
    nothing = parameters(**{"query.serviceName": "nobody"})
    assert get(client, "/api/v3/trace-summaries", **nothing) == {"summaries": []}
    assert get(client, "/api/v3/traces", 404, **nothing)["error"]["httpCode"] == 404
    for wrong in (
        {}, {"query.startTimeMin": START}, {"query.startTimeMin": END, "query.startTimeMax": START},
        parameters(**{"query.durationMin": "5 parsecs"}), parameters(**{"query.attributes": "[]"}),
        {"query.startTimeMin": "yesterday", "query.startTimeMax": END}, parameters(**{"query.filter": "{}"}),
    ):
        assert get(client, "/api/v3/trace-summaries", 400, **wrong)["error"]["httpCode"] == 400


def test_transform(sqlite_url: str) -> None:
    with client_of(sqlite_url) as client:
        response = client.post("/api/transform", json=json_from_spans(SPANS))
        assert response.status_code == 200
        assert [len(trace["spans"]) for trace in response.json()["data"]] == [2, 1]
        for body in (b"no json", b"[]", b'{"resourceSpans": 1}'):
            assert client.post("/api/transform", content=body).status_code == 400


def test_other_paths_are_json_too(sqlite_url: str) -> None:
    with client_of(sqlite_url) as client:
        assert get(client, "/api/metrics/calls", 404)["errors"][0]["code"] == 404
        assert get(client, "/api/v3/nothing", 404)["error"]["httpCode"] == 404
        assert get(client, "/api/services") == {"data": [], "total": 0, "limit": 0, "offset": 0, "errors": None}


def test_a_caller_may_be_refused(sqlite_url: str) -> None:
    def allow(request: Any) -> tuple[int, str] | None:
        given = request.headers.get("authorization")
        return {None: (401, "who are you"), "bound": (403, "not yours")}.get(given)

    with client_of(sqlite_url, allow=allow) as client:
        assert get(client, "/api/services", 401)["errors"][0]["msg"] == "who are you"
        assert client.get("/api/services").headers["www-authenticate"] == "Bearer"
        forbidden = client.get("/api/v3/services", headers={"authorization": "bound"})
        assert forbidden.status_code == 403
        assert forbidden.json()["error"] == {"httpCode": 403, "message": "not yours"}
        assert "www-authenticate" not in forbidden.headers
        assert client.get("/api/services", headers={"authorization": "x"}).status_code == 200


def test_purge_has_to_be_allowed(sqlite_url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_spans(sqlite_url, state_dir, SPANS)
    with client_of(sqlite_url) as client:
        assert client.post("/api/purge").status_code == 404
    monkeypatch.setenv("OTEL_CMB_ALLOW_PURGE", "1")
    query = JaegerQuery(config.load({}, database_url=sqlite_url))
    with TestClient(Starlette(routes=routes(query)), client=("192.0.2.1", 5)) as client:
        assert client.post("/api/purge").status_code == 403
    with TestClient(Starlette(routes=routes(query)), client=("127.0.0.1", 5)) as client:
        purged = client.post("/api/purge")
        assert (purged.status_code, purged.headers["connection"]) == (200, "close")  # Jaeger's suite looks for connections left open
        assert get(client, "/api/services")["data"] == []
    query.close()


@pytest.mark.parametrize(("text", "ns"), [
    ("", 0), ("0", 0), ("1s", 10**9), ("1.5s", 1_500_000_000), ("100ms", 10**8), ("1h2m3s", 3723 * 10**9),
    ("5us", 5000), ("5µs", 5000), (".5ns", 0),
])
def test_durations(text: str, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize("text", ["1", "s", "-1s", "1 s", "1s2", "1d", "٣s"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_ns(text)
