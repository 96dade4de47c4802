"""What the pipeline hands to the store, and what the store says became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from otel_cmb.event import Span
from otel_cmb.mapper import Facts

__all__ = ["Item", "Outcome"]

# What became of an item.
COMMITTED, MERGED, IGNORED, DEFERRED, PARKED, REFUSED = "committed", "merged", "ignored", "deferred", "parked", "refused"

ENDED = "ended"
"""Reason of a start that is merged: the span's end is known already."""

RUN_NOT_FOUND, NO_RUN, SESSION_MISMATCH, ID_CONFLICT, UNSETTLED = (
    "run_not_found", "no_run", "session_mismatch", "id_conflict", "unsettled")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of one item, with the reason where it was not committed."""

    result: str
    reason: str = ""
    detail: str = ""
    run_id: str | None = None


@dataclass(slots=True)
class Item:
    """A span or a command on its way into the database."""

    seq: int
    span: Span | None = None
    command: dict[str, Any] | None = None
    content: Span | None = None
    """Carries attributes from log records, to be joined to the span it names."""
    settle: bool = True
    """Nobody will name a run any more: make one, or park. False while the trace's root may still come."""
    outcome: Outcome | None = None
    facts: Facts | None = None
    """What the span says, read before the transaction; `None`: to be read."""
    size: int = 0
    """About how many bytes what it brings takes in memory: those of its record."""
