"""What the names of a span's attributes say, whatever their values: found out once for all spans that have the same.

A program makes spans of a few shapes, again and again. Looking each name up in the tables anew was half of pass 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from otel_cmb.vocabulary import DISCRIMINATORS, FIELD_OF, PRESENT

__all__ = ["META_FIELDS", "NO_SHAPE", "Shape", "shape_of"]

MOST_NAMES = 48
"""Of spans with more names only those that mean something are compared: messages spread over keys make all of them
different."""
META_FIELDS = (
    ("provider", "provider"), ("tool_call_id", "tool_call_id"), ("conversation_id", "conversation_id"),
    ("session_id", "session_id"), ("thread_id", "thread_id"), ("user_id", "user_id"), ("agent_id", "agent_id"),
    ("workflow_name", "workflow"), ("turns", "turns"), ("task_name", "task"), ("sender", "sender"),
    ("recipient", "recipient"),
)  # fmt: skip
"""(field, key of `meta`) of the fields that stand in `meta` as they are, in its order."""
_SPENDING = frozenset(("tokens_in", "tokens_out", "tokens_total", "usage", "cost", "costs", "replies"))
_AROUND = frozenset(("graph_node", "oi_kind", "span_kind", "span_type", "workflow_nodes"))
_FAILURES = frozenset(("error_type", "error_message", "task_status", "level"))


@dataclass(slots=True, eq=False)
class Shape:
    """What is to be asked of a span with these attribute names. Shared between threads: never changed."""

    names: tuple[str, ...]
    """Our fields that the span may have."""
    keys: tuple[tuple[str, ...], ...]
    """For each of them the attributes that carry it, best first."""
    best: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    """The values of the best attribute for each field."""
    empty: dict[str, Any]
    discriminators: tuple[tuple[str, Mapping[str, str]], ...]
    present: str | None
    """The kind that an attribute's mere presence tells."""
    may_fail: bool
    """Whether there is a field that can say that the act failed."""
    may_spend: bool
    """Whether there is a field that can say what the act spent."""
    meta: tuple[tuple[str, str], ...]
    """Those of `META_FIELDS` it may have."""
    enveloped: bool
    """Whether its payload is in an envelope."""
    around: bool
    """Whether the spans around it are asked what it is (`otel_cmb.assemble_graphs`)."""

    def fields(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Our fields, each from the best attribute that is not null."""
        found = self.empty.copy()  # quicker than a dictionary that has to grow
        for name, value in zip(self.names, self.best(attributes)):  # noqa: B905 - to say which would double its time
            if value is None:
                return self._fields_without_nulls(attributes)
            found[name] = value
        return found

    def _fields_without_nulls(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, keys in zip(self.names, self.keys, strict=True):
            for key in keys:
                if attributes[key] is not None:
                    found[name] = attributes[key]
                    break
        return found


def shape_of(attributes: Mapping[str, Any]) -> Shape:
    names = tuple(attributes)
    return _shape(names) if len(names) <= MOST_NAMES else _known(names)


def _known(names: Iterable[str]) -> Shape:
    return _make(tuple(filter(_KNOWN.__contains__, names)))


_shape = lru_cache(maxsize=256)(_known)
_KNOWN = frozenset((*FIELD_OF, *(key for key, _ in DISCRIMINATORS), *PRESENT))


@lru_cache(maxsize=256)
def _make(known: tuple[str, ...]) -> Shape:
    ranked: dict[str, list[tuple[int, str]]] = {}
    for key in known:
        if key in FIELD_OF:
            name, rank = FIELD_OF[key]
            ranked.setdefault(name, []).append((rank, key))
    keys = tuple(tuple(key for _, key in sorted(row)) for row in ranked.values())
    first = [row[0] for row in keys]
    return Shape(
        tuple(ranked), keys,
        itemgetter(*first, first[0]) if first else tuple,  # of one key alone it would give no tuple
        dict.fromkeys(ranked),
        tuple((key, kinds) for key, kinds in DISCRIMINATORS if key in known),
        next((kind for key, kind in PRESENT.items() if key in known), None),
        not _FAILURES.isdisjoint(ranked), not _SPENDING.isdisjoint(ranked),
        tuple(pair for pair in META_FIELDS if pair[0] in ranked),
        "input_envelope" in ranked or "output_envelope" in ranked, not _AROUND.isdisjoint(ranked),
    )  # fmt: skip


NO_SHAPE = _make(())
