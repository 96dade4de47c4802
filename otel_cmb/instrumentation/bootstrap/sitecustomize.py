"""Imported by every Python that starts under `otel-cmb run`: the program is auto-instrumented, its children are not.

An agent's code executor starts Python too; a second tracer there would write into the code's output. The program's own
`multiprocessing` children (spawn, forkserver) are the program and are instrumented; so is what it replaces itself with
(`exec`).
"""

from __future__ import annotations

import contextlib
import os
import sys

_MARK = "OTEL_CMB_AUTO"
_HERE = os.path.dirname(os.path.abspath(__file__))


def _is_multiprocessing() -> bool:
    arguments = " ".join(getattr(sys, "orig_argv", sys.argv))
    return "--multiprocessing-fork" in arguments or "multiprocessing.forkserver import main" in arguments


def _begin() -> None:
    wanted, used = os.environ.get(_MARK), f"child of {os.getpid()}"
    if wanted is None or (wanted not in ("program", used) and not _is_multiprocessing()):
        return
    if getattr(sys, "otel_cmb_begun", False):  # by another installation's file, which `_chain` found
        return
    setattr(sys, "otel_cmb_begun", True)  # noqa: B010 - `sys` has no such attribute for a type checker
    os.environ[_MARK] = used
    try:
        from opentelemetry.instrumentation.auto_instrumentation import initialize

        import otel_cmb  # noqa: F401 - is it in this interpreter at all?
    except ImportError as error:
        if sys.stderr is not None:
            sys.stderr.write(f"otel-cmb: {sys.executable} cannot trace the program: {error}; install otel-cmb in it\n")
        return
    initialize()


def _chain() -> None:
    """The sitecustomize that ours stands before, if there is one."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
    mine = sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401
    if mine is not None:
        sys.modules.setdefault("sitecustomize", mine)


_chain()
_begin()
