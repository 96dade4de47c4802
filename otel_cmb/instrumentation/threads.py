"""The OpenTelemetry context crosses threads: what is current at `Thread.start` or `submit` is current in the worker.

AG2 runs chats, async tools and LLM calls in threads of its own; without this each of them is a trace of its own. The
whole change is two methods, `threading.Thread.start` and `concurrent.futures.ThreadPoolExecutor.submit`, and
:func:`uninstrument` puts them back. Nesting is counted: the last one to leave restores.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opentelemetry.context import Context, attach, get_current

from otel_cmb.context import detach

__all__ = ["instrument", "uninstrument"]

_lock = threading.Lock()
_users = 0
_start = threading.Thread.start
_submit = ThreadPoolExecutor.submit


def _call(context: Context, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = attach(context)
    try:
        return function(*args, **kwargs)
    finally:
        detach(token)


@functools.wraps(_start)
def _start_in_context(self: threading.Thread) -> None:
    context = get_current()
    if not _users or not context or "run" in vars(self):
        _original_start(self)
        return
    # On the thread itself, and only until it runs: a subclass that overrides `run` is covered too.
    run = self.run

    def run_in_context() -> None:
        vars(self).pop("run", None)
        _call(context, run)

    self.run = run_in_context  # type: ignore[method-assign]
    try:
        _original_start(self)
    except BaseException:
        vars(self).pop("run", None)
        raise


@functools.wraps(_submit)  # type: ignore[arg-type]
def _submit_in_context(self: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if not _users or any(kind.__name__ == "InterpreterPoolExecutor" for kind in type(self).__mro__):
        # Another interpreter gets its work pickled (Python 3.14); a context has spans in it and cannot go there.
        return _original_submit(self, function, *args, **kwargs)
    # Also when the context is empty: a worker must not keep that of the thread that happened to start it.
    return _original_submit(self, functools.partial(_call, get_current(), function), *args, **kwargs)


_original_start: Callable[[threading.Thread], None] = _start
_original_submit: Callable[..., Any] = _submit


def instrument() -> None:
    """Carry the context into threads from now on."""
    global _users, _original_start, _original_submit  # noqa: PLW0603 - there is one `threading` per process
    with _lock:
        _users += 1
        if _users == 1:
            _original_start, _original_submit = threading.Thread.start, ThreadPoolExecutor.submit
            threading.Thread.start = _start_in_context  # type: ignore[method-assign]
            ThreadPoolExecutor.submit = _submit_in_context  # type: ignore[method-assign, assignment]


def uninstrument() -> None:
    """Undo one :func:`instrument`. A patch that somebody put on top of ours stays; ours below it does nothing then."""
    global _users  # noqa: PLW0603
    with _lock:
        if _users == 0:
            return
        _users -= 1
        if _users == 0:
            if threading.Thread.start is _start_in_context:
                threading.Thread.start = _original_start  # type: ignore[method-assign, assignment]
            if ThreadPoolExecutor.submit is _submit_in_context:
                ThreadPoolExecutor.submit = _original_submit  # type: ignore[method-assign]
