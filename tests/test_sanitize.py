"""Whatever comes in, what goes out fits JSON and the databases, and a second pass changes nothing."""

from __future__ import annotations

import enum
import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import sanitize
from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=40)
    | st.text(alphabet=st.characters(), max_size=400) | st.sampled_from(["\0", "a\0b", "\ud800", "x\udfffy", "é" * 300])
    | st.uuids() | st.decimals() | st.datetimes() | st.complex_numbers()
)
keys = st.text(alphabet=st.characters(), max_size=8) | st.integers() | st.none() | st.binary(max_size=4) | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5)
    | st.tuples(inner, inner) | st.sets(st.integers() | st.text(max_size=3), max_size=4),
    max_leaves=30,
)


def assert_fits(value: Any, *, json_only: bool, max_bytes: int = 256) -> None:
    kind = type(value)
    if kind is str:
        assert "\0" not in value
        assert len(value.encode()) <= max_bytes
    elif kind is dict:
        for key, item in value.items():
            assert_fits(key, json_only=True, max_bytes=1024)
            assert_fits(item, json_only=json_only, max_bytes=max_bytes)
    elif kind is list:
        for item in value:
            assert_fits(item, json_only=json_only, max_bytes=max_bytes)
    elif kind is int:
        assert -(2**63) <= value < 2**63
    elif kind is float:
        assert not json_only or math.isfinite(value)
    elif kind is bytes:
        assert not json_only
        assert len(value) <= max_bytes
    else:
        assert value is None or kind is bool


@given(values)
@settings(max_examples=300, deadline=None)
def test_anything_becomes_json(value: Any) -> None:
    cleaned = sanitize.clean(value, max_value_bytes=256, max_depth=4, max_items=4)
    assert_fits(cleaned, json_only=True)
    assert orjson.loads(orjson.dumps(cleaned)) == cleaned
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned
    assert sanitize.clean(cleaned, max_value_bytes=256, max_depth=4, max_items=4) == cleaned


@given(st.dictionaries(keys, values, max_size=6))
@settings(max_examples=300, deadline=None)
def test_attributes_keep_what_otlp_can_hold(attributes: dict[Any, Any]) -> None:
    cleaned = sanitize.clean_attributes(attributes, max_value_bytes=256)
    assert len(cleaned) == len(attributes)
    assert_fits(cleaned, json_only=False)
    again = sanitize.clean_attributes(cleaned, max_value_bytes=256)
    assert repr(again) == repr(cleaned)  # repr: NaN is not equal to itself


def test_clean_attributes_come_back_as_the_same_object() -> None:
    attributes = {"a": "text", "b": 1, "c": 0, "d": "", "e": False, "f": 1.5, "g": None}
    assert sanitize.clean_attributes(attributes) is attributes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\xff\x00", "/wA="), (b"text", "text"), (math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"),
        (2**63, str(2**63)), (-(2**63), -(2**63)), (True, True), (1.0, 1.0),
        ({1: "a", "1": "b"}, {"1": "a", "1~2": "b"}),
        ({3, 1, 2}, [1, 2, 3]), ((1, 2), [1, 2]), ("a\0b", "a\ufffdb"), ("\ud800", "\ufffd"), ("😀", "😀"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"), (enum.Enum("E", {"A": "x"}).A, "x"),
        (enum.IntEnum("I", {"A": 7}).A, 7), ({None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    cleaned = sanitize.clean(value)
    assert cleaned == expected
    assert type(cleaned) is type(expected)


def test_bytes_and_nan_stay_in_attributes() -> None:
    cleaned = sanitize.clean_attributes({"b": b"\xff", "n": math.nan, "deep": [{"x": b"1"}]})
    assert cleaned["b"] == b"\xff"
    assert math.isnan(cleaned["n"])
    assert cleaned["deep"] == [{"x": b"1"}]


def test_a_cut_says_how_much_and_of_what() -> None:
    text = "é" * 1000
    short = sanitize.cut(text, 301)
    assert short.endswith(f"…[cut: 2000 bytes, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}]")
    assert short.startswith("ééé")
    assert 295 < len(short.encode()) <= 301
    assert sanitize.cut(short, 301) == short


def test_a_long_json_text_stays_json() -> None:
    text = json.dumps([{"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "short"}])
    short = sanitize.cut(text, 1000)
    messages = json.loads(short)
    assert len(short) <= 1000
    assert messages[1] == {"role": "assistant", "content": "short"}
    assert "…[cut: 5000 bytes, sha256 " in messages[0]["content"]
    assert sanitize.cut(short, 1000) == short


def test_cycles_depth_and_width_end() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert sanitize.clean(cycle) == [1, "…[cut: contains itself]"]
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    assert "nested too deep" in json.dumps(sanitize.clean(deep), ensure_ascii=False)
    assert sanitize.clean(list(range(20)), max_items=5) == [0, 1, 2, 3, "…[cut: 16 more]"]
    shared: Any = "x"
    for _ in range(30):
        shared = [shared] * 10
    assert sanitize.clean(shared) == "…[cut: more than 200000 elements]"
    assert sanitize.clean(10**10_000).startswith("0x")


def test_objects_whose_text_fails() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class BrokenMapping(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            raise RuntimeError("no")

        def __iter__(self) -> Any:
            return iter(["a"])

        def __len__(self) -> int:
            return 1

    assert sanitize.clean(Broken()) == "<Broken: RuntimeError in repr()>"
    assert sanitize.clean(BrokenMapping()) == "<BrokenMapping: RuntimeError while reading it>"
    assert sanitize.clean_attributes({"x": Broken()}) == {"x": "<Broken: RuntimeError in repr()>"}


def test_fit_keeps_long_names_apart() -> None:
    assert sanitize.fit(None, 10) is None
    assert sanitize.fit("short", 10) == "short"
    one, two = sanitize.fit("n" * 300 + "1", 100), sanitize.fit("n" * 300 + "2", 100)
    assert one is not None
    assert two is not None
    assert len(one) == len(two) == 100
    assert one != two
    assert sanitize.fit(one, 100) == one
    assert sanitize.fit("a\0b", 10) == "a\ufffdb"


def test_a_span_is_cleaned_everywhere_and_its_resource_stays_shared() -> None:
    resource, scope = Resource({"host": "a\0"}), Scope("s\0")
    spans = [
        Span("0" * 32, f"{n:016x}", "n\0", 1, 2, status_message="\0", attributes={"a": "\0"}, resource=resource,
             scope=scope, events=[SpanEvent("e\0", 1, {"a": "\0"})],
             links=[Link("1" * 32, "2" * 16, "\0", {"a": "\0"})])
        for n in (1, 2)
    ]
    for span in spans:
        sanitize.clean_span(span)
    first, second = spans
    assert first.resource is second.resource
    assert first.scope is second.scope
    assert "\0" not in repr(spans)
    assert "\\x00" not in repr(spans)
    assert resource.attributes == {"host": "a\0"}


def test_keys_that_only_look_like_texts_become_texts() -> None:
    """The SDK lets members of a `str` Enum through as keys: their hash is not that of the text, and no encoder takes them."""

    class Key(str, enum.Enum):
        OPERATION = "gen_ai.operation.name"

    cleaned = sanitize.clean_attributes({Key.OPERATION: Key.OPERATION, "list": [Key.OPERATION], "map": {Key.OPERATION: 1}})
    assert cleaned == {"gen_ai.operation.name": "gen_ai.operation.name", "list": ["gen_ai.operation.name"], "map": {"gen_ai.operation.name": 1}}
    assert [type(key) for key in cleaned] == [str] * 3
