"""Agent traces into the SQL database your application already has, and in front of a person.

`configure()` once, then `run`, `node`, `agent_call`, ... or a framework's own spans; `open_reader()` to look at them.
Everything is imported when it is first used: `import otel_cmb` loads neither grpc nor alembic nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from otel_cmb._version import __version__

if TYPE_CHECKING:
    from otel_cmb.context import attach, node, run, step
    from otel_cmb.errors import (
        CMBError,
        ConfigurationError,
        DatabaseUnavailableError,
        DatabaseURLError,
        JournalError,
        RunNotFoundError,
        SchemaError,
        SessionMismatchError,
    )
    from otel_cmb.exporter import CMBSpanExporter
    from otel_cmb.processor import CMBSpanProcessor
    from otel_cmb.reader import open_reader
    from otel_cmb.setup import configure
    from otel_cmb.spans import (
        agent_call,
        approval,
        code_exec,
        error,
        file_gen,
        handoff,
        llm_call,
        message,
        tool_call,
        traced_agent,
        traced_tool,
    )

_WHERE = {
    "otel_cmb.setup": ("configure",),
    "otel_cmb.context": ("attach", "node", "run", "step"),
    "otel_cmb.errors": (
        "CMBError", "ConfigurationError", "DatabaseURLError", "DatabaseUnavailableError", "JournalError",
        "RunNotFoundError", "SchemaError", "SessionMismatchError"),
    "otel_cmb.exporter": ("CMBSpanExporter",),
    "otel_cmb.processor": ("CMBSpanProcessor",),
    "otel_cmb.reader": ("open_reader",),
    "otel_cmb.spans": (
        "agent_call", "approval", "code_exec", "error", "file_gen", "handoff", "llm_call", "message", "tool_call",
        "traced_agent", "traced_tool"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "CMBError", "CMBSpanExporter", "CMBSpanProcessor", "ConfigurationError", "DatabaseURLError",
    "DatabaseUnavailableError", "JournalError", "RunNotFoundError", "SchemaError", "SessionMismatchError", "__version__",
    "agent_call", "approval", "attach", "code_exec", "configure", "error", "file_gen", "handoff", "llm_call", "message",
    "node", "open_reader", "run", "step", "tool_call", "traced_agent", "traced_tool",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'otel_cmb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
