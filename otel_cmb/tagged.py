"""JSON that holds every value a span can have, exactly.

What JSON has no form for is an object with one key that begins with `~`:

    {"~b": base64}          bytes
    {"~f": "nan"}           NaN, "inf", "-inf"; also 1e16 and above, and -0.0, which jsonb would change
    {"~i": "18446744..."}   an integer beyond 64 bits
    {"~t": base64}          a text with NUL or lone surrogates (UTF-8, `surrogatepass`)
    {"~d": {...}}           an object that would read as one of these
    {"~k": [[key, value]]}  an object with a key that is such a text

Everything else is itself. :func:`dumps` and :func:`loads` are for text; :func:`tag` and :func:`untag` for values.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from typing import Any

import orjson

__all__ = ["dumps", "holds", "loads", "says_all", "tag", "untag"]

_ODD_TEXT = re.compile("[\x00\ud800-\udfff]")
_TILDE, _BACKSLASH = b"~\\"
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


def holds(data: bytes) -> bool:
    """Whether `data`, made by orjson from a value, certainly says all of it: orjson writes NaN as `null`, so any `null`
    may be one; an object with a key `~` has to be told from a tag; PostgreSQL's jsonb refuses `\\u0000`."""
    # one byte, as a number, is looked for ten times faster than several: most data has neither `~` nor a backslash
    if b"null" in data and (b":null" in data or b",null" in data or b"[null" in data or data == b"null"):
        return False
    return not (_TILDE in data and b'"~' in data) and not (_BACKSLASH in data and b"\\u0000" in data)


def says_all(data: bytes, value: Any) -> bool:
    """:func:`holds`, certain: a `null` may also be one in a text, or `None`. For data that is not for jsonb."""
    if holds(data):
        return True
    return not (_TILDE in data and b'"~' in data) and b"\\u0000" not in data and bool(orjson.loads(data) == value)


def dumps(value: Any) -> bytes:
    """Compact JSON of `value`, tagged where needed."""
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(tag(value))
    return data if holds(data) else orjson.dumps(tag(value))


def loads(data: bytes | str) -> Any:
    """The exact value that :func:`dumps` was given."""
    value = orjson.loads(data)
    # one character first, see `holds`
    marked = _TILDE in data and b'"~' in data if isinstance(data, bytes) else "~" in data and '"~' in data
    return untag(value) if marked else value


def tag(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        if (value.isascii() and "\0" not in value) or not _ODD_TEXT.search(value):
            return value
        return {"~t": _base64(value.encode("utf-8", "surrogatepass"))}
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else {"~i": str(value)}
    if kind is float:
        plain = -1e16 < value < 1e16 and (value != 0 or math.copysign(1, value) > 0)
        return value if plain else {"~f": repr(value)}
    if kind is bytes:
        return {"~b": _base64(value)}
    if kind is dict:
        if _ODD_TEXT.search("".join(value)):
            return {"~k": [[tag(key), tag(item)] for key, item in value.items()]}
        inner = {key: tag(item) for key, item in value.items()}
        return {"~d": inner} if len(inner) == 1 and next(iter(inner)).startswith("~") else inner
    if kind is list or kind is tuple:
        return [tag(item) for item in value]
    raise TypeError(f"a span holds str, bool, int, float, bytes, None, list and dict; found {kind.__name__}")


def untag(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [untag(item) for item in value]
    if kind is not dict:
        return value
    if len(value) == 1:
        key, inner = next(iter(value.items()))
        if key[:1] == "~":
            return _UNTAG[key](inner) if key in _UNTAG else {key: untag(inner)}
    return {key: untag(item) for key, item in value.items()}


_UNTAG: dict[str, Callable[[Any], Any]] = {
    "~b": base64.b64decode,
    "~f": float,
    "~i": int,
    "~t": lambda inner: base64.b64decode(inner).decode("utf-8", "surrogatepass"),
    "~d": lambda inner: {key: untag(item) for key, item in inner.items()},
    "~k": lambda inner: {untag(key): untag(item) for key, item in inner},
}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
