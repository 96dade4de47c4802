"""Any Python value made fit for JSON and for any database, and cut to size. Pure, deterministic, idempotent.

Two forms, because two places hold values:

* :func:`clean` for the JSON columns (`inputs`, `outputs`, `meta`): everything JSON cannot hold becomes text.
* :func:`clean_attributes` and :func:`clean_span` for spans: what OTLP's AnyValue holds (bytes, NaN, infinities) stays,
  so that a span goes back out as it came in.

Both replace NUL and lone surrogates by U+FFFD (PostgreSQL refuses the first in text and jsonb, UTF-8 has no second),
turn integers beyond 64 bits into text, break cycles, and cut what is too long, too deep or too wide. What was cut
says so: `…[cut: 1048576 bytes, sha256 0123456789abcdef]`, length and digest of the text before the cut. A long text
that is JSON is cut inside its longest strings, so that it can still be parsed.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import hashlib
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import orjson

from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few, weight

__all__ = ["UNCUT", "clean", "clean_attributes", "clean_span", "clean_text", "cut", "fit"]

MAX_VALUE_BYTES = 262_144
UNCUT = 1 << 62
"""`max_value_bytes` that cuts nothing: before redaction, because half a secret has no known form."""
MAX_DEPTH = 32
MAX_ITEMS = 10_000
MAX_KEY_BYTES = 1024
MAX_NODES = 200_000
"""Most elements of one value over all its levels: ends structures that share themselves."""

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_REPLACED = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOO_DEEP = "…[cut: nested too deep]"
_CYCLE = "…[cut: contains itself]"
_TOO_MANY = f"…[cut: more than {MAX_NODES} elements]"
_MIN_TEXT_BYTES = 96
"""No text is cut shorter than this: the marker itself needs about 60 bytes."""

_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, os.PathLike)


class _TooMany(Exception):  # noqa: N818 - not an error, a way out of the recursion
    pass


def _marker(data: bytes) -> str:
    return f"…[cut: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}]"


def cut(text: str, max_bytes: int) -> str:
    """`text` when its UTF-8 form fits in `max_bytes`; otherwise its beginning, cut between two characters, and the
    marker, both together within `max_bytes` (but never less than 96)."""
    if len(text) * 4 <= max_bytes or (len(text) <= max_bytes and text.isascii()):
        return text
    data = text.encode("utf-8", "replace")
    max_bytes = max(max_bytes, _MIN_TEXT_BYTES)
    if len(data) <= max_bytes:
        return text
    if text[:1] in {"{", "["}:
        shorter = _cut_json(data, max_bytes)
        if shorter is not None:
            return shorter
    marker = _marker(data)
    return data[: max_bytes - len(marker.encode())].decode("utf-8", "ignore") + marker


def _cut_json(data: bytes, max_bytes: int) -> str | None:
    """JSON text with its longest strings cut until it fits, or `None` when that is not enough."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    limit = max_bytes // 4
    while limit >= _MIN_TEXT_BYTES:
        shorter = orjson.dumps(_cut_strings(value, limit))
        if len(shorter) <= max_bytes:
            return shorter.decode()
        limit //= 4
    return None


def _cut_strings(value: Any, limit: int) -> Any:
    if type(value) is str:
        return cut(value, limit)
    if type(value) is list:
        return [_cut_strings(item, limit) for item in value]
    if type(value) is dict:
        return {key: _cut_strings(item, limit) for key, item in value.items()}
    return value


def clean_text(text: str, max_bytes: int = MAX_VALUE_BYTES) -> str:
    """One text: NUL and lone surrogates replaced, cut to size."""
    if text.isascii():
        if "\0" in text:
            text = text.replace("\0", "\ufffd")
    elif "\0" in text or _SURROGATE.search(text):
        text = _REPLACED.sub("\ufffd", text)
    return cut(text, max_bytes)


def fit(text: str | None, length: int) -> str | None:
    """A text for a column of `length` characters. What does not fit keeps its beginning and eight digits of its digest,
    so that two long names stay two names."""
    if text is None or (len(text) <= length and text.isascii() and "\0" not in text):
        return text
    text = clean_text(text)
    if len(text) <= length:
        return text
    if length < 16:
        return text[:length]
    return text[: length - 9] + "~" + hashlib.sha256(text.encode()).hexdigest()[:8]


class _Cleaner:
    """One walk over one value."""

    __slots__ = ("json", "max_bytes", "max_depth", "max_items", "nodes", "path")

    def __init__(self, max_bytes: int, max_depth: int, max_items: int, json: bool) -> None:
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.max_items = max_items
        self.json = json
        self.nodes = 0
        self.path: set[int] = set()

    def value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return clean_text(value, self.max_bytes)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else self.big(value)
        if kind is float:
            return value if not self.json or math.isfinite(value) else _float_text(value)
        if kind is bytes:
            return self.octets(value)
        if kind is dict:
            return self.mapping(value, depth)
        if kind is list or kind is tuple:
            return self.sequence(value, depth)
        return self.foreign(value, depth)

    def foreign(self, value: Any, depth: int) -> Any:
        """Containers of other types are copied before they are walked: their methods are foreign code and may raise."""
        try:
            if isinstance(value, Mapping):
                return self.mapping(dict(value), depth)
            if isinstance(value, (list, tuple)):
                return self.sequence(list(value), depth)
            if isinstance(value, AbstractSet):
                # A set has no order of its own that lasts; that of its members' texts does.
                return self.sequence(sorted(value, key=_guarded_repr), depth)
        except _TooMany:
            raise
        except Exception as error:  # noqa: BLE001
            return f"<{type(value).__name__}: {type(error).__name__} while reading it>"
        return self.odd(value, depth)

    def big(self, value: int) -> str:
        # int -> str refuses more than 4300 digits (CPython's integer string conversion limit); hex has no such limit.
        return clean_text(str(value) if value.bit_length() < 8192 else hex(value), self.max_bytes)

    def octets(self, value: bytes) -> Any:
        if not self.json:
            if len(value) <= self.max_bytes:
                return value
            marker = _marker(value).encode()
            return value[: max(self.max_bytes, _MIN_TEXT_BYTES) - len(marker)] + marker
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = base64.b64encode(value).decode()
        return clean_text(text, self.max_bytes)

    def enter(self, value: Any, depth: int) -> str | None:
        """Why this container cannot be walked, or `None`."""
        if depth >= self.max_depth:
            return _TOO_DEEP
        if id(value) in self.path:
            return _CYCLE
        self.nodes += len(value) + 1
        if self.nodes > MAX_NODES:
            raise _TooMany
        self.path.add(id(value))
        return None

    def mapping(self, value: dict[Any, Any], depth: int) -> Any:
        reason = self.enter(value, depth)
        if reason is not None:
            return reason
        result: dict[str, Any] = {}
        room = self.max_items if len(value) <= self.max_items else self.max_items - 1
        for key, item in value.items():
            if len(result) >= room:
                result[_more(len(value) - room)] = True
                break
            name = self.key(key)
            if name in result:
                name = _free_name(name, result)
            result[name] = self.value(item, depth + 1)
        self.path.discard(id(value))
        return result

    def sequence(self, value: Any, depth: int) -> Any:
        reason = self.enter(value, depth)
        if reason is not None:
            return reason
        if len(value) <= self.max_items:
            result = [self.value(item, depth + 1) for item in value]
        else:
            result = [self.value(item, depth + 1) for item in value[: self.max_items - 1]]
            result.append(_more(len(value) - self.max_items + 1))
        self.path.discard(id(value))
        return result

    def key(self, key: Any) -> str:
        if type(key) is not str:
            value = self.value(key, self.max_depth)
            if type(value) is str:
                key = value
            else:
                key = value.decode("utf-8", "replace") if type(value) is bytes else orjson_text(value)
        return clean_text(key, MAX_KEY_BYTES)

    def odd(self, value: Any, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return self.value(value.value, depth)
        if isinstance(value, str):
            return self.value(str.__str__(value), depth)
        if isinstance(value, int):
            return self.value(int.__int__(value), depth)
        if isinstance(value, float):
            return self.value(float.__float__(value), depth)
        if isinstance(value, (bytearray, memoryview)):
            return self.octets(bytes(value))
        if isinstance(value, bytes):
            return self.octets(bytes(value))
        if isinstance(value, _AS_TEXT):
            return clean_text(_guarded(str, value), self.max_bytes)
        return clean_text(_guarded_repr(value), self.max_bytes)


def orjson_text(value: Any) -> str:
    """A JSON scalar as the key it would be in an object (`true`, `null`, `1.5`)."""
    return _float_text(value) if type(value) is float and not math.isfinite(value) else orjson.dumps(value).decode()


def _float_text(value: float) -> str:
    """The names protobuf's JSON mapping has for them."""
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124


def _guarded(convert: Callable[[Any], str], value: Any) -> str:
    try:
        return str.__str__(convert(value))
    except Exception as error:  # noqa: BLE001 - the text of a foreign object is foreign code
        return f"<{type(value).__name__}: {type(error).__name__} in {convert.__name__}()>"


def _guarded_repr(value: Any) -> str:
    return _guarded(repr, value)


def _more(count: int) -> str:
    return f"…[cut: {count} more]"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    n = 2
    while f"{name}~{n}" in taken:
        n += 1
    return f"{name}~{n}"


def clean(
    value: Any, *, max_value_bytes: int = MAX_VALUE_BYTES, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS
) -> Any:
    """`value` for a JSON column: only str, bool, 64-bit int, finite float, None, list and dict with str keys remain.

    `max_value_bytes` bounds each text (UTF-8 bytes), `max_items` each list or dict, `max_depth` the nesting. bytes
    become their text (base64 when they are not UTF-8), NaN and infinities their names, other objects their `repr`.
    Never raises.
    """
    try:
        return _Cleaner(max_value_bytes, max_depth, max_items, json=True).value(value, 0)
    except _TooMany:
        return _TOO_MANY


def clean_attributes(
    attributes: Mapping[str, Any], *, max_value_bytes: int = MAX_VALUE_BYTES,
    max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS,
) -> dict[str, Any]:
    """Attributes of a span, event, link, resource or scope: as :func:`clean`, but bytes and non-finite floats stay.

    The same object comes back when nothing has to change; that takes about 2 µs for a dozen attributes.
    """
    if type(attributes) is dict and _is_clean(attributes, max_value_bytes):
        return attributes
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        cleaner = _Cleaner(max_value_bytes, max_depth, max_items, json=False)
        name = cleaner.key(key)
        if name in result:
            name = _free_name(name, result)
        try:
            result[name] = cleaner.value(value, 0)
        except _TooMany:
            result[name] = _TOO_MANY
    return result


_EXACT = frozenset((str,))


def _is_clean(attributes: dict[str, Any], max_value_bytes: int) -> bool:
    try:
        keys = "".join(attributes)
    except TypeError:
        return False
    if not _EXACT.issuperset(map(type, attributes)):  # a member of an Enum has the text of a key and another hash
        return False
    if not keys.isascii() or "\0" in keys or (len(keys) > MAX_KEY_BYTES and max(map(len, attributes)) > MAX_KEY_BYTES):
        return False
    for value in attributes.values():
        kind = type(value)
        if kind is str:
            if not value.isascii() or "\0" in value or len(value) > max_value_bytes:
                return False
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                return False
        elif kind is not float and kind is not bool and value is not None:
            return False
    return True


def clean_span(span: Span, *, max_value_bytes: int = MAX_VALUE_BYTES) -> Span:
    """All of a span, in place (resource and scope are replaced, never changed: spans share them). Returns the span."""
    span.name = clean_text(span.name, max_value_bytes)
    if span.status_message:
        span.status_message = clean_text(span.status_message, max_value_bytes)
    if span.trace_state:
        span.trace_state = clean_text(span.trace_state, max_value_bytes)
    span.attributes = clean_attributes(span.attributes, max_value_bytes=max_value_bytes)
    for event in span.events:
        event.name = clean_text(event.name, max_value_bytes)
        event.attributes = clean_attributes(event.attributes, max_value_bytes=max_value_bytes)
    for link in span.links:
        if link.trace_state:
            link.trace_state = clean_text(link.trace_state, max_value_bytes)
        link.attributes = clean_attributes(link.attributes, max_value_bytes=max_value_bytes)
    span.resource = _clean_resource(span.resource, max_value_bytes)
    span.scope = _clean_scope(span.scope, max_value_bytes)
    return span


_shared: Few[tuple[int, int], tuple[Any, Any]] = Few()
"""Cleaned resources and scopes by identity and limit: a process has a handful, every span has both. The object is kept
beside its result so that its id cannot be reused by another."""


def _remember(original: Any, max_bytes: int, result: Any) -> Any:
    _shared.keep((id(original), max_bytes), (original, result), weight(original))
    if result is not original:
        _shared.keep((id(result), max_bytes), (result, result), weight(result))
    return result


def _clean_resource(resource: Resource, max_bytes: int) -> Resource:
    known = _shared.get((id(resource), max_bytes))
    if known is not None:
        return known[1]  # type: ignore[no-any-return]
    attributes = clean_attributes(resource.attributes, max_value_bytes=max_bytes)
    schema_url = clean_text(resource.schema_url, max_bytes)
    same = attributes is resource.attributes and schema_url == resource.schema_url
    result = resource if same else Resource(attributes, schema_url, resource.dropped_attributes)
    return _remember(resource, max_bytes, result)  # type: ignore[no-any-return]


def _clean_scope(scope: Scope, max_bytes: int) -> Scope:
    known = _shared.get((id(scope), max_bytes))
    if known is not None:
        return known[1]  # type: ignore[no-any-return]
    attributes = clean_attributes(scope.attributes, max_value_bytes=max_bytes)
    texts = (scope.name, scope.version, scope.schema_url)
    name, version, schema_url = (clean_text(text, max_bytes) for text in texts)
    same = attributes is scope.attributes and (name, version, schema_url) == texts
    result = scope if same else Scope(name, version, attributes, schema_url, scope.dropped_attributes)
    return _remember(scope, max_bytes, result)  # type: ignore[no-any-return]
