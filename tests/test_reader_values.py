"""Values of columns: integers come back as they were written, whatever their size."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from otel_cmb.reader.values import as_json

EDGES = [number + shift for number in (2**63, 2**64, 10**18, 10**19, 10**20) for shift in (-1, 0, 1)]
NUMBERS = st.one_of(st.integers(), st.sampled_from(EDGES + [-edge for edge in EDGES]), st.text("0123456789a-", max_size=60))
VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4))


@given(VALUES, st.booleans())
@example([2**64], False)
@example([-(2**63) - 1], True)
@example({"start_ns": 1_766_000_000_000_000_000, "far": [10**19 - 1, 10**19]}, False)
def test_no_integer_is_rounded(value: object, spaced: bool) -> None:
    text = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":"))
    assert as_json(text) == value


@given(st.text("ab ", max_size=30), st.integers(2**64, 2**200), st.text("ab ", max_size=30), st.booleans())
def test_a_huge_integer_is_seen_wherever_it_stands(before: str, number: int, after: str, negative: bool) -> None:
    value = [before, -number if negative else number, after]
    assert as_json(json.dumps(value)) == value
