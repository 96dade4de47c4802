"""JSON that a limit cut off: SDKs cut attribute values at `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT` characters.

What a cut result says before the cut still tells whether a call failed. Nothing here is for what is stored: that stays
the text as it came.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["uncut"]

MOST = 4_194_304
"""Longest text that is looked into: what an attribute may hold at most."""
DEEPEST = 64

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[][{},]', re.DOTALL)
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_LITERAL = re.compile(r"[\d.eE+-]+|t(?:r(?:ue?)?)?|f(?:a(?:l(?:se?)?)?)?|n(?:u(?:ll?)?)?")
_BLANKS = re.compile(r"\s*")
_HALF_PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}(?:\\(?:u[0-9a-f]{0,3})?)?\Z", re.IGNORECASE)
_CLOSING = {"{": "}", "[": "]"}


def uncut(text: str, *, half: bool) -> Any:
    """What a JSON object or array holds before it was cut off, or the text where it is no such thing. With `half`, a
    string value that the cut went through is given as far as it goes; else it is left out. Linear in the length."""
    if text[:1] not in _CLOSING or len(text) > MOST:
        return text
    opened: list[str] = []
    place, last = 0, ""
    for token in _TOKEN.finditer(text):
        last = token[0]
        if last in _CLOSING:
            opened.append(_CLOSING[last])
            if len(opened) > DEEPEST:
                return text
            place = token.end()
        elif last in ("}", "]"):
            if not opened or opened.pop() != last or not opened:
                return text
            place = token.end()
        elif last == ",":
            place = token.start()
    closers = "".join(reversed(opened))
    if not opened or not _is_begun(text, place):
        return text
    if half and last[:1] == '"' and (len(last) == 1 or last[-1:] != '"' or text.endswith("\\")):
        torn = _HALF_PAIR.search(text, max(place, len(text) - 16))
        end = len(text) if torn is None else torn.start()
        for less in range(7):  # the longest that may be left of an escape is `\ud83`
            found = _parsed(f'{text[: end - less]}"{closers}')
            if found:
                return found
    found = _parsed(text[:place] + closers)
    return found or text


def _is_begun(text: str, place: int) -> bool:
    """Whether what stands between the last thing that is whole and the cut is the beginning of something: a comma, a key, a
    colon, a value, as far as they go. Read step by step and never back: one pattern for all of it would try every way of
    sharing a long text out among its parts before it gave up."""
    place = _past(_BLANKS, text, place)
    if text.startswith(",", place):
        place = _past(_BLANKS, text, place + 1)
    after = _past(_STRING, text, place)
    if after > place:
        place = _past(_BLANKS, text, after)
        if text.startswith(":", place):
            place = _past(_BLANKS, text, place + 1)
            after = _past(_STRING, text, place)
            place = _past(_BLANKS, text, after if after > place else _past(_LITERAL, text, place))
    else:
        place = _past(_BLANKS, text, _past(_LITERAL, text, place))
    return text[place:] in ("", "\\")


def _past(pattern: re.Pattern[str], text: str, place: int) -> int:
    """Where the text goes on after what the pattern finds just there."""
    found = pattern.match(text, place)
    return place if found is None else found.end()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
