"""What spans say of the run, node and step they belong to, and the numbers their events get."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from fault_support import BASE_NS, agent_span, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import config, mapper
from otel_cmb.event import Event, Resource, Span, Stamp
from otel_cmb.items import Item
from otel_cmb.ordering import number
from otel_cmb.pipeline import Pipeline
from otel_cmb.placing import names_of
from otel_cmb.reader import open_reader
from otel_cmb.traces import Change, Trace

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


def _number_one_by_one(changes: list[Change], following: dict[str, int]) -> dict[str, int]:
    """What DESIGN section 4 says, event by event."""
    held: dict[tuple[int, str], list[int]] = {}
    new = []
    for c, change in enumerate(changes):
        latest = 0
        for position, event in enumerate(change.after.values()):
            latest = max(latest, event.started_ns)
            if event.id not in change.trace.orders:
                new.append((latest, c, position, str(event.run_id)))
        for id_, order in change.trace.orders.items():
            holder = change.after.get(id_) or change.before[id_]
            held.setdefault((c, str(holder.run_id)), []).append(order)
    taken = {(c, run): sum(event.run_id == run and id_ in changes[c].trace.orders for id_, event in changes[c].after.items())
             for c, run in held}
    for _, c, _, run in sorted(new):
        mine = held.setdefault((c, run), [])
        if taken.setdefault((c, run), 0) >= len(mine):
            mine.append(following[run])
            following[run] += 1
        taken[c, run] += 1
    found: dict[str, int] = {}
    for (c, run), orders in held.items():
        ids = [id_ for id_, event in changes[c].after.items() if event.run_id == run]
        found.update(zip(ids, sorted(orders), strict=False))
    return found


stored = st.sampled_from(["new", "kept", "gone"])
events = st.lists(st.tuples(stored, st.sampled_from("ab"), st.integers(0, 5)), max_size=6)


@given(st.lists(events, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_new_rows_take_the_next_numbers_and_a_trace_permutes_its_own(
    traces: list[list[tuple[str, str, int]]], chance: Any,
) -> None:
    free = {run: list(range(1, 30)) for run in "ab"}
    changes = []
    for t, made in enumerate(traces):
        change = Change(Trace(f"{t:032x}"), {}, {})
        for n, (state, run, start) in enumerate(made):
            event = Event(f"{t}-{n}", change.trace.trace_id, f"{n:016x}", "llm_call", None, "completed", start, start, run_id=run)
            if state != "new":
                change.before[event.id] = event
                change.trace.orders[event.id] = free[run].pop(chance.randrange(len(free[run])))
            if state != "gone":
                change.after[event.id] = event
        changes.append(change)
    assert number(changes, lambda run: {"a": 100, "b": 200}[run]) == _number_one_by_one(changes, {"a": 100, "b": 200})


def _began_and_ended(url: str) -> dict[str, tuple[Any, Any]]:
    with open_reader(url) as reader:
        return {run.id: (run.started_at, run.completed_at) for run in reader.runs()}


def _at(after: int) -> datetime:
    return datetime.fromtimestamp(BASE_NS / 1e9, timezone.utc) + timedelta(seconds=after)


def _call(trace: int, number: int, parent: int | None, after: int, run: str | None = None) -> Span:
    return agent_span(trace, number, parent=parent, start=after * 1_000_000_000, run=run, name=f"agent {number}")


def test_a_run_that_is_made_for_spans_began_with_the_first_of_them(database_url: str, state_dir: Path) -> None:
    """Children end, and come, before their parents; a span that does not say when it began says nothing of the run."""
    with pipeline_of(database_url, state_dir, on_missing_run="create") as pipeline:
        timeless = _call(1, 3, 1, 0)
        timeless.start_ns = timeless.end_ns = 0
        pipeline.accept([_call(1, 2, 1, 5), timeless, _call(1, 1, None, 2), _call(2, 5, 4, 9, "named"), _call(2, 4, None, 1, "named")])
        assert pipeline.flush(30)
        own = pipeline.automatic_run_id
    assert {run: began for run, (began, _) in _began_and_ended(database_url).items()} == {own: _at(2), "named": _at(1)}


def test_a_traces_run_began_with_its_root_also_where_that_comes_last(database_url: str, state_dir: Path) -> None:
    pipeline = Pipeline(config.load(database_url=database_url, state_dir=str(state_dir)), per_trace_runs=True)
    pipeline.accept([_call(1, 2, 1, 5)])
    assert pipeline.flush(30)
    assert [began for began, _ in _began_and_ended(database_url).values()] == [_at(5)]
    root = _call(1, 1, None, 1)
    root.end_ns = BASE_NS + 7_000_000_000
    pipeline.accept([root])
    assert pipeline.flush(30)
    pipeline.shutdown()
    assert list(_began_and_ended(database_url).values()) == [(_at(1), _at(7))]
