"""What both forms of OTLP share: the result of decoding, and how odd values are made right.

Only a span without usable ids is rejected: nothing can be stored, found or joined without them. Everything else that is
odd is cleaned, because a span refused is a span lost at the sender (exporters do not retry a `partial_success`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from otel_cmb.event import Span

MAX_DEPTH = 64
"""Deepest nesting kept of an attribute value (the OpenTelemetry specification v1.60 sets the same limit)."""
TOO_DEEP = "[nested too deep]"
MAX_TIME_NS = 2**63 - 1
"""Times are uint64 in OTLP; the last instant a signed column holds is in the year 2262."""
ZERO_TRACE, ZERO_SPAN = "0" * 32, "0" * 16
_HEX = frozenset("0123456789abcdefABCDEF")


class MalformedError(ValueError):
    """The message as a whole cannot be read: nothing in it was taken."""


@dataclass(slots=True)
class Decoded:
    """The spans of one request, and one line for each span that was rejected."""

    spans: list[Span] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


@dataclass(slots=True)
class SpanContent:
    """Attributes that log records carry for a span (GenAI content events), to be joined to it.

    The message lists `gen_ai.input.messages` and `gen_ai.output.messages` of several records of one span are parts of
    one list, in the order of `time_ns`; any other key replaces nothing the span itself says.
    """

    trace_id: str
    span_id: str
    time_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    bound_session_id: str | None = None
    """The session the sender's token is bound to: content for spans of other sessions is refused."""


def clean_times(start_ns: int, end_ns: int, now_ns: int) -> tuple[int, int | None]:
    """Start and end fit for a row. OTLP writes a missing time as 0.

    No start: the end, or `now_ns`. No end: `None`, the span has not ended as far as its sender says. End before start:
    the start (a clock was set back).
    """
    if not start_ns:
        start_ns = end_ns or now_ns
    start_ns = min(start_ns, MAX_TIME_NS)
    if not end_ns:
        return start_ns, None
    return start_ns, start_ns if end_ns < start_ns else min(end_ns, MAX_TIME_NS)


def bad_ids(trace_id: str, span_id: str, name: str) -> str:
    """The line that tells why a span was rejected."""
    wrong = [
        f"{what} id {id_[:40]!r} is not {digits} hex digits other than zero"
        for what, id_, digits in (("trace", trace_id, 32), ("span", span_id, 16))
        if len(id_) != digits or not set(id_) <= _HEX or not id_.strip("0")
    ]
    return f"span {name[:80]!r}: {' and '.join(wrong)}"
