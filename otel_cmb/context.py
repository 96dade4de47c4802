"""Which run, node and step the code is in: `run`, `attach`, `node`, `step`.

The answer travels as OpenTelemetry baggage (keys below), so whatever carries the OpenTelemetry context carries it too:
asyncio tasks, instrumented threads, HTTP, child processes. `CMBSpanProcessor` stamps it on every span that starts.

The four blocks open a span each, so that a run is one tree in Jaeger; the span makes no event row
(`cmb.event.type` = `none`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, Generic, TypeVar

from opentelemetry import baggage, trace
from opentelemetry.context import _RUNTIME_CONTEXT, Context, get_current
from opentelemetry.context import attach as attach_context
from opentelemetry.trace import Status, StatusCode

from otel_cmb import clock
from otel_cmb._version import __version__
from otel_cmb.event import Stamp
from otel_cmb.notes import RUN_MADE, note
from otel_cmb.sanitize import clean_text
from otel_cmb.surroundings import NODE, RUN, SESSION, STEP, remember_run, run_in, surrounded, writing_pipelines

__all__ = ["Node", "Run", "Step", "attach", "current", "node", "run", "step", "tracer", "with_parent_event"]

RUN_ID, SESSION_ID, NODE_ID, STEP_ID = "cmb.run.id", "cmb.session.id", "cmb.node.id", "cmb.step.id"
PARENT_EVENT_ID = "cmb.parent_event_id"
EVENT_TYPE, NO_EVENT = "cmb.event.type", "none"

ENVIRONMENT = {RUN_ID: RUN.name, SESSION_ID: SESSION.name, NODE_ID: NODE.name, STEP_ID: STEP.name}

H = TypeVar("H")

_made: dict[str, int] = {}
"""The runs whose `run()` block is open, and the process that opened it."""


def tracer() -> trace.Tracer:
    """The tracer of this package, from the global provider."""
    return trace.get_tracer("otel_cmb", __version__)


def detach(token: Token[Context]) -> None:
    """Leave a context, also from another task or thread than the one that entered it.

    OpenTelemetry's own `detach` logs an error there; an async generator closed by the event loop does exactly that.
    """
    with contextlib.suppress(ValueError, RuntimeError):
        _RUNTIME_CONTEXT.detach(token)


def with_parent_event(event_id: str, context: Context | None = None) -> Context:
    """The context with `event_id` as nearest event: the parent of spans that start in another process under it. `agent_call`
    and its relatives say it for what happens inside of them."""
    return baggage.set_baggage(PARENT_EVENT_ID, event_id, context)


def stamp_of(context: Context | None = None) -> Stamp:
    """What the context says about run, session, node, step and nearest event."""
    values = baggage.get_all(context)
    if not values:
        return Stamp()
    return Stamp(
        run_id=_text(values, RUN_ID), session_id=_text(values, SESSION_ID), node_id=_text(values, NODE_ID),
        step_id=_text(values, STEP_ID), parent_event_id=_text(values, PARENT_EVENT_ID),
    )


def current() -> Stamp:
    """Where the code is now: context first, then the resource of the global provider, then `OTEL_CMB_RUN_ID` and its
    relatives."""
    return surrounded(stamp_of(), getattr(trace.get_tracer_provider(), "resource", None))


def made_here(run_id: str) -> bool:
    """Whether this is a run that this very process has made with :func:`run`, and that goes on."""
    return _made.get(run_id) == os.getpid()


def _text(values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    return None if value is None or value == "" else str(value)


class _Block(Generic[H]):
    """A `with` / `async with` block that opens a span and puts baggage around its body."""

    def __init__(self, enter: Callable[[], tuple[H, str, dict[str, str | None]]], leave: Callable[[H, str | None], None]):
        self._enter_body, self._leave_body = enter, leave
        self._handle: H | None = None
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[Context] | None = None

    def __enter__(self) -> H:
        handle, name, entries = self._enter_body()
        context = get_current()
        for key, value in entries.items():
            context = (
                baggage.remove_baggage(key, context) if value is None else baggage.set_baggage(key, value, context)
            )
        attributes: dict[str, Any] = {key: value for key, value in entries.items() if value is not None}
        attributes[EVENT_TYPE] = NO_EVENT
        self._span = tracer().start_span(name, context=context, attributes=attributes)
        self._token = attach_context(trace.set_span_in_context(self._span, context))
        self._handle = handle
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        message = None
        if error is not None and not isinstance(error, GeneratorExit):
            message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR, message))
        if self._token is not None:
            detach(self._token)
        self._span.end()
        if self._handle is not None:
            self._leave_body(self._handle, message)

    async def __aenter__(self) -> H:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class _CheckedBlock(_Block[H]):
    """A block whose entry asks the database: under `async with` that happens off the event loop."""

    def __init__(
        self, check: Callable[[], Any], enter: Callable[[], tuple[H, str, dict[str, str | None]]],
        leave: Callable[[H, str | None], None],
    ):
        super().__init__(enter, leave)
        self._check = check

    def __enter__(self) -> H:
        self._check()
        return super().__enter__()

    async def __aenter__(self) -> H:
        await asyncio.to_thread(self._check)
        return super().__enter__()


class Run:
    """A run of this process. `id` and `session_id` are what the rows carry (`session_id` is `None` while unknown)."""

    def __init__(self, id: str, session_id: str | None):  # noqa: A002 - the column's name
        self.id, self.session_id = id, session_id
        self.failure: str | None = None

    def fail(self, message: str) -> None:
        """End the run as failed although no exception leaves the block."""
        self.failure = message


class Node:
    """A node of the current run's graph, by the name the program gave it."""

    def __init__(self, id: str, run_id: str | None):  # noqa: A002
        self.id, self.run_id = id, run_id
        self.failure: str | None = None

    def fail(self, message: str) -> None:
        """End the node as failed although no exception leaves the block."""
        self.failure = message


class Step:
    """A workflow step of the current run, by id or number."""

    def __init__(self, id: str, run_id: str | None):  # noqa: A002
        self.id, self.run_id = id, run_id
        self.failure: str | None = None

    def fail(self, message: str) -> None:
        """End the step as failed although no exception leaves the block."""
        self.failure = message


def _record(command: dict[str, Any]) -> None:
    """Hand a row to the pipeline; without one (nothing configured) there is nowhere to put it."""
    from otel_cmb.pipeline import current_pipeline

    pipeline = current_pipeline()
    if pipeline is not None:
        pipeline.accept_command(command)


def _record_in(run_id: str | None, command: dict[str, Any]) -> None:
    """The same for a row of this run, in every database that has its spans."""
    for pipeline in writing_pipelines():
        pipeline.accept_command({**command, "run": run_in(run_id, pipeline)})


def run(
    mode: str = "one_shot", agent: str = "unknown", model: str = "unknown", task: str | None = None, *,
    session: str | None = None, run_id: str | None = None, meta: Mapping[str, Any] | None = None,
) -> _Block[Run]:
    """A new run around the block: `started_at` is set now; completed at its end, failed if an exception leaves it.

    `session` is the id of an existing session or the name of one that is found or made. The row goes the same way as
    the spans (journal, then one transaction), so an outage does not stop the program. Without a configured pipeline the
    block only carries the id.
    """
    from otel_cmb.pipeline import current_pipeline

    identifier = clean_text(str(run_id)) if run_id else str(uuid.uuid4())

    def enter() -> tuple[Run, str, dict[str, str | None]]:
        handle = Run(identifier, None)
        _made[identifier] = os.getpid()
        note(RUN_MADE)
        _record({"do": "run_start", "id": identifier, "session": session, "mode": mode, "agent": agent, "model": model,
                 "task": task, "meta": dict(meta) if meta else None, "at": clock.now_ns()})
        if (pipeline := current_pipeline()) is not None:
            pipeline.remember_open("run", identifier)
            remember_run(identifier, pipeline)
        return handle, f"run {mode}", {RUN_ID: identifier, SESSION_ID: None, NODE_ID: None, STEP_ID: None,
                                       PARENT_EVENT_ID: None}

    def leave(handle: Run, failure: str | None) -> None:
        message = failure or handle.failure
        _made.pop(identifier, None)
        _record({"do": "run_end", "id": identifier, "status": "failed" if message else "completed", "error": message,
                 "at": clock.now_ns()})

    return _Block(enter, leave)


def attach(run_id: str, node_id: str | None = None, step_id: str | None = None) -> _Block[Run]:
    """The block belongs to an existing run, checked before it is entered.

    Raises :class:`~otel_cmb.errors.RunNotFoundError` (a ValueError) when the database has no such run (an attached
    database is also asked for the application's alias, `workflow_runs.meta.task_id`), and
    :class:`~otel_cmb.errors.DatabaseUnavailableError` when it does not answer within `connect_timeout`, also when it hangs
    without being gone.
    """
    found: dict[str, str] = {}

    def check() -> None:
        from otel_cmb.config import load
        from otel_cmb.pipeline import current_pipeline, get_pipeline

        pipeline = current_pipeline() or get_pipeline(load())
        found["run"], found["session"] = pipeline.check_run(run_id)
        remember_run(found["run"], pipeline)

    def enter() -> tuple[Run, str, dict[str, str | None]]:
        handle = Run(found["run"], found["session"])
        return handle, "attach", {RUN_ID: handle.id, SESSION_ID: None, NODE_ID: node_id, STEP_ID: step_id,
                                  PARENT_EVENT_ID: None}

    return _CheckedBlock(check, enter, lambda _handle, _failure: None)


def node(
    node_id: str, node_type: str = "agent", agent: str | None = None, parent: str | None = None,
) -> _Block[Node]:
    """The block belongs to this node of the current run. An owned database gets the node if it is not there; an attached
    one keeps its own graph: events are linked when the application's node is there, else the name stays in `meta`."""
    run_id = current().run_id

    def enter() -> tuple[Node, str, dict[str, str | None]]:
        _record_in(run_id, {"do": "node_start", "id": node_id, "node_type": node_type, "agent": agent, "parent": parent,
                            "at": clock.now_ns()})
        return Node(node_id, run_id), f"node {node_id}", {NODE_ID: node_id}

    def leave(handle: Node, failure: str | None) -> None:
        message = failure or handle.failure
        _record_in(run_id, {"do": "node_end", "id": node_id, "status": "failed" if message else "completed",
                            "error": message, "at": clock.now_ns()})

    return _Block(enter, leave)


def step(step_id: str | int, goal: str | None = None) -> _Block[Step]:
    """The block belongs to this workflow step of the current run: an id, or a number. Made if absent in an owned
    database; looked up within the run in an attached one."""
    run_id, identifier = current().run_id, str(step_id)

    def enter() -> tuple[Step, str, dict[str, str | None]]:
        _record_in(run_id, {"do": "step_start", "id": identifier, "goal": goal, "at": clock.now_ns()})
        return Step(identifier, run_id), f"step {identifier}", {STEP_ID: identifier}

    def leave(handle: Step, failure: str | None) -> None:
        message = failure or handle.failure
        _record_in(run_id, {"do": "step_end", "id": identifier, "status": "failed" if message else "completed",
                            "error": message, "at": clock.now_ns()})

    return _Block(enter, leave)
