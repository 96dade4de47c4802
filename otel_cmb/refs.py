"""Attributes whose value is already in the row are not stored twice: their place is.

A reference (`meta.otel.refs[key]`) is one of

* a path: `"inputs.message"` is `row["inputs"]["message"]`, `"@input.value"` is that attribute of the row's first span;
* `{"json": style, "value": template}`: a JSON text, written in `style` from the template;
* `{"value": template}`: a list or an object.

In a template `{"$": path}` stands for the value at a path, `{"$json": [style, template]}` for a JSON text within. A
reference is used only after it gave back exactly the value it stands for.

References that many rows have in common (no value of their own in them) are stored once for all of them:
:mod:`otel_cmb.refs_common`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

__all__ = ["MIN_TEXT", "MISSING", "Form", "Places", "find", "is_common", "pack", "restore"]

MISSING = "…[missing: "
"""How the text begins that stands for a value whose place is gone."""

MIN_TEXT = 24
"""A reference costs about as much as a text of this length."""
_MIN_JSON = 48
_MAX_NODES = 512
_MAX_DEPTH = 8

_STYLES = {
    "compact-ascii": json.JSONEncoder(separators=(",", ":"), check_circular=False),
    "spaced": json.JSONEncoder(ensure_ascii=False, check_circular=False),
    "spaced-ascii": json.JSONEncoder(check_circular=False),
    "indent": json.JSONEncoder(ensure_ascii=False, indent=2, check_circular=False),
    "indent-ascii": json.JSONEncoder(indent=2, check_circular=False),
}


def _write(value: Any, style: str) -> str:
    if style == "compact":
        return orjson.dumps(value).decode()
    return _STYLES[style].encode(value)


def _style(text: str) -> str:
    """The style a JSON text seems to be written in."""
    ascii_only = "\\u" in text
    if "\n" in text[:3]:
        return "indent-ascii" if ascii_only else "indent"
    if '": ' in text or '", "' in text or "}, {" in text:
        return "spaced-ascii" if ascii_only else "spaced"
    return "compact-ascii" if ascii_only else "compact"


_WORDS = frozenset({
    "", "user", "assistant", "system", "developer", "tool", "function", "text", "tool_call", "tool_call_response",
    "reasoning", "stop", "length", "tool_calls", "content_filter", "json", "input_text", "output_text", "message",
})
"""Texts of a template that say nothing of the one row."""


class Places:
    """The columns of a row (those that hold something), and where its long texts and its containers are: that is
    looked for when first asked, since most rows can do without."""

    __slots__ = ("_containers", "_nodes", "_texts", "ordered", "row")

    def __init__(self, row: dict[str, Any], *, ordered: bool = True) -> None:
        self.row = row
        self.ordered = ordered
        """Whether the database keeps the order of an object's keys, and so the text of a JSON text (jsonb does not)."""
        self._texts: dict[str, str] | None = None
        self._containers: dict[bytes, str] = {}
        self._nodes = 0

    @property
    def texts(self) -> dict[str, str]:
        """Paths of the long texts. Whoever keeps a text itself may add it, as `@key`."""
        if self._texts is None:
            self._texts = self._look()
        return self._texts

    @property
    def containers(self) -> dict[bytes, str]:
        """Paths of the lists and objects directly in a column, by their JSON."""
        if self._texts is None:
            self._texts = self._look()
        return self._containers

    def _look(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for column, value in self.row.items():
            kind = type(value)
            if kind is str:
                if len(value) >= MIN_TEXT:
                    texts.setdefault(value, column)
            elif kind is dict or kind is list:
                self._walk(texts, column, value, 0)
        return texts

    def _walk(self, texts: dict[str, str], path: str, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            return
        self._nodes += len(value)
        if depth == 1 and self.ordered:
            self._add_container(path, value)
        items: Iterable[tuple[Any, Any]] = value.items() if type(value) is dict else enumerate(value)
        for key, item in items:
            kind = type(item)
            if kind is str:
                if len(item) >= MIN_TEXT and (type(key) is int or "." not in key):
                    texts.setdefault(item, f"{path}.{key}")
            elif (kind is dict or kind is list) and (type(key) is int or "." not in key):
                self._walk(texts, f"{path}.{key}", item, depth + 1)

    def _add_container(self, path: str, value: Any) -> None:
        try:
            data = orjson.dumps(value)
        except orjson.JSONEncodeError:
            return
        if len(data) >= MIN_TEXT and b"null" not in data:
            self._containers.setdefault(data, path)


class _Unusable(Exception):  # noqa: N818 - a way out of the recursion
    pass


def pack(attributes: dict[str, Any], places: Places, *, own: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes to store as they are, and the references for the others. With `own`, long texts that stay become
    places themselves (`@key`)."""
    refs: dict[str, Any] = {}
    for key, value in attributes.items():
        found = find(key, value, places, own=own)
        if found is not None:
            refs[key] = found.reference if type(found) is Form else found
    if not refs:
        return attributes, refs
    return {key: value for key, value in attributes.items() if key not in refs}, refs


def find(key: str, value: Any, places: Places, *, own: bool) -> str | Form | dict[str, Any] | None:
    """The reference for an attribute's value, or the form that has it; `None` for a value to store as it is."""
    kind = type(value)
    if kind is str:
        if len(value) < MIN_TEXT:
            return None
        may_be_json = places.ordered and len(value) >= _MIN_JSON and value[0] in "[{"
        if may_be_json:
            for form in _recent.get(key, ()):
                if form.writes(value, places.row):  # like one before it: much quicker to see than to find out
                    return form
        found = places.texts.get(value)
        if found is not None:
            return found
        if may_be_json:
            reference = _json_text(key, value, places)
            if reference is not None:
                return reference
        if own:
            places.texts[value] = "@" + key
    elif (kind is list or kind is dict) and value:
        template = _template_of(value, places)
        if template is not None:
            return {"value": template}
    return None


class Form:
    """A reference to a JSON text in which nothing is of the one row, as the pieces of text between its places."""

    __slots__ = ("head", "pieces", "reference", "style")

    def __init__(self, reference: dict[str, Any]) -> None:
        self.reference = reference
        self.style: str = reference["json"]
        paths: list[str] = []
        text = _write(_marked(reference["value"], paths), self.style)
        texts = text.split(_write(_MARK, self.style))
        self.head = texts[0]
        self.pieces: list[tuple[list[str], str]] | None = None  # of nested and of indented texts: no pieces
        if len(texts) == len(paths) + 1 and not self.style.startswith("indent") and '"$json"' not in text:
            self.pieces = [(path.split("."), after) for path, after in zip(paths, texts[1:], strict=True)]

    def writes(self, text: str, row: Mapping[str, Any]) -> bool:
        """Whether the reference stands for this text."""
        try:
            if self.pieces is None:
                return _write(_expand(self.reference["value"], row, {}), self.style) == text
            if not text.startswith(self.head):
                return False
            made = self.head
            for path, after in self.pieces:
                value: Any = row
                for part in path:
                    value = value[int(part)] if type(value) is list else value[part]
                made += _write(value, self.style) + after
        except (LookupError, TypeError, ValueError):
            return False
        return made == text


_MARK = "\uf8ff a place \uf8ff"


def _marked(template: Any, paths: list[str]) -> Any:
    """The template with a mark in each place."""
    if type(template) is list:
        return [_marked(item, paths) for item in template]
    if type(template) is not dict:
        return template
    if len(template) == 1 and "$" in template:
        paths.append(template["$"])
        return _MARK
    return {key: _marked(item, paths) for key, item in template.items()}


_recent: dict[str, tuple[Form, ...]] = {}
"""The forms last found for an attribute that is a JSON text, by its key."""
_FORMS = 4


def _json_text(key: str, text: str, places: Places) -> Form | dict[str, Any] | None:
    """The reference for a JSON text that no known form writes; its form is remembered where it says nothing of the row."""
    reference = _json_reference(text, places)
    if reference is None or not is_common(reference):
        return reference
    form = Form(reference)
    if len(_recent) >= 256:
        _recent.clear()
    others = [other for other in _recent.get(key, ()) if other.reference != reference]
    _recent[key] = (form, *others[: _FORMS - 1])
    return form


def is_common(reference: Any) -> bool:
    """Whether a reference says nothing of its own row."""
    return isinstance(reference, str) or _without_values(reference["value"])


def _without_values(template: Any) -> bool:
    kind = type(template)
    if kind is str:
        return template in _WORDS
    if kind is list:
        return all(_without_values(item) for item in template)
    if kind is dict:
        if len(template) == 1:
            key, inner = next(iter(template.items()))
            if key == "$":
                return True
            if key == "$json":
                return _without_values(inner[1])
        return all(_without_values(item) for item in template.values())
    return template is None or kind is bool


def _json_reference(text: str, places: Places) -> dict[str, Any] | None:
    if not places.texts and not places.containers:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    template = _template_of(value, places)
    if template is None:
        return None
    style = _style(text)
    if _write(value, style) != text:
        return None
    return {"json": style, "value": template}


def _template_of(value: Any, places: Places) -> Any | None:
    """A template that stands for `value`, or `None` when the row holds nothing of it."""
    if type(value) not in (list, dict):
        return None
    try:
        data = orjson.dumps(value) if places.containers else b""
        path = places.containers.get(data)
        if path is not None:
            return {"$": path}
        template = _fill(value, places, 0)
    except (_Unusable, orjson.JSONEncodeError):
        return None
    return None if template is value else template


def _fill(value: Any, places: Places, depth: int) -> Any:
    """The template for a list or an object: `value` itself when nothing of it is in the row."""
    if depth > _MAX_DEPTH:
        raise _Unusable
    template = value
    items: Iterable[tuple[Any, Any]] = value.items() if type(value) is dict else enumerate(value)
    for key, item in items:
        if type(key) is str and key[:1] == "$":
            raise _Unusable
        kind = type(item)
        if kind is str:
            filled = item if len(item) < MIN_TEXT else _fill_text(item, places)
        elif kind is dict or kind is list:
            filled = _fill(item, places, depth + 1)
        else:
            continue
        if filled is not item:
            if template is value:
                template = value.copy()
            template[key] = filled
    return template


def _fill_text(text: str, places: Places) -> Any:
    path = places.texts.get(text)
    if path is not None:
        return {"$": path}
    if places.ordered and len(text) >= _MIN_JSON and text[0] in "[{":
        inner = _json_reference(text, places)
        if inner is not None:
            return {"$json": [inner["json"], inner["value"]]}
    return text


def restore(reference: Any, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    """The value a reference stands for. `attributes` are those of the row's first span that are stored as they are.

    A place that is gone (somebody else changed the row) gives a text that says so, so that the rest can still be read.
    """
    if isinstance(reference, str):
        return _at(reference, row, attributes)
    value = _expand(reference["value"], row, attributes)
    return _write(value, reference["json"]) if "json" in reference else value


def _expand(template: Any, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    if type(template) is list:
        return [_expand(item, row, attributes) for item in template]
    if type(template) is not dict:
        return template
    if len(template) == 1:
        key, inner = next(iter(template.items()))
        if key == "$":
            return _at(inner, row, attributes)
        if key == "$json":
            return _write(_expand(inner[1], row, attributes), inner[0])
    return {key: _expand(item, row, attributes) for key, item in template.items()}


def _at(path: str, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    try:
        if path[0] == "@":
            return attributes[path[1:]]
        value: Any = row
        for part in path.split("."):
            value = value[int(part)] if type(value) is list else value[part]
    except (LookupError, TypeError, ValueError):
        return f"{MISSING}{path} is no longer in the row]"
    return value
