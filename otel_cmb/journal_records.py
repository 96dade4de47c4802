"""What a journal holds: records, what is parked of them, and what one committed batch changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from otel_cmb.errors import JournalError

__all__ = ["NO_SPAN", "PROCESS_DIED", "JournalFullError", "Parked", "Progress", "Record"]

END, START, COMMAND, CONTENT = b"e", b"s", b"c", b"l"
"""The first byte of a record's body: a span that ended, one that began, a row of `run()`, `node()` or `step()`, content
that log records carried."""

PROCESS_DIED = "process_died"
"""Why a record is parked that closes a row of a process that died."""

NO_SPAN = "no_span"
"""Why content is parked whose span has not come; the longer it waits, the more rarely it is tried again."""

LATEST_DUE = 60.0
"""Seconds: nothing else is due later than this from now, unless the clock went backwards."""


class JournalFullError(JournalError):
    """The journal has reached its size cap."""


@dataclass(slots=True)
class Record:
    """One journaled thing: `body` begins with the byte that says what it is."""

    seq: int
    body: bytes
    end: tuple[int, int] = (0, 0)
    """Where the cursor stands once this record is done: segment number, offset."""
    gap: int = 0
    """How many records before this one are missing: damaged on the disk."""


@dataclass(slots=True)
class Parked:
    """A record that could not be stored yet, and why."""

    seq: int
    reason: str
    body: bytes
    detail: str = ""
    run_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    name: str | None = None
    since: float = 0.0
    """Seconds since the epoch when it was parked first."""
    attempts: int = 0
    due: float | None = 0.0
    """When it is tried again by itself; `None`: only when asked (`parked replay`)."""


@dataclass(slots=True)
class Progress:
    """What one committed batch changes in the journal, in one transaction."""

    done: Record | None = None
    park: list[Parked] = field(default_factory=list)
    unpark: list[int] = field(default_factory=list)
    opened: list[tuple[str, str, bytes]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
