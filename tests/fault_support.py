"""What the fault tests share: spans, pipelines, providers, and a count of rows against spans."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from sqlalchemy.pool import NullPool

from otel_cmb import config
from otel_cmb.accounting import Stats
from otel_cmb.event import Span, Stamp, event_id
from otel_cmb.pipeline import Pipeline
from otel_cmb.processor import CMBSpanProcessor

PROGRAMS = Path(__file__).parent / "fault_programs"
BASE_NS = 1_760_000_000_000_000_000

_ids = itertools.count(1)


def agent_span(
    trace: int = 0, number: int | None = None, *, run: str | None = None, parent: int | None = None, ended: bool = True,
    start: int = 0, kind: str = "invoke_agent", name: str = "agent", **attributes: Any,
) -> Span:
    """A span that becomes an event (an agent's call unless `kind` says otherwise)."""
    number = next(_ids) if number is None else number
    return Span(
        f"{trace or number:032x}", f"{number:016x}", f"{kind} {name}", BASE_NS + start, BASE_NS + start + 1_000_000 if ended else None,
        parent_span_id=None if parent is None else f"{parent:016x}",
        attributes={"gen_ai.operation.name": kind, "gen_ai.agent.name": name, **attributes}, stamp=Stamp(run_id=run))


@contextmanager
def pipeline_of(url: str, state_dir: Path, **settings: Any) -> Iterator[Pipeline]:
    """A pipeline of its own, shut down at the end."""
    pipeline = Pipeline(config.load(database_url=url, state_dir=str(state_dir), **settings))
    try:
        yield pipeline
    finally:
        pipeline.shutdown(5)
        wait_for(lambda: pipeline._writer.thread is None)  # a shutdown that has less time than it needs leaves a step going on


@contextmanager
def tracing(url: str, state_dir: Path, **settings: Any) -> Iterator[tuple[Any, CMBSpanProcessor]]:
    """A tracer and the processor behind it, on a real SDK provider."""
    processor = CMBSpanProcessor(url, state_dir=str(state_dir), **settings)
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=2048), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    try:
        yield provider.get_tracer("test"), processor
    finally:
        provider.shutdown()


def query(url: str, sql: str, **values: Any) -> list[Any]:
    """Rows of one statement, on a connection of its own; committed."""
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(sa.text(sql), values)
        return [tuple(row) for row in result] if result.returns_rows else []


def events(url: str) -> dict[str, Any]:
    """Id to row of every event."""
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM execution_events ORDER BY execution_order")).mappings()
        return {row["id"]: dict(row) for row in rows}


def ids_of(spans: list[Span]) -> set[str]:
    return {event_id(span.trace_id, span.span_id) for span in spans}


def check_orders(url: str) -> None:
    """No number twice within a run, parents before children, and children linked to parents that are there."""
    rows = events(url)
    seen: set[tuple[str, int]] = set()
    for row in rows.values():
        key = (row["run_id"], row["execution_order"])
        assert key not in seen, f"order {key} twice"
        seen.add(key)
        if row["parent_event_id"] is not None:
            parent = rows[row["parent_event_id"]]
            assert parent["run_id"] == row["run_id"]
            if parent["id"][:18] == row["id"][:18]:
                assert parent["execution_order"] < row["execution_order"]
            assert row["depth"] == parent["depth"] + 1


def lawful(stats: Stats, *, lost: dict[str, int] | None = None) -> Stats:
    """The accounting law, and nothing lost but what the fault says."""
    assert stats.balanced, stats
    assert stats.lost == (lost or {}), stats
    return stats


def wait_for(condition: Callable[[], Any], seconds: float = 60.0, step: float = 0.02) -> Any:
    """The condition's first true value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(step)


def start_program(name: str, *arguments: Any, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """A program of `fault_programs`, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "CMBAGENT_"))}
    environment["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent.parent), str(Path(__file__).parent)))
    environment.update(env or {})
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run_program(name: str, *arguments: Any, env: dict[str, str] | None = None, timeout: float = 60, **options: Any) -> str:
    """Run it to its end; its standard output. Fails with its standard error when it fails."""
    program = start_program(name, *arguments, env=env, **options)
    out, err = program.communicate(timeout=timeout)
    assert program.returncode == 0, f"{name} ended with {program.returncode}:\n{err}"
    return out


def last_json(text: str) -> Any:
    """What the last line of a program's output says."""
    return json.loads(text.strip().splitlines()[-1])
