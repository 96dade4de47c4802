"""Caches of resources and scopes: bounded in number and in bytes, whatever a sender makes of them."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

from otel_cmb import config
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import MOST_BYTES, Few, weight
from otel_cmb.pipeline import Pipeline


def test_a_cache_begins_anew_when_it_has_too_many_entries_or_bytes() -> None:
    few: Few[int, str] = Few(3)
    assert [few.keep(n, str(n), 1) for n in range(3)] == ["0", "1", "2"]
    assert sorted(few) == [0, 1, 2]
    few.keep(3, "3", 1)
    assert sorted(few) == [3]
    few.keep(4, "4", MOST_BYTES - 1)
    assert sorted(few) == [3, 4]
    few.keep(5, "5", 1)
    assert sorted(few) == [5]
    few.keep(6, "one that is heavier than all may be", 2 * MOST_BYTES)
    assert sorted(few) == [6]
    few.keep(7, "7", 1)
    assert sorted(few) == [7]


def test_a_weight_is_that_of_all_texts() -> None:
    resource = Resource({"a": "x" * 1000, "b": [["y" * 500], {"c": b"z" * 300, "k" * 200: 1}]}, "s" * 100)
    assert 2100 <= weight(resource) <= 3500
    assert 100 <= weight(Scope("n" * 50, "v" * 50)) - weight(Scope()) <= 100
    assert weight(resource, resource) == 2 * weight(resource)


def test_large_resources_of_many_requests_do_not_stay_in_memory(tmp_path: Path) -> None:
    settings = config.load(
        database_url=f"sqlite:///{tmp_path}/a.db", on_missing_run="create", state_dir=str(tmp_path / "state"))
    pipeline = Pipeline(settings, per_trace_runs=True)

    def request(n: int) -> None:
        resource = Resource({f"r{k}": f"{n} {k} " + "x" * 200_000 for k in range(5)})
        scope = Scope(f"scope {n}", attributes={"s": f"{n} " + "y" * 200_000})
        spans = [Span(f"{n + 1:032x}", f"{k + 1:016x}", "chat", n + 1, n + 2, attributes={
            "gen_ai.operation.name": "chat", "cmb.run.id": "run"}, resource=resource, scope=scope) for k in range(3)]
        assert pipeline.accept(spans).wait(60).committed == 3

    request(0)
    tracemalloc.start()
    try:
        for n in range(1, 60):
            request(n)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        pipeline.shutdown(10)
    assert held < 80_000_000, "of 60 resources and scopes of 1.2 MB each, in a dozen forms (900 MB before there was a bound)"
