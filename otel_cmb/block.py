"""The span around a block of code, and the attributes every block is made of. The public blocks are in `spans`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, get_current, get_value, set_value
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_cmb.context import EVENT_TYPE, NO_EVENT, detach, tracer, with_parent_event
from otel_cmb.event import event_id
from otel_cmb.payload import text_of, to_json, type_name

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AGENT_KEY", "TRACER_KEY", "Block", "agent_of", "current_agent", "inputs_of", "instant", "label", "meta_of",
    "number", "texts",
]

AGENT_KEY = create_key("otel_cmb-agent")
"""The agent whose block is open, in the OpenTelemetry context: what happens inside carries its name."""


TRACER_KEY = create_key("otel_cmb-tracer")
"""The tracer of an instrumentation that was given its own provider; what happens inside goes there too."""


_NO_ROW = frozenset((NO_EVENT, "info"))
"""Types of events that have no row, or need not have one."""


def _tracer(values: Mapping[str, object]) -> trace.Tracer:
    chosen = values.get(TRACER_KEY) or get_value(TRACER_KEY)
    return chosen if isinstance(chosen, trace.Tracer) else tracer()


def _present(**values: Any) -> dict[str, Any]:
    """What was said: a key with nothing to say is absent, never null."""
    return {key: value for key, value in values.items() if value is not None}


def current_agent() -> str | None:
    """Name of the agent whose block the code is in."""
    name = get_value(AGENT_KEY)
    return name if isinstance(name, str) else None


def label(value: Any) -> str:
    """A value as part of a span's name."""
    return text_of(value)[:200]


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: text_of(value) for key, value in values.items() if value is not None}


def number(key: str, value: Any, convert: Callable[[Any], float] = float) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        return {key: convert(value)}
    except (TypeError, ValueError, OverflowError):
        return {key: text_of(value)}  # not a number: kept where a person finds it, in no sum


def inputs_of(**values: Any) -> dict[str, Any]:
    found = _present(**values)
    return {"cmb.inputs": to_json(found)} if found else {}


def meta_of(**values: Any) -> dict[str, Any]:
    found = _present(**values)
    return {"cmb.meta": to_json(found)} if found else {}


def agent_of(name: str | None) -> dict[str, Any]:
    found = name or current_agent()
    return {"gen_ai.agent.name": text_of(found)} if found else {}


class Block:
    """A span around a block of code. Enter it once; `start` and `end` do the same without `with`.

    `values` go into the OpenTelemetry context of what happens inside.
    """

    def __init__(
        self, name: str, attributes: Mapping[str, Any], *, kind: SpanKind = SpanKind.INTERNAL,
        values: Mapping[str, object] | None = None,
    ):
        self.name, self.attributes, self.kind = name, attributes, kind
        self.values = dict(values or {})
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[Context] | None = None
        self._open = self._failed = False

    @property
    def span(self) -> trace.Span:
        """The OpenTelemetry span, valid from the start of the block on."""
        return self._span

    def open(self) -> Context:
        """Start the span; the context of what happens inside is returned, not entered. It names this event for who hangs below
        it in another process."""
        context = get_current()
        self._span = _tracer(self.values).start_span(
            self.name, context=context, kind=self.kind, attributes=self.attributes
        )
        context = trace.set_span_in_context(self._span, context)
        for key, value in self.values.items():
            context = set_value(key, value, context)
        if self._span.is_recording() and self.attributes.get(EVENT_TYPE) not in _NO_ROW:
            made = self._span.get_span_context()
            context = with_parent_event(event_id(f"{made.trace_id:032x}", f"{made.span_id:016x}"), context)
        self._open = True
        return context

    def start(self) -> Self:
        """Start the span; what happens from here on, in this thread or task, is inside."""
        self._token = attach(self.open())
        return self

    def end(self, error: BaseException | None = None) -> None:
        """End the span; `error` is what left the block. Ending twice does nothing."""
        if not self._open:
            return
        self._open = False
        if error is not None and not isinstance(error, GeneratorExit):
            self._fail_with(error)
        if self._token is not None:
            detach(self._token)
        self._span.end()

    def fail(self, message: str) -> None:
        """Mark what happens here as failed, with the message that the event's `error_message` shows."""
        self._failed = True
        self._span.set_status(Status(StatusCode.ERROR, text_of(message)))

    def _fail_with(self, error: BaseException) -> None:
        interrupted = not isinstance(error, Exception)
        self.set("error.type", type_name(error))
        try:
            message = "" if interrupted else str(error)
            self._span.record_exception(error)
        except Exception:  # noqa: BLE001 - an exception whose __str__ raises; the span still says that it failed
            message = ""
        if not self._failed:
            kind = type(error).__name__
            self.fail(f"interrupted by {kind}" if interrupted else f"{kind}: {message}" if message else kind)

    def set(self, key: str, value: Any) -> None:
        """Set an attribute; one that comes after the end is dropped without a word."""
        if self._span.is_recording():
            self._span.set_attribute(key, value)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error)

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error)

    def _set_usage(
        self, model: str | None, input_tokens: int | None, output_tokens: int | None, cost_usd: float | None
    ) -> None:
        if model is not None:
            self.set("gen_ai.response.model", text_of(model))
        found = {
            **number("gen_ai.usage.input_tokens", input_tokens, int),
            **number("gen_ai.usage.output_tokens", output_tokens, int),
            **number("gen_ai.usage.cost", cost_usd),
        }
        for key, value in found.items():
            self.set(key, value)


def instant(name: str, event_type: str, attributes: Mapping[str, Any], *, failed: bool = False) -> None:
    span = _tracer({}).start_span(name, attributes={"cmb.event.type": event_type, **attributes})
    if failed:
        span.set_status(Status(StatusCode.ERROR))
    span.end()
