"""Forks and exits of the process, told to every pipeline in it.

At the end of a process its pipelines are shut down, in a multiprocessing child too. Around a fork their threads stand still;
the child begins anew.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from typing import Any, Protocol

from otel_cmb import clock
from otel_cmb.config import Settings

__all__ = ["failure", "register", "register_exit"]

OUTERMOST = ("<module>", "_run_module_as_main")
"""Where a program begins: a file, `-c`, or `-m`."""


class _Registered(Protocol):
    settings: Settings

    def shutdown(self, timeout: float | None = None) -> bool: ...
    def hold_for_fork(self) -> None: ...
    def release_after_fork(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


_registered: weakref.WeakSet[_Registered] = weakref.WeakSet()
_exit_registered: set[int] = set()


def register(pipeline: _Registered) -> None:
    """Tell this pipeline of forks from now on, and of the end of the process once :func:`register_exit` was called."""
    _registered.add(pipeline)


def register_exit() -> None:
    """Shut the pipelines down when this process ends. `atexit` does not run in a multiprocessing child (it ends by
    `os._exit`), its own finalizers do."""
    pid = os.getpid()
    if pid in _exit_registered:
        return
    _exit_registered.add(pid)
    atexit.register(_shut_down_all)
    # While another thread imports it the module is there, but empty; a multiprocessing child has had it since it began.
    util: Any = sys.modules.get("multiprocessing.util")
    if hasattr(util, "Finalize"):
        util.Finalize(None, _shut_down_all, exitpriority=10)


def failure() -> str | None:
    """The error that this program has ended by, as far as the process itself can know: what nobody caught, before the
    interpreter ends. `None` for `sys.exit(5)` too: no exit handler is told the exit code."""
    error = getattr(sys, "last_value", None)  # set before sys.excepthook is called, whichever that is
    if not isinstance(error, BaseException) or sys.flags.interactive or hasattr(sys, "ps1"):
        return None  # who types at a prompt goes on after an error
    trace = error.__traceback__
    if trace is None or trace.tb_frame.f_code.co_name not in OUTERMOST or trace.tb_frame.f_back is not None:
        return None  # shown and left behind by somebody else: a test runner, a callback, a prompt in the program
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception whose __str__ raises
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _shut_down_all() -> None:
    """However many databases are away, the end of the process waits for them together, not for one after the other."""
    begun = clock.monotonic()
    for pipeline in list(_registered):
        with contextlib.suppress(Exception):
            pipeline.shutdown(max(0.1, pipeline.settings.shutdown_timeout - (clock.monotonic() - begun)))


def _before_fork() -> None:
    for pipeline in list(_registered):
        pipeline.hold_for_fork()


def _after_fork_in_parent() -> None:
    for pipeline in list(_registered):
        pipeline.release_after_fork()


def _after_fork_in_child() -> None:
    for pipeline in list(_registered):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
