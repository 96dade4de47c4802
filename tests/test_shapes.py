"""What is written without being cleaned or redacted would have come out of both as it was."""

from __future__ import annotations

import copy
import gzip
import math
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from test_rebuild import attributes as odd_attributes
from test_rebuild import exact_spans, texts
from test_rebuild import spans as odd_spans

from otel_cmb import config, journal_spans, otlp, redact, shapes
from otel_cmb.environment import Variable
from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent
from otel_cmb.intake import Intake
from otel_cmb.journal_records import END
from otel_cmb.otlp_shallow import Shallow
from otel_cmb.pipeline import Pipeline


def intake_of(directory: str = "unused", **keywords: Any) -> Intake:
    settings_ = config.load(env={}, database_url="sqlite:///unused.db", state_dir=directory, **keywords)
    return Pipeline(settings_)._intake


INTAKES = (intake_of(), intake_of(redact=False), intake_of(max_value_bytes=256), intake_of(capture="llm_call"))

usual_texts = st.sampled_from(["chat", "gpt-4.1", "über", "x" * 100, "a\0b", "\ud800", "y" * 300, "…", "key: value", "a@b"])
usual_values = (
    usual_texts | st.integers(0, 100) | st.booleans() | st.floats() | st.lists(usual_texts, max_size=2)
    | st.sampled_from([True, 1, 1.0, 2**63, -(2**63) - 1, 2**63 - 1, math.nan, math.inf, None, b"x", 0, -0.0, 1e300]))
usual_keys = st.sampled_from(["gen_ai.agent.name", "a", "b", "~b", "password", "über", "k\0", "input.value"])
usual_attributes = st.dictionaries(usual_keys, usual_values, max_size=5)
usual_spans = st.builds(
    Span, st.just("1" * 32), st.just("2" * 16), usual_texts, st.integers(0, 2**63), st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.just("3" * 16), st.just(1), st.just(0), st.just("") | usual_texts, usual_attributes,
    st.lists(st.builds(SpanEvent, usual_texts, st.integers(0, 2**64), usual_attributes), max_size=1),
    st.lists(st.builds(Link, st.just("1" * 32), st.just("2" * 16), st.just("") | usual_texts, usual_attributes), max_size=1),
    st.builds(Resource, usual_attributes), st.builds(Scope, usual_texts, attributes=usual_attributes),
)


def check(intake: Intake, span: Span) -> None:
    general = copy.deepcopy(span)
    if general.stamp.automatic_run_id is None:
        general.stamp.automatic_run_id = intake.run_id
    intake._clean(general)
    body = intake.body(END, span)
    assert exact_spans([span]) == exact_spans([general])
    assert body[:1] == END
    assert exact_spans([journal_spans.decode(body[1:])]) == exact_spans([general])


@given(st.lists(usual_spans | odd_spans, max_size=4), st.sampled_from(INTAKES))
@settings(max_examples=120, deadline=None)
def test_a_plain_span_is_one_that_the_general_way_leaves_as_it_is(spans: list[Span], intake: Intake) -> None:
    for span in spans:
        check(intake, copy.deepcopy(span))
        check(intake, span)  # once more: its shape is known


@given(st.dictionaries(st.sampled_from("abc"), texts, max_size=3), odd_attributes)
@settings(max_examples=60, deadline=None)
def test_a_known_shape_says_nothing_about_values(first: dict[str, Any], second: dict[str, Any]) -> None:
    for attributes in (first, second, dict.fromkeys(first, "password=hunter22"), dict.fromkeys(second, "x" * 300)):
        check(INTAKES[2], Span("1" * 32, "2" * 16, "n", 1, 2, attributes=attributes))


@pytest.mark.parametrize(("attributes", "plain"), [
    ({}, True), ({"a": "x", "n": 1, "f": 0.5, "b": True, "l": ["stop"]}, True), ({"a": "ünï"}, True), ({"l": []}, True),
    ({"n": 2**63 - 1, "m": -(2**63)}, True), ({"n": 2**63}, False), ({"n": 1, "m": -(2**63) - 1}, False),
    ({"f": math.nan}, False), ({"f": math.inf, "g": -math.inf}, False), ({"a": None}, False), ({"a": b"x"}, False),
    ({"a": {"b": 1}}, False), ({"l": [1]}, False), ({"l": ["a"] * 65}, False), ({"a": "x\0"}, False), ({"~b": "x"}, False),
    ({"password": "x"}, False), ({"a": "password=hunter22"}, False), ({"l": ["password=hunter22"]}, False),
    ({"a": "x" * 262_144}, False), ({"a": "x" * 262_000}, True), ({"a": "ü" * 132_000}, False), ({"k\0": 1}, False),
    ({"k" * 1025: 1}, False), ({f"k{n}": n for n in range(129)}, False),
])
def test_what_is_plain(attributes: dict[str, Any], plain: bool) -> None:
    intake = INTAKES[0]
    for _ in range(2):
        assert intake._shapes.plain(Span("1" * 32, "2" * 16, "n", 1, 2, attributes=attributes)) is plain


def test_equal_values_of_other_types_are_other_shapes() -> None:
    intake = INTAKES[0]
    value: Any
    for value in (1, True, 1.0, "1", [], b"1", None, 1):
        check(intake, Span("1" * 32, "2" * 16, "n", 1, 2, attributes={"same": value}))


def test_a_key_of_another_class_is_not_taken_for_its_text() -> None:
    class Key(str):
        __slots__ = ()

    intake = INTAKES[0]
    check(intake, Span("1" * 32, "2" * 16, "n", 1, 2, attributes={"a": "x"}))
    span = Span("1" * 32, "2" * 16, "n", 1, 2, attributes={Key("a"): "x"})
    intake.body(END, span)
    assert [type(key) for key in span.attributes] == [str]


def test_a_hook_sees_spans_that_are_plain_without_it() -> None:
    intake = intake_of()
    span = Span("1" * 32, "2" * 16, "n", 1, 2, attributes={"a": "alice"}, resource=Resource({"user": "alice"}))
    assert b"alice" in intake.body(END, copy.deepcopy(span))
    redact.install_hook(lambda key, text: text.replace("alice", "[name]"))
    try:
        assert b"alice" not in intake.body(END, span)
    finally:
        redact.install_hook(None)


def test_content_that_is_not_kept_goes_also_from_plain_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    intake = intake_of()
    made = [Span("1" * 32, "2" * 16, "n", 1, 2, attributes={"input.value": "said", "a": "x"}) for _ in range(3)]
    assert b"said" in intake.body(END, made[0])
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    assert b"said" in intake.body(END, made[1])
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "false")
    assert b"said" not in intake.body(END, made[2])


def test_secrets_of_resource_and_scope_go_once_for_all_spans() -> None:
    intake = intake_of()
    resource, scope = Resource({"process.command_line": "x --password=hunter22"}), Scope("s", attributes={"k": "a\0"})
    made = [Span("1" * 32, "2" * 16, "n", 1, 2, attributes={"a": "x"}, resource=resource, scope=scope) for _ in range(3)]
    assert not any(b"hunter22" in intake.body(END, span) for span in made)
    assert made[0].resource is made[2].resource
    assert made[0].scope.attributes == {"k": "a\ufffd"}
    assert intake.redacted == 1


def test_shapes_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MAX_SHAPES", 10)
    known = shapes.Shapes(None, 1000)
    for n in range(35):
        assert known.plain(Span("1" * 32, "2" * 16, "n", 1, 2, attributes={f"k{n}": 1}))
        assert len(known._known) <= 10


def test_a_variable_is_read_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = Variable("OTEL_CMB_TEST_VARIABLE")
    assert variable.get() is None
    monkeypatch.setenv("OTEL_CMB_TEST_VARIABLE", "ü")
    assert variable.get() == "ü"
    monkeypatch.delenv("OTEL_CMB_TEST_VARIABLE")
    assert variable.get() is None
    monkeypatch.setattr(os, "environ", {"OTEL_CMB_TEST_VARIABLE": "of a test"})
    assert variable.get() == "of a test"


def test_no_file_is_made_for_it(tmp_path: Path) -> None:
    intake_of(str(tmp_path)).body(END, Span("1" * 32, "2" * 16, "n", 1, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "corpus").rglob("*.json.gz")), ids=str)
def test_spans_of_real_frameworks_come_out_the_same(path: Path) -> None:
    made = otlp.decode(orjson.loads(gzip.decompress(path.read_bytes()))).spans
    for intake in INTAKES:
        for span in copy.deepcopy(made):
            check(intake, span)
    data = otlp.request_from_spans(made).SerializeToString()
    found = Shallow().decode(data, 1, 100_000)
    assert found is not None
    assert exact_spans(found.spans) == exact_spans(otlp.decode(ExportTraceServiceRequest.FromString(data), 1).spans)
