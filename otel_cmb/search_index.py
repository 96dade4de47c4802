"""What makes traces findable by service, operation, attribute, duration and time, in an owned database.

`otel_cmb_search` has a row, a *part*, per about 400 different facts of one trace: the hashes of its spans' facts (three
bytes each, in `tags`), when its spans start, how long the shortest and the longest took. A search reads the parts of
its time range, newest first, and loads the traces whose part holds every fact asked for; whether one span really has
them all is then seen on the span. All facts of a span are in one part, and a part's spans start within
:data:`SPREAD_NS` of its key, so a time range of spans is a range of keys. That is about 25 bytes a span; an index of
attributes would be ten times that. `otel_cmb_operations` has every service, operation and kind once.

Pure but for :meth:`IndexWriter.write`, which the store calls inside its transaction.
"""

from __future__ import annotations

import base64
import math
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple
from zlib import crc32

import orjson
from sqlalchemy import Connection

from otel_cmb.bulk import ManyRows
from otel_cmb.dialects import insert_sql, qualified
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few, weight
from otel_cmb.sanitize import fit

__all__ = [
    "MAX_TEXT", "OPERATION", "SCOPE_NAME", "SCOPE_VERSION", "SERVICE", "SPAN_KIND", "SPAN_STATUS", "SPREAD_NS",
    "Facts", "Found", "IndexWriter", "Part", "as_string", "forget_everywhere", "service_of", "tag",
]

SPREAD_NS = 15 * 60 * 1_000_000_000
MAX_TEXT = 256
"""Longer values (prompts, answers) are no facts to search for; a search for one looks at the spans themselves."""
_PART_BYTES = 1200
_OPEN_PARTS = 500
_SEEN_NS = 3600 * 1_000_000_000
_NAME = 255
_LONGEST_NS = 2**63 - 1
_REMEMBERED, _SHORT = 8192, 32
"""Most hashes that are remembered, and the longest texts they are remembered of: about a megabyte."""

# Facts that are no attributes.
SERVICE, OPERATION, SPAN_KIND, SPAN_STATUS, SCOPE_NAME, SCOPE_VERSION = (
    "\x01service", "\x01operation", "\x01kind", "\x01status", "\x01scope", "\x01version")


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
    text = repr(value)
    if "e" not in text and "n" not in text:  # no exponent, not `nan` or `inf`
        return text.rstrip("0").rstrip(".")
    if not math.isfinite(value):
        return "json: unsupported value: " + {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[text]
    if abs(value) < 1e-6 or abs(value) >= 1e21:
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"
    text = format(Decimal(text), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def service_of(span: Span) -> str:
    """`service.name` of the span's resource, empty if it has none."""
    return as_string(span.resource.attributes.get("service.name", ""))


class Facts:
    """The hashes of what a search can ask of a span. Remembers those it made lately: models, agents, operations are those of
    the span before. For one thread."""

    def __init__(self) -> None:
        self._of_key: dict[str, dict[str, bytes]] = {}
        self._remembered = 0
        self._of_name: dict[tuple[str, int, int], tuple[bytes, ...]] = {}
        self._of_shared: Few[int, tuple[Resource | Scope, tuple[bytes, ...]]] = Few()

    def add(self, span: Span, part: Part) -> list[bytes]:
        """The span's hashes that the part does not know yet; it does afterwards."""
        new: list[bytes] = []
        known = part.known
        self._add(span.attributes, known, new)
        for event in span.events:
            self._add(event.attributes, known, new)
        for link in span.links:
            self._add(link.attributes, known, new)
        named = self._named(span.name[:_NAME], span.kind, span.status_code)
        if not known.issuperset(named):
            _put(named, known, new)
        if span.resource is not part.resource or span.scope is not part.scope:
            part.resource, part.scope = span.resource, span.scope
            _put(self._shared(span.resource), known, new)
            _put(self._shared(span.scope), known, new)
        return new

    def _add(self, attributes: dict[str, Any], known: set[bytes], new: list[bytes]) -> None:
        of_key = self._of_key
        for key, value in attributes.items():
            kind = type(value)
            text = value if kind is str else str(value) if kind is int else as_string(value)
            if len(text) > MAX_TEXT:
                continue
            texts = of_key.get(key)
            made = None if texts is None else texts.get(text)
            if made is None:
                made = tag(key, text)
                if kind is not float and len(text) <= _SHORT:  # few measurements come twice
                    self._remember(key, text, made)
            if made not in known:
                known.add(made)
                new.append(made)

    def _remember(self, key: str, text: str, made: bytes) -> None:
        if self._remembered >= _REMEMBERED:
            self._of_key.clear()
            self._remembered = 0
        self._of_key.setdefault(key, {})[text] = made
        self._remembered += 1

    def _named(self, name: str, kind: int, status: int) -> tuple[bytes, ...]:
        found = self._of_name.get((name, kind, status))
        if found is None:
            if len(self._of_name) >= _REMEMBERED:
                self._of_name.clear()
            found = self._of_name[name, kind, status] = (
                tag(OPERATION, name), tag(SPAN_KIND, str(kind)), tag(SPAN_STATUS, str(status)))
        return found

    def _shared(self, source: Resource | Scope) -> tuple[bytes, ...]:
        found = self._of_shared.get(id(source))
        if found is None:
            found = self._of_shared.keep(id(source), (source, self._made_shared(source)), weight(source))
        return found[1]

    def _made_shared(self, source: Resource | Scope) -> tuple[bytes, ...]:
        found: list[bytes] = []
        self._add(source.attributes, set(), found)
        if isinstance(source, Scope):
            return (*found, tag(SCOPE_NAME, source.name), tag(SCOPE_VERSION, source.version))
        return (*found, tag(SERVICE, as_string(source.attributes.get("service.name", ""))))


def _put(hashes: Iterable[bytes], known: set[bytes], new: list[bytes]) -> None:
    for made in hashes:
        if made not in known:
            known.add(made)
            new.append(made)


@dataclass(slots=True)
class Part:
    """A row of `otel_cmb_search`."""

    key_ns: int
    part: int
    trace_id: str
    first_ns: int
    last_ns: int
    shortest_ns: int = _LONGEST_NS
    longest_ns: int = -1
    tags: bytes = b""
    known: set[bytes] = field(default_factory=set)
    resource: Resource | None = None
    """That of the span before: its hashes are known."""
    scope: Scope | None = None

    def takes(self, span: Span) -> bool:
        return len(self.tags) < _PART_BYTES and -SPREAD_NS <= span.start_ns - self.key_ns <= SPREAD_NS

    def add(self, span: Span, facts: Facts) -> None:
        start, end = span.start_ns, span.end_ns
        if start < self.first_ns:
            self.first_ns = start
        elif start > self.last_ns:
            self.last_ns = start
        if end is not None:
            duration = end - start if end > start else 0
            if duration < self.shortest_ns:  # noqa: PLR1730 - four calls of `min` and `max` are half of all this
                self.shortest_ns = duration
            if duration > self.longest_ns:  # noqa: PLR1730
                self.longest_ns = duration
        new = facts.add(span, self)
        if new:
            self.tags += b"".join(new)

    def row(self) -> tuple[Any, ...]:
        return (self.key_ns, self.part, self.trace_id, self.first_ns, self.last_ns, min(self.shortest_ns, _LONGEST_NS),
                min(self.longest_ns, _LONGEST_NS), self.tags)


class Found(NamedTuple):
    """What spans add to the two tables."""

    parts: list[tuple[Any, ...]]
    operations: dict[tuple[str, str, int], int]


_COLUMNS = {
    "key_ns": "bigint", "part": "bigint", "trace_id": "text", "first_ns": "bigint", "last_ns": "bigint",
    "shortest_ns": "bigint", "longest_ns": "bigint", "tags": "bytea",
}
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
        self._facts = Facts()
        self._put_parts = ManyRows.insert(
            dialect, qualified("otel_cmb_search", schema), _COLUMNS, ("key_ns", "part"), tuple(_COLUMNS)[3:])
        self._put_operation = insert_sql(
            dialect, qualified("otel_cmb_operations", schema), ("service", "name", "kind", "last_ns"),
            conflict=("service", "name", "kind"), update=("last_ns",))

    def gather(self, spans: Sequence[Span]) -> Found:
        """What makes these spans findable, for :meth:`write`. Asks the database nothing."""
        parts: dict[tuple[int, int], Part] = {}
        operations: dict[tuple[str, str, int], int] = {}
        trace_id, part, written = "", None, None
        resource, service = None, ""
        for span in spans:  # those of a trace one after the other
            start = span.start_ns
            if not 0 <= start <= _MAX_NS:
                continue  # no time anybody searches in; GetTraces finds it by its id
            if span.trace_id != trace_id:
                trace_id = span.trace_id
                part = self._parts.get(trace_id)
                if part is not None:
                    self._parts.move_to_end(trace_id)
            if part is None or not part.takes(span):
                part = self._parts[trace_id] = Part(start, secrets.randbits(62), trace_id, start, start)
            part.add(span, self._facts)
            if part is not written:
                written = parts[part.key_ns, part.part] = part
            if span.resource is not resource:
                resource, service = span.resource, fit(service_of(span), _NAME) or ""
            key = (service, fit(span.name, _NAME) or "", span.kind)
            if self._operations.get(key, 0) + _SEEN_NS <= start:
                operations[key] = max(start, operations.get(key, 0))
        for part in parts.values():
            part.resource = part.scope = None  # a part is remembered for long, and a resource may be large
            if len(part.tags) >= _PART_BYTES and self._parts.get(part.trace_id) is part:
                del self._parts[part.trace_id]  # it takes nothing more, and may know a million hashes
        while len(self._parts) > _OPEN_PARTS:
            self._parts.popitem(last=False)
        return Found([parts[key].row() for key in sorted(parts)], operations)

    def write(self, connection: Connection, found: Found) -> None:
        """Make the spans findable, in the transaction that stores them."""
        self._put_parts.write(connection, found.parts)
        operations = found.operations
        if operations:
            connection.exec_driver_sql(self._put_operation, [(*key, operations[key]) for key in sorted(operations)])
            if len(self._operations) > 10_000:
                self._operations.clear()
            self._operations.update(operations)

    def forget(self) -> None:
        """The last transaction failed, or the database may be another one: operations are written anew."""
        self._operations.clear()
