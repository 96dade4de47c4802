"""Bodies of journal records: made from spans and commands, read back as items for the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from otel_cmb import journal_spans
from otel_cmb.event import Span
from otel_cmb.items import Item
from otel_cmb.journal_records import COMMAND, CONTENT, END, START, Record

__all__ = ["UNREADABLE", "Batch", "command_body", "decode", "item_of", "start_body"]

UNREADABLE = (ValueError, KeyError, TypeError, IndexError)
"""What :func:`item_of` raises for a body nobody can read."""


def start_body(span: Span) -> bytes:
    """A span that is running, or that died with its process."""
    return START + journal_spans.encode(span)


def command_body(command: dict[str, Any]) -> bytes:
    """A row of `run()`, `node()` or `step()`. Raises :class:`TypeError`."""
    return COMMAND + orjson.dumps(command, default=str, option=orjson.OPT_NON_STR_KEYS)


def item_of(seq: int, body: bytes, *, settle: bool) -> Item:
    """What a body says. Raises one of `UNREADABLE`."""
    kind = body[:1]
    if kind in (END, START):
        return Item(seq, journal_spans.decode(body, 1), None, None, settle, size=len(body))
    if kind == COMMAND:
        return Item(seq, command=orjson.loads(body[1:]))
    if kind == CONTENT:
        return Item(seq, content=journal_spans.decode(body, 1), size=len(body))
    raise ValueError(f"unknown kind {kind!r}")


@dataclass(slots=True)
class Batch:
    """Records of a log that are written together."""

    records: Sequence[Record]
    items: list[Item] = field(default_factory=list)
    starts: dict[int, bytes] = field(default_factory=dict)
    """Bodies of those that are starts, by number."""
    broken: set[int] = field(default_factory=set)
    """Numbers of those that cannot be read."""


def decode(
    records: Sequence[Record], fresh: Mapping[int, Span], *, settle: bool, on_broken: Callable[[Exception], None],
) -> Batch:
    """Items of the records; starts whose end is in the same batch are left out: one write instead of two.

    `fresh`: spans that need no decoding, by number.
    """
    batch = Batch(records)
    items = batch.items
    for record in records:
        span = fresh.get(record.seq)
        if span is not None:
            item = Item(record.seq, span, None, None, settle, None, None, len(record.body))
        else:
            try:
                item = item_of(record.seq, record.body, settle=settle)
            except UNREADABLE as error:
                batch.broken.add(record.seq)
                on_broken(error)
                continue
        if record.body[:1] == START:
            batch.starts[record.seq] = record.body
        items.append(item)
    if batch.starts:
        ends = {_identity(item.span) for item in items if item.span is not None and item.seq not in batch.starts}
        batch.items = [
            item for item in items
            if item.seq not in batch.starts or item.span is None or _identity(item.span) not in ends]
    return batch


def _identity(span: Span) -> tuple[str, str, int]:
    return span.trace_id, span.span_id, span.start_ns
