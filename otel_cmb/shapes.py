"""Spans that may be written as they are, told by one look.

Of most spans nothing has to be cleaned, cut or redacted, and finding that out value by value costs more than the rest of
their way to the disk. Spans of one kind have the same keys and types of values: what these say is found out once, and the
texts are looked at all at once, joined. A span of which this cannot be said goes the general way (`sanitize`, `redact`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

from otel_cmb.event import Span
from otel_cmb.redact import Redactor
from otel_cmb.sanitize import clean_attributes

__all__ = ["Shapes"]

MAX_SHAPES = 1024
MAX_KEYS = 128
MAX_KEY_CHARACTERS = 4096
"""Of all keys of one shape: 1,024 shapes with a receiver's worst keys are 4 MiB."""
MAX_LIST = 64
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_PLAIN_TYPES = frozenset((str, int, float, bool, list))

_TEXT = frozenset((str,))

_Getter = Callable[[dict[str, Any]], tuple[Any, ...]]


class _Shape:
    """Where the texts, integers, floats and lists are among attributes of the same keys and types; `None`: there are none."""

    __slots__ = ("floats", "ints", "lists", "texts")

    def __init__(self, attributes: dict[str, Any]):
        self.texts = _getter(attributes, str)
        self.ints = _getter(attributes, int)
        self.floats = _getter(attributes, float)
        self.lists = _getter(attributes, list)


def _getter(attributes: dict[str, Any], kind: type) -> _Getter | None:
    keys = [key for key, value in attributes.items() if type(value) is kind]
    if len(keys) > 1:
        return itemgetter(*keys)
    return partial(_alone, keys[0]) if keys else None


def _alone(key: str, attributes: dict[str, Any]) -> tuple[Any, ...]:
    """What itemgetter, which gives no tuple of one, would."""
    return (attributes[key],)


class Shapes:
    """Tells spans that are plain. Threads may share it: what is found out is put down whole.

    `redactor`: of the spans; `None` when nothing is redacted. `max_bytes`: longest text that is not cut.
    """

    def __init__(self, redactor: Redactor | None, max_bytes: int):
        self._redactor = redactor
        self._max_bytes = max_bytes
        self._known: dict[tuple[Any, ...], _Shape | None] = {}

    def plain(self, span: Span) -> bool:
        """Whether cleaning, cutting and redaction would leave the span as it is, resource and scope aside, and JSON has a
        form for all of it. Two things remain for who writes it as JSON, because orjson says them: a text with a lone
        surrogate, and a key of a class of its own."""
        redactor = self._redactor
        if span.trace_state or type(span.start_ns) is not int or (redactor is not None and redactor.hooked):
            return False
        texts = [span.name]
        if span.status_message:
            texts.append(span.status_message)
        if not self._look(span.attributes, texts):
            return False
        for event in span.events:
            texts.append(event.name)
            if type(event.time_ns) is not int or not self._look(event.attributes, texts):
                return False
        for link in span.links:
            if link.trace_state or not self._look(link.attributes, texts):
                return False
        text = "\n".join(texts)
        if len(text) * 4 > self._max_bytes and not (len(text) <= self._max_bytes and text.isascii()):
            return False
        return "\0" not in text and (redactor is None or not redactor.may_hold(text))

    def _look(self, attributes: dict[str, Any], texts: list[str]) -> bool:
        """Look at what may be of any length or size; texts are only collected. False: not plain."""
        if not attributes:
            return True
        key = (*attributes, *map(type, attributes.values()))
        try:
            shape = self._known[key]
        except KeyError:
            shape = self._learn(key, attributes)
        if shape is None:
            return False
        if shape.texts is not None:
            texts += shape.texts(attributes)
        if shape.ints is not None:
            ints = shape.ints(attributes)
            if min(ints) < _INT_MIN or max(ints) > _INT_MAX:
                return False
        if shape.floats is not None and not math.isfinite(sum(shape.floats(attributes))):
            return False
        return shape.lists is None or all(_take_list(value, texts) for value in shape.lists(attributes))

    def _learn(self, key: tuple[Any, ...], attributes: dict[str, Any]) -> _Shape | None:
        """The shape of attributes; `None` when attributes of these keys and types are never plain."""
        if len(attributes) > MAX_KEYS or sum(map(len, attributes)) > MAX_KEY_CHARACTERS:
            return None
        shape = _Shape(attributes) if self._may_be_plain(attributes) else None
        if len(self._known) >= MAX_SHAPES:
            self._known.clear()
        self._known[key] = shape
        return shape

    def _may_be_plain(self, attributes: dict[str, Any]) -> bool:
        if not _PLAIN_TYPES.issuperset(map(type, attributes.values())):
            return False
        if list(clean_attributes(dict.fromkeys(attributes))) != list(attributes):
            return False
        if any(key.startswith("~") for key in attributes):  # what `tagged` marks values with
            return False
        return self._redactor is None or not any(map(self._redactor.minds_key, attributes))


def _take_list(values: list[Any], texts: list[str]) -> bool:
    """Take the texts of a short list of texts. False: it is none."""
    if len(values) > MAX_LIST or not _TEXT.issuperset(map(type, values)):
        return False
    texts += values
    return True
