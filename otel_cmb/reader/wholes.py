"""What an owned database stores once and rows only point to: earlier messages of a conversation, parts of spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import and_, select

from otel_cmb.event import Span
from otel_cmb.history import CONTENTS, EARLIER, HISTORY, expand
from otel_cmb.reader.records import Event
from otel_cmb.reader.source import Source
from otel_cmb.reader.values import as_json
from otel_cmb.rebuild import unpack

__all__ = ["RESOURCES", "Wholes"]

RESOURCES = "otel_cmb_resources"
CHUNK = 500
MOST_BODIES = 1000


class Wholes:
    """Puts back together what was stored apart. In an attached database nothing is, and rows stay as they are."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._schema = source.schema
        self._bodies: dict[str, dict[str, Any]] = {}

    def fill(self, events: list[Event]) -> list[Event]:
        """The events with the earlier messages of their conversations. Messages are shared, not copied."""
        heads: dict[str, set[str]] = {}
        for event in events:
            for value in (event.inputs, event.outputs):
                head = _head(value)
                if head is not None and event.run_id is not None:
                    heads.setdefault(event.run_id, set()).add(head)
        if not heads or HISTORY not in self._schema or CONTENTS not in self._schema:
            return events
        known = {run_id: self._messages(run_id, sorted(ids)) for run_id, ids in heads.items()}
        return [
            replace(event, inputs=expand(event.inputs, known[event.run_id].__getitem__),
                    outputs=expand(event.outputs, known[event.run_id].__getitem__))
            if event.run_id in known and (_head(event.inputs) or _head(event.outputs)) else event
            for event in events
        ]

    def _messages(self, run_id: str, heads: Sequence[str]) -> dict[str, list[Any]]:
        """The messages of each of these histories, oldest first; a history with a gap is missing."""
        links: dict[str, tuple[str | None, str]] = {}
        table = self._schema[HISTORY]
        for chunk in _chunks(heads):
            wanted = select(table.c.id, table.c.previous, table.c.content)
            # UNION, not UNION ALL: what several histories have in common is walked once.
            chain = wanted.where(table.c.run_id == run_id, table.c.id.in_(chunk)).cte(recursive=True)
            chain = chain.union(wanted.join(chain, and_(table.c.run_id == run_id, table.c.id == chain.c.previous)))
            links.update({row["id"]: (row["previous"], row["content"]) for row in self._source.rows(select(*chain.c))})
        bodies = self._contents(run_id, sorted({content for _, content in links.values()}))
        found: dict[str, list[Any]] = {}
        for head in heads:
            messages: list[Any] = []
            at: str | None = head
            while at is not None and at in links and links[at][1] in bodies and len(messages) <= len(links):
                messages.append(bodies[links[at][1]])
                at = links[at][0]
            if at is None:
                found[head] = messages[::-1]
        return found

    def _contents(self, run_id: str, ids: Sequence[str]) -> dict[str, Any]:
        table = self._schema[CONTENTS]
        return {
            row["id"]: as_json(row["body"]) for chunk in _chunks(ids)
            for row in self._source.rows(
                select(table.c.id, table.c.body).where(table.c.run_id == run_id, table.c.id.in_(chunk))
            )
        }

    def histories(self, run_id: str) -> dict[str, Any]:
        """All histories of the run as they are stored: `links` (id to previous and content) and `contents`."""
        if HISTORY not in self._schema or CONTENTS not in self._schema:
            return {"links": {}, "contents": {}}
        links, contents = self._schema[HISTORY], self._schema[CONTENTS]
        return {
            "links": {
                row["id"]: [row["previous"], row["content"]]
                for row in self._source.rows(self._source.select(HISTORY).where(links.c.run_id == run_id))
            },
            "contents": {
                row["id"]: as_json(row["body"])
                for row in self._source.rows(self._source.select(CONTENTS).where(contents.c.run_id == run_id))
            },
        }

    def spans(self, event: Event) -> list[dict[str, Any]]:
        """The spans the event was made from, with all their attributes; `[]` where none is recorded or can be read."""
        row = {
            "inputs": event.inputs, "outputs": event.outputs, "meta": event.meta, "error_message": event.error_message,
            "run_id": event.run_id,
        }
        try:
            return [_plain(span) for span in unpack(row, self._body)]
        except (LookupError, TypeError, ValueError, AttributeError):  # somebody else wrote `meta.otel`
            return []

    def _body(self, key: str) -> dict[str, Any]:
        if key not in self._bodies:
            if RESOURCES not in self._schema:
                raise KeyError(key)
            table = self._schema[RESOURCES]
            found = self._source.rows(select(table.c.body).where(table.c.id == key))
            if not found:
                raise KeyError(key)
            if len(self._bodies) >= MOST_BODIES:
                self._bodies.clear()
            self._bodies[key] = as_json(found[0]["body"])
        return self._bodies[key]


def _head(value: Any) -> str | None:
    earlier = value.get(EARLIER) if isinstance(value, dict) else None
    head = earlier.get("history") if isinstance(earlier, dict) else None
    return head if isinstance(head, str) else None


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _plain(span: Span) -> dict[str, Any]:
    """The span with OTLP's names, what is empty left out."""
    values = {
        "name": span.name, "trace_id": span.trace_id, "span_id": span.span_id, "parent_span_id": span.parent_span_id,
        "kind": span.kind, "start_ns": span.start_ns, "end_ns": span.end_ns,
        "status": {"code": span.status_code, "message": span.status_message} if span.status_code else None,
        "attributes": span.attributes, "trace_state": span.trace_state,
        "events": [{"name": item.name, "time_ns": item.time_ns, "attributes": item.attributes} for item in span.events],
        "links": [
            {"trace_id": item.trace_id, "span_id": item.span_id, "attributes": item.attributes} for item in span.links
        ],
        "scope": {"name": span.scope.name, "version": span.scope.version, **span.scope.attributes},
        "resource": span.resource.attributes,
    }
    return {key: value for key, value in values.items() if value not in (None, "", {}, [])}
