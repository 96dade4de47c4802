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
from otel_cmb.otlp_clean import MAX_TIME_NS, Decoded, bad_ids, clean_times
from otel_cmb.otlp_proto import event_of, links_of, resource_of, scope_of, value_of

__all__ = ["Shallow", "TooManySpansError"]

_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
SHORT = 96
"""Longest attribute that is remembered, in bytes with its key; longer ones rarely repeat."""
MAX_PAIRS = 8192
MAX_GROUPS = 256
MAX_GROUP_BYTES = 16_384
_REMEMBERED = frozenset((str, bool, int, bytes, type(None)))
_DOUBLE = struct.Struct("<d")


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
    """Key and value of attributes, by their bytes. Short ones are remembered, except floats, which hardly repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[bytes, str] = {}
        """By the bytes from the tag of the key to the tag of the value."""

    def __missing__(self, data: bytes) -> tuple[str, Any]:
        at = data[1] + 3 if len(data) > 1 else 0
        key = self._keys.get(data[:at])
        if key is not None:
            # Two kinds are read here, in half the time, where they are written as everybody writes them: a float, and a text
            # whose length takes two bytes. Each has its bytes checked up to the value; anything else is protobuf's.
            rest = len(data) - at
            if rest == 10 and data.startswith(b"\x09\x21", at):
                return key, _DOUBLE.unpack_from(data, at + 2)[0]
            if 133 <= rest <= 16_385 and data[at : at + 5] == bytes(
                ((rest - 2) & 127 | 128, rest - 2 >> 7, 10, (rest - 5) & 127 | 128, rest - 5 >> 7)
            ):
                return key, str(data[at + 5 :], "utf-8")
        message = KeyValue.FromString(data)
        value = message.value.string_value or value_of(message.value)
        new, key = key is None, message.key  # the last one, where somebody writes two
        if new and 3 <= at <= SHORT and data[:at] == bytes((10, at - 3)) + key.encode() + b"\x12":
            if len(self._keys) >= MAX_PAIRS:
                self._keys.clear()
            self._keys[data[:at]] = key
        if len(data) <= SHORT and type(value) in _REMEMBERED:
            if len(self) >= MAX_PAIRS:
                self.clear()
            self[data] = key, value
        return key, value


class Shallow:
    """A decoder that remembers. Threads may share it: what is remembered never changes."""

    def __init__(self) -> None:
        self._request: Any = _request_type()
        self._pairs = _Pairs()
        self._resources: Few[tuple[bytes, str], Resource] = Few(MAX_GROUPS)
        self._scopes: Few[tuple[bytes, str], Scope] = Few(MAX_GROUPS)

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
            resource = self._shared(self._resources, group.resource, group.schema_url, ResourceMessage, resource_of)
            for scope_group in group.scope_spans:
                scope = self._shared(
                    self._scopes, scope_group.scope, scope_group.schema_url, InstrumentationScope, scope_of)
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
        trace_id, span_id, parent_id = message.trace_id, message.span_id, message.parent_span_id
        if len(trace_id) != 16 or len(span_id) != 8 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return None
        start_ns, end_ns = message.start_time_unix_nano, message.end_time_unix_nano
        if not 0 < start_ns <= end_ns <= MAX_TIME_NS:
            start_ns, end_ns = clean_times(start_ns, end_ns, now_ns)
        kind, status_code, status_message, status = message.kind, 0, "", message.status
        if status:
            if len(status) > 1:
                raise _Odd
            told = trace_pb2.Status.FromString(status[0])
            status_code, status_message = told.code, told.message
        dropped_links, links = message.dropped_links_count, message.links
        found_links = []
        if links:
            found_links = links_of([trace_pb2.Span.Link.FromString(data) for data in links])
            dropped_links += len(links) - len(found_links)
        return Span(
            trace_id.hex(), span_id.hex(), message.name, start_ns, end_ns,
            parent_id.hex() if len(parent_id) == 8 and parent_id not in (_NO_SPAN, span_id) else None,
            kind if 0 <= kind <= 5 else 0, status_code if 0 <= status_code <= 2 else 0, status_message,
            dict(map(self._pairs.__getitem__, message.attributes)),
            [event_of(trace_pb2.Span.Event.FromString(data)) for data in message.events], found_links, resource, scope,
            message.trace_state, message.flags, message.dropped_attributes_count, message.dropped_events_count, dropped_links)
