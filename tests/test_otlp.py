"""OTLP to spans and back: lossless for what is valid, cleaned where it is odd, rejected only without usable ids."""

from __future__ import annotations

import gzip
import json
import math
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from receiver_support import TRACE, make_request, make_span

from otel_cmb import otlp
from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent
from otel_cmb.otlp_clean import TOO_DEEP
from otel_cmb.otlp_json import read_json
from otel_cmb.otlp_wire import TooManyPartsError, check_parts, parse

CORPUS = Path(__file__).parent / "corpus"
TIME = 1_700_000_000_000_000_000


def through_protobuf(spans: list[Span]) -> otlp.Decoded:
    data = otlp.request_from_spans(spans).SerializeToString()
    return otlp.decode(ExportTraceServiceRequest.FromString(data))


def through_json(spans: list[Span]) -> otlp.Decoded:
    return otlp.decode(orjson.loads(orjson.dumps(otlp.json_from_spans(spans))))


def json_span(**fields: Any) -> dict[str, Any]:
    span = {
        "traceId": TRACE,
        "spanId": "00f067aa0ba902b7",
        "name": "n",
        "startTimeUnixNano": str(TIME),
        "endTimeUnixNano": str(TIME + 1),
        **fields,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = (
    text
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=8)
    | st.none()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
attributes = st.dictionaries(text, values, max_size=4)
counts = st.integers(0, 2**32 - 1)
hex_ids = {n: st.binary(min_size=n, max_size=n).filter(any).map(bytes.hex) for n in (8, 16)}
resources = st.builds(Resource, attributes, text, counts)
scopes = st.builds(Scope, text, text, attributes, text, counts)
times = st.integers(1, 2**63 - 1)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start, end = sorted((draw(times), draw(times)))
    span_id = draw(hex_ids[8])
    parent = draw(st.none() | hex_ids[8])
    return Span(
        trace_id=draw(hex_ids[16]),
        span_id=span_id,
        name=draw(text),
        start_ns=start,
        end_ns=draw(st.sampled_from([end, None])),
        parent_span_id=None if parent == span_id else parent,
        kind=draw(st.integers(0, 5)),
        status_code=draw(st.integers(0, 2)),
        status_message=draw(text),
        attributes=draw(attributes),
        events=draw(st.lists(st.builds(SpanEvent, text, st.integers(0, 2**63 - 1), attributes, counts), max_size=2)),
        links=draw(st.lists(st.builds(Link, hex_ids[16], hex_ids[8], text, attributes, counts, counts), max_size=2)),
        resource=draw(resources),
        scope=draw(scopes),
        trace_state=draw(text),
        flags=draw(counts),
        dropped_attributes=draw(counts),
        dropped_events=draw(counts),
        dropped_links=draw(counts),
    )


def sort_key(span: Span) -> str:
    return repr(span)


@settings(max_examples=60, deadline=None)
@given(st.lists(spans(), max_size=4))
def test_spans_survive_protobuf_and_json_exactly(given_spans: list[Span]) -> None:
    expected = sorted(given_spans, key=sort_key)
    for decoded in (through_protobuf(given_spans), through_json(given_spans)):
        assert not decoded.rejected
        assert sorted(decoded.spans, key=sort_key) == expected
        assert repr(sorted(decoded.spans, key=sort_key)) == repr(
            expected
        )  # 1, 1.0 and True are equal, but not the same


def test_a_value_that_is_not_a_number_survives() -> None:
    for number in (math.nan, math.inf, -math.inf):
        for decode in (through_protobuf, through_json):
            found = decode([make_span(attributes={"x": number})]).spans[0].attributes["x"]
            assert repr(found) == repr(number)


def test_every_capture_survives_both_forms() -> None:
    seen = 0
    for path in CORPUS.rglob("*.otlp.json*"):
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        decoded = otlp.decode(document)
        assert not decoded.rejected
        assert through_protobuf(decoded.spans).spans == decoded.spans
        assert through_json(decoded.spans).spans == decoded.spans
        # nothing of the document is lost: what comes out is what went in, but for empty objects
        assert _without_empty(otlp.json_from_spans(decoded.spans)) == _without_empty(document)
        seen += len(decoded.spans)
    assert seen > 900


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [])}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def test_spans_of_a_group_share_their_resource_and_scope() -> None:
    for decode in (through_protobuf, through_json):
        first, second = decode([make_span(1), make_span(2)]).spans
        assert first.resource is second.resource
        assert first.scope is second.scope


def test_equal_resources_become_one_group() -> None:
    request = otlp.request_from_spans([make_span(n, resource=Resource({"service.name": "a"})) for n in range(1, 4)])
    assert len(request.resource_spans) == 1
    assert len(request.resource_spans[0].scope_spans) == 1
    different = [make_span(1, resource=Resource({"x": 1})), make_span(2, resource=Resource({"x": True}))]
    assert len(otlp.request_from_spans(different).resource_spans) == 2


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        ("", "00f067aa0ba902b7"),
        (TRACE, ""),
        ("0" * 32, "00f067aa0ba902b7"),
        (TRACE, "0" * 16),
        (TRACE[:-2], "00f067aa0ba902b7"),
        (TRACE[:22], "00f067aa0ba902b7"),  # as long as base64 of sixteen bytes
        (TRACE, "00f067aa0ba"),
        (TRACE, "00f067aa0ba902b7aa"),
        ("x" * 32, "00f067aa0ba902b7"),
        (7, "00f067aa0ba902b7"),
        (TRACE, None),
        (TRACE, "\ufffd2345678901="),
        ("5b8efff7980\xe98103d269b6==", "00f067aa0ba902b7"),
    ],
)
def test_json_spans_without_usable_ids_are_rejected_by_name_and_the_others_kept(trace_id: Any, span_id: Any) -> None:
    body = json_span()
    bad = {
        **body["resourceSpans"][0]["scopeSpans"][0]["spans"][0],
        "traceId": trace_id,
        "spanId": span_id,
        "name": "the bad one",
    }
    body["resourceSpans"][0]["scopeSpans"][0]["spans"].append(bad)
    decoded = otlp.decode(body)
    assert [span.name for span in decoded.spans] == ["n"]
    assert len(decoded.rejected) == 1
    assert "'the bad one'" in decoded.rejected[0]
    assert decoded.rejected[0].endswith("hex digits other than zero")


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        (b"", b"12345678"),
        (bytes(16), b"12345678"),
        (b"x" * 16, bytes(8)),
        (b"x" * 15, b"12345678"),
        (b"x" * 16, b"123456789"),
    ],
)
def test_protobuf_spans_without_usable_ids_are_rejected_and_the_others_kept(trace_id: bytes, span_id: bytes) -> None:
    request = make_request(make_span(1))
    request.resource_spans[0].scope_spans[0].spans.add(trace_id=trace_id, span_id=span_id, name="bad")
    decoded = otlp.decode(request)
    assert [span.name for span in decoded.spans] == ["span 1"]
    assert len(decoded.rejected) == 1


def test_upper_case_and_base64_ids_are_read() -> None:
    assert otlp.decode(json_span(traceId=TRACE.upper())).spans[0].trace_id == TRACE
    plain = MessageToDict(make_request(make_span(1, parent_span_id="00f067aa0ba902b7")))  # ids in base64
    span = otlp.decode(plain).spans[0]
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE, f"{1:016x}", "00f067aa0ba902b7")


@pytest.mark.parametrize("form", [
    lambda text: text, lambda text: text.rstrip("="), lambda text: text.translate(str.maketrans("+/", "-_")),
    lambda text: text.rstrip("=").translate(str.maketrans("+/", "-_")),
])
def test_base64_is_read_in_every_form_that_protobuf_writes_or_reads(form: Callable[[str], str]) -> None:
    """protobuf.dev/programming-guides/json: standard or URL-safe, with padding or without."""
    trace_id, span_id, data = (bytes([0xFB, 0xFF, 0xBF, *range(size)]) for size in (13, 5, 7))
    body = json_span(
        traceId=form(b64encode(trace_id).decode()), spanId=form(b64encode(span_id).decode()),
        attributes=[{"key": "b", "value": {"bytesValue": form(b64encode(data).decode())}},
                    {"key": "none", "value": {"bytesValue": "no base64!"}}, {"key": "number", "value": {"bytesValue": 5}}])
    [span] = otlp.decode(body).spans
    assert (span.trace_id, span.span_id) == (trace_id.hex(), span_id.hex())
    assert span.attributes == {"b": data, "none": "no base64!", "number": None}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_is_read_in_every_encoding_that_json_has_had(encoding: str) -> None:
    """Programs on Windows write byte order marks; RFC 4627 knew UTF-16 and UTF-32 too."""
    assert read_json('{"a": ["ü", 1, NaN]}'.encode(encoding))["a"][:2] == ["ü", 1]


def test_an_integer_of_any_length_costs_nothing_but_itself() -> None:
    """Python refuses to read more than 4,300 digits, which would cost the whole request."""
    body = json.dumps(json_span(name="n", attributes=[{"key": "i", "value": {"intValue": 0}}])).replace(
        '"intValue": 0', '"intValue": ' + "9" * 5_000)
    decoded = otlp.decode(read_json(body.encode()))
    assert [span.name for span in decoded.spans] == ["n"]
    assert read_json(b"[" + b"9" * 5_000 + b", NaN, 3]")[2] == 3


@pytest.mark.parametrize(
    ("fields", "attribute", "expected"),
    [
        ({"endTimeUnixNano": str(TIME - 5)}, "end_ns", TIME),
        ({"startTimeUnixNano": "0"}, "start_ns", TIME + 1),
        ({"startTimeUnixNano": None, "endTimeUnixNano": None}, "start_ns", 99),
        ({"endTimeUnixNano": "0"}, "end_ns", None),
        ({"endTimeUnixNano": str(2**64 - 1)}, "end_ns", 2**63 - 1),
        ({"startTimeUnixNano": "junk"}, "start_ns", TIME + 1),
        ({"startTimeUnixNano": -5}, "start_ns", TIME + 1),
        ({"startTimeUnixNano": float(TIME)}, "start_ns", TIME),
        ({"kind": 77}, "kind", 0),
        ({"kind": "SPAN_KIND_CLIENT"}, "kind", 3),
        ({"kind": "SPAN_KIND_OF_MAGIC"}, "kind", 0),
        ({"kind": "3"}, "kind", 3),
        ({"status": {"code": "STATUS_CODE_ERROR"}}, "status_code", 2),
        ({"status": {"code": -1}}, "status_code", 0),
        ({"status": "broken"}, "status_code", 0),
        ({"parentSpanId": "00f067aa0ba902b7"}, "parent_span_id", None),  # its own parent
        ({"parentSpanId": "0" * 16}, "parent_span_id", None),
        ({"parentSpanId": "12"}, "parent_span_id", None),
        ({"name": None}, "name", ""),
        ({"attributes": "none"}, "attributes", {}),
        (
            {"attributes": [None, {"key": 5}, {"key": "a"}, {"key": "b", "value": {"stringValue": ""}}]},
            "attributes",
            {"a": None, "b": ""},
        ),
        (
            {"attributes": [{"key": "n", "value": {"intValue": 7}}, {"key": "s", "value": {"intValue": "8"}}]},
            "attributes",
            {"n": 7, "s": 8},
        ),
        (
            {"attributes": [{"key": "f", "value": {"boolValue": False}}, {"key": "z", "value": {"intValue": "0"}}]},
            "attributes",
            {"f": False, "z": 0},
        ),
        ({"attributes": [{"key": "b", "value": {"bytesValue": "AAEC"}}]}, "attributes", {"b": b"\0\1\2"}),
        ({"links": [{"traceId": "short"}]}, "dropped_links", 1),
        ({"flags": 2**40}, "flags", 2**32 - 1),
        ({"unknownField": {"deep": [1]}}, "name", "n"),
    ],
)
def test_odd_values_are_cleaned_and_never_refused(fields: dict[str, Any], attribute: str, expected: Any) -> None:
    decoded = otlp.decode(json_span(**fields), now_ns=99)
    assert not decoded.rejected
    assert getattr(decoded.spans[0], attribute) == expected


def test_odd_values_in_protobuf_are_cleaned() -> None:
    request = make_request(make_span(1))
    message = request.resource_spans[0].scope_spans[0].spans[0]
    message.kind, message.status.code = 77, 9  # type: ignore[assignment]
    message.start_time_unix_nano, message.end_time_unix_nano = 2**64 - 1, 5
    message.parent_span_id = message.span_id
    message.links.add(trace_id=b"short", span_id=b"x")
    (span,) = otlp.decode(request).spans
    assert (span.kind, span.status_code, span.start_ns, span.end_ns) == (0, 0, 2**63 - 1, 2**63 - 1)
    assert (span.parent_span_id, span.links, span.dropped_links) == (None, [], 1)


@pytest.mark.parametrize("body", [None, [], "text", 7, {"resourceSpans": {}}, {"resourceSpans": "x"}])
def test_json_that_is_no_request_is_malformed(body: Any) -> None:
    with pytest.raises(otlp.MalformedError, match="expected"):
        otlp.decode(body)


def test_values_nested_too_deep_are_cut_with_a_marker() -> None:
    deep: Any = "bottom"
    for _ in range(500):
        deep = [deep]
    for decode in (through_protobuf, through_json):
        found = decode([make_span(attributes={"deep": deep, "kept": 1})]).spans[0].attributes
        assert found["kept"] == 1
        depth, value = 0, found["deep"]
        while isinstance(value, list):
            depth, value = depth + 1, value[0]
        assert value == TOO_DEEP
        assert 40 <= depth <= otlp.MAX_DEPTH


def test_lone_surrogates_do_not_stop_an_export() -> None:
    span = make_span(name="a\ud800b", attributes={"k\udfff": "v\ud83d\ude00"})
    (found,) = through_protobuf([span]).spans
    assert found.name == "a\ufffdb"
    assert found.attributes == {"k\ufffd": "v\U0001f600"}


json_junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([TRACE, "00f067aa0ba902b7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans",
                    "scopeSpans",
                    "spans",
                    "resource",
                    "scope",
                    "attributes",
                    "traceId",
                    "spanId",
                    "key",
                    "value",
                    "stringValue",
                    "intValue",
                    "arrayValue",
                    "kvlistValue",
                    "values",
                    "events",
                    "links",
                    "startTimeUnixNano",
                    "kind",
                    "status",
                    "bytesValue",
                    "doubleValue",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(json_junk)
def test_hostile_json_never_raises_anything_but_malformed(body: Any) -> None:
    for wrapped in (
        body,
        {"resourceSpans": body},
        {"resourceSpans": [{"scopeSpans": [{"spans": [body]}]}]},
        json_span(attributes=body, events=body, links=body),
    ):
        try:
            decoded = otlp.decode(wrapped)
        except otlp.MalformedError:
            continue
        for span in decoded.spans:
            assert (len(span.trace_id), len(span.span_id)) == (32, 16)
            assert through_protobuf([span]).spans


# bytes that do not parse


def test_a_span_with_invalid_utf8_is_repaired_and_its_batch_kept() -> None:
    data = make_request(*[make_span(n, attributes={"k": "QQQQ"}) for n in range(1, 6)]).SerializeToString()
    broken = data.replace(b"QQQQ", b"Q\xff\xc3Q", 1)
    request, rejected = parse(ExportTraceServiceRequest, broken)
    found = otlp.decode(request).spans
    assert rejected == []
    assert len(found) == 5
    assert sorted(span.attributes["k"] for span in found) == ["QQQQ"] * 4 + ["Q\ufffd\ufffdQ"]


def test_a_span_that_is_no_message_is_rejected_and_its_batch_kept() -> None:
    request = make_request(*[make_span(n, name="MARK") for n in range(1, 4)])
    data = request.SerializeToString()
    at = data.index(b"MARK", data.index(b"MARK") + 1)
    broken = data[: at - 1] + b"\x7f" + data[at:]  # the name of the second span now ends beyond its span
    request, rejected = parse(ExportTraceServiceRequest, broken)
    assert len(otlp.decode(request).spans) == 2
    assert len(rejected) == 1


@pytest.mark.parametrize("data", [b"junk", b"\x0a", b"\x0a\x05ab", b"\xff" * 40, b"\x0f\x01"])
def test_bytes_that_are_no_request_are_malformed(data: bytes) -> None:
    with pytest.raises(otlp.MalformedError):
        parse(ExportTraceServiceRequest, data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6), st.integers(0, 400))
def test_a_damaged_request_is_read_or_malformed_never_anything_else(at: int, junk: bytes, cut: int) -> None:
    data = make_request(
        make_span(1, events=[SpanEvent("e", 1)]), make_span(2, links=[Link(TRACE, "a" * 16)])
    ).SerializeToString()
    at %= len(data)
    damaged = (data[:at] + junk + data[at + len(junk) :])[: max(1, len(data) - cut)]
    try:
        request, _ = parse(ExportTraceServiceRequest, damaged)
    except otlp.MalformedError:
        return
    otlp.decode(request)


def test_the_number_of_messages_is_known_before_they_are_parsed() -> None:
    data = make_request(*[make_span(n) for n in range(1, 101)]).SerializeToString()
    check_parts(data, 2_000)
    with pytest.raises(TooManyPartsError):
        check_parts(data, 90)
    with pytest.raises(TooManyPartsError):
        check_parts(b"\x0a\x00" * 5_000, 4_000)


# logs


def log_request(*records: dict[str, Any]) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def any_value(value: Any) -> Any:
    return otlp.json_value(value)


def log_record(event: str, body: Any = None, time: int = 1, **attributes: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": "00f067aa0ba902b7",
        "timeUnixNano": str(time),
        "eventName": event,
        "body": any_value(body),
        "attributes": [{"key": key.replace("__", "."), "value": any_value(value)} for key, value in attributes.items()],
    }


def test_the_details_event_gives_its_attributes_to_the_span() -> None:
    messages = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    body = log_request(
        log_record("gen_ai.client.inference.operation.details", gen_ai__input__messages=messages, other="no")
    )
    (content,) = otlp.log_records_from_json(body)
    assert (content.trace_id, content.span_id) == (TRACE, "00f067aa0ba902b7")
    assert content.attributes == {"gen_ai.input.messages": messages}


def test_message_events_become_messages_in_the_order_of_their_time() -> None:
    body = log_request(
        log_record(
            "gen_ai.choice",
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
            },
            time=9,
        ),
        log_record("gen_ai.tool.message", {"id": "c0", "content": "42"}, time=3),
        log_record("gen_ai.user.message", {"content": "hello"}, time=2),
        log_record("gen_ai.system.message", {"content": "be kind"}, time=1, gen_ai__system="openai"),
    )
    (content,) = otlp.log_records_from_json(body)
    assert content.attributes == {
        "gen_ai.system": "openai",
        "gen_ai.input.messages": [
            {"role": "system", "parts": [{"type": "text", "content": "be kind"}]},
            {"role": "user", "parts": [{"type": "text", "content": "hello"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c0", "response": "42"}]},
        ],
        "gen_ai.output.messages": [
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": "{}"}],
                "finish_reason": "tool_calls",
            },
        ],
    }


def test_messages_of_google_adk_are_understood() -> None:
    body = log_request(
        log_record(
            "gen_ai.user.message",
            {
                "content": {
                    "role": "user",
                    "parts": [{"text": "hi"}, {"function_response": {"id": "1", "name": "f", "response": {"r": 2}}}],
                }
            },
        )
    )
    (content,) = otlp.log_records_from_json(body)
    assert content.attributes["gen_ai.input.messages"] == [
        {
            "role": "user",
            "parts": [
                {"type": "text", "content": "hi"},
                {"type": "tool_call_response", "id": "1", "response": {"r": 2}},
            ],
        }
    ]


def test_other_log_records_and_those_without_a_span_are_passed_over() -> None:
    lost = {**log_record("gen_ai.choice", {"message": {"content": "x"}}), "spanId": ""}
    assert (
        otlp.log_records_from_json(
            log_request(log_record("device.app.lifecycle"), lost, {"body": {"stringValue": "x"}})
        )
        == []
    )


def test_protobuf_logs_say_the_same_as_json_logs() -> None:
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add()
        .scope_logs.add()
        .log_records.add(
            trace_id=bytes.fromhex(TRACE),
            span_id=bytes.fromhex("00f067aa0ba902b7"),
            event_name="gen_ai.user.message",
            time_unix_nano=1,
        )
    )
    otlp.set_value(record.body, {"content": "hello"})
    assert otlp.log_records_from_request(request) == otlp.log_records_from_json(
        log_request(log_record("gen_ai.user.message", {"content": "hello"}))
    )


@settings(max_examples=60, deadline=None)
@given(
    values,
    st.sampled_from(
        ["gen_ai.choice", "gen_ai.user.message", "gen_ai.tool.message", "gen_ai.client.inference.operation.details"]
    ),
)
def test_hostile_log_bodies_never_raise(body: Any, event: str) -> None:
    assert len(otlp.log_records_from_json(log_request(log_record(event, body)))) == 1
