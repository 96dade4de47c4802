"""OTLP protobuf requests to spans, the receiver's way: what thousands of spans repeat is decoded once.

The request is read with message types of the same numbers whose resources, scopes, attributes, events, links and statuses are
bytes. Resources, scopes and short attributes (model, agent, operation, counts) are then found by their bytes; only what is
new is parsed, by protobuf's own types. The result is that of :func:`otel_cmb.otlp_proto.decode_request`.
"""

from __future__ import annotations

import struct
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1 import trace_pb2

from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few
from otel_cmb.otlp_clean import Decoded, bad_ids
from otel_cmb.otlp_proto import bare_span, event_of, resource_of, scope_of, set_links, set_status, value_of

__all__ = ["Shallow", "TooManySpansError"]

SHORT = 96
"""Longest attribute that is remembered, in bytes with its key; longer ones rarely repeat."""
MAX_PAIRS = 8192
MAX_GROUPS = 256
MAX_GROUP_BYTES = 16_384
_REMEMBERED = frozenset((str, bool, int, bytes, type(None)))
_DOUBLE = struct.Struct("<d")
_FLOAT = b"\x09\x21"


class TooManySpansError(ValueError):
    """More spans in one request than the limit allows."""


def _request_type() -> Any:
    """The request with what is repeated as bytes. `repeated` also where OTLP has one: protobuf merges two occurrences of a
    message, which bytes cannot, so that two have to be seen."""
    kinds = descriptor_pb2.FieldDescriptorProto
    singles = {"bytes": kinds.TYPE_BYTES, "string": kinds.TYPE_STRING, "int32": kinds.TYPE_INT32, "uint32": kinds.TYPE_UINT32,
               "fixed64": kinds.TYPE_FIXED64, "fixed32": kinds.TYPE_FIXED32}
    file = descriptor_pb2.FileDescriptorProto(name="otel_cmb/shallow.proto", package="otel_cmb.shallow", syntax="proto3")
    for name, rows in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field, kind in rows:
            many, _, base = kind.rpartition(" ")
            added = message.field.add(
                name=field, number=number, label=kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL,
                type=singles.get(base, kinds.TYPE_MESSAGE))
            if base not in singles:
                added.type_name = f".otel_cmb.shallow.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("otel_cmb.shallow.Request"))


# Numbers and types of opentelemetry-proto v1.11.0; an enum is an int32 on the wire.
_FIELDS = {
    "Span": (
        (1, "trace_id", "bytes"), (2, "span_id", "bytes"), (3, "trace_state", "string"), (4, "parent_span_id", "bytes"),
        (5, "name", "string"), (6, "kind", "int32"), (7, "start_time_unix_nano", "fixed64"),
        (8, "end_time_unix_nano", "fixed64"), (9, "attributes", "repeated bytes"), (10, "dropped_attributes_count", "uint32"),
        (11, "events", "repeated bytes"), (12, "dropped_events_count", "uint32"), (13, "links", "repeated bytes"),
        (14, "dropped_links_count", "uint32"), (15, "status", "repeated bytes"), (16, "flags", "fixed32")),
    "ScopeSpans": ((1, "scope", "repeated bytes"), (2, "spans", "repeated Span"), (3, "schema_url", "string")),
    "ResourceSpans": (
        (1, "resource", "repeated bytes"), (2, "scope_spans", "repeated ScopeSpans"), (3, "schema_url", "string")),
    "Request": ((1, "resource_spans", "repeated ResourceSpans"),),
}


class _Odd(Exception):  # noqa: N818 - not an error, a way out
    """What only the whole types read as protobuf means it."""


class _Pairs(dict[bytes, tuple[str, Any]]):
    """Key and value of attributes, by their bytes. Short ones are remembered, except floats, which hardly repeat.

    The bytes of an attribute (protobuf's KeyValue), as nearly everybody writes them:

        0A n key 12 m value      the key takes n bytes, the value m; the value begins with a byte that says of which kind it is

    `0A n key 12` is remembered with the key, also where the values are too long or too many. Where it is known, values of two
    kinds are read here, in half the time that protobuf takes:

        09 21 xxxxxxxx           a float: m is 9, 21 says "eight bytes"
        mm mm 0A nn nn text      a text of 128 to 16380 bytes: its length and m take two bytes each, 0A says "a text"

    Every byte before the float or text is compared with this. Whatever looks otherwise is protobuf's to read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known_keys: dict[bytes, str] = {}
        """By `0A n key 12`."""

    def __missing__(self, data: bytes) -> tuple[str, Any]:
        at = data[1] + 3 if len(data) > 1 else 0  # where m stands
        key = self.known_keys.get(data[:at])
        if key is not None:
            size = len(data) - at
            if size == 10 and data.startswith(_FLOAT, at):
                return key, _DOUBLE.unpack_from(data, at + 2)[0]
            if 133 <= size <= 16_385 and data.startswith(_text_head(size), at):
                return key, str(data[at + 5 :], "utf-8")
        message = KeyValue.FromString(data)
        pair = message.key, message.value.string_value or value_of(message.value)
        if key is None:
            self._learn(data[:at], pair[0])
        if len(data) <= SHORT and type(pair[1]) in _REMEMBERED:
            if len(self) >= MAX_PAIRS:
                self.clear()
            self[data] = pair
        return pair

    def _learn(self, head: bytes, key: str) -> None:
        """Remember the key by what stands before its values, if that is all that says it: somebody may write two keys, of which
        protobuf takes the last, or a length in more bytes than it needs."""
        if 3 <= len(head) <= SHORT and head == bytes((0x0A, len(head) - 3)) + key.encode() + b"\x12":
            if len(self.known_keys) >= MAX_PAIRS:
                self.known_keys.clear()
            self.known_keys[head] = key


def _text_head(size: int) -> bytes:
    """`mm mm 0A nn nn` where it takes `size` bytes together with its text. A length of two bytes: its lower seven bits with the
    eighth set, then the others."""
    m, n = size - 2, size - 5
    return bytes((m & 0x7F | 0x80, m >> 7, 0x0A, n & 0x7F | 0x80, n >> 7))


class Shallow:
    """A decoder that remembers. Threads may share it: what is remembered never changes."""

    def __init__(self) -> None:
        self._request: Any = _request_type()
        self.pairs = _Pairs()
        self.resources: Few[tuple[bytes, str], Resource] = Few(MAX_GROUPS)
        self.scopes: Few[tuple[bytes, str], Scope] = Few(MAX_GROUPS)

    def decode(self, data: bytes, now_ns: int, max_spans: int) -> Decoded | None:
        """The spans of a request. `None`: it has to be read the general way, which also says what is wrong with it. Raises
        :class:`TooManySpansError`."""
        try:
            request = self._request.FromString(data)
            number = sum(len(scope_group.spans) for group in request.resource_spans for scope_group in group.scope_spans)
            if number > max_spans:
                raise TooManySpansError(f"{number} spans in one request, the limit is {max_spans}")
            return self._decoded(request, now_ns)
        except (DecodeError, UnicodeDecodeError, _Odd):
            return None

    def _decoded(self, request: Any, now_ns: int) -> Decoded:
        decoded = Decoded()
        for group in request.resource_spans:
            resource = self._shared(self.resources, group.resource, group.schema_url, ResourceMessage, resource_of)
            for scope_group in group.scope_spans:
                scope = self._shared(
                    self.scopes, scope_group.scope, scope_group.schema_url, InstrumentationScope, scope_of)
                for message in scope_group.spans:
                    span = self._span(message, resource, scope, now_ns)
                    if span is None:
                        decoded.rejected.append(bad_ids(message.trace_id.hex(), message.span_id.hex(), message.name))
                    else:
                        decoded.spans.append(span)
        return decoded

    def _shared(self, known: Few[tuple[bytes, str], Any], parts: Any, schema_url: str, kind: Any, make: Any) -> Any:
        """The resource or scope of a group."""
        if len(parts) > 1:
            raise _Odd
        key = parts[0] if parts else b"", schema_url
        found = known.get(key)
        if found is None:
            found = make(kind.FromString(key[0]), schema_url)
            size = len(key[0]) + len(schema_url)
            if size <= MAX_GROUP_BYTES:
                known.keep(key, found, size)
        return found

    def _span(self, message: Any, resource: Resource, scope: Scope, now_ns: int) -> Span | None:
        """As :func:`otel_cmb.otlp_proto.span_of`."""
        span = bare_span(message, resource, scope, now_ns)
        if span is None:
            return None
        span.attributes = dict(map(self.pairs.__getitem__, message.attributes))
        status = message.status
        if status:
            if len(status) > 1:
                raise _Odd
            set_status(span, trace_pb2.Status.FromString(status[0]))
        if message.events:
            span.events = [event_of(trace_pb2.Span.Event.FromString(data)) for data in message.events]
        if message.links:
            set_links(span, [trace_pb2.Span.Link.FromString(data) for data in message.links])
        return span
