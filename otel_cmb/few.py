"""What was found out of resources and scopes, of which a process has a handful and every span has both."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["Few", "weight"]

MOST_BYTES = 8 * 1024 * 1024
"""Of what one cache keeps: a sender may make each resource as large as a request."""
_OBJECT = 64

K = TypeVar("K")
V = TypeVar("V")


class Few(dict[K, V]):
    """A cache bounded by the number of its entries and by their weight: full, it begins anew. Threads may share it."""

    __slots__ = ("_most", "_weight")

    def __init__(self, most: int = 256) -> None:
        super().__init__()
        self._most = most
        self._weight = 0

    def keep(self, key: K, value: V, weight: int) -> V:
        """Remember `value`, which holds about `weight` bytes alive; gives it back."""
        if len(self) >= self._most or self._weight + weight > MOST_BYTES:
            self.clear()
            self._weight = 0
        self._weight += weight
        self[key] = value
        return value


def weight(*values: Any) -> int:
    """About how many bytes values of a span take, or resources and scopes."""
    total = 0
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind = type(value)
        total += _OBJECT
        if kind is str or kind is bytes:
            total += len(value)
        elif kind is dict:
            waiting += value
            waiting += value.values()
        elif kind is list:
            waiting += value
        elif hasattr(value, "attributes"):
            waiting += (value.attributes, value.schema_url, getattr(value, "name", ""), getattr(value, "version", ""))
    return total
