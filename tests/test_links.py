"""Parents in other traces: the example that `otel_cmb/links.py` is explained with, by stores that share nothing but the database."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault_support import BASE_NS, query

from otel_cmb import config
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.items import Item
from otel_cmb.store import Store

A, B, RUN = f"{1:032x}", f"{2:032x}", "run-1"
TOOL = {"gen_ai.operation.name": "execute_tool"}
CODE = {**TOOL, "gen_ai.tool.name": "run_code"}
PLAN, ASK, WORK, SEARCH, READ = range(1, 6)


def span(trace: str, number: int, parent: int | None, attributes: dict[str, Any]) -> Span:
    return Span(
        trace, f"{number:016x}", f"span {number}", BASE_NS + number, BASE_NS + 100,
        parent_span_id=None if parent is None else f"{parent:016x}", attributes=attributes, stamp=Stamp(run_id=RUN))


plan, ask = span(A, PLAN, None, CODE), span(A, ASK, PLAN, CODE)
begun = replace(plan, end_ns=None, attributes=TOOL)
"""It does not say yet that it runs code: when it does, its row takes `ask` in."""
work = span(B, WORK, None, {**TOOL, "gen_ai.tool.name": "work", "cmb.parent_event_id": event_id(A, f"{ASK:016x}")})
search, read = (span(B, number, WORK, {**TOOL, "gen_ai.tool.name": "find"}) for number in (SEARCH, READ))


def test_what_hangs_below_a_row_of_another_trace_follows_it(database_url: str, state_dir: Path) -> None:
    stores = [Store(config.load(database_url=database_url, state_dir=str(state_dir)), str(state_dir)) for _ in range(2)]
    names = {event_id(trace, f"{number:016x}"): number for trace, number in
             ((A, PLAN), (A, ASK), (B, WORK), (B, SEARCH), (B, READ))}

    def written(which: int, *spans: Span) -> dict[int, tuple[int | None, int]]:
        """Parent and depth of every row after the spans were written."""
        items = [Item(n, span=copy.deepcopy(one)) for n, one in enumerate(spans)]
        stores[which].write(items)
        assert all(item.outcome and item.outcome.result in ("committed", "merged") for item in items)
        rows = query(database_url, "SELECT id, parent_event_id, depth FROM execution_events")
        return {names[id_]: (None if parent is None else names[parent], depth) for id_, parent, depth in rows}

    try:
        stores[0].write([Item(0, command={"do": "run_start", "id": RUN, "at": BASE_NS})])
        assert written(0, work, search) == {WORK: (None, 0), SEARCH: (WORK, 1)}
        below = {SEARCH: (WORK, 2)}
        assert written(1, ask) == {ASK: (None, 0), WORK: (ASK, 1), **below}
        below[READ] = (WORK, 2)
        assert written(0, read) == {ASK: (None, 0), WORK: (ASK, 1), **below}
        below = dict.fromkeys(below, (WORK, 3))
        assert written(1, begun) == {PLAN: (None, 0), ASK: (PLAN, 1), WORK: (ASK, 2), **below}
        below = dict.fromkeys(below, (WORK, 1))
        assert written(1, plan) == {PLAN: (None, 0), WORK: (None, 0), **below}
    finally:
        for store in stores:
            store.close()
