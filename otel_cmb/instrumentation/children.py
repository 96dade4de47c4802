"""While an agent's code runs, Python children are not instrumented, also under the stock `opentelemetry-instrument`.

The stock tool leaves its directory on `PYTHONPATH`, so that every Python child starts a tracer, a meter and their exporters:
they write into the code's output, and the default metrics exporter holds the end of each child up for seconds, which a
code executor takes for a timeout. Only what starts while code runs is concerned: the program's own workers stay as they were.
"""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["PlainChildren"]

STOCK = "opentelemetry.instrumentation.auto_instrumentation"

_lock = threading.Lock()
_running = 0
_directory: str | None = None
"""What was taken off `PYTHONPATH` and goes back."""


class PlainChildren:
    """From making it to :meth:`end`; several at once are counted, the last one puts the directory back."""

    def __init__(self) -> None:
        global _running, _directory  # noqa: PLW0603 - there is one environment per process
        with _lock:
            _running += 1
            if _running == 1:
                _directory = _stock_directory()
                if _directory is not None:
                    _set_path([path for path in _path() if path != _directory])

    def end(self) -> None:
        global _running, _directory  # noqa: PLW0603
        with _lock:
            _running -= 1
            if _running == 0 and _directory is not None:
                _set_path([_directory, *_path()])
                _directory = None


def _stock_directory() -> str | None:
    module = sys.modules.get(STOCK)
    directory = os.path.dirname(os.path.abspath(module.__file__)) if module is not None and module.__file__ else None
    return directory if directory in _path() else None


def _path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _set_path(paths: list[str]) -> None:
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        os.environ.pop("PYTHONPATH", None)
