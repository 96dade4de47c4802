"""What a column holds, as a plain value: whatever the driver, or the application that wrote it, made of it.

Rows of an attached database are the application's: a JSON column may come as text or as values, a time as text, with or
without a zone; a key may be missing or hold something unexpected. Nothing here raises on such a value: what cannot be
understood is `None`, or is kept as it is.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import orjson

__all__ = ["TITLE_CHARS", "as_count", "as_json", "as_moment", "as_number", "as_text", "as_title", "iso", "to_json"]

TITLE_CHARS = 200
_LONG, _LONG_BELOW_ZERO = re.compile("[0-9]{20}"), re.compile("-[0-9]{19}")
_TWO_DIGITS = re.compile("[0-9]{2}")


def as_json(value: Any) -> Any:
    """The value of a JSON column: decoded if the database gave text; text that is no JSON stays text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value).decode("utf-8", "replace")
    if not isinstance(value, str):
        return value
    if not _may_be_huge(value):
        try:
            return orjson.loads(value)
        except ValueError:
            pass
    try:
        return json.loads(value)  # takes what orjson does not: NaN, lone surrogates, integers without rounding
    except (ValueError, RecursionError):
        return value


def _may_be_huge(text: str) -> bool:
    """Whether there may be an integer in it that 64 bits do not hold, signed or not: orjson rounds those. Of 19 digits in a
    row every ninth character shows two; nearly all texts are known by that, for a tenth of the time."""
    if _TWO_DIGITS.search(text[::9]) is None:
        return False
    return _LONG.search(text) is not None or _LONG_BELOW_ZERO.search(text) is not None


def as_moment(value: Any) -> datetime | None:
    """A time in UTC, of a datetime, ISO text or seconds since the epoch; naive means UTC. Anything else is `None`."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
        except ValueError:
            return None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, timezone.utc)
        except (ValueError, OverflowError, OSError):
            return None
    if not isinstance(value, datetime):
        return None
    if value.tzinfo is None:
        return value.replace(tzinfo=timezone.utc)
    try:
        return value.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def as_number(value: Any) -> int | float | None:
    """The value if it is a finite number, else `None`: the rule by which tokens and cents are added up."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def as_count(value: Any) -> int | None:
    number = as_number(value)
    return None if number is None else int(number)


def as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def as_title(value: Any) -> str | None:
    """The first line that says something, on one line, cut to :data:`TITLE_CHARS`."""
    first = next((line for line in (as_text(value) or "").splitlines() if line.strip()), None)
    return None if first is None else " ".join(first.split())[:TITLE_CHARS]


def iso(moment: datetime | None) -> str | None:
    """`2026-11-22T20:58:42.000001Z`, or `None`."""
    return None if moment is None else moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def _fallback(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def to_json(value: Any, *, indent: bool = False) -> bytes:
    """JSON of anything a row can hold. What orjson refuses (huge integers, lone surrogates) goes the slow way."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0, default=_fallback)
    except (TypeError, ValueError, RecursionError):
        try:
            return json.dumps(value, indent=2 if indent else None, default=_fallback).encode("ascii")
        except RecursionError:
            return json.dumps({"error": "too deeply nested to be shown"}).encode("ascii")
