"""OTLP in files, streamed: what is in memory is one line, one message, or one JSON document.

| form | written by | streams |
|---|---|---|
| JSON lines, one request per line | the Collector's file exporter, SDKs' `otlp-json-file` | by line |
| one JSON document, or a list of them | hands, `otel-cmb export`, captures | no: it must fit into memory |
| protobuf, one request | `ExportTraceServiceRequest` (or `TracesData`) as it is | by resource |
| protobuf, before each message its length as a varint | length-delimited streams | by message |
| protobuf, before each message its length in 4 bytes | the Collector's file exporter, `format: proto` | by message |

Any of them may be gzipped. The form is found by the first bytes.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_cmb.event import Span
from otel_cmb.otlp_clean import MalformedError, SpanContent
from otel_cmb.otlp_json import decode_json, items_of, read_json
from otel_cmb.otlp_logs import log_records_from_json
from otel_cmb.otlp_proto import decode_request
from otel_cmb.otlp_wire import parse, varint

__all__ = ["Chunk", "read_chunks"]

MAX_MESSAGE = 1 << 30
"""Longest line or message that is read; a longer one is a bad line, or no OTLP at all."""
LOOKAHEAD = 50
KNOWN = ("resourceSpans", "resourceLogs", "resourceMetrics", "resourceProfiles")


@dataclass(slots=True)
class Chunk:
    """What one line or message held. `problems` say what could not be read, and where."""

    spans: list[Span] = field(default_factory=list)
    content: list[SpanContent] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_chunks(file: IO[bytes]) -> Iterator[Chunk]:
    """The chunks of a file opened for reading bytes, in any of the forms above.

    Never raises for what the file holds: what cannot be read is a chunk's problem, and reading goes on where the form
    allows it. Raises `OSError` when the file itself cannot be read.
    """
    stream = io.BufferedReader(file, 1 << 20) if isinstance(file, io.RawIOBase) else file
    start = _peek(stream)
    if start[:2] == b"\x1f\x8b":
        stream = io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 20)
        try:
            start = _peek(stream)
        except (EOFError, OSError, zlib.error) as error:
            yield Chunk(problems=[f"the gzip data cannot be read: {error}"])
            return
    try:
        yield from _chunks(stream, start)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Chunk(problems=[f"the gzip data ends too early or is damaged: {error}"])


def _peek(stream: Any) -> bytes:
    data: bytes = stream.peek(64)
    return data


def _chunks(stream: Any, start: bytes) -> Iterator[Chunk]:
    if not start:
        return
    text = start[3:] if start.startswith(b"\xef\xbb\xbf") else start
    if text.lstrip()[:1] in (b"{", b"[", b""):
        yield from _json_chunks(stream)
        return
    yield from _proto_chunks(stream, start)


# JSON


def _json_chunks(stream: Any) -> Iterator[Chunk]:
    lines: list[bytes] = []
    while len(lines) < LOOKAHEAD:
        line = stream.readline(MAX_MESSAGE)
        if not line:
            break
        if not lines:
            line = line.removeprefix(b"\xef\xbb\xbf")
        lines.append(line)
        if _is_request(line):
            yield from _json_lines(stream, lines)
            return
    rest = stream.read(MAX_MESSAGE)
    if len(rest) == MAX_MESSAGE:
        yield Chunk(problems=[f"one JSON document of more than {MAX_MESSAGE} bytes; write JSON lines instead"])
        return
    try:
        document = read_json(b"".join([*lines, rest]))
    except MalformedError as error:
        yield Chunk(problems=[f"line 1: {error}; expected OTLP/JSON, one request per line or one document"])
        return
    for number, item in enumerate(document if isinstance(document, list) else [document], 1):
        yield _json_chunk(item, f"document {number}" if isinstance(document, list) else "document")


def _is_request(line: bytes) -> bool:
    """Whether the line alone is a request: then the file is JSON lines, whatever stood before it."""
    if not line.strip().startswith(b"{"):
        return False
    try:
        found = read_json(line)
    except MalformedError:
        return False
    return isinstance(found, dict) and any(key in found for key in KNOWN)


def _json_lines(stream: Any, lines: list[bytes]) -> Iterator[Chunk]:
    number = 0
    while True:
        line = lines.pop(0) if lines else stream.readline(MAX_MESSAGE)
        if not line:
            return
        number += 1
        if not line.strip():
            continue
        if len(line) == MAX_MESSAGE and not line.endswith(b"\n"):
            yield Chunk(problems=[f"line {number}: longer than {MAX_MESSAGE} bytes"])
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_MESSAGE)
            continue
        try:
            found = read_json(line)
        except MalformedError as error:
            yield Chunk(problems=[f"line {number}: {error}"])
            continue
        yield _json_chunk(found, f"line {number}")


def _json_chunk(found: Any, where: str) -> Chunk:
    if not isinstance(found, dict) or not any(key in found for key in KNOWN):
        keys = ", ".join(list(found)[:5]) if isinstance(found, dict) else type(found).__name__
        return Chunk(problems=[f"{where}: found {keys or 'an empty object'}, expected an object with resourceSpans"])
    try:
        decoded = decode_json(found)
        content = log_records_from_json(found) if items_of(found, "resourceLogs") else []
    except MalformedError as error:
        return Chunk(problems=[f"{where}: {error}"])
    return Chunk(decoded.spans, content, [f"{where}: {reason}" for reason in decoded.rejected])


# protobuf


def _proto_chunks(stream: Any, start: bytes) -> Iterator[Chunk]:
    if start[0] == 0x0A:  # field 1, length-delimited: resource_spans of a request
        for number, (problem, payload) in enumerate(_messages(stream, "plain"), 1):
            yield Chunk(problems=[problem]) if problem else _proto_chunk(_field(payload), f"resource {number}")
        return
    framing = _framing(start)
    if not framing:
        yield Chunk(problems=[f"neither JSON nor OTLP protobuf: the file begins with {start[:8].hex(' ')}"])
        return
    for number, (problem, payload) in enumerate(_messages(stream, framing), 1):
        yield Chunk(problems=[problem]) if problem else _proto_chunk(payload, f"message {number}")


def _framing(start: bytes) -> str:
    """How messages are told apart, by where the first of them begins with the tag of `resource_spans`."""
    if len(start) > 4 and start[4] == 0x0A and int.from_bytes(start[:4], "big") <= MAX_MESSAGE:
        return "big-endian"
    for size in range(1, 6):
        if len(start) > size and start[size - 1] < 0x80:
            return "varint" if start[size] == 0x0A else ""
    return ""


def _field(payload: bytes) -> bytes:
    return b"\x0a" + varint(len(payload)) + payload


def _read_varint(stream: Any) -> int | None:
    """The number at the stream's position; `None` at its end."""
    shift, result = 0, 0
    while shift < 70:
        byte: bytes = stream.read(1)
        if not byte:
            if shift:
                raise MalformedError("the file ends in the middle of a length")
            return None
        result |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return result
        shift += 7
    raise MalformedError("found a length of more than ten bytes")


def _length(stream: Any, framing: str) -> int | None:
    if framing == "big-endian":
        head = stream.read(4)
        if head and len(head) < 4:
            raise MalformedError("the file ends in the middle of a length")
        return int.from_bytes(head, "big") if head else None
    if framing == "plain":
        tag = _read_varint(stream)
        if tag is None:
            return None
        if tag != 0x0A:
            raise MalformedError(f"found protobuf tag {tag}, expected resource_spans")
    length: int | None = _read_varint(stream)
    if length is None and framing == "plain":
        raise MalformedError("the file ends after a tag")
    return length


def _messages(stream: Any, framing: str) -> Iterator[tuple[str, bytes]]:
    """(problem, payload) of each message. After a problem nothing more can be found: the framing is lost."""
    read = 0
    while True:
        try:
            length = _length(stream, framing)
            if length is None:
                return
            if length > MAX_MESSAGE:
                raise MalformedError(f"found a message of {length} bytes, expected at most {MAX_MESSAGE}")
            payload = stream.read(length)
            if len(payload) < length:
                raise MalformedError(f"the file ends {length - len(payload)} bytes before its last message does")
        except MalformedError as error:
            yield f"after {read} messages: {error}", b""
            return
        read += 1
        yield "", payload


def _proto_chunk(payload: bytes, where: str) -> Chunk:
    try:
        request, unreadable = parse(ExportTraceServiceRequest, payload)
    except MalformedError as error:
        return Chunk(problems=[f"{where}: {error}"])
    decoded = decode_request(request)
    return Chunk(decoded.spans, [], [f"{where}: {reason}" for reason in (*decoded.rejected, *unreadable)])
