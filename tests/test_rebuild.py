"""A span goes into a row, or into the journal, and comes back the same to the last type and bit."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, fields
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import journal_spans, rebuild, refs_common, tagged
from otel_cmb.event import Event, Link, Resource, Scope, Span, SpanEvent, Stamp

texts = st.text(alphabet=st.characters(), max_size=60) | st.sampled_from(
    ["", "~b", "null", "a\0b", "\ud800x", ":null", '"~', "x" * 80, "the same long text in two places " * 3]
)
keys = st.text(alphabet=st.characters(), max_size=12) | st.sampled_from(
    ["~b", "~d", "$", "gen_ai.input.messages", "", "."]
)
int64 = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | st.integers() | int64 | st.floats() | st.binary(max_size=30) | texts
anyvalues = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
json_values = st.recursive(
    st.none() | st.booleans() | int64 | st.floats(allow_nan=False, allow_infinity=False) | texts.map(
        lambda text: text.encode("utf-8", "replace").decode()
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=5,
)
json_texts = st.builds(
    lambda value, options: json.dumps(value, **options), json_values,
    st.sampled_from([{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2},
                     {"separators": (",", ":"), "ensure_ascii": False}]),
)
usual = st.sampled_from(sorted({*refs_common.HELD, *refs_common.FEW}))
small = st.sampled_from(["gpt-4.1", "stop", "chat", 3, 3.0, True, 0, "", ["stop"], [], None, 0.0, -0.0])
attributes = st.builds(
    lambda one, two: {**one, **two}, st.dictionaries(keys, anyvalues | json_texts, max_size=4),
    st.dictionaries(usual, small | anyvalues, max_size=3),
)
hex32 = st.integers(1, 2**128 - 1).map(lambda n: f"{n:032x}")
hex16 = st.integers(1, 2**64 - 1).map(lambda n: f"{n:016x}")
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
optional = st.none() | texts
stamps = st.builds(Stamp, *[optional for _ in fields(Stamp)])
resources = st.builds(Resource, st.dictionaries(keys, anyvalues, max_size=2), texts, uint32)
scopes = st.builds(Scope, texts, texts, st.dictionaries(keys, anyvalues, max_size=2), texts, uint32)
spans = st.builds(
    Span, hex32, hex16, texts, uint64, st.none() | uint64, st.none() | hex16, st.integers(0, 5), st.integers(0, 2),
    texts, attributes, st.lists(st.builds(SpanEvent, texts, uint64, attributes, uint32), max_size=2),
    st.lists(st.builds(Link, hex32, hex16, texts, attributes, uint32, uint32), max_size=2),
    resources, scopes, texts, uint32, uint32, uint32, uint32, stamps, st.booleans(),
)


def exact(value: Any) -> Any:
    """A form in which 1, 1.0 and True differ, NaN equals itself and the order of keys does not matter."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    return (type(value).__name__, repr(value))


def exact_spans(spans: list[Span]) -> Any:
    return [exact(astuple(span)) for span in spans]


def columns_of(span: Span, choice: int) -> dict[str, Any]:
    """Some of the span's own values, as a mapper would move them into the columns."""
    values = [value for value in span.attributes.values() if type(value) in (str, list, dict)]
    moved: dict[str, Any] = {}
    for n, value in enumerate(values):
        if type(value) is str and value[:1] in "[{" and (choice + n) % 2:
            try:
                value = json.loads(value)  # noqa: PLW2901
            except ValueError:
                continue
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            continue
        if "\\u0000" not in json.dumps(value):
            moved[f"value{n}"] = value
    return moved


def event_of(spans: list[Span], **fields: Any) -> Event:
    first = spans[0]
    return Event("id", first.trace_id, first.span_id, "llm_call", "complete", "completed", 1, 2, spans=spans, **fields)


def assert_no_nul(value: Any) -> None:
    if type(value) is str:
        assert "\0" not in value
    elif type(value) is dict:
        for key, item in value.items():
            assert_no_nul(key)
            assert_no_nul(item)
    elif type(value) is list:
        for item in value:
            assert_no_nul(item)


def through_the_database(event: Event, packed: dict[str, Any]) -> dict[str, Any]:
    row = {
        "run_id": event.run_id, "error_message": event.error_message, "inputs": event.inputs, "outputs": event.outputs,
        "meta": {**event.meta, "otel": packed},
    }
    loaded: dict[str, Any] = json.loads(json.dumps(row))
    return loaded


@given(spans)
@settings(max_examples=60, deadline=None)
def test_journal_round_trip(span: Span) -> None:
    data = journal_spans.encode(span)
    assert b"\n" not in data
    assert exact_spans([journal_spans.decode(data)]) == exact_spans([span])


@given(st.lists(spans, min_size=1, max_size=2), st.integers(0, 3), st.booleans(), st.none() | texts)
@settings(max_examples=60, deadline=None)
def test_row_round_trip(found: list[Span], choice: int, interned: bool, run_id: str | None) -> None:
    columns = columns_of(found[0], choice)
    event = event_of(found, run_id=run_id, inputs=columns, outputs=dict(list(columns.items())[:1]),
                     meta={"tokens": 3, "model": "gpt-4.1", "prompt_tokens": 3, "temperature": 0.0, "cost_usd": 3.0,
                           **dict(list(columns.items())[1:2])})
    interner = rebuild.Interner() if interned else None
    packed = rebuild.pack(event, interner)
    assert_no_nul(packed)
    bodies = {} if interner is None else {key: json.loads(text) for key, text in interner.new.items()}
    assert exact_spans(rebuild.unpack(through_the_database(event, packed), bodies.__getitem__)) == exact_spans(found)


def jsonb(value: Any) -> Any:
    """What PostgreSQL's jsonb makes of a JSON value: other order, numbers as numerics."""
    if isinstance(value, dict):
        return {key: jsonb(value[key]) for key in sorted(value, key=lambda key: (len(key), key))}
    if isinstance(value, list):
        return [jsonb(item) for item in value]
    if isinstance(value, float):
        text = format(Decimal(repr(value)), "f").removeprefix("-") if value == 0 else format(Decimal(repr(value)), "f")
        return json.loads(text)
    return value


@given(st.lists(spans, min_size=1, max_size=2), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_row_round_trip_through_jsonb(found: list[Span], choice: int) -> None:
    columns = columns_of(found[0], choice)
    event = event_of(found, inputs=columns, meta={"tokens": 3})
    row = jsonb(through_the_database(event, rebuild.pack(event, ordered=False)))
    assert exact_spans(rebuild.unpack(row)) == exact_spans(found)


@given(anyvalues)
@settings(max_examples=300, deadline=None)
def test_tagged_json_is_exact(value: Any) -> None:
    assert exact(tagged.loads(tagged.dumps(value))) == exact(value)
    assert exact(tagged.untag(json.loads(json.dumps(tagged.tag(value), allow_nan=False)))) == exact(value)


PROMPT = "please compute the ratio " * 20
ANSWER = "the ratio is about three " * 20


@pytest.mark.parametrize("style", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}])
def test_what_moved_into_a_column_is_not_stored_twice(style: dict[str, Any]) -> None:
    span = Span(
        "1" * 32, "2" * 16, "chat", 1, 2,
        attributes={
            "gen_ai.input.messages": json.dumps(
                [{"role": "user", "parts": [{"type": "text", "content": PROMPT + "é"}]}], **style
            ),
            "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": ANSWER}], **style),
            "input.value": PROMPT + "é",
            "copy": ANSWER + "!",
            "copy.again": ANSWER + "!",
            "cmb.run.id": "0" * 36,
            "arguments": json.dumps({"code": ANSWER, "limits": [1, 2.0, True, None]}, **style),
        },
        events=[SpanEvent("exception", 1, {"exception.message": "it broke because of the weather"})],
    )
    event = event_of(
        [span], run_id="0" * 36, inputs={"message": PROMPT + "é"}, error_message="it broke because of the weather",
        outputs={"messages": [{"role": "assistant", "content": ANSWER}]}, meta={"arguments": {"code": ANSWER}},
    )
    packed = rebuild.pack(event)
    stored = json.dumps(packed, ensure_ascii=False)
    assert PROMPT not in stored
    assert stored.count(ANSWER) == 1  # the text no column holds
    assert "weather" not in stored
    assert rebuild.unpack(through_the_database(event, packed)) == [span]


def test_what_many_rows_have_in_common_is_stored_once() -> None:
    interner = rebuild.Interner()
    found = []
    for n in range(5):
        span = Span(
            "1" * 32, f"{n:016x}", "chat", 1, 2, kind=3, status_code=1, scope=Scope("scope", "1"),
            stamp=Stamp("r" * 36), attributes={
                "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4.1", "gen_ai.usage.input_tokens": n,
                "cmb.run.id": "r" * 36, "n": n,
                "gen_ai.input.messages": json.dumps(
                    [{"role": "user", "parts": [{"type": "text", "content": f"{PROMPT}{n}"}]}]),
            })
        event = event_of([span], run_id="r" * 36, inputs={"messages": [{"role": "user", "content": f"{PROMPT}{n}"}]},
                         meta={"model": "gpt-4.1", "prompt_tokens": n})
        packed = rebuild.pack(event, interner)
        assert packed["attributes"] == {"n": n}
        found.append((through_the_database(event, packed), span))
    assert len(interner.new) == 1
    bodies = {key: json.loads(text) for key, text in interner.new.items()}
    for row, span in found:
        assert rebuild.unpack(row, bodies.__getitem__) == [span]
    (back,) = rebuild.unpack(found[0][0], {}.__getitem__)
    assert back.attributes["n"] == 0
    assert back.attributes["cmb.missing"].startswith("shape ")


def test_merged_spans_share_what_is_equal() -> None:
    first = Span("1" * 32, "2" * 16, "a", 1, 2, resource=Resource({"service.name": "x" * 50}), scope=Scope("one"))
    second = Span("1" * 32, "3" * 16, "b", 1, 2, resource=Resource({"service.name": "x" * 50}), scope=Scope())
    event = event_of([first, second])
    packed = rebuild.pack(event)
    assert json.dumps(packed).count("x" * 50) == 1
    assert rebuild.unpack(through_the_database(event, packed)) == [first, second]


def test_packing_again_does_not_refer_to_what_it_replaces() -> None:
    span = Span("1" * 32, "2" * 16, "a", 1, 2, attributes={"text": PROMPT})
    event = event_of([span])
    event.meta["otel"] = rebuild.pack(event)
    packed = rebuild.pack(event)
    assert packed["attributes"] == {"text": PROMPT}
    event.meta.pop("otel")
    assert rebuild.unpack(through_the_database(event, packed)) == [span]


def test_a_row_that_was_changed_still_opens() -> None:
    span = Span("1" * 32, "2" * 16, "a", 1, 2, attributes={"text": PROMPT, "other": 1})
    event = event_of([span], inputs={"message": PROMPT})
    row = through_the_database(event, rebuild.pack(event))
    row["inputs"] = None
    (back,) = rebuild.unpack(row)
    assert back.attributes == {"text": "…[missing: inputs.message is no longer in the row]", "other": 1}


def test_rows_without_a_span() -> None:
    assert rebuild.pack(Event("id", "1" * 32, "2" * 16, "handoff", None, "completed", 1, 2)) == {}
    assert rebuild.unpack({"meta": None}) == []
    assert rebuild.unpack({"meta": {"tokens": 1}}) == []


def test_the_interner_gives_each_body_once() -> None:
    interner = rebuild.Interner()
    resource = Resource({"service.name": "x", "weight": math.nan})
    for n in range(3):
        rebuild.pack(event_of([Span("1" * 32, f"{n:016x}", "a", 1, 2, resource=resource)]), interner)
    assert len(interner.new) == 1
    (key,) = interner.new
    assert len(key) == 32
    interner.committed()
    packed = rebuild.pack(event_of([Span("1" * 32, "4" * 16, "a", 1, 2, resource=resource)]), interner)
    assert packed["resource"] == key
    assert interner.new == {}
    interner.forget()
    rebuild.pack(event_of([Span("1" * 32, "4" * 16, "a", 1, 2, resource=Resource(resource.attributes))]), interner)
    assert list(interner.new) == [key]


def test_half_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="3 parts"):
        journal_spans.decode(b"[1,2")
    whole = journal_spans.encode(Span("1" * 32, "4" * 16, "a", 1, 2))
    own, resource, scope = whole.split(b"\x1e")
    for parts in ([own, resource], [own, resource, scope, scope], [own + b"[", resource, scope], [own, resource, scope + b"["]):
        for _ in range(2):  # a text that cannot be read is not remembered as if it could
            with pytest.raises(ValueError):
                journal_spans.decode(b"\x1e".join(parts))
    assert exact_spans([journal_spans.decode(b"e" + whole, 1)]) == exact_spans([journal_spans.decode(whole)])


def test_decoded_spans_share_resource_and_scope() -> None:
    def made(scope: str) -> Span:
        return journal_spans.decode(journal_spans.encode(
            Span("1" * 32, "4" * 16, "a", 1, 2, resource=Resource({"service.name": "shared"}), scope=Scope(scope))))

    first, second, other = made("one"), made("one"), made("two")
    assert first.resource is second.resource is other.resource
    assert first.scope is second.scope and other.scope.name == "two"
