"""What was found out of what many spans have in common: resources and scopes, of which a process has a handful and every span
has both, and names."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["Few", "unless_long", "weight"]

MOST_BYTES = 8 * 1024 * 1024
"""Of what one cache keeps: a sender may make each resource as large as a request."""
_OBJECT = 64

K = TypeVar("K")
V = TypeVar("V")

LONG = 512
"""Names of more characters are not remembered: a sender may make thousands of them as long as a value."""


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


def unless_long(remembering: Callable[..., V]) -> Callable[..., V]:
    """A function of names with an `lru_cache`, which long names do not get into."""
    plain: Callable[..., V] = remembering.__wrapped__  # type: ignore[attr-defined]

    @wraps(plain)
    def ask(*names: str) -> V:
        return remembering(*names) if sum(map(len, names)) <= LONG else plain(*names)

    return ask


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
