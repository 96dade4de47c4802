"""What is found out once for spans of one kind is what would be found out for each of them."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import rebuild, refs, refs_common, rows, tagged
from otel_cmb.binding import Binding
from otel_cmb.dialects import SQLITE
from otel_cmb.event import Event, Resource, Scope, Span, SpanEvent, Stamp
from otel_cmb.fit import ColumnInfo, TableInfo

PROMPT = "please compute the ratio of the two fluxes "
ODD = [
    None, True, False, 0, 1, 1.0, 0.0, -0.0, math.nan, math.inf, 2**70, 1e17, "", "1", "meta.model", "@other", "null", "~b",
    b"", b"1", "\0", "\ud800", PROMPT, PROMPT * 7, "an answer, \"quoted\"\nand é long enough", "y" * 256, "y" * 257, [], {},
    ["stop"], ["t" * 24], ["t" * 25], [1], [PROMPT], {"content": PROMPT}, {"$": PROMPT}, [{"role": "user", "content": PROMPT}],
    json.dumps([{"role": "user", "content": PROMPT}]), json.dumps({"query": PROMPT, "n": 3}, indent=2),
    orjson.dumps([{"role": "user", "content": PROMPT}]).decode(), json.dumps({"text": json.dumps({"content": PROMPT})}),
    "[no JSON, but it begins like it and is long enough to be one",
]
EVENT_BINDING = Binding(True, SQLITE, None, {"execution_events": TableInfo("execution_events", "execution_events", {
    name: ColumnInfo(name, "json" if name in ("inputs", "outputs", "meta") else "text", None, True, True)
    for name in ("id", "run_id", "inputs", "outputs", "meta")
}, ("id",))}, "pair", {})
EVENT_ROWS = rows.EventRows(EVENT_BINDING, rebuild.Interner())
KEYS = (
    "cmb.run.id", "gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.request.temperature", "gen_ai.tool.name",
    "gen_ai.tool.call.result", "gen_ai.operation.name", "gen_ai.response.finish_reasons", "gen_ai.input.messages",
    "input.value", "other",
)
values = st.sampled_from(ODD)
spans_attributes = st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=6), min_size=1, max_size=3).flatmap(
    # each twice, and once with another value: what was found out is used
    lambda found: st.tuples(*[
        st.just(item) if not item else st.tuples(st.sampled_from(sorted(item)), values).map(
            lambda change, item=item: {**item, change[0]: change[1]})  # type: ignore[misc]
        for item in found
    ]).map(lambda changed: [*found, *changed, *found])
)
moves = st.lists(st.sampled_from(range(len(KEYS))), max_size=4)


def columns(attributes: dict[str, Any], moved: list[int]) -> dict[str, dict[str, Any]]:
    """The columns of a row that holds some of the values where they usually are, and some elsewhere."""
    row: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}, "meta": {}}
    for n in moved:
        value = attributes.get(KEYS[n], PROMPT)
        try:
            if type(value) is str and n % 2:
                value = orjson.loads(value)
            value = orjson.loads(orjson.dumps(value))
        except (orjson.JSONEncodeError, orjson.JSONDecodeError):
            continue
        column, _, key = refs_common.HELD.get(KEYS[n], "inputs.message").partition(".")
        row[column if key else "outputs"][key or "result"] = value
    return {column: value for column, value in row.items() if value}


def exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    return (type(value).__name__, repr(value))


def small(key: str, value: Any, row: dict[str, Any]) -> Any:
    """The reference for a small value, as the module's first lines say it."""
    if type(value) not in (list, dict):
        held: Any = row
        for part in refs_common.HELD.get(key, "nowhere").split("."):
            held = held.get(part, ...) if isinstance(held, dict) else ...
        if (type(held), repr(held)) == (type(value), repr(value)) and held == value:  # NaN is not held
            return refs_common.HELD[key]
    if key in refs_common.FEW:
        if type(value) is str and len(value) <= 256:
            return {"value": value}
        if type(value) is list and len(value) == 1 and type(value[0]) is str and len(value[0]) <= 24:
            return {"value": value}
    return None


def plainly(attributes: dict[str, Any], places: refs.Places) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    kept, own, common = {}, {}, {}
    for key, value in attributes.items():
        reference = small(key, value, places.row)
        if reference is not None:
            common[key] = reference
            continue
        found = refs.find(key, value, places, own=True)
        reference = found.reference if isinstance(found, refs.Form) else found
        if reference is None:
            kept[key] = value
        else:
            (common if refs.is_common(reference) else own)[key] = reference
    return kept, own, dict(sorted(common.items()))


@given(spans_attributes, moves, st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_plan_gives_what_each_attribute_by_itself_gives(
    found: list[dict[str, Any]], moved: list[int], ordered: bool
) -> None:
    for attributes in found:
        row: dict[str, Any] = {**columns(attributes, moved), "run_id": "1"}
        expected = plainly(attributes, refs.Places(row, ordered=ordered))
        kept, own, common = refs_common.split(attributes, refs.Places(row, ordered=ordered), own=True)
        assert exact((kept, own, common.refs)) == exact(expected)
        assert list(kept) == list(expected[0])  # and in their order
        assert list(common.refs) == list(expected[2])


@given(spans_attributes, moves, st.sampled_from([None, "1"]), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_spans_of_one_kind_come_back_exactly(
    found: list[dict[str, Any]], moved: list[int], run_id: str | None, status: int, kind: int
) -> None:
    interner = rebuild.Interner()
    bodies: dict[str, Any] = {}
    for n, attributes in enumerate(found):
        row = columns(attributes, moved)
        span = Span(
            "1" * 32, f"{n + 1:016x}", "a", 1, 2, kind=kind, status_code=status, attributes=attributes,
            events=[SpanEvent("e", 1, attributes)] if n % 2 else [], scope=Scope("s", str(n % 2)), resource=Resource({"n": n % 2}),
            stamp=Stamp(run_id if n % 3 else None, *[None] * (n % 2), "s"),
        )
        event = Event("id", span.trace_id, span.span_id, "llm_call", None, "completed", 1, 2, run_id, spans=[span], **row)
        packed = rebuild.pack(event, interner)
        bodies.update({key: json.loads(text) for key, text in interner.new.items()})
        if n % 2:
            interner.committed()
        stored = json.loads(json.dumps({**row, "run_id": run_id, "meta": {**row.get("meta", {}), "otel": packed}}))
        (back,) = rebuild.unpack(stored, bodies.__getitem__)
        assert exact(astuple(back)) == exact(astuple(span))


def test_a_shape_is_new_until_it_is_committed() -> None:
    """The same object is given each time, and known or not by what the interner was told."""
    def pack(interner: rebuild.Interner) -> dict[str, Any]:
        span = Span("1" * 32, "2" * 16, "a", 1, 2, attributes={"gen_ai.operation.name": "chat"}, scope=Scope("a shape"))
        return rebuild.pack(Event("id", "1" * 32, "2" * 16, "t", None, "completed", 1, 2, spans=[span]), interner)

    first, second = rebuild.Interner(), rebuild.Interner()
    shape = pack(first)["shape"]
    assert list(first.new) == [shape]
    first.new = {}  # rolled back
    assert pack(first)["shape"] == shape
    assert list(first.new) == [shape]
    first.committed()
    pack(first)
    assert first.new == {}
    pack(second)
    assert list(second.new) == [shape]
    first.forget()
    pack(first)
    assert list(first.new) == [shape]


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_a_value_of_another_type_is_not_the_one_in_the_column(value: Any) -> None:
    for held in (1, value):
        event = Event("id", "1" * 32, "2" * 16, "t", None, "completed", 1, 2, meta={"prompt_tokens": held}, spans=[
            Span("1" * 32, "2" * 16, "a", 1, 2, attributes={"gen_ai.usage.input_tokens": value})])
        packed = rebuild.pack(event, rebuild.Interner())
        assert ("attributes" in packed) == (held is not value)


def test_minus_zero_is_not_zero() -> None:
    for held, value in ((0.0, -0.0), (-0.0, 0.0), (0.0, 0.0), (-0.0, -0.0)):
        kept, _, _ = refs_common.split({"gen_ai.request.temperature": value}, refs.Places({"meta": {"temperature": held}}), own=True)
        assert bool(kept) == (str(held) != str(value))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_the_column_cannot_hold_stays_with_the_span(value: float) -> None:
    event = Event("id", "1" * 32, "2" * 16, "t", None, "completed", 1, 2, meta={"temperature": value, "conversation_id": value},
                  spans=[Span("1" * 32, "2" * 16, "a", 1, 2, attributes={
                      "gen_ai.request.temperature": value, "gen_ai.conversation.id": value})])
    interner = rebuild.Interner()
    event_rows = rows.EventRows(EVENT_BINDING, interner)
    values = event_rows.insert_values(event, rows.Placement("session", None, None, None, 1, 0))
    meta = orjson.loads(dict(zip(event_rows.inserted, values, strict=True))["meta"])
    found = rebuild.unpack({"meta": meta}, lambda key: orjson.loads(interner.new[key]))
    assert exact(found[0].attributes) == exact(event.spans[0].attributes)


@given(
    st.dictionaries(st.sampled_from(["tokens", "node", "x"]), values), st.dictionaries(st.sampled_from(KEYS), values),
    st.sampled_from([1, 2**64 - 1]),
)
@settings(max_examples=200, deadline=None)
def test_the_text_of_meta_is_the_tagged_spans_and_the_cleaned_rest(
    meta: dict[str, Any], attributes: dict[str, Any], start_ns: int,
) -> None:
    span = Span("1" * 32, "2" * 16, "a", start_ns, 2, attributes=attributes)
    event = Event("id", "1" * 32, "2" * 16, "t", None, "completed", 1, 2, meta=meta, spans=[span])
    place = rows.Placement("session", None, None, None, 1, 0)
    found = dict(zip(EVENT_ROWS.inserted, EVENT_ROWS.insert_values(event, place), strict=True))["meta"]
    otel = rebuild.pack(event, rebuild.Interner())
    assert "\\u0000" not in found.replace("\\\\", "")
    back = orjson.loads(found)
    assert exact(tagged.untag(back.pop("otel"))) == exact(tagged.untag(otel))
    assert back == orjson.loads(rows.json_text(meta))


def test_what_is_remembered_is_bounded() -> None:
    places = refs.Places({})
    for n in range(3000):
        refs_common.split({f"key{n}": 1, "gen_ai.operation.name": str(n)}, places, own=True)
        refs_common.split({"gen_ai.operation.name": str(n)}, places, own=True)
    assert len(refs_common._plans) <= refs_common._PLANS
    assert len(refs_common._commons) <= refs_common._COMMONS
    many = {f"key{n}": 1 for n in range(refs_common._KEYS + 1)}
    refs_common._plans.clear()
    assert refs_common.split(many, places, own=True)[0] == many
    assert not refs_common._plans
