"""How much may be in the house at once. Whoever finds the gate shut is told to come back, and holds nothing; whoever
arrives slowly makes room for those who do not."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice, takewhile
from threading import Condition
from time import monotonic
from typing import Any

__all__ = ["Budget", "Gate", "Place", "Room", "TurnedOutError"]

SLOW_SECONDS = 0.5
"""How long a request may take to arrive before others that find no room may have its place."""
_chance = random.Random()  # noqa: S311 - no secret


class TurnedOutError(Exception):
    """The request arrived slowly, and its place was needed."""


class Gate:
    """Counts requests in one part of the house. Used from the event loop only."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self.inside = 0

    def enter(self) -> bool:
        if self.inside >= self._requests:
            return False
        self.inside += 1
        return True

    def leave(self) -> None:
        self.inside -= 1


class Place:
    """What one request has of a :class:`Room`, from its head to its answer."""

    __slots__ = ("_room", "door", "receiving", "since", "size", "taken", "work")

    def __init__(self, room: Room, door: str) -> None:
        self._room = room
        self.door = door
        self.size = 0
        self.since = monotonic()
        self.receiving: asyncio.Future[Any] | None = None
        """Ends when the request has arrived; cancelled when the place is taken away."""
        self.taken = False
        self.work: asyncio.Future[Any] | None = None
        """What is done with the request: until that ends its bytes are held, whoever waits for it."""

    def add(self, size: int) -> bool:
        """So many bytes more have arrived; False when there is no room for them (they count all the same)."""
        return self._room.add(self, size)

    def arrived(self) -> None:
        """The whole request is here: nobody takes its place away any more."""
        self._room.arrived(self)

    def leave(self) -> None:
        """The request is over. Its place is given back when its work is: a client that goes away takes no thread with it."""
        if self.work is None or self.work.done():
            self._room.leave(self)
        else:
            self.work.add_done_callback(lambda _: self._room.leave(self))


class Room:
    """Counts requests that are received or worked on, and the bytes of their bodies. Used from the event loop only.

    A place costs a hostile client nothing but a connection, so places are not kept for those who came first: when there is
    no room, one of the requests that are still arriving after `SLOW_SECONDS` is turned out. Which one is left to chance:
    were it always the oldest, nobody who needs longer than a place lasts would ever be through, and all would try again.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size
        self._arriving: OrderedDict[Place, None] = OrderedDict()
        self.inside = 0
        self.bytes = 0
        self.turned_out = 0
        """How many had to make room so far."""

    @property
    def arriving(self) -> int:
        """Requests that are not here as a whole."""
        return len(self._arriving)

    def arriving_since(self, before: float) -> bool:
        """Whether a request that began before that moment (monotonic seconds) is still not here."""
        return any(place.since < before for place in islice(self._arriving, 1))

    def enter(self, door: str) -> Place | None:
        if self.inside >= self._requests and not self._turn_out(lambda _: True):
            return None
        place = Place(self, door)
        self._arriving[place] = None
        self.inside += 1
        return place

    def add(self, place: Place, size: int) -> bool:
        if place.taken:
            return False
        place.size += size
        self.bytes += size
        while self.bytes > self._size:
            if not self._turn_out(lambda one: one.size > 0 and one is not place):
                return False
        return True

    def arrived(self, place: Place) -> None:
        self._arriving.pop(place, None)

    def leave(self, place: Place) -> None:
        self._arriving.pop(place, None)
        if not place.taken:
            self._give_back(place)

    def turn_out_one(self, door: str) -> bool:
        """Turn out a request of this door that arrives slowly; False when none is slow."""
        return self._turn_out(lambda place: place.door == door)

    def turn_out_half(self) -> int:
        """Turn out half of those that arrive slowly; how many."""
        slow = self._slow()
        half = _chance.sample(slow, (len(slow) + 1) // 2)
        for place in half:
            self._take_away(place)
        return len(half)

    def _slow(self) -> list[Place]:
        """Those that arrive slowly, oldest first."""
        before = monotonic() - SLOW_SECONDS
        return list(takewhile(lambda place: place.since <= before, self._arriving))

    def _turn_out(self, may: Callable[[Place], bool]) -> bool:
        """Turn out one that arrives slowly; False when there is none that may go."""
        slow = [place for place in self._slow() if may(place)]
        if slow:
            self._take_away(_chance.choice(slow))
        return bool(slow)

    def _take_away(self, place: Place) -> None:
        self._arriving.pop(place)
        self._give_back(place)
        place.taken = True
        self.turned_out += 1
        if place.receiving is not None:
            place.receiving.cancel()

    def _give_back(self, place: Place) -> None:
        self.inside -= 1
        self.bytes -= place.size


class Budget:
    """Bytes of requests waiting for their commit; one larger than the whole budget passes alone. Safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = Condition()
        self.used = 0

    def take(self, size: int, timeout: float) -> bool:
        """Wait until `size` bytes fit; False when they did not within `timeout` seconds."""
        deadline = monotonic() + timeout
        with self._free:
            while self.used and self.used + size > self._limit:
                if not self._free.wait(max(0.0, deadline - monotonic())) and monotonic() >= deadline:
                    return False
            self.used += size
            return True

    def give(self, size: int) -> None:
        with self._free:
            self.used -= size
            self._free.notify_all()
