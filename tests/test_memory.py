"""What is remembered of what others send is bounded in bytes, however large they make it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fault_support import agent_span, check_orders, events, ids_of, pipeline_of

from otel_cmb import mapper, mapper_results
from otel_cmb.intake import FRESH_BYTES
from otel_cmb.search_index import IndexWriter
from otel_cmb.traces import Trace, TraceCache

MIB = 1024 * 1024


def large(trace: int, number: int, mib: float = 1.0, **options: Any) -> Any:
    """A span of a trace whose root never comes, with values that are as long as they may be."""
    quarter = int(mib * MIB / 4)
    attributes = {f"x.{n}": os.urandom(quarter // 2).hex() for n in range(4)}
    return agent_span(trace, number, run="r", parent=options.pop("parent", 2**60), **attributes, **options)


def test_the_cache_of_traces_is_bounded_in_bytes() -> None:
    cache = TraceCache(max_spans=1_000, max_bytes=100)
    for n in range(10):
        running = mapper.Facts("id", agent_span(1, 1, ended=False), "plain")  # whole traces go sooner
        cache.put(Trace(f"{n:032x}", {"id": running}, size=30))
        cache.shrink()
    assert [cache.get(f"{n:032x}") is not None for n in range(10)] == [False] * 7 + [True] * 3
    grown = cache.get(f"{9:032x}")
    assert grown is not None
    cache.drop(grown.trace_id)
    grown.size = 500
    cache.put(grown)
    cache.shrink()
    assert cache.get(f"{9:032x}") is grown  # the newest stays whatever its size
    assert cache.get(f"{8:032x}") is None
    cache.drop(grown.trace_id)
    assert cache._bytes == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_traces_of_megabytes_are_let_go_and_read_again(database_url: str, state_dir: Path) -> None:
    with pipeline_of(database_url, state_dir, on_missing_run="create") as pipeline:
        children = [large(n, 2, parent=1) for n in range(1, 97)]
        for n in range(0, 96, 8):
            assert pipeline.accept(children[n : n + 8]).wait(60).stored
        store = pipeline._drainer.store
        assert store is not None
        assert store._bound is not None
        cache = store._bound.preparing._cache
        assert 32 * MIB < cache._bytes <= 64 * MIB
        assert len(cache._traces) < 70
        # what was let go is read again when it is needed: a parent that comes late takes its child
        parents = [agent_span(n, 1, run="r", start=-1_000, name="above") for n in range(1, 97)]
        assert pipeline.accept(parents).wait(60).stored
    rows = events(database_url)
    assert set(rows) == ids_of(children + parents)
    assert sum(row["parent_event_id"] is not None for row in rows.values()) == 96
    check_orders(database_url)


def test_spans_of_thousands_of_attributes_are_not_remembered_by_the_search() -> None:
    writer = IndexWriter("sqlite", None)
    for trace in range(1, 51):
        found = writer.gather([agent_span(trace, 1, **{f"x.{n}": n for n in range(1_000)}), agent_span(trace, 2)])
        assert len(found.parts) == 2  # the first span's is full
        again = writer.gather([agent_span(trace, 3)])
        assert [row[:3] for row in again.parts] == [row[:3] for row in found.parts if len(row[-1]) < 2_000]
    assert len(writer._parts) == 50
    assert sum(len(part.known) for part in writer._parts.values()) < 50 * 400


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_many_small_attributes_count_as_what_they_take_in_memory(database_url: str, state_dir: Path) -> None:
    attributes = {f"x.{n}": {"v": n} for n in range(2_000)}
    with pipeline_of(database_url, state_dir, on_missing_run="create") as pipeline:
        spans = [agent_span(n, 2, run="r", parent=1, **attributes) for n in range(1, 17)]
        assert pipeline.accept(spans).wait(60).stored
        store = pipeline._drainer.store
        assert store is not None
        assert store._bound is not None
        cache = store._bound.preparing._cache
        assert len(cache._traces) == 16
        assert cache._bytes > 16 * 2_000 * 100  # a dict of its own for each, and three more objects; 17 bytes on disk


def test_large_spans_do_not_wait_in_memory(sqlite_url: str, state_dir: Path) -> None:
    with pipeline_of(sqlite_url, state_dir, on_missing_run="create") as pipeline:
        with pipeline._drainer.store_lock:  # the writer stands still
            pipeline.accept([large(1, 1)])
            assert not pipeline._intake._fresh
            pipeline.accept([agent_span(2, 1, run="r", padding="x" * (FRESH_BYTES // 2))])
            assert len(pipeline._intake._fresh) == 1
        assert pipeline.flush(60)
    assert len(events(sqlite_url)) == 2


@pytest.mark.parametrize("attribute", ["name", "gen_ai.tool.name"])
def test_long_names_are_not_remembered(attribute: str) -> None:
    caches = (mapper._by_name, mapper._overridden, mapper_results._canonical)
    for cache in caches:
        cache.cache_clear()
    for n in range(10):
        span = agent_span(1, 1, kind="execute_tool")
        text = f"{n}" * 200_000
        if attribute == "name":
            span.name = text
            span.attributes.clear()
        else:
            span.attributes[attribute] = text
        facts = mapper.read(span, code_tools=("python",), record="agents", capture=("all",))
        assert facts.span is span
        assert text in (span.name, facts.tool)
    for cache in caches:
        assert cache.cache_info().currsize <= 4  # the settings' names, and the short name of the span


@pytest.mark.long
@pytest.mark.timeout(900)
def test_gigabytes_of_large_spans_leave_the_memory_as_it_was(sqlite_url: str, state_dir: Path) -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")

    with pipeline_of(sqlite_url, state_dir, on_missing_run="create") as pipeline:
        before = resident()
        for n in range(0, 2_000, 16):
            assert pipeline.accept([large(k // 4 + 1, k + 1) for k in range(n, n + 16)]).wait(60).stored
        assert resident() - before < 300 * MIB  # 2,000 more without
