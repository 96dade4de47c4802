"""OTLP protobuf as bytes: the size of a message before it is parsed, and repair of one that does not parse.

protobuf's parser takes all or nothing, so one attribute with invalid UTF-8 (Go programs cut strings in the middle of a
character, and the Collector passes them on) would cost a whole batch. Repair keeps every span that can be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_cmb.otlp_clean import TOO_DEEP, MalformedError

__all__ = ["TooManyPartsError", "check_parts", "parse", "read_varint", "varint"]

MAX_REPAIR_FIELDS = 500_000
"""A repair walks bytes in Python, about 1 us per field: half a second at most."""
MAX_NESTING = 90
"""protobuf refuses messages nested deeper than 100; values below this depth are emptied."""
_UNITS = frozenset({"opentelemetry.proto.trace.v1.Span", "opentelemetry.proto.logs.v1.LogRecord"})
"""What is left out as a whole when it cannot be read."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


_CUT = AnyValue(string_value=TOO_DEEP).SerializeToString()


class TooManyPartsError(ValueError):
    """More messages inside one request than the limit allows."""


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The varint at `position` and where it ends. Raises :class:`MalformedError` where there is none."""
    shift = result = 0
    while shift < 70:
        try:
            byte = data[position]
        except IndexError:
            break
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise MalformedError(f"truncated protobuf: no number at byte {position}")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, where the tag, the payload and the field begin and end) of each field."""
    position, size = 0, len(data)
    while position < size:
        start = position
        tag, position = read_varint(data, position)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, position = read_varint(data, position)
            end = position + length
        elif wire_type == _VARINT:
            _, end = read_varint(data, position)
        elif wire_type == _FIXED64:
            end = position + 8
        elif wire_type == _FIXED32:
            end = position + 4
        else:
            raise MalformedError(f"no protobuf: wire type {wire_type} at byte {start}")
        if end > size or not tag >> 3:
            raise MalformedError(f"truncated protobuf: field {tag >> 3} ends {end - size} bytes after its message")
        yield tag >> 3, wire_type, start, position, end
        position = end


def check_parts(data: bytes, limit: int, message: type[Message] = ExportTraceServiceRequest) -> None:
    """Raise :class:`TooManyPartsError` when a request holds more than `limit` messages (spans, attributes, ...).

    Parsed messages take up to thirty times their bytes; this is what bounds memory for large hostile bodies. Takes
    about 1 us per message.
    """
    left = limit

    def walk(part: memoryview, descriptor: Any, depth: int) -> None:
        nonlocal left
        for number, wire_type, _, position, end in _fields(part):
            if wire_type != _BYTES:
                continue
            field: Any = descriptor.fields_by_number.get(number)
            if field is None or field.message_type is None:
                continue
            left -= 1
            if left < 0:
                raise TooManyPartsError(f"more than {limit} messages in one request")
            if depth < MAX_NESTING and end > position:
                walk(part[position:end], field.message_type, depth + 1)

    walk(memoryview(data), message.DESCRIPTOR, 0)


class _Repair:
    def __init__(self) -> None:
        self.rejected: list[str] = []
        self._left = MAX_REPAIR_FIELDS

    def message(self, data: memoryview, descriptor: Any, depth: int) -> bytes:
        """The message again, with text made UTF-8, nesting cut, and spans that cannot be read left out."""
        out = bytearray()
        for number, wire_type, start, position, end in _fields(data):
            self._left -= 1
            if self._left < 0:
                raise MalformedError("not readable as protobuf, and too large to be repaired")
            field: Any = descriptor.fields_by_number.get(number)
            if field is None or wire_type != _BYTES or field.type not in (
                FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE
            ):
                out += data[start:end]
                continue
            payload = data[position:end]
            if field.type == FieldDescriptor.TYPE_STRING:
                fixed = bytes(payload).decode("utf-8", "replace").encode()
            elif depth >= MAX_NESTING:
                fixed = _CUT if field.message_type.name == "AnyValue" else b""
            elif field.message_type.full_name in _UNITS:
                try:
                    fixed = self.message(payload, field.message_type, depth + 1)
                except MalformedError as error:
                    if self._left < 0:
                        raise
                    self.rejected.append(f"{field.message_type.name} that cannot be read: {error}")
                    continue
            else:
                fixed = self.message(payload, field.message_type, depth + 1)
            out += varint(number << 3 | _BYTES)
            out += varint(len(fixed))
            out += fixed
        return bytes(out)


def varint(value: int) -> bytes:
    """The number as protobuf writes lengths and tags."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


M = TypeVar("M", bound=Message)


def parse(message: type[M], data: bytes) -> tuple[M, list[str]]:
    """The request, and one line for each span (or log record) that could not be read at all.

    Raises :class:`MalformedError` when the bytes are no such request (also when they end too early).
    """
    request = message()
    try:
        request.ParseFromString(data)
    except DecodeError:
        repair = _Repair()
        fixed = repair.message(memoryview(data), message.DESCRIPTOR, 0)
        request = message()
        try:
            request.ParseFromString(fixed)
        except DecodeError as error:
            raise MalformedError(f"not readable as {message.DESCRIPTOR.name}: {error}") from error
        return request, repair.rejected
    return request, []
