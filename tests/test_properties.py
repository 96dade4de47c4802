"""Whatever the order, the repetition and the split in which spans come, the rows are the same."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fault_support import BASE_NS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool
from support import application_schema

from otel_cmb import config
from otel_cmb.event import Link, Span, Stamp
from otel_cmb.items import Item
from otel_cmb.store import Store

RUNS = ("10000000-0000-4000-8000-000000000001", "10000000-0000-4000-8000-000000000002")
SESSION = "20000000-0000-4000-8000-000000000001"
QUICK = settings(
    max_examples=35, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True)
FEW = settings(QUICK, max_examples=10)
"""On PostgreSQL: two stores that connect and look around cost more there than what they write."""
LONG = settings(QUICK, max_examples=3000, derandomize=False)

KINDS = (
    {"gen_ai.operation.name": "invoke_agent"}, {"gen_ai.operation.name": "execute_tool"}, {"gen_ai.operation.name": "chat"},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "run_code"}, {}, {},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "transfer_to_bob"}, {"cmb.event.type": "none"},
    {"cmb.event.type": "agent_call"}, {"openinference.span.kind": "CHAIN"},
)


@st.composite
def forests(draw: st.DrawFn, *, traces: int = 2, merging: bool = True, runs: int = 2) -> list[Span]:
    """Ended spans of a few traces: parents that are known, missing or named across traces, unmapped spans between."""
    spans: list[Span] = []
    count = draw(st.integers(1, 10))
    run_of = [draw(st.integers(0, runs - 1)) for _ in range(traces)]
    for n in range(count):
        trace = draw(st.integers(1, traces))
        attributes: dict[str, Any] = dict(draw(st.sampled_from(KINDS)))
        attributes["gen_ai.agent.name"] = draw(st.sampled_from(("ann", "bob"))) if merging else f"agent {n}"
        attributes.setdefault("gen_ai.tool.name", draw(st.sampled_from(("search", "read"))) if merging else f"tool {n}")
        if draw(st.booleans()):
            attributes["gen_ai.usage.input_tokens"] = draw(st.integers(0, 50))
            attributes["gen_ai.usage.output_tokens"] = 1
        parent: str | None = None
        choice = draw(st.integers(0, 5))
        mine = [span for span in spans if span.trace_id == f"{trace:032x}"]
        if choice == 0:
            parent = f"{900 + draw(st.integers(0, 2)):016x}"  # never comes
        elif choice < 5 and mine:
            parent = draw(st.sampled_from(mine)).span_id
        start = BASE_NS + draw(st.integers(0, 20)) * 1_000_000
        span = Span(
            f"{trace:032x}", f"{n + 1:016x}", f"span {n}", start, start + draw(st.integers(-2, 9)) * 1_000_000,
            parent_span_id=parent, attributes=attributes, status_code=draw(st.sampled_from((0, 0, 0, 2))),
            stamp=Stamp(run_id=RUNS[run_of[trace - 1]]))
        if spans and draw(st.integers(0, 7)) == 0:
            other = draw(st.sampled_from(spans))
            span.links.append(Link(other.trace_id, other.span_id))
        spans.append(span)
    return spans


@st.composite
def deliveries(draw: st.DrawFn, spans: list[Span]) -> list[tuple[int, bool, list[Span]]]:
    """(which store, restarted before?, the batch): every end at least once, starts and repetitions anywhere."""
    arrivals = list(spans)
    for span in spans:
        if draw(st.booleans()):
            started = copy.deepcopy(span)
            started.end_ns, started.status_code = None, 0
            if draw(st.booleans()):  # frameworks set attributes late
                started.attributes = {key: value for key, value in span.attributes.items() if "usage" not in key}
            arrivals.append(started)
        if draw(st.integers(0, 3)) == 0:
            arrivals.append(span)
    arrivals = draw(st.permutations(arrivals))
    batches = []
    position = 0
    while position < len(arrivals):
        size = draw(st.integers(1, 5))
        batches.append((draw(st.integers(0, 1)), draw(st.integers(0, 4)) == 0, list(arrivals[position : position + size])))
        position += size
    return batches


class Lab:
    """One database that is emptied for each example, with two runs in it."""

    def __init__(self, url: str, tmp_path: Path, *, attached: bool):
        self.url, self.tmp_path, self.attached = url, tmp_path, attached
        self.numbers = itertools.count()
        self.sqlite = url.startswith("sqlite")
        self.engine = sa.create_engine(url, poolclass=NullPool)
        self.template = tmp_path / "template.db"
        self._make()
        if self.sqlite:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copy(url.removeprefix("sqlite:///"), self.template)

    def _make(self) -> None:
        if self.attached:
            application = application_schema.make(self.url)

            with application.engine.begin() as connection:
                application._insert(connection, "sessions", id=SESSION, name="work")
            for run in RUNS:
                application.add_run(SESSION, id=run)
            application.engine.dispose()
            return
        store = Store(self._settings(self.url), str(self.tmp_path / "make"))
        store.write([Item(n, command={"do": "run_start", "id": run, "at": BASE_NS}) for n, run in enumerate(RUNS)])
        store.close()

    def _settings(self, url: str) -> config.Settings:
        return config.load(database_url=url, state_dir=str(self.tmp_path / "state"))

    def _fresh(self) -> tuple[str, str]:
        number = next(self.numbers)
        directory = self.tmp_path / f"state-{number}"
        directory.mkdir()
        if self.sqlite:
            path = directory / "events.db"
            shutil.copy(self.template, path)
            return f"sqlite:///{path}", str(directory)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM execution_events")
            for table in () if self.attached else ("otel_cmb_spans", "otel_cmb_traces", "otel_cmb_waiting"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        return self.url, str(directory)

    def rows(self, batches: list[tuple[int, bool, list[Span]]]) -> dict[str, dict[str, Any]]:
        """What the database holds once the batches are written, by two stores that share nothing but it."""
        url, directory = self._fresh()
        stores = [Store(self._settings(url), directory) for _ in range(2)]
        for which, restarted, batch in batches:
            if restarted:
                stores[which].close()
                stores[which] = Store(self._settings(url), directory)
            items = [Item(n, span=copy.deepcopy(span)) for n, span in enumerate(batch)]
            stores[which].write(items)
            assert all(item.outcome and item.outcome.result in ("committed", "merged", "ignored") for item in items), items
        for store in stores:
            store.close()
        engine = sa.create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            found = connection.execute(sa.text("SELECT * FROM execution_events")).mappings()
            rows = {row["id"]: dict(row) for row in found}
            for row in rows.values():
                for column in ("inputs", "outputs", "meta"):
                    if isinstance(row[column], str):
                        row[column] = json.loads(row[column])
            for table in ("files", "messages"):
                for row in connection.execute(sa.text(f"SELECT * FROM {table}")).mappings():
                    rows[f"{table} {row['id']}"] = dict(row)
        engine.dispose()
        if self.sqlite:
            shutil.rmtree(directory)
        return rows


def _lab(request: pytest.FixtureRequest, database: str) -> Iterator[Lab]:
    url, tmp_path = request.getfixturevalue(f"{database}_url"), request.getfixturevalue("tmp_path")
    made = Lab(url, tmp_path, attached=request.param == "attached")
    yield made
    made.engine.dispose()


@pytest.fixture(params=["owned", "attached"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from _lab(request, "sqlite")


@pytest.fixture(params=["owned", "attached"])
def postgresql_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from _lab(request, "postgresql")


def without_order(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {id_: {name: value for name, value in row.items() if name != "execution_order"} for id_, row in rows.items()}


def check(lab: Lab, spans: list[Span], batches: list[tuple[int, bool, list[Span]]], *, orders: bool) -> None:
    expected = lab.rows([(0, False, spans)])
    found = lab.rows(batches)
    if orders:
        assert found == expected
    else:
        assert without_order(found) == without_order(expected)
    per_run: dict[str, list[int]] = {}
    for row in found.values():
        if "execution_order" in row:
            per_run.setdefault(row["run_id"], []).append(row["execution_order"])
            parent = found.get(row["parent_event_id"] or "")
            if parent is not None and parent["id"][:18] == row["id"][:18]:
                assert parent["execution_order"] < row["execution_order"]
    for numbers in per_run.values():
        assert len(set(numbers)) == len(numbers), numbers


TOOL, AGENT, CALL, CHAT, PLAIN, CHAIN = (
    {"gen_ai.operation.name": "execute_tool"}, {"gen_ai.operation.name": "invoke_agent"}, {"cmb.event.type": "agent_call"},
    {"gen_ai.operation.name": "chat"}, {}, {"openinference.span.kind": "CHAIN"})
CODE = {**TOOL, "gen_ai.tool.name": "run_code"}
HANDOVER = {**TOOL, "gen_ai.tool.name": "transfer_to_bob"}
SPENT = {"gen_ai.usage.output_tokens": 1}
FOUND: dict[str, tuple[list[tuple[Any, ...]], list[list[int]]]] = {
    "a chain of traces in one batch": ([(3, 1, None, AGENT, ()), (1, 2, None, CALL, (3, 1)), (2, 3, None, CALL, (1, 2))],
                                       [[2, 1], [3]]),
    "the middle of a chain, and then its end": (
        [(3, 1, None, AGENT, ()), (1, 3, None, TOOL, (3, 1)), (2, 4, None, CALL, (1, 3))], [[1, 3], [4]]),
    "a parent that gets a parent": ([(2, 1, None, AGENT, ()), (2, 2, 1, TOOL, ()), (1, 5, None, AGENT, (2, 2))],
                                    [[2, 5], [1]]),
    "a parent that gets one while it runs": (
        [(2, 1, None, TOOL, ()), (2, 2, 1, TOOL, ()), (1, 3, None, AGENT, (2, 2))], [[-2, 3], [1, 2]]),
    "a parent whose parent comes through a span that is no event": (
        [(2, 2, None, TOOL, ()), (2, 3, 2, PLAIN, ()), (2, 7, 3, AGENT, ()), (1, 8, None, CALL, (2, 7))],
        [[3, 8, 7], [2]]),
    "a child of the child comes with the parent": (
        [(1, 2, None, CHAIN, ()), (2, 3, None, TOOL, (1, 2)), (2, 8, 3, TOOL, ())], [[3], [2, 8]]),
    "a parent that is merged into another": (
        [(3, 1, None, CODE, ()), (3, 9, 1, CODE, ()), (1, 10, None, CHAIN, (3, 9))], [[9], [1, 10]]),
    "a parent that is merged away from its child": (
        [(3, 1, None, CODE, ()), (3, 9, 1, CODE, ()), (1, 10, None, CHAIN, (3, 9))], [[9, 10], [1]]),
    "an event that learns late below what it hangs, and its child's child": (
        [(1, 1, None, TOOL, ()), (3, 2, None, PLAIN, (1, 1)), (3, 6, 2, CHAT, ()), (1, 9, None, CHAIN, (3, 6))],
        [[1, 6], [2, 9]]),
    "attributes that were read back in another order": (
        [(1, 2, None, {**AGENT, **SPENT}, ()), (1, 4, 2, {**HANDOVER, **SPENT}, ()), (1, 3, None, HANDOVER, ())],
        [[2, -4], [3, 4]]),
}
"""What was found once: (trace, span, parent, attributes, link) of each span, and the batches; negative: only begun."""


def check_found(lab: Lab, case: str) -> None:
    described, batches = FOUND[case]
    spans = {}
    for trace, number, parent, attributes, link in described:
        spans[number] = Span(
            f"{trace:032x}", f"{number:016x}", f"span {number}", BASE_NS + number, BASE_NS + 100, attributes=attributes,
            parent_span_id=None if parent is None else f"{parent:016x}", stamp=Stamp(run_id=RUNS[0]),
            links=[Link(f"{link[0]:032x}", f"{link[1]:016x}")] if link else [])
    begun = {-number: replace(span, end_ns=None) for number, span in spans.items()}
    arriving = [(n % 2, True, [{**spans, **begun}[number] for number in batch]) for n, batch in enumerate(batches)]
    check(lab, list(spans.values()), arriving, orders=False)


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_once_gives_the_same_rows(lab: Lab, case: str) -> None:
    check_found(lab, case)


def test_what_was_found_once_gives_the_same_rows_postgresql(postgresql_lab: Lab) -> None:
    for case in FOUND:
        check_found(postgresql_lab, case)


@QUICK
@given(data=st.data())
def test_one_trace_gives_the_same_rows_and_numbers(lab: Lab, data: st.DataObject) -> None:
    spans = data.draw(forests(traces=1, merging=False, runs=1))
    check(lab, spans, data.draw(deliveries(spans)), orders=True)


@QUICK
@given(data=st.data())
def test_any_forest_gives_the_same_rows(lab: Lab, data: st.DataObject) -> None:
    spans = data.draw(forests(traces=3))
    check(lab, spans, data.draw(deliveries(spans)), orders=False)


@FEW
@given(data=st.data())
def test_any_forest_gives_the_same_rows_postgresql(postgresql_lab: Lab, data: st.DataObject) -> None:
    spans = data.draw(forests(traces=3))
    check(postgresql_lab, spans, data.draw(deliveries(spans)), orders=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
@LONG
@given(data=st.data())
def test_any_forest_gives_the_same_rows_long(lab: Lab, data: st.DataObject) -> None:
    spans = data.draw(forests(traces=3))
    check(lab, spans, data.draw(deliveries(spans)), orders=False)
