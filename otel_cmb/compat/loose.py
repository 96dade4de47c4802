"""What the application's code hands over, loosely typed: made what its own queries expect to read back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from otel_cmb.payload import text_of, to_json

__all__ = ["meta_of", "name_of", "said"]


def said(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was said: a key with nothing to say is absent, for the application sums over these."""
    if metadata and not isinstance(metadata, Mapping):
        metadata = {"metadata": metadata}
    return {str(key): value for key, value in (metadata or {}).items() if value is not None}


def name_of(agent: Any) -> str:
    """An agent's name as a person writes it; also of the agent itself."""
    if agent is None:
        return ""
    name = getattr(agent, "name", None)
    return name if isinstance(name, str) else text_of(agent)


def meta_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The attribute that carries `meta`, if there is any."""
    return {"cmb.meta": to_json(_summable(meta))} if meta else {}


_SUMMED: dict[str, Callable[[Any], float]] = {"tokens": lambda value: round(float(value)), "cost_usd": float}


def _summable(meta: Mapping[str, Any]) -> dict[str, Any]:
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
