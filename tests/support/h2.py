"""HTTP/2 by hand (RFC 9113), as far as a client needs it that sends less than it said: flow control is kept."""

from __future__ import annotations

import socket
import struct
import time

__all__ = ["Peer"]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
EXPORT = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Peer:
    """One connection to a gRPC server."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self._got = b""
        self._first = 65_535
        self._window = 65_535
        self._windows: dict[int, int] = {}
        self.ended: set[int] = set()
        """Streams that the server ended."""
        self.closed = False

    def call(self, stream: int = 1, path: bytes = EXPORT) -> None:
        """Begin a call."""
        self._windows[stream] = self._first
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", path),
                (b"content-type", b"application/grpc"), (b"te", b"trailers")]
        self._send(frame(HEADERS, 4, stream, b"".join(_header(*pair) for pair in head)))

    def begin_message(self, size: int, stream: int = 1) -> None:
        """Say that a message of so many bytes follows."""
        self.data(b"\0" + struct.pack(">I", size), stream)

    def data(self, payload: bytes, stream: int = 1, seconds: float = 30) -> int:
        """Send what the server lets us send within this time; how many bytes."""
        sent, deadline = 0, time.monotonic() + seconds
        while sent < len(payload) and not self.closed and stream not in self.ended and time.monotonic() < deadline:
            if not sent % 262_144:
                self.look(0)
            size = min(len(payload) - sent, 16_384, self._window, self._windows[stream])
            if size <= 0:
                self.look(0.1)
                continue
            self._send(frame(DATA, 0, stream, payload[sent : sent + size]))
            self._window -= size
            self._windows[stream] -= size
            sent += size
        return sent

    def look(self, seconds: float) -> None:
        """Take what the server sends within this time."""
        try:
            self._socket.settimeout(seconds or 0.000001)
            data = self._socket.recv(65_536)
            self.closed = self.closed or not data
            self._got += data
        except TimeoutError:
            return
        except OSError:
            self.closed = True
            return
        finally:
            self._socket.settimeout(30)
        while len(self._got) >= 9 and len(self._got) >= 9 + (size := int.from_bytes(self._got[:3], "big")):
            kind, flags, stream = self._got[3], self._got[4], int.from_bytes(self._got[5:9], "big")
            payload, self._got = self._got[9 : 9 + size], self._got[9 + size :]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & 1:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == 4:
                    self._windows = {one: window + value - self._first for one, window in self._windows.items()}
                    self._first = value
            self._send(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1:
            self._send(frame(PING, 1, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream:
                self._windows[stream] = self._windows.get(stream, self._first) + more
            else:
                self._window += more
        elif kind == RST_STREAM or (kind == HEADERS and flags & 1):
            self.ended.add(stream)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            self.closed = True

    def close(self) -> None:
        self._socket.close()
