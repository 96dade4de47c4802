"""What makes traces findable by service, operation, attribute, duration and time, in an owned database.

`otel_cmb_search` has a row, a *part*, per about 400 different facts of one trace: the hashes of its spans' facts (three
bytes each, in `tags`), when its spans start, how long the shortest and the longest took. A search reads the parts of
its time range, newest first, and loads the traces whose part holds every fact asked for; whether one span really has
them all is then seen on the span. All facts of a span are in one part, and a part's spans start within
:data:`SPREAD_NS` of its key, so a time range of spans is a range of keys. That is about 25 bytes a span; an index of
attributes would be ten times that. `otel_cmb_operations` has every service, operation and kind once.

Pure but for :class:`IndexWriter.write`, which the store calls inside its transaction.
"""

from __future__ import annotations

import base64
import math
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zlib import crc32

import orjson
from sqlalchemy import Connection

from otel_cmb.dialects import insert_sql, qualified
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.sanitize import fit

__all__ = [
    "MAX_TEXT", "OPERATION", "SCOPE_NAME", "SCOPE_VERSION", "SERVICE", "SPAN_KIND", "SPAN_STATUS", "SPREAD_NS",
    "IndexWriter", "Part", "as_string", "forget_everywhere", "service_of", "tag", "tags_of",
]

SPREAD_NS = 15 * 60 * 1_000_000_000
MAX_TEXT = 256
"""Longer values (prompts, answers) are no facts to search for; a search for one looks at the spans themselves."""
_PART_BYTES = 1200
_OPEN_PARTS = 500
_SEEN_NS = 3600 * 1_000_000_000
_NAME = 255

# Facts that are no attributes.
SERVICE, OPERATION, SPAN_KIND, SPAN_STATUS, SCOPE_NAME, SCOPE_VERSION = (
    "\x01service", "\x01operation", "\x01kind", "\x01status", "\x01scope", "\x01version")


@lru_cache(maxsize=4096)  # models, agents, services: most facts have been seen a moment ago
def tag(key: str, text: str) -> bytes:
    """The hash of a fact: three bytes, found in `tags` at any offset (one in 40,000 parts holds it by chance)."""
    return crc32(f"{key}\0{text}".encode("utf-8", "replace")).to_bytes(4, "big")[1:]


def as_string(value: Any) -> str:
    """An attribute's value as Jaeger compares it: the collector's `AsString` (pdata v1.65.0). bool in lower case,
    numbers without trailing zeros, bytes as base64, lists and maps as compact JSON with sorted keys."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return _float(value)
    if kind is bytes:
        return base64.b64encode(value).decode()
    if value is None:
        return ""
    return orjson.dumps(value, default=as_string, option=orjson.OPT_SORT_KEYS).decode()


def _float(value: float) -> str:
    if not math.isfinite(value):
        return "json: unsupported value: " + {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    if value != 0 and (abs(value) < 1e-6 or abs(value) >= 1e21):
        mantissa, _, exponent = repr(value).partition("e")
        if exponent:
            return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def service_of(span: Span) -> str:
    """`service.name` of the span's resource, empty if it has none."""
    return as_string(span.resource.attributes.get("service.name", ""))


_tags: dict[tuple[str, str], bytes] = {}
"""Most facts are those of the span before (models, agents, operations)."""


def _add(found: set[bytes], attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        text = value if type(value) is str else as_string(value)
        if len(text) > MAX_TEXT:
            continue
        made = _tags.get((key, text))
        if made is None:
            made = tag(key, text)
            if len(text) <= 32:
                if len(_tags) >= 8192:
                    _tags.clear()
                _tags[key, text] = made
        found.add(made)


def tags_of(span: Span, shared: dict[int, tuple[Any, frozenset[bytes]]] | None = None) -> set[bytes]:
    """The hashes of everything a search can ask of a span. `shared` remembers those of resources and scopes."""
    found: set[bytes] = set()
    _add(found, span.attributes)
    for event in span.events:
        _add(found, event.attributes)
    for link in span.links:
        _add(found, link.attributes)
    found |= _tags_of_operation(span.name[:_NAME], span.kind, span.status_code)
    for part in (span.resource, span.scope):
        known = None if shared is None else shared.get(id(part))
        if known is None:
            known = (part, _tags_of_shared(part))
            if shared is not None:
                if len(shared) >= 256:
                    shared.clear()
                shared[id(part)] = known
        found |= known[1]
    return found


@lru_cache(maxsize=4096)
def _tags_of_operation(name: str, kind: int, status: int) -> frozenset[bytes]:
    found: set[bytes] = set()
    _add(found, {OPERATION: name, SPAN_KIND: str(kind), SPAN_STATUS: str(status)})
    return frozenset(found)


def _tags_of_shared(part: Resource | Scope) -> frozenset[bytes]:
    found: set[bytes] = set()
    _add(found, part.attributes)
    if isinstance(part, Scope):
        found |= {tag(SCOPE_NAME, part.name), tag(SCOPE_VERSION, part.version)}
    else:
        found.add(tag(SERVICE, as_string(part.attributes.get("service.name", ""))))
    return frozenset(found)


@dataclass(slots=True)
class Part:
    """A row of `otel_cmb_search`."""

    key_ns: int
    part: int
    trace_id: str
    first_ns: int
    last_ns: int
    shortest_ns: int = 2**63 - 1
    longest_ns: int = -1
    tags: bytes = b""
    known: set[bytes] = field(default_factory=set)

    def takes(self, span: Span) -> bool:
        return len(self.tags) < _PART_BYTES and abs(span.start_ns - self.key_ns) <= SPREAD_NS

    def add(self, span: Span, tags: AbstractSet[bytes]) -> None:
        self.first_ns = min(self.first_ns, span.start_ns)
        self.last_ns = max(self.last_ns, span.start_ns)
        if span.end_ns is not None:
            duration = max(span.end_ns - span.start_ns, 0)
            self.shortest_ns = min(self.shortest_ns, duration)
            self.longest_ns = max(self.longest_ns, duration)
        new = tags - self.known
        self.known |= new
        self.tags += b"".join(sorted(new))

    def row(self) -> tuple[Any, ...]:
        return (self.key_ns, self.part, self.trace_id, self.first_ns, self.last_ns, self.shortest_ns, self.longest_ns,
                self.tags)


_COLUMNS = ("key_ns", "part", "trace_id", "first_ns", "last_ns", "shortest_ns", "longest_ns", "tags")
_MAX_NS = 2**63 - 1 - SPREAD_NS


_writers: weakref.WeakSet[IndexWriter] = weakref.WeakSet()


def forget_everywhere() -> None:
    """The tables were emptied behind the back of this process's writers."""
    for writer in list(_writers):
        writer.forget()


class IndexWriter:
    """Keeps the two tables current. One per store; remembers the part each trace written lately is adding to.

    What it remembers needs no undoing when a transaction fails: a part is always written whole, so the next attempt
    writes it again, and a fact too many only makes a search look at a trace in vain.
    """

    def __init__(self, dialect: str, schema: str | None) -> None:
        _writers.add(self)
        self._parts: OrderedDict[str, Part] = OrderedDict()
        self._operations: dict[tuple[str, str, int], int] = {}
        self._shared: dict[int, tuple[Any, frozenset[bytes]]] = {}
        self._put_part = insert_sql(
            dialect, qualified("otel_cmb_search", schema), _COLUMNS, conflict=_COLUMNS[:2], update=_COLUMNS[3:])
        self._put_operation = insert_sql(
            dialect, qualified("otel_cmb_operations", schema), ("service", "name", "kind", "last_ns"),
            conflict=("service", "name", "kind"), update=("last_ns",))

    def write(self, connection: Connection, spans: Sequence[Span]) -> None:
        """Make stored spans findable, in the transaction that stores them."""
        parts: dict[tuple[int, int], Part] = {}
        operations: dict[tuple[str, str, int], int] = {}
        for span in spans:
            if not 0 <= span.start_ns <= _MAX_NS:
                continue  # no time anybody searches in; GetTraces finds it by its id
            part = self._parts.get(span.trace_id)
            if part is None or not part.takes(span):
                part = Part(span.start_ns, secrets.randbits(62), span.trace_id, span.start_ns, span.start_ns)
                self._parts[span.trace_id] = part
            part.add(span, tags_of(span, self._shared))
            parts[part.key_ns, part.part] = part
            key = (fit(service_of(span), _NAME) or "", fit(span.name, _NAME) or "", span.kind)
            if self._operations.get(key, 0) + _SEEN_NS <= span.start_ns:
                operations[key] = max(span.start_ns, operations.get(key, 0))
        if parts:
            connection.exec_driver_sql(self._put_part, [parts[key].row() for key in sorted(parts)])
        if operations:
            connection.exec_driver_sql(self._put_operation, [(*key, operations[key]) for key in sorted(operations)])
            if len(self._operations) > 10_000:
                self._operations.clear()
            self._operations.update(operations)
        for span in spans:
            if span.trace_id in self._parts:
                self._parts.move_to_end(span.trace_id)
        while len(self._parts) > _OPEN_PARTS:
            self._parts.popitem(last=False)

    def forget(self) -> None:
        """The last transaction failed, or the database may be another one: operations are written anew."""
        self._operations.clear()
