"""What both doors share: who may come in, how many, and the threads that do the work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from otel_cmb.receiver import memory
from otel_cmb.receiver.answers import Answer
from otel_cmb.receiver.gate import Gate, Place, Room, TurnedOutError
from otel_cmb.receiver.intake import MIB, Intake
from otel_cmb.receiver.settings import ServeSettings
from otel_cmb.receiver.tls import TlsFiles
from otel_cmb.receiver.tokens import Caller, TokenFile

__all__ = ["MAKE_ROOM", "House", "open_files"]

_LOG = logging.getLogger("otel_cmb.receiver")
READING = 1_000
"""Requests that may be sending their body at once, over both doors. They hold no thread."""
OWN_FILES = 512
"""Open files that are not a client's: journal, database, and connections accepted while others are on their way out."""
LOOK_SECONDS = 0.1
"""How often the process's memory is looked at while requests arrive."""
IN_VAIN_SECONDS = 1.0
"""Memory above the limit that stays for so long, although all who were arriving have gone, is not theirs."""
MAKE_ROOM = "the request arrived too slowly for a server that has much to do"

T = TypeVar("T")


def open_files() -> int:
    """How many files the process may have open."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


@dataclass(slots=True)
class House:
    """One receiver's shared state. Everything but the work itself runs in one event loop."""

    settings: ServeSettings
    intake: Intake
    tokens: TokenFile | None = None
    tls: TlsFiles | None = None
    connections: int = field(init=False)
    """How many one door may have open."""
    reading: Room = field(init=False)
    working: Gate = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    _watching: asyncio.Task[None] | None = field(init=False, default=None)
    _allowed: int = field(init=False)
    """Bytes of memory above which those that arrive slowly make room: the limit, or more while the rest of the process has
    that much by itself."""
    _above_since: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        settings = self.settings
        self.connections = _connections(settings)
        self.reading = Room(READING, max(settings.max_memory_mib * MIB // 2, settings.max_bytes))
        self._allowed = settings.max_memory_mib * MIB
        self.working = Gate(2 * settings.max_concurrent)
        self.pool = ThreadPoolExecutor(settings.max_concurrent, thread_name_prefix="otel-cmb-request")

    @property
    def draining(self) -> bool:
        return self.intake.closing

    def say(self, door: str, signal: str, situation: str, message: str) -> Answer:
        """An answer that needs no work, counted."""
        return self.intake.count(door, signal, Answer(situation, message))

    def caller(self, authorization: str | None, run_id: str | None) -> Caller | None:
        """Who sends; `None` when a valid token is needed and was not given."""
        if self.tokens is None:
            return Caller(run_id=run_id)
        found = self.tokens.find(authorization)
        return None if found is None else Caller(session_id=found.session_id, run_id=run_id)

    def reading_refused(self, authorization: str | None) -> Answer | None:
        """Why a caller may not read all traces; `None` when it may."""
        found = self.caller(authorization, None)
        if found is None:
            return Answer("unauthenticated", "a valid bearer token is needed")
        if found.session_id is None:
            return None
        return Answer("refused", "this token is bound to one session and cannot read all traces")

    # -- receiving -----------------------------------------------------------------------------------------------------

    def enter(self, door: str) -> Place | None:
        """A place for a request whose head has come; `None` when there is none. To be left in any case."""
        place = self.reading.enter(door)
        if place is not None and self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        return place

    async def receive(self, place: Place, arriving: Coroutine[Any, Any, T]) -> T:
        """What `arriving` gives. Raises `asyncio.TimeoutError` when it takes too long, :class:`TurnedOutError` when the
        place was needed."""
        receiving: asyncio.Future[T] = asyncio.ensure_future(arriving)
        place.receiving = receiving
        try:
            found = await asyncio.wait_for(receiving, self.settings.read_timeout)
        except asyncio.CancelledError:
            if place.taken:
                raise TurnedOutError from None
            raise
        if place.taken:
            raise TurnedOutError
        place.arrived()
        return found

    async def _watch(self) -> None:
        """While requests arrive: when the process has too much memory, those that are slow make room. How much of a message
        has come is known to gRPC alone, before it is whole; the process's memory is what shows it."""
        loop = asyncio.get_running_loop()
        before, calm_at = self.reading.turned_out, 0.0
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                found = memory.resident()
                if found > self._allowed:
                    await loop.run_in_executor(None, memory.trim)
                    found = memory.resident()
                self._weigh(found)
                if self.reading.turned_out != before:
                    before, calm_at = self.reading.turned_out, time.monotonic() + 1
                elif not self.reading.arriving and time.monotonic() > calm_at:
                    break
            if calm_at:
                await loop.run_in_executor(None, memory.trim)
        finally:
            self._watching = None

    def _weigh(self, found: int) -> None:
        """The process has so many bytes of memory. Nobody is turned out for what others hold for good, e.g. the traces of a
        database that is away: or an honest sender behind a slow line would never be through."""
        limit = self.settings.max_memory_mib * MIB
        if found <= self._allowed:
            self._above_since = None
            self._allowed = max(limit, min(self._allowed, found + limit // 4))
            return
        now = time.monotonic()
        if self._above_since is None:
            self._above_since = now
        if now - self._above_since >= IN_VAIN_SECONDS and not self.reading.arriving_since(self._above_since):
            self._allowed, self._above_since = found + limit // 4, None
            _LOG.warning("the process has %d MiB of memory, more than %d, and not for requests that arrive: they have room "
                         "up to %d MiB", found // MIB, limit // MIB, self._allowed // MIB)
        elif number := self.reading.turn_out_half():
            _LOG.warning("the process has %d MiB of memory, more than %d: requests that arrive slowly are told to "
                         "come back, %d now", found // MIB, self._allowed // MIB, number)

    async def close(self) -> None:
        """No request is inside any more."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        self.pool.shutdown(wait=False, cancel_futures=True)

    # -- working -------------------------------------------------------------------------------------------------------

    async def work(
        self, place: Place, signal: str, body: bytes, caller: Caller, *, as_json: bool = False, encoding: str = "identity"
    ) -> Answer:
        """Take a request in a thread. Its place is kept until it is done, also when its client goes away meanwhile."""
        if not self.working.enter():
            return self.say(place.door, signal, "overloaded", "too many requests at once")
        job = partial(self.intake.take, place.door, signal, body, as_json=as_json, encoding=encoding, caller=caller)
        future = asyncio.get_running_loop().run_in_executor(self.pool, job)
        place.work = future
        future.add_done_callback(lambda _: self.working.leave())
        return await asyncio.shield(future)


def _connections(settings: ServeSettings) -> int:
    """As many as the settings say, as far as the limit of open files allows."""
    doors = sum(address is not None for address in (settings.grpc, settings.http, settings.jaeger_storage))
    files = open_files()
    allowed = max(files - OWN_FILES, files // 2) // max(doors, 1)
    if allowed < settings.max_connections:
        _LOG.warning("%d connections at once over each door, not %d: the process may have %d files open (LimitNOFILE=, "
                     "ulimit -n)", allowed, settings.max_connections, files)
    return min(settings.max_connections, allowed)
