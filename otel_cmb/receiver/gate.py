"""How much may be in the house at once. Whoever finds the gate shut is told to come back, and holds nothing."""

from __future__ import annotations

from threading import Condition
from time import monotonic

__all__ = ["Budget", "Gate"]


class Gate:
    """Counts requests, and the bytes of their bodies, in one part of the house. Used from the event loop only."""

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size
        self.inside = 0
        self.bytes = 0

    def enter(self) -> bool:
        if self.inside >= self._requests:
            return False
        self.inside += 1
        return True

    def add(self, size: int) -> bool:
        """Count bytes of a request that is inside; False when they are too many (they count all the same)."""
        self.bytes += size
        return self.bytes <= self._size

    def leave(self, size: int = 0) -> None:
        self.inside -= 1
        self.bytes -= size


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
