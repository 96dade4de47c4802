"""How many connections an HTTP door has open, counted where they are accepted: also those that have not finished, or
never begin, their TLS handshake, of which neither uvicorn nor its protocols know."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from typing import Any

from otel_cmb.receiver import memory

__all__ = ["HEADER_SECONDS", "Crowd", "Listener"]

HEADER_SECONDS = 10
"""How long a connection may take to finish its handshake and to send the head of a request."""
UNREAD_SECONDS = 30
"""How long a peer may take none of its answer, or not close a connection whose last answer it has (TLS waits for that)."""
UNREAD_WHEN_FULL = 1
"""The same when others find no room."""
REFUSED_AT_ONCE = 100
SWEEP_EVERY = 256
"""After so many connections that ended before their first request, Python's collector looks at everything. asyncio leaves
a cycle with a buffer of 256 KiB of each handshake that failed, which the collector would find after gigabytes."""
SWEEP_SECONDS = 1
"""By then their transports are gone."""
SWEEP_SHARE = 0.2
"""Most of the event loop's time for that: with much in memory a look takes a tenth of a second and more."""


class Crowd:
    """The open connections of a door, by file descriptor, and what each is at. One event loop's.

    When there are too many, the one goes that has waited longest with nothing to do: one that never sent a request before
    one that rests between two before one whose peer does not take its answer. Where all have a request under way, `press` is
    to end one that arrives slowly. So silent connections keep nobody out.
    """

    def __init__(self, most: int, press: Callable[[], bool], *, tls: bool) -> None:
        self._most = most
        self._press = press
        self._open: dict[int, Connection] = {}
        self._silent: OrderedDict[int, float] = OrderedDict()
        """No head of a request has come yet, and since when."""
        self._resting: OrderedDict[int, None] = OrderedDict()
        self._late: OrderedDict[int, float] = OrderedDict()
        """Heads that follow others on a connection, and since when."""
        self._unread: OrderedDict[int, float] = OrderedDict()
        """It is the peer's turn, to take its answer or to close, and since when."""
        self._looking = False
        self._tls = tls
        self._in_vain = 0
        self._sweep_from = 0.0
        """The next look of the collector comes no earlier than this; infinite while one is due."""

    def __len__(self) -> int:
        return len(self._open)

    def let_in(self, connection: Connection) -> bool:
        """A new connection; False when there is no room."""
        while len(self._open) >= self._most:
            number = next(chain(self._silent, self._resting, self._waited(self._unread, UNREAD_WHEN_FULL)), None)
            if number is not None:
                self._end(number)
            elif self._press():  # its connection ends after the answer
                break
            else:
                return False
        number = connection.fileno()
        self._open[number] = connection
        self._silent[number] = self._now()
        return True

    def head_begins(self, number: int) -> None:
        """The first bytes of a request came."""
        if number in self._open and number not in self._silent and number not in self._late:
            self._late[number] = self._now()

    def head_came(self, number: int) -> None:
        """A request is under way."""
        for waiting in (self._silent, self._late, self._resting):
            waiting.pop(number, None)

    def answered(self, number: int) -> None:
        """A request is over."""
        if number in self._open:
            self._resting[number] = None

    def unread(self, number: int) -> None:
        """The peer does not take its answer as fast as it comes, or has all of the last one."""
        if number in self._open and number not in self._unread:
            self._unread[number] = self._now()

    def read(self, number: int) -> None:
        """The peer has taken what there was of its answer."""
        self._unread.pop(number, None)

    def left(self, number: int) -> None:
        """The connection is closed."""
        self._open.pop(number, None)
        if self._tls and number in self._silent:
            self._in_vain += 1
            loop = asyncio.get_running_loop()
            if self._in_vain >= SWEEP_EVERY and loop.time() >= self._sweep_from:
                self._in_vain, self._sweep_from = 0, math.inf
                loop.call_later(SWEEP_SECONDS, self._sweep)
        self.head_came(number)
        self.read(number)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        gc.collect()
        memory.trim()
        self._sweep_from = loop.time() + (loop.time() - begun) * (1 / SWEEP_SHARE - 1)

    def _now(self) -> float:
        loop = asyncio.get_running_loop()
        if not self._looking:
            self._looking = True
            loop.call_later(HEADER_SECONDS / 2, self._look)
        return loop.time()

    def _look(self) -> None:
        """Heads, handshakes and answers that take too long end with their connection."""
        self._looking = False
        limits = ((self._silent, HEADER_SECONDS), (self._late, HEADER_SECONDS), (self._unread, UNREAD_SECONDS))
        for waiting, seconds in limits:
            for number in list(self._waited(waiting, seconds)):
                self._end(number)
        if any(waiting for waiting, _ in limits):
            self._now()

    @staticmethod
    def _waited(waiting: OrderedDict[int, float], seconds: float) -> Iterator[int]:
        """Those that have waited longer than that, the longest first."""
        before = asyncio.get_running_loop().time() - seconds
        return (number for number, _ in takewhile(lambda item: item[1] < before, waiting.items()))

    def _end(self, number: int) -> None:
        """Its transport sees the end and closes it. From here on it does not count."""
        connection = self._open[number]
        self.left(number)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class Connection(socket.socket):
    """An accepted connection that tells its crowd when it is closed."""

    crowd: Crowd | None = None

    def close(self) -> None:
        number = self.fileno()
        super().close()
        if self.crowd is not None and number >= 0 and self.crowd._open.get(number) is self:
            self.crowd.left(number)


class Listener(socket.socket):
    """A listening socket whose connections belong to a crowd."""

    crowd: Crowd | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection there is room for. Raises `BlockingIOError` when there is none for now."""
        for _ in range(REFUSED_AT_ONCE):
            accepted, address = super().accept()
            connection = Connection(accepted.family, accepted.type, accepted.proto, accepted.detach())
            if self.crowd is None or self.crowd.let_in(connection):
                connection.crowd = self.crowd
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return connection, address
            connection.close()
        raise BlockingIOError
