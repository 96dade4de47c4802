"""What Jaeger's own storage suite asks of a remote storage, asked by us through a real channel (written from its
description: services, operations, round trips, large traces, reused span ids, 25 kinds of queries, summaries)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from jaeger_support import normal, serving, set_time, store_spans
from sqlalchemy import create_engine, text

from otel_cmb.event import STATUS_ERROR, STATUS_OK, Link, Resource, Scope, Span, SpanEvent
from otel_cmb.jaeger.proto import trace_storage_pb2 as storage

T0 = 1_485_445_591_639_875_000  # 2017-01-26T15:46:31.639875Z
MS, SECOND, HOUR = 10**6, 10**9, 3600 * 10**9
FOUR: dict[str, Any] = {"same1": "value", "same2": 123, "same3": 72.5, "same4": True}


def trace_id(n: int) -> str:
    return f"{n:032x}"


def span(trace: int, number: int = 1, service: str = "svc", name: str = "op", start: int = T0 + MS, length: int = 5000,
         **fields: Any) -> Span:
    resource = fields.pop("resource", None) or Resource({"service.name": service})
    return Span(trace_id(trace), f"{number:016x}", name, start, start + length, resource=resource, **fields)


def assert_same(found: list[Span], expected: list[Span]) -> None:
    assert sorted(map(normal, found)) == sorted(map(normal, expected))


# One trace for each kind of query. A span that does not match stands beside the one that does: the whole trace comes.

OUTSIDE = {"start": T0 - 20 * 60 * SECOND}
QUERIES: list[tuple[str, list[Span], dict[str, Any]]] = [
    ("tags in the span", [span(1, attributes=FOUR)], {"attributes": FOUR}),
    ("tags in an event", [span(2, events=[SpanEvent("log", T0, FOUR)])], {"attributes": FOUR}),
    ("tags in the resource", [span(3, resource=Resource({"service.name": "q3", **FOUR}))], {"attributes": FOUR}),
    ("tags in different places",
     [span(4, attributes={"same1": "value"}, events=[SpanEvent("", T0, {"same3": 72.5})],
           resource=Resource({"service.name": "q4", "same2": 123}), scope=Scope("s", "", {"same4": True}))],
     {"attributes": FOUR}),
    ("a span outside of the time range", [span(5), span(5, 2, **OUTSIDE)], {}),
    ("operation", [span(6, name="wanted"), span(6, 2, name="other")], {"operation": "wanted"}),
    ("operation, longest", [span(7, name="wanted", length=1000), span(7, 2, length=9000)],
     {"operation": "wanted", "longest": 2000}),
    ("operation, duration", [span(8, name="wanted", length=5000), span(8, 2, length=90_000)],
     {"operation": "wanted", "shortest": 4500, "longest": 5500}),
    ("duration", [span(9, length=5000), span(9, 2, length=90_000)], {"shortest": 4500, "longest": 5500}),
    ("longest", [span(10, length=1000), span(10, 2, length=90_000)], {"longest": 1000}),
    ("default", [span(11)], {}),
    ("tags, operation", [span(12, name="wanted", attributes=FOUR)], {"attributes": FOUR, "operation": "wanted"}),
    ("tags, operation, longest", [span(13, name="wanted", attributes=FOUR, length=2000)],
     {"attributes": FOUR, "operation": "wanted", "longest": 2000}),
    ("tags, operation, duration", [span(14, name="wanted", attributes=FOUR, length=5000)],
     {"attributes": FOUR, "operation": "wanted", "shortest": 4500, "longest": 5500}),
    ("tags, duration", [span(15, attributes=FOUR, length=4600)],
     {"attributes": FOUR, "shortest": 4500, "longest": 5500}),
    ("tags, longest", [span(16, attributes=FOUR, length=1000)], {"attributes": FOUR, "longest": 1000}),
    ("tags in places, operation",
     [span(17, name="wanted", attributes={"same1": "value"}, events=[SpanEvent("e", T0, {"same2": 123, "same3": 72.5})],
           resource=Resource({"service.name": "q17", "same4": True}))],
     {"attributes": FOUR, "operation": "wanted"}),
    ("tags in places, operation, longest",
     [span(18, name="wanted", length=2000, attributes={"same1": "value", "same4": True},
           events=[SpanEvent("e", T0, {"same2": 123}), SpanEvent("f", T0, {"same3": 72.5})])],
     {"attributes": FOUR, "operation": "wanted", "longest": 2000}),
    ("tags in places, operation, duration",
     [span(19, name="wanted", length=5500, attributes={"same1": "value", "same4": True},
           events=[SpanEvent("e", T0, {"same2": 123, "same3": 72.5})])],
     {"attributes": FOUR, "operation": "wanted", "shortest": 4500, "longest": 5500}),
    ("tags in places, duration",
     [span(20, length=4500, attributes={"same1": "value"}, events=[SpanEvent("e", T0, {"same2": 123, "same3": 72.5})],
           scope=Scope("", "", {"same4": True}))],
     {"attributes": FOUR, "shortest": 4500, "longest": 5500}),
    ("tags in places, longest",
     [span(21, length=1000, attributes={"same1": "value"}, events=[SpanEvent("e", T0, {"same2": 123, "same3": 72.5})],
           scope=Scope("", "", {"same4": True}))],
     {"attributes": FOUR, "longest": 1000}),
    ("several traces", [span(221, service="q22"), span(222, service="q22"), span(223, service="q22")], {}),
    ("scope name and version", [span(23, attributes=FOUR, scope=Scope("testing", "1.1.1"))],
     {"attributes": {**FOUR, "scope.name": "testing", "scope.version": "1.1.1"}}),
    ("scope attributes", [span(24, scope=Scope("", "", FOUR))], {"attributes": FOUR}),
    ("link attributes", [span(25, links=[Link(trace_id(77), "5" * 16, "", FOUR)])], {"attributes": FOUR}),
    ("error", [span(26, status_code=STATUS_ERROR, status_message="no")], {"attributes": {"error": "true"}}),
    ("no error", [span(27), span(27, 2, status_code=STATUS_ERROR)], {"attributes": {"error": "false"}}),
    ("status", [span(28, status_code=STATUS_OK)], {"attributes": {"span.status": "OK"}}),
    ("kind", [span(29, kind=3)], {"attributes": {"span.kind": "CLIENT"}}),
    ("resource only", [span(30, resource=Resource({"service.name": "q30", "host": "a"}))],
     {"attributes": {"resource.host": "a"}}),
    ("bytes and lists", [span(31, attributes={"b": b"\xff\x00", "l": ["x", 1]})],
     {"attributes": {"b": "/wA=", "l": '["x",1]'}}),
]


def with_service(number: int, spans: list[Span]) -> list[Span]:
    for item in spans:
        item.resource = replace(item.resource, attributes={**item.resource.attributes, "service.name": f"q{number}"})
    return spans


@pytest.fixture
def queries() -> list[tuple[str, str, list[Span], dict[str, Any]]]:
    return [
        (title, f"q{number}", with_service(number, spans), query)
        for number, (title, spans, query) in enumerate(QUERIES, 1)
    ]


def test_every_kind_of_query(database_url: str, state_dir: Path, queries: Any) -> None:
    everything = [item for _, _, spans, _ in queries for item in spans]
    random.Random(1).shuffle(everything)
    # What almost matches: the same service, every fact in the trace, but no span has them all.
    almost = [
        span(500 + number, 1, service, attributes={"same1": "value"}, start=T0 + 2 * MS, length=60 * MS)
        for number, (_, service, _, query) in enumerate(queries) if query and "error" not in query.get("attributes", {})
    ]
    store_spans(database_url, state_dir, everything + almost, batch=7)
    with serving(database_url) as client:
        for title, service, spans, query in queries:
            wanted = {item.trace_id for item in spans}
            time_range = {"start": T0, "end": T0 + 2 * HOUR}
            found = client.find_traces(service=service, **time_range, **query)
            assert set(found) == wanted, title
            for one in wanted:
                assert_same(found[one], [item for item in spans if item.trace_id == one])
            assert set(client.find_ids(service=service, **time_range, **query)) == wanted, title
            assert {item.trace_id.hex() for item in client.summaries(service=service, **time_range, **query)} == wanted
            # Without a service: at least these, and nothing of another time.
            assert wanted <= set(client.find_ids(**time_range, **query)), title
            assert not client.find_ids(service=service, start=T0 + 2 * HOUR, end=T0 + 3 * HOUR, **query), title
        assert client.find_traces(service="unheard-of") == {}
        assert client.find_traces(service="q1", attributes={"same1": "another"}) == {}
        assert len(client.find_ids(service="q22", depth=2)) == 2
        assert len(client.find_ids(depth=0)) <= 100


def test_services_and_operations(database_url: str, state_dir: Path) -> None:
    store_spans(database_url, state_dir, [
        span(1, 1, "one", "a", kind=0), span(1, 2, "one", "b", kind=2), span(1, 3, "one", "b", kind=3),
        span(2, 4, "two", "c", kind=1), span(2, 5, "three", "d", kind=5),
        span(3, 6, name="nobody", resource=Resource()),
    ])
    with serving(database_url) as client:
        assert client.services() == ["one", "three", "two"]
        assert client.operations("one") == [("a", ""), ("b", "client"), ("b", "server")]
        assert client.operations("one", "server") == [("b", "server")]
        assert client.operations("two") == [("c", "internal")]
        assert client.operations("nowhere") == []
        assert client.operations("one", "odd") == []


def test_a_trace_comes_back_as_it_was(database_url: str, state_dir: Path) -> None:
    spans = [
        span(1, 1, kind=2, attributes={
            "s": "", "i": -(2**63), "f": 1.0, "b": b"", "t": True, "n": None, "l": [], "d": {}, "z": "\u20ac",
            "deep": [{"x": [1, 1.5, b"\x00\xff"]}]}),
        span(1, 2, parent_span_id=f"{1:016x}", kind=0, flags=0x101, trace_state="a=b", dropped_attributes=1,
             dropped_events=2, dropped_links=3, status_code=STATUS_ERROR, status_message="bad",
             events=[SpanEvent("", T0), SpanEvent("e", T0 + 1, {"x": 0.5}, 4)],
             links=[Link(trace_id(9), "9" * 16, "c=d", {"n": 1}, 5, 1), Link(trace_id(9), "9" * 16, "c=d", {"n": 2})],
             scope=Scope("scope", "1.0", {"k": [True]}, "https://schema", 6)),
        span(1, 3, service="another", parent_span_id=f"{1:016x}", length=0),
        replace(span(1, 4), resource=Resource({"service.name": "svc", "n": 1.0}, "https://r", 7)),
    ]
    store_spans(database_url, state_dir, spans)
    with serving(database_url) as client:
        found = client.get_traces(trace_id(1), trace_id(404))
        assert list(found) == [trace_id(1)]
        assert_same(found[trace_id(1)], spans)
        assert client.get_traces(trace_id(404)) == {}
        request = storage.GetTracesRequest(query=[storage.GetTraceParams(trace_id=b"short")])
        assert client.chunks("GetTraces", request) == []


def test_a_large_trace_comes_in_chunks(database_url: str, state_dir: Path) -> None:
    count = 10_008 if database_url.startswith("sqlite") else 5_004  # the first is what Jaeger's own storage tests write
    spans = [span(1, n + 1, start=T0 + n * 1000, attributes={"n": n, "text": "x" * 600}) for n in range(count)]
    store_spans(database_url, state_dir, spans, batch=2500)
    with serving(database_url) as client:
        request = storage.GetTracesRequest(query=[storage.GetTraceParams(trace_id=bytes.fromhex(trace_id(1)))])
        assert len(client.chunks("GetTraces", request)) > 2
        found = client.get_traces(trace_id(1))[trace_id(1)]
        assert len(found) == count
        assert {item.attributes["n"] for item in found} == set(range(count))
        assert client.find_ids(service="svc", attributes={"n": 4777}) == [trace_id(1)]


def test_span_ids_that_were_reused(database_url: str, state_dir: Path) -> None:
    spans = [
        span(1, 1 if n % 20 == 0 else n + 1, start=T0 + n * MS, name=f"op{n}", attributes={"n": n}) for n in range(220)
    ]
    store_spans(database_url, state_dir, spans, batch=5)
    with serving(database_url) as client:
        assert_same(client.get_traces(trace_id(1))[trace_id(1)], spans)


def test_a_span_larger_than_a_message_is_cut(database_url: str, state_dir: Path) -> None:
    big = span(1, attributes={f"text{n}": chr(97 + n) * 250_000 for n in range(20)})
    store_spans(database_url, state_dir, [big])
    with serving(database_url) as client:
        (found,) = client.get_traces(trace_id(1))[trace_id(1)]
    assert found.name == "op"
    assert len(found.attributes) == 20
    assert all("[cut: 250000 bytes" in str(value) for value in found.attributes.values())


def test_summaries_and_dependencies(database_url: str, state_dir: Path) -> None:
    store_spans(database_url, state_dir, [
        span(1, 1, "front", "GET", length=10 * MS),
        span(1, 2, "back", "work", start=T0 + 2 * MS, parent_span_id=f"{1:016x}", status_code=STATUS_ERROR),
        span(1, 3, "back", "work", start=T0 + 3 * MS, parent_span_id=f"{2:016x}"),
        span(1, 4, "deep", "more", start=T0 + 4 * MS, parent_span_id=f"{3:016x}"),
        span(1, 5, "back", "lost", start=T0 + 5 * MS, parent_span_id="f" * 16),
        span(2, 6, "front", "alone"),
    ])
    with serving(database_url) as client:
        (found,) = client.summaries(service="deep")
        assert (found.root_service_name, found.root_operation_name) == ("front", "GET")
        assert found.min_start_time_unix_nano == T0 + MS
        assert found.max_end_time_unix_nano == T0 + 11 * MS
        assert (found.span_count, found.error_span_count, found.orphan_span_count) == (5, 1, 1)
        assert [(item.name, item.span_count, item.error_span_count) for item in found.services] == [
            ("back", 3, 1), ("deep", 1, 0), ("front", 1, 0)]
        assert client.dependencies(T0 - HOUR, T0 + HOUR) == [("back", "deep", 1), ("front", "back", 1)]
        assert client.dependencies(T0 + HOUR, T0 + 2 * HOUR) == []


def test_capabilities_and_refusals(sqlite_url: str, state_dir: Path) -> None:
    store_spans(sqlite_url, state_dir, [span(1)])
    with serving(sqlite_url) as client:
        found = client.capabilities()
        assert found.without_service_name
        assert found.same_span_conjunction
        assert not found.HasField("filter")
        request = storage.FindTraceIDsRequest(query=storage.TraceQueryParameters(search_depth=1))
        request.query.filter.op = "and"
        with pytest.raises(grpc.RpcError) as refused:
            client.call("TraceReader", "FindTraceIDs", request, storage.FindTraceIDsResponse)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as unknown:
            client.call("TraceReader", "Nothing", request, storage.FindTraceIDsResponse)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_pages(sqlite_url: str, state_dir: Path) -> None:
    store_spans(sqlite_url, state_dir, [span(n, start=T0 + n * MS) for n in range(1, 8)])
    with serving(sqlite_url) as client:
        request = storage.FindTraceIDsRequest(query=storage.TraceQueryParameters(search_depth=100))
        request.query.pagination.page_size = 3
        pages = []
        while True:
            found = client.call("TraceReader", "FindTraceIDs", request, storage.FindTraceIDsResponse)
            pages.append([int(item.trace_id.hex(), 16) for item in found.trace_ids])
            if not found.next_page_token:
                break
            request.query.pagination.page_token = found.next_page_token
        assert pages == [[7, 6, 5], [4, 3, 2], [1]]
        request.query.pagination.page_token = "?"
        with pytest.raises(grpc.RpcError, match="page_token"):
            client.call("TraceReader", "FindTraceIDs", request, storage.FindTraceIDsResponse)


def test_a_database_that_is_not_there_yet_has_no_traces(database_url: str) -> None:
    with serving(database_url) as client:
        assert client.services() == []
        assert client.find_traces(service="svc") == {}
        assert client.get_traces(trace_id(1)) == {}
        assert client.dependencies(0, T0) == []


def test_a_database_that_is_away_is_unavailable(cuttable_postgresql: Any, state_dir: Path) -> None:
    url, proxy = cuttable_postgresql
    store_spans(url, state_dir, [span(1)])
    with serving(url, connect_timeout=2.0) as client:
        assert client.services() == ["svc"]
        proxy.cut()
        with pytest.raises(grpc.RpcError) as away:
            client.services()
        assert away.value.code() is grpc.StatusCode.UNAVAILABLE
        proxy.restore()
        assert client.services() == ["svc"]


def test_newest_first_and_long_traces_are_found_by_their_late_spans(database_url: str, state_dir: Path) -> None:
    store_spans(database_url, state_dir, [
        *(span(n, start=T0 + n * 60 * SECOND) for n in range(1, 30)),
        span(100, 1, start=T0 - 5 * HOUR), span(100, 2, start=T0 + 10 * 60 * SECOND, attributes={"late": 1}),
    ], batch=3)
    with serving(database_url) as client:
        found = client.find_ids(service="svc", start=T0, end=T0 + HOUR, depth=5)
        assert found == [trace_id(n) for n in range(29, 24, -1)]
        assert client.find_ids(start=T0, end=T0 + HOUR, attributes={"late": 1}) == [trace_id(100)]
        assert client.find_ids(start=T0 - 6 * HOUR, end=T0 - 4 * HOUR) == [trace_id(100)]


def test_hints_of_found_ids(sqlite_url: str, state_dir: Path) -> None:
    store_spans(sqlite_url, state_dir, [span(1, length=SECOND)])
    with serving(sqlite_url) as client:
        request = storage.FindTraceIDsRequest(query=storage.TraceQueryParameters(service_name="svc", search_depth=1))
        set_time(request.query.start_time_min, T0)
        found = client.call("TraceReader", "FindTraceIDs", request, storage.FindTraceIDsResponse)
        (item,) = found.trace_ids
        assert item.start.ToNanoseconds() == T0 + MS
        assert item.end.ToNanoseconds() == T0 + MS + SECOND


def test_what_the_application_deleted_is_gone(database_url: str, state_dir: Path) -> None:
    store_spans(database_url, state_dir, [span(1), span(2)])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM execution_events"))
    engine.dispose()
    with serving(database_url) as client:
        assert client.find_traces(service="svc") == {}
        assert client.get_traces(trace_id(1)) == {}
