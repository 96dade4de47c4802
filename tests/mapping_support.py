"""Small spans for the tests of meaning: one line each."""

from __future__ import annotations

from typing import Any

from otel_cmb.assemble import assemble
from otel_cmb.event import Event, Link, Resource, Scope, Span, SpanEvent, Stamp
from otel_cmb.mapper import read

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER = "1bf7651916cd43dd8448eb211c80319d"


def span(
    number: int,
    parent: int | None = None,
    attributes: dict[str, Any] | None = None,
    *,
    name: str = "x",
    start: int | None = None,
    end: int | None = -1,
    run: str | None = "run-1",
    scope: str = "",
    status: int = 0,
    message: str = "",
    events: list[SpanEvent] | None = None,
    links: list[Link] | None = None,
    died: bool = False,
    stamp: Stamp | None = None,
    resource: dict[str, Any] | None = None,
) -> Span:
    """A span with id `number`, which starts at `number` unless told and has ended unless `end=None`."""
    begin = number if start is None else start
    return Span(
        TRACE,
        f"{number:016x}",
        name,
        begin,
        begin + 1000 if end == -1 else end,
        None if parent is None else f"{parent:016x}",
        status_code=status,
        status_message=message,
        attributes=attributes or {},
        events=events or [],
        links=links or [],
        resource=Resource(resource or {}),
        scope=Scope(scope),
        stamp=stamp or Stamp(run_id=run),
        died=died,
    )


def exception(kind: str, message: str, stack: str = "Traceback (most recent call last):\n  x") -> SpanEvent:
    return SpanEvent(
        "exception", 1, {"exception.type": kind, "exception.message": message, "exception.stacktrace": stack}
    )


def events(*spans: Span, record: str = "agents", capture: tuple[str, ...] = ("all",)) -> list[Event]:
    return assemble([read(one, record=record, capture=capture) for one in spans], record=record)


def one(*spans: Span, **options: Any) -> Event:
    """The first event."""
    return events(*spans, **options)[0]


def agent(number: int, name: str, parent: int | None = None, **options: Any) -> Span:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name} | options.pop("more", {})
    return span(number, parent, attributes, name=f"invoke_agent {name}", **options)


def tool(number: int, name: str, parent: int | None = None, **options: Any) -> Span:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name} | options.pop("more", {})
    return span(number, parent, attributes, name=f"execute_tool {name}", **options)


def chat(number: int, parent: int | None = None, tokens: tuple[int, int] | None = None, **options: Any) -> Span:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt"} | options.pop("more", {})
    if tokens is not None:
        attributes |= {"gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1]}
    return span(number, parent, attributes, name="chat gpt", **options)
