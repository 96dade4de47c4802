"""What the application adds up over the rows of a node or run. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["summable"]

_SUMMED: dict[str, Callable[[Any], float]] = {"tokens": lambda value: round(float(value)), "cost_usd": float}


def summable(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The application adds `tokens` and `cost_usd` up: they are numbers, or stand under a name that nobody adds."""
    found = dict(meta)
    for key, number in _SUMMED.items():
        if key not in found or type(found[key]) is int:
            continue
        value = found.pop(key)
        try:
            amount = math.nan if isinstance(value, bool) else number(value)
        except (TypeError, ValueError, OverflowError):
            amount = math.nan
        found.update({key: amount} if math.isfinite(amount) else {f"{key}_given": value})
    return found
