"""The two values everything else passes around: a :class:`Span` that came in, an :class:`Event` that goes to a row.

Pure: no clock, no I/O. Times are integer nanoseconds since the Unix epoch until a row is written. Ids are lower-case
hex strings (32 digits for a trace, 16 for a span), as in OTLP/JSON.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

__all__ = [
    "Event", "FileRow", "Link", "MessageRow", "Resource", "Scope", "Span", "SpanEvent", "Stamp",
    "derived_id", "event_id", "trace_id_range",
]

# Status codes and kinds are OTLP's numbers (opentelemetry-proto v1.11.0, trace.proto).
STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2
KIND_UNSPECIFIED, KIND_INTERNAL, KIND_SERVER, KIND_CLIENT, KIND_PRODUCER, KIND_CONSUMER = range(6)


@dataclass(slots=True)
class Resource:
    """What produced the span (OTLP Resource)."""

    attributes: dict[str, Any] = field(default_factory=dict)
    schema_url: str = ""
    dropped_attributes: int = 0


@dataclass(slots=True)
class Scope:
    """The instrumentation that made the span (OTLP InstrumentationScope)."""

    name: str = ""
    version: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    schema_url: str = ""
    dropped_attributes: int = 0


@dataclass(slots=True)
class SpanEvent:
    name: str
    time_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    dropped_attributes: int = 0


@dataclass(slots=True)
class Link:
    trace_id: str
    span_id: str
    trace_state: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    dropped_attributes: int = 0
    flags: int = 0


@dataclass(slots=True)
class Stamp:
    """Which run, node and step a span belongs to, as its door and its context say (DESIGN section 5).

    `None` means nobody said. `door_*` is what the door itself was told (`import --run`, `x-cmb-run-id`): it outranks
    the span's own attributes; the other fields rank below them.
    """

    run_id: str | None = None
    session_id: str | None = None
    node_id: str | None = None
    step_id: str | None = None
    parent_event_id: str | None = None
    door_run_id: str | None = None
    bound_session_id: str | None = None
    """The session a receiver's token is bound to: spans of other sessions are refused."""
    automatic_run_id: str | None = None
    """The run an owned database gets for this process when nobody named one; ranks below everything else."""


@dataclass(slots=True)
class Span:
    """One span as it came through a door, started or ended. Attribute values are those of OTLP's AnyValue in Python:
    str, bool, int, float, bytes, None, list and dict (str keys) of these."""

    trace_id: str
    span_id: str
    name: str
    start_ns: int
    end_ns: int | None = None
    """`None` while the span is running."""
    parent_span_id: str | None = None
    kind: int = KIND_INTERNAL
    status_code: int = STATUS_UNSET
    status_message: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[SpanEvent] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    resource: Resource = field(default_factory=Resource)
    scope: Scope = field(default_factory=Scope)
    trace_state: str = ""
    flags: int = 0
    dropped_attributes: int = 0
    dropped_events: int = 0
    dropped_links: int = 0
    stamp: Stamp = field(default_factory=Stamp)
    died: bool = False
    """The process ended before the span did; `end_ns` is then `None` and the event is closed as failed."""


@dataclass(slots=True)
class FileRow:
    """A row of `files` that goes with an event."""

    file_path: str
    file_type: str
    size_bytes: int | None = None


@dataclass(slots=True)
class MessageRow:
    """A row of `messages` that goes with an event."""

    sender: str
    recipient: str
    content: str
    tokens: int | None = None


@dataclass(slots=True)
class Event:
    """One row of `execution_events` as it should be, before order, node, step and session are decided in the
    transaction. `spans` are the spans it was made from, the one that names it first; a derived event (a handoff found
    in a tool call, a generated file) has none and is rebuilt from its parent's spans."""

    id: str
    trace_id: str
    span_id: str
    event_type: str
    event_subtype: str | None
    status: str
    started_ns: int
    completed_ns: int | None
    run_id: str | None = None
    node_id: str | None = None
    step_id: str | None = None
    agent_name: str | None = None
    agent_role: str | None = None
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    parent_event_id: str | None = None
    parent_known: bool = True
    """False when `parent_event_id` names an event outside this trace, or one not seen yet: the store looks it up."""
    depth: int = 0
    spans: list[Span] = field(default_factory=list)
    files: Sequence[FileRow] = ()
    messages: Sequence[MessageRow] = ()


@lru_cache(maxsize=1024)
def _prefix(trace_id: str) -> str:
    """The first 60 bits with version 8 between: what all event ids of a trace begin with."""
    digits = hashlib.blake2b(bytes.fromhex(trace_id), digest_size=8).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}"


def _uuid8(trace_id: str, rest: bytes) -> str:
    low = int.from_bytes(hashlib.blake2b(rest, digest_size=8).digest(), "big") >> 2
    digits = hex(low | 0x8000000000000000)  # the variant, then 62 bits
    return f"{_prefix(trace_id)}-{digits[2:6]}-{digits[6:]}"


OWN_ID = "________-____-8___-____-____________"
"""SQL LIKE pattern of the ids made here (events, what is derived from them, runs of traces): version 8 (RFC 9562). The
application and everybody else make version 4, or names."""


def is_own_id(identifier: str) -> bool:
    """The same for one id."""
    try:
        return uuid.UUID(identifier).version == 8
    except ValueError:
        return False


def event_id(trace_id: str, span_id: str, start_ns: int | None = None) -> str:
    """Id of the event made from a span: a version-8 UUID (RFC 9562), 60 bits of a hash of the trace id, then 62 bits of
    a hash of trace id and span id. With `start_ns`: the id of a *second* span that reuses both ids (DESIGN section 4).
    """
    rest = bytes.fromhex(trace_id + span_id)
    return _uuid8(trace_id, rest if start_ns is None else rest + b"@%d" % start_ns)


def derived_id(trace_id: str, span_id: str, kind: str, n: int = 0) -> str:
    """Id of the n-th row of `kind` derived from a span (a handoff in a tool call, a generated file, a message)."""
    return _uuid8(trace_id, bytes.fromhex(trace_id + span_id) + f"|{kind}|{n}".encode())


def trace_id_range(trace_id: str) -> tuple[str, str]:
    """First and last event id a span of this trace can have: one primary-key range per trace."""
    prefix = _prefix(trace_id)
    return f"{prefix}-8000-000000000000", f"{prefix}-bfff-ffffffffffff"
