"""A row's `meta.otel` and back to the exact spans.

`meta.otel` (:func:`pack`) is an object with readable keys. What is empty or default is absent; a value that is in a
column is referred to, not stored twice (:mod:`otel_cmb.refs`); what JSON cannot hold is tagged
(:mod:`otel_cmb.tagged`):

    trace_id span_id parent_span_id name kind start_ns end_ns status{code, message} trace_state flags
    attributes refs events links resource scope dropped[attributes, events, links] stamp died merged shape

With `intern` (owned databases) what many rows have in common is stored once: `resource` is then the id of one, and
`shape` the id of an object with `scope`, `kind`, `status` and the `refs` that say nothing of the one row.
`stamp.run_id` is absent when it is the row's, and false when there was none. `merged` lists the further spans the event
was made from; there `trace_id`, `resource` and `scope` are absent when they are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any

import orjson

from otel_cmb import refs as references
from otel_cmb import tagged
from otel_cmb.event import KIND_INTERNAL, Event, Link, Resource, Scope, Span, SpanEvent, Stamp
from otel_cmb.few import weight
from otel_cmb.interning import Interner, content_id, resource_of, scope_of, shared_body
from otel_cmb.refs_common import Common, split

__all__ = ["Interner", "content_id", "pack", "resource_of", "scope_of", "shared_body", "stamp_values", "unpack"]

_STAMP = tuple(item.name for item in fields(Stamp))
stamp_values = attrgetter(*_STAMP)

LIGHT = 2048
"""Bytes of a scope whose shapes are remembered: there may be 16,000 of them."""


def pack(
    event: Event, intern: Callable[[dict[str, Any]], str] | None = None, *, ordered: bool = True,
) -> dict[str, Any]:
    """`meta["otel"]` of the event's row; `{}` for a derived event, which has no span of its own.

    Call it when `inputs`, `outputs`, `meta`, `error_message` and `run_id` are final (cleaned): attributes found there
    are referred to by path, and a later change of a column would change what :func:`unpack` gives. Type-exact: for
    every span made of the types its docstring names, `unpack` gives back an equal one. `ordered=False` when a column is
    jsonb, which keeps neither the order of keys nor large floats. 5 to 7 µs, 30 where texts have to be searched for.
    """
    return tagged_where_needed(collect(event, intern, ordered=ordered), ordered=ordered)


def tagged_where_needed(packed: dict[str, Any], *, ordered: bool) -> dict[str, Any]:
    """What :func:`collect` gave, as :func:`pack` gives it."""
    try:
        exact = ordered and tagged.says_all(orjson.dumps(packed), packed)
    except orjson.JSONEncodeError:
        exact = False
    return packed if exact else tagged.tag(packed)


def collect(
    event: Event, intern: Callable[[dict[str, Any]], str] | None = None, *, ordered: bool = True,
) -> dict[str, Any]:
    """:func:`pack`, not tagged yet: for who writes it as part of something and looks through the text of all of it."""
    if not event.spans:
        return {}
    row: dict[str, Any] = {}
    if event.inputs:
        row["inputs"] = event.inputs
    if event.outputs:
        row["outputs"] = event.outputs
    if event.error_message:
        row["error_message"] = event.error_message
    if event.run_id:
        row["run_id"] = event.run_id
    if event.meta:
        meta = event.meta
        row["meta"] = {key: item for key, item in meta.items() if key != "otel"} if "otel" in meta else meta
    places = references.Places(row, ordered=ordered)
    first = event.spans[0]
    packed = _pack_span(first, places, event.run_id, intern, None)
    if len(event.spans) > 1:
        packed["merged"] = [_pack_span(span, places, event.run_id, intern, first) for span in event.spans[1:]]
    return packed


def _pack_span(
    span: Span, places: references.Places, run_id: str | None, intern: Callable[[dict[str, Any]], str] | None,
    first: Span | None,
) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    if first is None or span.trace_id != first.trace_id:
        packed["trace_id"] = span.trace_id
    packed["span_id"] = span.span_id
    if span.parent_span_id is not None:
        packed["parent_span_id"] = span.parent_span_id
    packed["name"] = span.name
    if intern is None and span.kind != KIND_INTERNAL:
        packed["kind"] = span.kind
    packed["start_ns"] = span.start_ns
    if span.end_ns is not None:
        packed["end_ns"] = span.end_ns
    if span.status_message:
        packed["status"] = {"code": span.status_code, "message": span.status_message}
    elif span.status_code and intern is None:
        packed["status"] = {"code": span.status_code}
    if span.trace_state:
        packed["trace_state"] = span.trace_state
    if span.flags:
        packed["flags"] = span.flags
    common = _NOTHING
    if span.attributes:
        if intern is None:
            kept, refs = references.pack(span.attributes, places, own=first is None)
        else:
            kept, refs, common = split(span.attributes, places, own=first is None)
        if kept:
            packed["attributes"] = kept
        if refs:
            packed["refs"] = refs
    if span.events:
        packed["events"] = [_pack_span_event(item, places) for item in span.events]
    if span.links:
        packed["links"] = [_pack_link(item, places) for item in span.links]
    resource = _unshared(span.resource, None if first is None else first.resource)
    if resource is not None:
        packed["resource"] = resource if intern is None or not resource else intern(resource)
    scope = _unshared(span.scope, None if first is None else first.scope)
    if scope is not None and intern is None:
        packed["scope"] = scope
    if span.dropped_attributes or span.dropped_events or span.dropped_links:
        packed["dropped"] = [span.dropped_attributes, span.dropped_events, span.dropped_links]
    stamp = _stamp_body(span.stamp, run_id)
    if stamp:
        packed["stamp"] = stamp
    if span.died:
        packed["died"] = True
    if intern is not None:
        shape = _shape(span.kind, 0 if span.status_message else span.status_code, scope, common)
        if shape:
            packed["shape"] = intern(shape)
    return packed


_NOTHING = Common({}, ())


def _shape(kind: int, status: int, scope: dict[str, Any] | None, common: Common) -> dict[str, Any]:
    """What many rows have in common: the same object each time, which is quicker to intern."""
    key = (kind, status, id(scope))
    found = common.shapes.get(key)
    if found is not None:
        return found[1]
    shape: dict[str, Any] = {}
    if kind != KIND_INTERNAL:
        shape["kind"] = kind
    if status:
        shape["status"] = {"code": status}
    if scope is not None:
        shape["scope"] = scope
    if common.refs:
        shape["refs"] = common.refs
    if len(common.shapes) >= 16:
        common.shapes.clear()
    if weight(scope) <= LIGHT:
        common.shapes[key] = (scope, shape)  # with the scope, so that its id cannot be reused by another
    return shape


def _unshared(value: Resource | Scope, shared: Resource | Scope | None) -> dict[str, Any] | None:
    """The body, or `None` where it goes without saying: it is empty, or that of the first span."""
    body = shared_body(value)
    if shared is None:
        return body or None
    if value is shared:
        return None
    other = shared_body(shared)
    return None if body is other or tagged.dumps(body) == tagged.dumps(other) else body


def _put_attributes(packed: dict[str, Any], attributes: dict[str, Any], places: references.Places) -> None:
    kept, refs = references.pack(attributes, places)
    if kept:
        packed["attributes"] = kept
    if refs:
        packed["refs"] = refs


_UNSAID = (None,) * (len(_STAMP) - 1)


def _stamp_body(stamp: Stamp, run_id: str | None) -> dict[str, Any]:
    values = stamp_values(stamp)
    if values == (run_id, *_UNSAID):  # nearly always
        return {}
    body = {name: value for name, value in zip(_STAMP, values, strict=True) if value is not None}
    if run_id is not None:
        if "run_id" not in body:
            body["run_id"] = False
        elif body["run_id"] == run_id:
            del body["run_id"]
    return body


def _pack_span_event(event: SpanEvent, places: references.Places) -> dict[str, Any]:
    packed: dict[str, Any] = {"name": event.name, "time_ns": event.time_ns}
    if event.attributes:
        _put_attributes(packed, event.attributes, places)
    if event.dropped_attributes:
        packed["dropped"] = event.dropped_attributes
    return packed


def _pack_link(link: Link, places: references.Places) -> dict[str, Any]:
    packed: dict[str, Any] = {"trace_id": link.trace_id, "span_id": link.span_id}
    if link.trace_state:
        packed["trace_state"] = link.trace_state
    if link.attributes:
        _put_attributes(packed, link.attributes, places)
    if link.dropped_attributes:
        packed["dropped"] = link.dropped_attributes
    if link.flags:
        packed["flags"] = link.flags
    return packed


def unpack(row: Mapping[str, Any], resolve: Callable[[str], dict[str, Any]] | None = None) -> list[Span]:
    """The spans of a row, exactly as they were: first the one that named it, then those merged into it.

    `row` has the columns `inputs`, `outputs`, `meta` (parsed), `error_message`, `run_id`. `resolve` gives the body of a
    resource or scope by id; it may raise `KeyError`. `[]` for a row without `meta.otel` (the application's own, or a
    derived one).
    """
    meta = row.get("meta")
    packed = meta.get("otel") if isinstance(meta, dict) else None
    if not packed:
        return []
    packed = tagged.untag(packed)
    first = _unpack_span(packed, row, resolve, None, packed.get("attributes", {}))
    spans = [first]
    for item in packed.get("merged", ()):
        spans.append(_unpack_span(item, row, resolve, first, packed.get("attributes", {})))  # noqa: PERF401
    return spans


def _unpack_span(
    packed: Mapping[str, Any], row: Mapping[str, Any], resolve: Callable[[str], dict[str, Any]] | None,
    first: Span | None, own: Mapping[str, Any],
) -> Span:
    if "shape" in packed:
        packed = _with_shape(packed, resolve)
    status = packed.get("status", {})
    dropped = packed.get("dropped", (0, 0, 0))
    stamp = dict(packed.get("stamp", {}))
    if "run_id" not in stamp:
        stamp["run_id"] = row.get("run_id")
    elif stamp["run_id"] is False:
        stamp["run_id"] = None
    if first is not None and "resource" not in packed:
        resource = first.resource
    else:
        resource = resource_of(_resolved(packed.get("resource", {}), resolve))
    if first is not None and "scope" not in packed:
        scope = first.scope
    else:
        scope = scope_of(_resolved(packed.get("scope", {}), resolve))
    return Span(
        trace_id=packed["trace_id"] if first is None or "trace_id" in packed else first.trace_id,
        span_id=packed["span_id"],
        name=packed["name"],
        start_ns=packed["start_ns"],
        end_ns=packed.get("end_ns"),
        parent_span_id=packed.get("parent_span_id"),
        kind=packed.get("kind", KIND_INTERNAL),
        status_code=status.get("code", 0),
        status_message=status.get("message", ""),
        attributes=_attributes(packed, row, own),
        events=[
            SpanEvent(item["name"], item["time_ns"], _attributes(item, row, own), item.get("dropped", 0))
            for item in packed.get("events", ())
        ],
        links=[
            Link(item["trace_id"], item["span_id"], item.get("trace_state", ""), _attributes(item, row, own),
                 item.get("dropped", 0), item.get("flags", 0))
            for item in packed.get("links", ())
        ],
        resource=resource,
        scope=scope,
        trace_state=packed.get("trace_state", ""),
        flags=packed.get("flags", 0),
        dropped_attributes=dropped[0],
        dropped_events=dropped[1],
        dropped_links=dropped[2],
        stamp=Stamp(**stamp),
        died=packed.get("died", False),
    )


def _with_shape(packed: Mapping[str, Any], resolve: Callable[[str], dict[str, Any]] | None) -> dict[str, Any]:
    shape = _resolved(packed["shape"], resolve)
    found = {**shape, **packed}
    if "refs" in shape:
        found["refs"] = {**shape["refs"], **packed.get("refs", {})}
    if not shape:  # somebody deleted it: say so where it is seen
        found["attributes"] = {**packed.get("attributes", {}), "cmb.missing": f"shape {packed['shape']}"}
    return found


def _attributes(packed: Mapping[str, Any], row: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    attributes = dict(packed.get("attributes", {}))
    for key, reference in packed.get("refs", {}).items():
        attributes[key] = references.restore(reference, row, own)
    return attributes


def _resolved(value: Any, resolve: Callable[[str], dict[str, Any]] | None) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = tagged.untag(resolve(value)) if resolve is not None else {}
        except KeyError:
            value = {}
    return value  # type: ignore[no-any-return]
