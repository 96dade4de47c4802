"""Reading JSON columns whatever the driver made of them."""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["as_dict"]


def as_dict(value: Any) -> dict[str, Any]:
    """A JSON column's value as a dict, whether the driver parsed it or not; anything else is an empty one."""
    if isinstance(value, (str, bytes)):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return dict(value) if isinstance(value, dict) else {}
