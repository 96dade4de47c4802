"""The one transaction: order, parents and states, however the spans come, by one store or by several."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import BASE_NS, agent_span, check_orders, events, ids_of, query

import otel_cmb.store
from otel_cmb import config, mapper
from otel_cmb.event import Resource, Span, event_id
from otel_cmb.items import Item
from otel_cmb.known import Known
from otel_cmb.store import Store

RUN = "run-1"


class Desk:
    """Stores of one database that share nothing but it."""

    def __init__(self, url: str, state_dir: Path):
        self.url, self.state_dir = url, str(state_dir)
        self._stores: list[Store] = []
        self.store().write([Item(1, command={"do": "run_start", "id": RUN, "at": BASE_NS})])

    def store(self, **settings: Any) -> Store:
        store = Store(config.load(database_url=self.url, state_dir=self.state_dir, **settings), self.state_dir)
        self._stores.append(store)
        return store

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def desk(database_url: str, state_dir: Path) -> Iterator[Desk]:
    made = Desk(database_url, state_dir)
    yield made
    made.close()


def write(store: Store, *spans: Span) -> list[str]:
    items = [Item(n, span=copy.deepcopy(span)) for n, span in enumerate(spans)]
    store.write(items)
    return [item.outcome.result for item in items if item.outcome is not None]


def chain(count: int, trace: int = 1) -> list[Span]:
    """A span in a span in a span."""
    return [
        agent_span(trace, n, run=RUN, parent=n - 1 if n > 1 else None, start=n * 1000, name=f"agent {n}") for n in range(1, count + 1)]


def shape(url: str) -> list[tuple[str, str | None, int, int]]:
    return [
        (id_, row["parent_event_id"], row["depth"], row["execution_order"]) for id_, row in events(url).items()]


def expected(spans: list[Span]) -> list[tuple[str, str | None, int, int]]:
    ids = [event_id(span.trace_id, span.span_id) for span in spans]
    return [(id_, ids[n - 1] if n else None, n, n + 1) for n, id_ in enumerate(ids)]


def test_children_before_parents_in_one_batch_and_in_many(desk: Desk) -> None:
    spans = chain(6)
    for span in reversed(spans):
        assert write(desk.store(), span) == ["committed"]
    assert shape(desk.url) == expected(spans)
    assert write(desk.store(), *reversed(spans)) == ["merged"] * 6
    assert shape(desk.url) == expected(spans)


def test_two_processes_take_turns_in_one_trace(desk: Desk) -> None:
    spans = chain(8)
    one, two = desk.store(), desk.store()
    for n in (7, 2, 0, 5, 3, 1, 6, 4):
        write(one if n % 2 else two, spans[n])
    assert shape(desk.url) == expected(spans)


def test_unmapped_spans_between_are_skipped_also_when_they_come_late_and_elsewhere(desk: Desk) -> None:
    spans = chain(5)
    for n in (1, 3):
        spans[n].attributes, spans[n].name = {}, "GET /"
    for n in (4, 2, 0):
        write(desk.store(), spans[n])
    assert {row["parent_event_id"] for row in events(desk.url).values()} == {None}
    assert write(desk.store(), spans[1]) == ["ignored"]
    assert write(desk.store(), spans[3]) == ["ignored"]
    assert shape(desk.url) == expected([spans[0], spans[2], spans[4]])
    assert write(desk.store(), spans[1]) == ["merged"], "known already"


def test_a_parent_that_never_comes_leaves_a_root(desk: Desk) -> None:
    write(desk.store(), agent_span(1, 7, run=RUN, parent=99), agent_span(1, 8, run=RUN, parent=7, name="b", start=5))
    ids = [event_id(f"{1:032x}", f"{n:016x}") for n in (7, 8)]
    assert shape(desk.url) == [(ids[0], None, 0, 1), (ids[1], ids[0], 1, 2)]


def test_a_start_its_end_and_its_death_in_any_order(desk: Desk) -> None:
    ended = agent_span(1, 1, run=RUN)
    started, died = copy.deepcopy(ended), copy.deepcopy(ended)
    started.end_ns = died.end_ns = None
    died.died = True
    write(desk.store(), started)
    assert [row["status"] for row in events(desk.url).values()] == ["running"]
    write(desk.store(), died)
    (row,) = events(desk.url).values()
    assert (row["status"], row["error_message"]) == ("failed", "process ended before the span did")
    write(desk.store(), started)
    assert [row["status"] for row in events(desk.url).values()] == ["failed"]
    write(desk.store(), ended)
    for late in (started, died, ended):
        assert write(desk.store(), late) == ["merged"]
    (row,) = events(desk.url).values()
    assert (row["status"], row["event_subtype"], row["error_message"]) == ("completed", "complete", None)


def test_a_second_span_with_the_same_ids_is_another_row(desk: Desk) -> None:
    first, second = agent_span(1, 1, run=RUN), agent_span(1, 1, run=RUN, start=5_000_000, name="second")
    assert write(desk.store(), first) == ["committed"]
    assert write(desk.store(), second, first) == ["committed", "merged"]
    assert write(desk.store(), second) == ["merged"]
    assert len(events(desk.url)) == 2


def test_a_failed_transaction_leaves_nothing_and_is_not_remembered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy as sa

    store, spans = desk.store(), chain(3)
    write(store, spans[0])
    real = sa.Connection.commit
    monkeypatch.setattr(sa.Connection, "commit", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(store, *spans[1:])
    monkeypatch.setattr(sa.Connection, "commit", real)
    assert len(events(desk.url)) == 1
    assert write(store, *spans[1:]) == ["committed"] * 2
    assert shape(desk.url) == expected(spans)


def test_rows_somebody_deleted_are_not_missed(desk: Desk) -> None:
    store, spans = desk.store(), chain(3)
    write(store, *spans[:2])
    query(desk.url, "DELETE FROM execution_events")
    query(desk.url, "DELETE FROM otel_cmb_traces")
    assert write(desk.store(), spans[2]) == ["committed"]
    assert len(events(desk.url)) == 1


def test_a_run_that_ends_in_the_batch_that_makes_it(desk: Desk) -> None:
    span = agent_span()
    span.stamp.automatic_run_id = "own-run"
    store = desk.store()
    items = [Item(1, span=span), Item(2, command={"do": "run_end", "id": "own-run", "status": "completed", "at": BASE_NS})]
    store.write(items)
    assert [item.outcome and item.outcome.result for item in items] == ["committed"] * 2
    assert query(desk.url, "SELECT status, completed_at IS NULL FROM workflow_runs WHERE id = 'own-run'") in (
        [("completed", 0)], [("completed", False)])


def test_numbers_of_a_run_are_never_given_twice(desk: Desk) -> None:
    stores = [desk.store() for _ in range(3)]
    spans = []
    for n in range(30):
        span = agent_span(10 + n % 5, 100 + n, run=RUN, start=n * 7919 % 31, name=f"agent {n}")
        spans.append(span)
        write(stores[n % 3], span)
    check_orders(desk.url)
    assert sorted(row["execution_order"] for row in events(desk.url).values()) == list(range(1, 31))
    assert set(events(desk.url)) == ids_of(spans)


def test_content_that_comes_before_or_after_its_span_is_joined(desk: Desk) -> None:
    ended = agent_span(1, 1, run=RUN)
    started = copy.deepcopy(ended)
    started.end_ns = None
    content = Span(ended.trace_id, ended.span_id, "", 0, attributes={"gen_ai.output.messages": '[{"role": "assistant", "content": "hi"}]'})

    def join() -> str:
        item = Item(1, content=copy.deepcopy(content))
        desk.store().write([item])
        assert item.outcome is not None
        return item.outcome.result

    assert join() == "parked"
    write(desk.store(), started)
    assert join() == "parked", "the end would replace it"
    write(desk.store(), ended)
    assert join() == "committed"
    (row,) = events(desk.url).values()
    assert "hi" in str(row["outputs"])


def test_a_trace_that_was_only_looked_at_is_not_trusted_when_its_last_writer_wrote_again(desk: Desk) -> None:
    one, other = desk.store(), desk.store()
    first, second, third = chain(3)
    assert write(one, first) == ["committed"]
    assert write(other, first) == ["merged"]  # read for this, and remembered, but not written
    assert write(one, second) == ["committed"]
    assert write(other, second, third) == ["merged", "committed"]
    assert len(events(desk.url)) == 3
    check_orders(desk.url)


def test_nodes_and_steps_at_work_fail_with_their_run_and_their_own_end_outranks_that(desk: Desk) -> None:
    store = desk.store()
    store.write([
        Item(1, command={"do": "node_start", "run": RUN, "id": "plan", "at": BASE_NS}),
        Item(2, command={"do": "node_end", "run": RUN, "id": "plan", "status": "completed", "at": BASE_NS}),
        Item(3, command={"do": "node_start", "run": RUN, "id": "work", "at": BASE_NS}),
        Item(4, command={"do": "step_start", "run": RUN, "id": "1", "at": BASE_NS}),
    ])
    store.write([Item(5, command={"do": "run_end", "id": RUN, "status": "failed", "error": "killed", "at": BASE_NS + 1})])
    nodes = "SELECT id, status FROM dag_nodes ORDER BY id"
    assert [tuple(row) for row in query(desk.url, nodes)] == [("plan", "completed"), ("work", "failed")]
    assert [tuple(row) for row in query(desk.url, "SELECT status, error_message FROM workflow_steps")] == [("failed", "killed")]
    store.write([Item(6, command={"do": "node_end", "run": RUN, "id": "work", "status": "completed", "at": BASE_NS})])
    assert [tuple(row) for row in query(desk.url, nodes)] == [("plan", "completed"), ("work", "completed")]


def test_a_trace_of_many_roots_asks_for_the_end_of_its_run_once_a_batch(database_url: str, state_dir: Path) -> None:
    """Each root that has ended used to ask again, and those stored before with it: minutes for 10,000 of them."""
    asked: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "workflow_runs" in statement and "SELECT completed_at" in statement:
            asked.append(statement)

    settings = config.load(database_url=database_url, state_dir=str(state_dir))
    store = Store(settings, str(state_dir), per_trace_runs=True)
    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        for first in (1, 101):
            spans = [agent_span(1, n, start=n * 1000) for n in range(first, first + 100)]
            assert set(write(store, *spans)) == {"committed"}
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
        store.close()
    assert len(asked) == 2
    assert query(database_url, "SELECT status, count(*) FROM workflow_runs GROUP BY status") == [("completed", 1)]


def test_a_trace_without_any_event_gets_no_run_and_its_root_still_ends_the_run_of_a_late_child(
    database_url: str, state_dir: Path,
) -> None:
    """A service that is asked for its health would fill the list of runs. Another store: nothing is in memory."""
    settings = config.load(database_url=database_url, state_dir=str(state_dir))
    roots = [
        Span(f"{n:032x}", f"{n:016x}", "GET /", BASE_NS, BASE_NS + 2_000_000_000, status_code=n % 3, resource=Resource({"service.name": "s"}))
        for n in (1, 2, 3)]
    stores = [Store(settings, str(state_dir), per_trace_runs=True) for _ in range(2)]
    try:
        assert write(stores[0], *roots) == ["ignored"] * 3
        assert query(database_url, "SELECT count(*) FROM workflow_runs") == [(0,)]
        assert write(stores[1], agent_span(1, 11, parent=1), agent_span(2, 12, parent=2)) == ["committed"] * 2
        assert write(stores[0], *roots) == ["merged"] * 3
    finally:
        for store in stores:
            store.close()
    ended = query(database_url, "SELECT e.id, r.status FROM execution_events e JOIN workflow_runs r ON r.id = e.run_id ORDER BY r.status")
    assert ended == [(event_id(f"{1:032x}", f"{11:016x}"), "completed"), (event_id(f"{2:032x}", f"{12:016x}"), "failed")]
    assert query(database_url, "SELECT count(*) FROM workflow_runs WHERE completed_at IS NOT NULL") == [(2,)]


def test_what_spans_say_is_read_before_the_database_is_locked_and_again_after_a_failure(
    desk: Desk, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading is work that other writers need not wait for; what a failed transaction made of it is thrown away."""
    store = desk.store()
    items = [Item(n, span=span) for n, span in enumerate(chain(3))]
    happened: list[str] = []
    begin, read = otel_cmb.store.begin_write, mapper.read

    def begin_seen(connection: sa.Connection) -> None:
        happened.append("begin")
        assert all(item.facts is not None for item in items)
        begin(connection)

    def seen(span: Span, **how: Any) -> mapper.Facts:
        happened.append(span.span_id)
        return read(span, **how)

    monkeypatch.setattr(otel_cmb.store, "begin_write", begin_seen)
    monkeypatch.setattr(mapper, "read", seen)
    with monkeypatch.context() as failing:
        failing.setattr(Known, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.write(items)
    ids = [item.span.span_id for item in items if item.span is not None]
    assert happened == [*ids, "begin"]
    assert all(item.facts is None for item in items)
    store.write(items)
    assert happened == [*ids, "begin", *ids, "begin"]
    assert shape(desk.url) == expected(chain(3))


def test_a_parent_named_by_what_can_be_no_id_is_one_that_never_comes(desk: Desk) -> None:
    store, long_ = desk.store(), "x" * 300
    named = agent_span(1, 1, run=RUN, start=1000, **{"cmb.parent_event_id": long_})
    child = agent_span(1, 2, run=RUN, parent=1, start=2000, name="below")
    assert write(store, named, child) == ["committed"] * 2
    again = agent_span(1, 3, run=RUN, start=3000, name="next", **{"cmb.parent_event_id": long_})
    assert write(desk.store(), again) == ["committed"]
    ids = [event_id(span.trace_id, span.span_id) for span in (named, child, again)]
    assert shape(desk.url) == [(ids[0], None, 0, 1), (ids[1], ids[0], 1, 2), (ids[2], None, 0, 3)]
    assert long_ in str(events(desk.url)[ids[0]]["meta"])


def test_clocks_gone_wild_keep_no_row_away(desk: Desk) -> None:
    """What no 64 bits with a sign hold: a database of ours takes what an application's takes."""
    store = desk.store()
    wild = [agent_span(n, 1, run=RUN, start=start - BASE_NS) for n, start in enumerate((2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1), 1)]
    long_ = agent_span(9, 1, run=RUN)
    long_.end_ns = 2**64 - 1
    assert write(store, *wild, long_) == ["committed"] * 5
    assert write(desk.store(), agent_span(3, 2, run=RUN, parent=1, start=2**63 - BASE_NS, name="below")) == ["committed"]
    years = [str(row["started_at"])[:4] for row in events(desk.url).values()]
    assert sorted(years) == ["2025", *["2262"] * 4, "2554"]
