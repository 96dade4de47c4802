"""`EventCaptureManager` as cmbagent has it, made of spans: change one import.

    from otel_cmb.compat.cmbagent import EventCaptureManager, get_event_captor, set_event_captor

Same constructor, methods and return values. What is different: the run is checked first (a missing one is a
ValueError), the rows carry the run's session whatever the constructor was told, nothing is cut at 1000 characters, and
the caller's session, engine and transaction are never used: rows go through the journal and otel-cmb's own connection,
and are visible to the application's queries after `flush()`.

The interface follows `cmbagent/execution/event_capture.py` (v1 of March 2026).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Status, StatusCode
from sqlalchemy import URL

from otel_cmb import clock, config
from otel_cmb.compat.loose import meta_of, name_of, said
from otel_cmb.context import EVENT_TYPE, NODE_ID, PARENT_EVENT_ID, RUN_ID, STEP_ID
from otel_cmb.database_url import check_url
from otel_cmb.errors import ConfigurationError
from otel_cmb.event import event_id as id_of
from otel_cmb.mapper_results import whole
from otel_cmb.payload import text_of, to_json, type_name
from otel_cmb.pipeline import Pipeline, get_pipeline
from otel_cmb.processor import CMBSpanProcessor
from otel_cmb.setup import install_processor, otlp_processor

__all__ = ["EventCaptureManager", "get_event_captor", "set_event_captor"]

_log = logging.getLogger("otel_cmb")

F = TypeVar("F", bound=Callable[..., Any])

SCOPE = "otel_cmb.compat.cmbagent"
NO_RESPONSE = "no response was captured"

_calls: dict[str, tuple[trace.Span, dict[str, Any]]] = {}
"""Agent calls without a response yet, of all managers: any of them may get the response, on any thread."""
_calls_lock = threading.Lock()


class _Processor(CMBSpanProcessor):
    """For a provider of our own: the process's `run()` and `node()` keep the pipeline they have."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline, self._settings = pipeline, pipeline.settings


_providers: weakref.WeakKeyDictionary[Pipeline, TracerProvider] = weakref.WeakKeyDictionary()


def _provider(pipeline: Pipeline) -> TracerProvider:
    """The installed provider where it writes to the same database, so that its exporters (Jaeger) get these spans too;
    otherwise one of our own, which no sampling setting thins out."""
    installed = trace.get_tracer_provider()
    for processor in getattr(installed, "_otel_cmb_processors", ()):
        if isinstance(installed, TracerProvider) and processor.pipeline is pipeline:
            return installed
    with _calls_lock:
        provider = _providers.get(pipeline)
        if provider is None:
            provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)  # the pipeline ends with the process
            install_processor(provider, _Processor(pipeline))
            if (otlp := otlp_processor(None)) is not None:
                provider.add_span_processor(otlp)
            _providers[pipeline] = provider
    return provider


def _settings_of(session: Any) -> config.Settings:
    """Settings for the database the application's session is bound to; only its address is taken from it."""
    default = config.load()
    if session is None:
        return default
    url: URL = session.get_bind().engine.url
    backend, _, driver = url.drivername.partition("+")
    if driver not in {"", "pysqlite", "psycopg", "psycopg2"}:
        url = url.set(drivername=backend)  # an asynchronous driver: the same database by a plain one
    found = config.load(database_url=url.render_as_string(hide_password=False))
    try:
        same = check_url(default) == check_url(found)
    except ConfigurationError:
        same = False
    return default if same else found


def _contained(method: F) -> F:
    """An error of ours never reaches the application; under test it does."""

    @functools.wraps(method)
    def contained(self: EventCaptureManager, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return None
        started = clock.monotonic()
        try:
            self._connect()
            return method(self, *args, **kwargs)
        except Exception:
            if os.environ.get("OTEL_CMB_TESTING"):
                raise
            _log.exception("otel-cmb: %s failed; the program goes on, this event is missing", method.__name__)
            return None
        finally:
            with self._lock:
                self.total_capture_time_ms += (clock.monotonic() - started) * 1000

    return contained  # type: ignore[return-value] # the same parameters, an error fewer


class EventCaptureManager:
    """Captures what agents do as events of one run.

    Raises :class:`~otel_cmb.errors.RunNotFoundError` (a ValueError) when the run is not in the database,
    :class:`~otel_cmb.errors.DatabaseUnavailableError` when it does not answer, ConfigurationError (a ValueError) for an
    in-memory SQLite. With `enabled=False` nothing is checked and every capture returns None. The capture methods never
    raise and never wait for the database; what they return is the id of the event's row.
    """

    def __init__(
        self, db_session: Any, run_id: str, session_id: str, enabled: bool = True, buffer_size: int = 50,
        websocket: Any = None, emit_event_callback: Callable[..., Any] | None = None,
    ):
        self.db = db_session
        self.run_id, self.session_id = run_id, session_id
        self.enabled = enabled
        self.buffer_size = buffer_size
        """Accepted for the caller's sake: rows are written in batches of their own."""
        self.websocket = websocket
        self._emit_event_callback = emit_event_callback
        self.current_node_id: str | None = None
        self.current_step_id: str | None = None
        self.total_events = 0
        self.total_capture_time_ms = 0.0
        self._stacks = threading.local()
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._stacked: set[str] = set()
        """Calls of ours that are on some thread's stack."""
        self._emitting: set[asyncio.Task[Any]] = set()
        self._pipeline: Pipeline | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        if enabled:
            self._connect()

    def _connect(self) -> None:
        """Find the database and check the run, unless that is done: `enabled` may also be set later."""
        if self._pipeline is not None:
            return
        pipeline = get_pipeline(_settings_of(self.db))
        self.run_id, self.session_id = pipeline.check_run(str(self.run_id))
        self._tracer = _provider(pipeline).get_tracer(SCOPE)
        self._pipeline = pipeline

    # -- context -------------------------------------------------------------------------------------------------------

    def set_context(self, node_id: str | None = None, step_id: str | None = None) -> None:
        """What follows belongs to this node (by id or by name) and this step; an argument left out changes nothing."""
        if node_id:
            self.current_node_id = node_id
        if step_id:
            self.current_step_id = step_id

    @property
    def event_stack(self) -> list[str]:
        """Ids of this thread's agent calls that wait for their response, outermost first."""
        if not hasattr(self._stacks, "ids"):
            self._stacks.ids = []
        stack: list[str] = self._stacks.ids
        return stack

    @property
    def execution_order(self) -> int:
        """How many events this manager has captured; the rows' own numbers are given by the database's writer."""
        return self.total_events

    # -- captures ------------------------------------------------------------------------------------------------------

    @_contained
    def capture_agent_call(
        self, agent_name: str, message: str, context: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """An agent is asked: a running row, completed by :meth:`capture_agent_response` with the id returned here."""
        meta = said(metadata)
        span, identifier = self._start(
            f"invoke_agent {agent_name}", "agent_call", agent_name, meta, status="running", subtype="start",
            inputs={"message": message, "context": context or {}},
        )
        with _calls_lock:
            _calls[identifier] = (span, meta)
        self._open.add(identifier)
        self._stacked.add(identifier)
        self.event_stack.append(identifier)
        return identifier

    @_contained
    def capture_agent_response(
        self, agent_name: str, response: str, event_id: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """The agent has answered: completes the row `event_id`; without one, the answer is an event of its own."""
        with _calls_lock:
            span, meta = _calls.pop(event_id, (None, {})) if event_id else (None, {})
        meta = {**meta, **said(metadata)}
        outputs = {"response": response}
        if span is None or event_id is None:
            if event_id:
                _log.warning("otel-cmb: no call %s waits for a response; it becomes an event of its own", event_id)
                meta["call_event_id"] = event_id
            span, _ = self._start(f"invoke_agent {agent_name}", "agent_call", agent_name, meta, outputs=outputs)
        else:
            self._open.discard(event_id)
            stack = self.event_stack
            if event_id in stack:
                # Calls above it in this thread ended by an exception, without a response: nothing belongs to them now.
                at = stack.index(event_id)
                self._stacked.difference_update(stack[at:])
                del stack[at:]
            span.set_attributes({"cmb.outputs": to_json(outputs), **meta_of(meta)})
        span.end()

    @_contained
    def capture_tool_call(
        self, agent_name: str, tool_name: str, arguments: dict[str, Any], result: Any = None,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """A tool was called."""
        return self._instant(
            f"execute_tool {tool_name}", "tool_call", agent_name, said(metadata),
            inputs={"tool_name": tool_name, "arguments": arguments},
            outputs=None if result is None else {"result": result},
        )

    @_contained
    def capture_code_execution(
        self, agent_name: str, code: str, language: str = "python", result: str | None = None,
        exit_code: int | None = None, duration_ms: int | None = None, metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """Code was executed; an exit code other than 0 is a failure."""
        code = "" if code is None else text_of(code)
        found, failure = whole(exit_code), None
        exit_code = exit_code if found is None else found
        if exit_code not in (None, 0):
            lines = result.strip().splitlines() if isinstance(result, str) else []
            failure = f"exit code {exit_code}: {lines[-1][:500]}" if lines else f"exit code {exit_code}"
        meta = {**said(metadata), "language": language, "code_length": len(code), **said({"exit_code": exit_code})}
        return self._instant(
            f"execute_code {language}", "code_exec", agent_name, meta, inputs={"code": code},
            outputs=None if result is None else {"result": result}, failure=failure, duration_ms=duration_ms or 0,
        )

    @_contained
    def capture_file_generation(
        self, agent_name: str, file_path: str, file_type: str, size_bytes: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """A file was written: an event and a row of `files`."""
        found = whole(size_bytes)
        meta = {**said({"size_bytes": size_bytes if found is None else found}), **said(metadata)}
        return self._instant(
            f"generate_file {file_path}", "file_gen", agent_name, meta,
            inputs={"file_path": str(file_path), "file_type": file_type},
        )

    @_contained
    def capture_handoff(
        self, from_agent: str, to_agent: str, context: dict[str, Any] | None = None, reason: str | None = None
    ) -> str | None:
        """The work went from one agent to another."""
        from_agent, to_agent = name_of(from_agent), name_of(to_agent)
        return self._instant(
            f"handoff {from_agent} -> {to_agent}", "handoff", from_agent, said({"reason": reason or None}),
            inputs={"from_agent": from_agent, "to_agent": to_agent, "context": context or {}},
        )

    @_contained
    def capture_message(
        self, sender: str, recipient: str, content: str, tokens: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """A message went from one agent to another: an event and a row of `messages`."""
        sender, recipient = name_of(sender), name_of(recipient)
        meta = {**said({"tokens": tokens}), **said(metadata)}
        return self._instant(
            f"message {sender} -> {recipient}", "agent_call", recipient, meta,
            inputs={"sender": sender, "recipient": recipient, "content": "" if content is None else text_of(content)},
            subtype="message",
        )

    @_contained
    def capture_error(
        self, agent_name: str, error_message: str, error_type: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """Something went wrong."""
        kind = error_type.__name__ if isinstance(error_type, type) else error_type
        meta = {**said(metadata), **said({"error_type": kind})}
        message: Any = error_message
        if isinstance(message, BaseException):
            message = str(message) or type_name(message)
        return self._instant(
            f"error {kind}" if kind else "error", "error", agent_name, meta, failure=text_of(message)
        )

    # -- the rest of the interface -------------------------------------------------------------------------------------

    def get_performance_stats(self) -> dict[str, Any]:
        """What the application's status pages show. Times are milliseconds spent in the capture methods."""
        events = self.total_events
        return {
            "total_events": events,
            "total_capture_time_ms": self.total_capture_time_ms,
            "avg_capture_time_ms": self.total_capture_time_ms / events if events else 0,
            "enabled": self.enabled,
            "current_node_id": self.current_node_id,
            "current_step_id": self.current_step_id,
            "execution_order": self.execution_order,
        }

    def flush(self) -> None:
        """Return when the rows of everything captured are committed, those of running calls too, or after
        `export_timeout` with a warning: they are in the journal then and will be written when the database allows it."""
        if self._pipeline is None:
            return
        self._pipeline.show_running()
        timeout = self._pipeline.settings.export_timeout
        if not self._pipeline.flush(timeout):
            _log.warning(
                "otel-cmb: after %.0f s the database still keeps us waiting (an open transaction of the application?); "
                "the events are in the journal and will be written later", timeout)

    def close(self) -> None:
        """Flush and capture nothing more. Calls that never got a response end as failed."""
        with _calls_lock:
            left = [_calls.pop(identifier) for identifier in self._open if identifier in _calls]
        self._open.clear()
        for span, _ in left:
            span.set_status(Status(StatusCode.ERROR, NO_RESPONSE))
            span.end()
        self.flush()
        self.enabled = False

    # -- spans ---------------------------------------------------------------------------------------------------------

    def _start(
        self, name: str, event_type: str, agent_name: str | None, meta: Mapping[str, Any], *, subtype: str = "complete",
        status: str = "completed", inputs: Mapping[str, Any] | None = None, outputs: Mapping[str, Any] | None = None,
        start_ns: int | None = None,
    ) -> tuple[trace.Span, str]:
        """A started span, the child of this thread's innermost open call, and the id of its row."""
        attributes: dict[str, Any] = {
            EVENT_TYPE: event_type, RUN_ID: self.run_id, **said({NODE_ID: self.current_node_id}),
            **said({STEP_ID: self.current_step_id}), **meta_of(meta),
        }
        if agent_name:
            attributes["cmb.agent.name"] = name_of(agent_name)
        if subtype == "message":
            attributes["cmb.event.subtype"] = subtype
        if inputs is not None:
            attributes["cmb.inputs"] = to_json(inputs)
        if outputs is not None:
            attributes["cmb.outputs"] = to_json(outputs)
        context = None
        stack = self.event_stack
        while stack and stack[-1] in self._stacked and stack[-1] not in _calls:  # answered on another thread
            self._stacked.discard(stack.pop())
        parent = stack[-1] if stack else None
        if parent is not None:
            call = _calls.get(parent)
            if call is None:
                attributes[PARENT_EVENT_ID] = parent
            else:
                context = trace.set_span_in_context(call[0])
        span = self._tracer.start_span(name, context=context, attributes=attributes, start_time=start_ns)
        ids = span.get_span_context()
        identifier = id_of(f"{ids.trace_id:032x}", f"{ids.span_id:016x}")
        with self._lock:
            self.total_events += 1
            order = self.total_events
        self._emit(SimpleNamespace(
            id=identifier, run_id=self.run_id, session_id=self.session_id, node_id=self.current_node_id,
            step_id=self.current_step_id, parent_event_id=parent, event_type=event_type, event_subtype=subtype,
            agent_name=agent_name, timestamp=datetime.now(timezone.utc), inputs=inputs, outputs=outputs,
            meta=dict(meta), execution_order=order, depth=len(stack), status=status,
        ))
        return span, identifier

    def _instant(
        self, name: str, event_type: str, agent_name: str | None, meta: Mapping[str, Any], *,
        failure: str | None = None, duration_ms: int = 0, **values: Any,
    ) -> str:
        """An event that is over when it is captured."""
        now = clock.now_ns()
        if failure is not None:
            values["status"] = "failed"
            values.setdefault("subtype", "error")
        span, identifier = self._start(
            name, event_type, agent_name, meta, start_ns=now - max(0, int(duration_ms)) * 1_000_000, **values
        )
        if failure is not None:
            span.set_attribute("cmb.error.message", failure)
            span.set_status(Status(StatusCode.ERROR, failure))
        span.end(now)
        return identifier

    def _emit(self, event: SimpleNamespace) -> None:
        """Call the application's callback for its web page; an asynchronous one where an event loop runs. As there, an
        error of the callback is the page's loss only."""
        callback = self._emit_event_callback
        if not self.websocket or callback is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if inspect.iscoroutinefunction(callback):
                return
            loop = None
        try:
            answer = callback(self.websocket, event, self.run_id)
        except Exception as error:  # noqa: BLE001 - the application's own code; the event is stored all the same
            _log.debug("otel-cmb: emit_event_callback failed: %r", error)
            return
        if inspect.iscoroutine(answer) and loop is not None:
            task = loop.create_task(answer)
            self._emitting.add(task)
            task.add_done_callback(self._emitted)
        elif inspect.iscoroutine(answer):
            answer.close()

    def _emitted(self, task: asyncio.Task[Any]) -> None:
        self._emitting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("otel-cmb: emit_event_callback failed: %r", error)


_captor: contextvars.ContextVar[EventCaptureManager | None] = contextvars.ContextVar("otel_cmb_captor", default=None)


def get_event_captor() -> EventCaptureManager | None:
    """The manager of this context (`contextvars`): of this session or branch, not of the process."""
    return _captor.get()


def set_event_captor(captor: EventCaptureManager | None) -> None:
    """Set it for this context; a thread gets it by `contextvars.copy_context().run`."""
    _captor.set(captor)
