"""AG2's own tracing beside ours: where both would report the same act to the same provider, ours does.

AG2 patches the agents it is given, one by one, with a tracer that it gets from `get_tracer`. While we are on and the
provider is ours, that tracer makes no spans; off, or with another provider, it does what it did.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, Span, Tracer

from otel_cmb.instrumentation.ag2_patch import Patcher

__all__ = ["quieten"]

MODULES = tuple(f"autogen.opentelemetry.instrumentators.{name}" for name in ("agent", "llm_wrapper", "pattern"))


class QuietTracer(Tracer):
    """The tracer it stands for, silent while `silent` says so."""

    def __init__(self, tracer: Tracer, silent: Callable[[], bool]):
        self._tracer, self._silent, self._none = tracer, silent, NoOpTracer()

    def _current(self) -> Tracer:
        return self._none if self._silent() else self._tracer

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return self._current().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._current().start_as_current_span(*args, **kwargs)


def quieten(patcher: Patcher, provider: trace.TracerProvider | None) -> None:
    """Have AG2's own instrumentation ask us for its tracer."""
    for name in MODULES:
        module = importlib.import_module(name)
        original = module.get_tracer
        if getattr(original, "__module__", None) == __name__:
            continue

        def get_tracer(tracer_provider: Any, _original: Callable[[Any], Tracer] = original) -> Tracer:
            tracer = _original(tracer_provider)
            if tracer_provider is not (provider or trace.get_tracer_provider()):
                return tracer
            return QuietTracer(tracer, lambda: patcher.active)

        patcher.replace(module, "get_tracer", get_tracer)
