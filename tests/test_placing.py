"""What spans say of the run, node and step they belong to."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import mapper
from otel_cmb.event import Resource, Span, Stamp
from otel_cmb.items import Item
from otel_cmb.placing import names_of

KEYS = ("cmb.run.id", "cmb.session.id", "cmb.node.id", "cmb.step.id", "cmb.parent_event_id", "other")
values = st.sampled_from(["", "a", "b", None, 0, 1, True, False, 1.0, float("nan"), ["a"], {"a": 1}, b"a"])
attributes = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
names = st.sampled_from([None, "", "a", "c"])
stamps = st.builds(
    Stamp, run_id=names, session_id=names, node_id=names, step_id=names, parent_event_id=names, door_run_id=names,
    bound_session_id=names, automatic_run_id=names)


@given(st.lists(attributes, min_size=1, max_size=2), st.lists(st.tuples(attributes, stamps, st.integers(0, 1)), max_size=5))
@settings(max_examples=300, deadline=None)
def test_the_names_of_many_spans_are_those_of_each(
    shared: list[dict[str, Any]], said: list[tuple[dict[str, Any], Stamp, int]],
) -> None:
    resources = [Resource(one) for one in shared]
    items = [
        Item(n, span=Span(f"{n:032x}", f"{n:016x}", "s", n, attributes=own, stamp=stamp, resource=resources[r % len(resources)]))
        for n, (own, stamp, r) in enumerate(said)]
    found = names_of([Item(99, command={"do": "run_end"}), *items])
    assert found.keys() == {item.seq for item in items}
    for item in items:
        assert item.span is not None
        named = mapper.named(item.span)
        assert found[item.seq] == (named.run_id, named.session_id, named.node_id, named.step_id, named.parent_event_id)
        assert all(name is None or type(name) is str for name in found[item.seq])
