"""Every question a person asks of the database, read-only: owned or attached, SQLite or PostgreSQL.

    with open_reader("sqlite:///otel_cmb.db") as reader:
        run = reader.run(reader.resolve("latest"))
        for event in reader.history(run.id): ...
"""

from __future__ import annotations

from otel_cmb.reader.reader import Reader, open_reader
from otel_cmb.reader.records import (
    Edge,
    Event,
    File,
    Line,
    Message,
    Node,
    Run,
    RunTotals,
    Session,
    Share,
    Step,
    Totals,
    TreeNode,
)

__all__ = [
    "Edge", "Event", "File", "Line", "Message", "Node", "Reader", "Run", "RunTotals", "Session", "Share", "Step",
    "Totals", "TreeNode", "open_reader",
]
