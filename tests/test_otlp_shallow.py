"""The receiver's way to read a request gives what the general way gives, or leaves it to that."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from test_otlp import spans
from test_rebuild import exact_spans

from otel_cmb import otlp, otlp_shallow
from otel_cmb.event import Span
from otel_cmb.otlp_clean import Decoded
from otel_cmb.otlp_shallow import Shallow, TooManySpansError
from otel_cmb.otlp_wire import varint

SHALLOW = Shallow()
NOW = 1_766_000_000_000_000_000


def make_span(**fields: Any) -> Message:
    span = Message(
        trace_id=b"1" * 16, span_id=b"2" * 8, start_time_unix_nano=1, end_time_unix_nano=2, **{"name": "n", **fields})
    span.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    return span


def make_request(*messages: Message) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(messages)
    return request


def whole(data: bytes) -> Decoded | None:
    """The general way; `None` where it has to be repaired first."""
    try:
        request = ExportTraceServiceRequest.FromString(data)
    except DecodeError:
        return None
    return otlp.decode(request, NOW)


def check(data: bytes) -> Decoded | None:
    expected = whole(data)
    for _ in range(2):  # also with everything remembered
        found = SHALLOW.decode(data, NOW, 100_000)
        if found is not None:
            assert expected is not None
            assert exact_spans(found.spans) == exact_spans(expected.spans)
            assert [list(span.attributes) for span in found.spans] == [list(span.attributes) for span in expected.spans]
            assert found.rejected == expected.rejected
    return found


def pair(data: bytes) -> bytes:
    """A request whose span has an attribute of these bytes."""
    message = make_span().SerializeToString() + b"\x4a" + varint(len(data)) + data
    scope = b"\x12" + varint(len(message)) + message
    group = b"\x12" + varint(len(scope)) + scope
    return b"\x0a" + varint(len(group)) + group


@given(st.lists(spans(), max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_request_is_read_the_same(given_spans: list[Span]) -> None:
    assert check(otlp.request_from_spans(given_spans).SerializeToString()) is not None


values = (
    st.text(max_size=4).map(lambda text: AnyValue(string_value=text))
    | st.sampled_from([0, 1, 80, 94, 95, 126, 127, 128, 129, 130, 16_375, 16_378, 16_379, 16_380, 16_383, 16_384, 70_000]).map(
        lambda size: AnyValue(string_value="x" * size))
    | st.floats().map(lambda value: AnyValue(double_value=value))
    | st.integers(-(2**63), 2**63 - 1).map(lambda value: AnyValue(int_value=value))
    | st.booleans().map(lambda value: AnyValue(bool_value=value))
    | st.binary(max_size=140).map(lambda value: AnyValue(bytes_value=value)) | st.just(AnyValue()))
keys = st.sampled_from(["a", "b", "", "é", "k" * 91, "k" * 92, "k" * 93, "k" * 127, "k" * 128, "k" * 200])


@given(st.lists(st.builds(lambda key, value: KeyValue(key=key, value=value), keys, values), max_size=6))
@settings(max_examples=150, deadline=None)
def test_attributes_of_any_length_are_read_the_same(pairs: list[KeyValue]) -> None:
    span = make_span()
    del span.attributes[:]
    span.attributes.extend(pairs)
    assert check(make_request(span).SerializeToString()) is not None


@given(st.builds(lambda key, value: KeyValue(key=key, value=value), keys, values), st.integers(0, 20), st.binary(max_size=3),
       st.integers(0, 2))
@settings(max_examples=400, deadline=None)
def test_attributes_that_nobody_writes_so_are_read_the_same(known: KeyValue, at: int, junk: bytes, cut: int) -> None:
    data = known.SerializeToString()
    check(pair(data))
    check(pair(data[:at] + junk + data[at + cut :]))


@pytest.mark.parametrize("data", [
    b"", b"\x0a", b"\x12", b"\x0a\x00", b"\x0a\x01a", b"\x0a\x01a\x12", b"\x0a\x01a\x12\x00", b"\x0a\x05a", b"\x12\x02\x10\x01",
    b"\x12\x02\x10\x01\x0a\x01a",  # the value before the key
    b"\x0a\x01a\x12\x02\x10\x01\x12\x03\x0a\x01x",  # two values: the last one counts
    b"\x0a\x01a\x0a\x01b\x12\x02\x10\x01",  # two keys
    b"\x0a\x01a\x12\x02\x10\x01\x0a\x01b",  # the second one after the value: it counts, also where the first is known
    b"\x0a\x81\x00a\x12\x02\x10\x01",  # a length in more bytes than it needs
    b"\x0a\x01a\x12\x09\x21\0\0\0\0\0\0\xf0\x7f", b"\x0a\x01a\x12\x09\x21\0\0\0\0\0\0\xf0\x7f\x18\x01",
    b"\x0a\x01a\x12\x85\x01\x0a\x82\x01" + b"x" * 130, b"\x0a\x01a\x12\x85\x01\x0a\x82\x01" + b"\xff" * 130,
    b"\x0a\x01a\x12\x85\x01\x0a\x82\x01" + b"\xed\xa0\x80" + b"x" * 127, b"\x0a\x01a\x12\x84\x01\x0a\x82\x01" + b"x" * 130,
])
def test_odd_bytes_of_an_attribute(data: bytes) -> None:
    check(pair(b"\x0a\x01a\x12\x02\x10\x01"))  # the key is known
    check(pair(data))


def test_what_protobuf_would_merge_is_left_to_it() -> None:
    span = make_span().SerializeToString()
    status = span + b"\x7a\x02\x18\x02" + b"\x7a\x03\x12\x01x"  # code in one, message in the other
    for message in (span, status):
        scope_group = ScopeSpans()
        data = scope_group.SerializeToString() + b"\x12" + varint(len(message)) + message
        twice = b"\x0a\x03\x0a\x01s" + b"\x0a\x03\x12\x01v" + data
        for inner in (data, twice):
            group = ResourceSpans().SerializeToString() + b"\x12" + varint(len(inner)) + inner
            resources = b"\x0a\x07\x0a\x05\x0a\x01a\x12\x00" * 2 + group
            for outer in (group, resources):
                request = b"\x0a" + varint(len(outer)) + outer
                found = check(request)
                assert (found is None) == (message is status or inner is twice or outer is resources)


def test_a_request_that_needs_repair_is_left_to_it() -> None:
    good = make_request(make_span(name="name")).SerializeToString()
    assert SHALLOW.decode(good.replace(b"name", b"na\xffe"), NOW, 10) is None
    assert SHALLOW.decode(good[:-3], NOW, 10) is None
    long = make_span()
    long.attributes.add(key="long").value.string_value = "y" * 200
    data = make_request(long).SerializeToString()
    assert check(data) is not None
    assert SHALLOW.decode(data.replace(b"yyyy", b"yy\xffy"), NOW, 10) is None


@given(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_a_damaged_request_is_read_the_same_or_not_at_all(at: int, junk: bytes, cut: int) -> None:
    span = make_span(name="damaged")
    span.status.code = Status.STATUS_CODE_ERROR
    span.events.add(name="e", time_unix_nano=5).attributes.add(key="k").value.int_value = 3
    span.links.add(trace_id=b"1" * 16, span_id=b"2" * 8)
    span.links.add(trace_id=b"1", span_id=b"2" * 8)
    data = make_request(span, make_span()).SerializeToString()
    check(data[:at] + junk + data[at + cut :])


def test_too_many_spans_are_refused_before_they_are_read() -> None:
    data = make_request(*[make_span() for _ in range(4)]).SerializeToString()
    assert SHALLOW.decode(data, NOW, 4) is not None
    with pytest.raises(TooManySpansError, match="4 spans in one request, the limit is 3"):
        SHALLOW.decode(data, NOW, 3)


def test_resources_are_one_object_over_requests_and_lists_are_not_shared() -> None:
    span = make_span()
    span.attributes.add(key="list").value.array_value.values.add().string_value = "x"
    request = make_request(span)
    request.resource_spans[0].resource.attributes.add(key="service.name").value.string_value = "s"
    decoded: list[Any] = [SHALLOW.decode(request.SerializeToString(), NOW, 10) for _ in range(2)]
    one, two = (found.spans[0] for found in decoded)
    assert one.resource is two.resource
    assert one.scope is two.scope
    assert one.resource.attributes["service.name"] == "s"
    assert one.attributes["list"] == ["x"]
    assert one.attributes["list"] is not two.attributes["list"]


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_shallow, "MAX_PAIRS", 20)
    monkeypatch.setattr(otlp_shallow, "MAX_GROUPS", 3)
    shallow = Shallow()
    for n in range(60):
        message = make_span()
        message.attributes.add(key=f"k{n}").value.int_value = n
        request = make_request(message)
        request.resource_spans[0].resource.attributes.add(key="n").value.int_value = n
        found = shallow.decode(request.SerializeToString(), NOW, 10)
        assert found is not None
        assert found.spans[0].attributes == {"gen_ai.operation.name": "chat", f"k{n}": n}
        assert len(shallow.pairs) <= 20
        assert len(shallow.pairs.known_keys) <= 20
        assert len(shallow.resources) <= 3
