"""What many rows have in common, stored once: bodies of resources, scopes and shapes, and their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from otel_cmb import tagged
from otel_cmb.event import Resource, Scope
from otel_cmb.few import Few

__all__ = ["Interner", "content_id", "resource_of", "scope_of", "shared_body"]

REMEMBERED = 20_000
"""Most ids of resources and shapes known to be in the database: about 2 MB."""


def content_id(body: Mapping[str, Any]) -> tuple[str, str]:
    """Id and JSON text (tagged) of a resource or shape; the id is the text's hex BLAKE2b-128. The order of keys counts:
    it is part of the JSON texts a shape describes."""
    key = tagged.dumps(body)
    found = _content_ids.get(key)
    if found is None:
        found = (hashlib.blake2b(key, digest_size=16).hexdigest(), key.decode())
        _content_ids.keep(key, found, 2 * len(key))
    return found


_content_ids: Few[bytes, tuple[str, str]] = Few(4096)


class Interner:
    """`intern` for :func:`pack`: gives ids, and collects in `new` what was not `known` yet (id -> JSON text).

    The caller stores `new` in the same transaction as the rows and calls :meth:`committed` after it.
    """

    def __init__(self) -> None:
        self.new: dict[str, str] = {}
        self._known: set[str] = set()
        self._ids: Few[int, tuple[Mapping[str, Any], str, str]] = Few(1024)
        """Id and text of a body by its identity, with the body, so that its identity cannot be reused by another."""

    def __call__(self, body: Mapping[str, Any]) -> str:
        found = self._ids.get(id(body))
        if found is None:
            key, text = content_id(body)
            found = self._ids.keep(id(body), (body, key, text), 2 * len(text))
        _, key, text = found
        if key not in self._known:
            self.new[key] = text
        return key

    def committed(self) -> None:
        """What was new is in the database now."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        self._known.update(self.new)
        self.new = {}

    def forget(self) -> None:
        """Nothing is known any more (another database, rows pruned by somebody else)."""
        self._known.clear()
        self.new = {}


_bodies: Few[int, tuple[Any, dict[str, Any]]] = Few()
"""Bodies of resources and scopes by identity, with the object, so that its id cannot be reused by another."""
_equal: Few[bytes, dict[str, Any]] = Few()
"""Equal resources and scopes of different requests have one body."""


def shared_body(value: Resource | Scope) -> dict[str, Any]:
    found = _bodies.get(id(value))
    if found is None:
        body = _resource_body(value) if isinstance(value, Resource) else _scope_body(value)
        text = tagged.dumps(body)
        same = _equal.get(text)
        if same is None:
            same = _equal.keep(text, body, 2 * len(text))
        found = _bodies.keep(id(value), (value, same), len(text))
    return found[1]


def _resource_body(resource: Resource) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if resource.attributes:
        body["attributes"] = resource.attributes
    if resource.schema_url:
        body["schema_url"] = resource.schema_url
    if resource.dropped_attributes:
        body["dropped"] = resource.dropped_attributes
    return body


def _scope_body(scope: Scope) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if scope.name:
        body["name"] = scope.name
    if scope.version:
        body["version"] = scope.version
    if scope.attributes:
        body["attributes"] = scope.attributes
    if scope.schema_url:
        body["schema_url"] = scope.schema_url
    if scope.dropped_attributes:
        body["dropped"] = scope.dropped_attributes
    return body


def resource_of(body: Mapping[str, Any]) -> Resource:
    return Resource(body.get("attributes", {}), body.get("schema_url", ""), body.get("dropped", 0))


def scope_of(body: Mapping[str, Any]) -> Scope:
    return Scope(
        body.get("name", ""), body.get("version", ""), body.get("attributes", {}), body.get("schema_url", ""),
        body.get("dropped", 0),
    )
