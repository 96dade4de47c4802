"""Attributes whose value is already in the row are not stored twice: their place is.

A reference (`meta.otel.refs[key]`) is one of

* a path: `"inputs.message"` is `row["inputs"]["message"]`, `"@input.value"` is that attribute of the row's first span;
* `{"json": style, "value": template}`: a JSON text, written in `style` from the template;
* `{"value": template}`: a list or an object.

In a template `{"$": path}` stands for the value at a path, `{"$json": [style, template]}` for a JSON text within. A
reference is used only after it gave back exactly the value it stands for.

References that many rows have in common (no value of their own in them) can be kept apart, to be stored once: then also
small values are referred to, by :data:`HELD`, and values of few kinds (:data:`FEW`) are written into them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

__all__ = ["FEW", "HELD", "MISSING", "Places", "pack", "restore"]

MISSING = "…[missing: "
"""How the text begins that stands for a value whose place is gone."""

_MIN_TEXT = 24
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


HELD: dict[str, tuple[str, ...]] = {
    "cmb.run.id": ("run_id",),
    "gen_ai.request.model": ("meta.model",), "gen_ai.response.model": ("meta.model",),
    "llm.model_name": ("meta.model",),
    "gen_ai.provider.name": ("meta.provider",), "gen_ai.system": ("meta.provider",),
    "gen_ai.usage.input_tokens": ("meta.prompt_tokens",), "gen_ai.usage.output_tokens": ("meta.completion_tokens",),
    "gen_ai.usage.prompt_tokens": ("meta.prompt_tokens",),
    "gen_ai.usage.completion_tokens": ("meta.completion_tokens",),
    "llm.token_count.prompt": ("meta.prompt_tokens",),
    "llm.token_count.completion": ("meta.completion_tokens",),
    "llm.token_count.total": ("meta.tokens",), "gen_ai.usage.total_tokens": ("meta.tokens",),
    "gen_ai.usage.cost": ("meta.cost_usd",), "gen_ai.request.temperature": ("meta.temperature",),
    "gen_ai.tool.name": ("inputs.tool_name",), "tool.name": ("inputs.tool_name",),
    "gen_ai.tool.call.id": ("meta.tool_call_id",), "tool_call.id": ("meta.tool_call_id",),
    "gen_ai.tool.call.result": ("outputs.result",), "tool_response": ("outputs.result",),
    "gen_ai.conversation.id": ("meta.conversation_id",), "ag2.code_execution.exit_code": ("meta.exit_code",),
    "ag2.code_execution.output": ("outputs.result",), "error.type": ("meta.error_type",),
}
"""Where a small value usually is in the row."""
_HELD = {key: tuple((path, *path.split(".")) for path in paths) for key, paths in HELD.items()}

FEW = frozenset({
    "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.system", "gen_ai.request.model", "gen_ai.response.model",
    "gen_ai.agent.name", "gen_ai.tool.name", "gen_ai.tool.type", "gen_ai.output.type", "gen_ai.response.finish_reasons",
    "ag2.span.type", "openinference.span.kind", "traceloop.span.kind", "llm.provider", "llm.system", "llm.model_name",
    "agent.name", "tool.name", "input.mime_type", "output.mime_type", "traceloop.workflow.name", "server.address",
    "gen_ai.agent.description", "gen_ai.tool.description", "error.type", "logfire.span_type", "logfire.json_schema",
})
"""Attributes with few different values in all of a database."""
_SMALL = frozenset(HELD) | FEW
_FEW_BYTES = 256
_WORDS = frozenset({
    "", "user", "assistant", "system", "developer", "tool", "function", "text", "tool_call", "tool_call_response",
    "reasoning", "stop", "length", "tool_calls", "content_filter", "json", "input_text", "output_text", "message",
})
"""Texts of a template that say nothing of the one row."""
_MISSING = object()


class Places:
    """What texts and containers a row holds, and where."""

    __slots__ = ("containers", "nodes", "ordered", "row", "texts")

    def __init__(self, *, ordered: bool = True) -> None:
        self.row: dict[str, Any] = {}
        self.texts: dict[str, str] = {}
        self.containers: dict[bytes, str] = {}
        self.nodes = 0
        self.ordered = ordered
        """Whether the database keeps the order of an object's keys, and so the text of a JSON text (jsonb does not)."""

    def put(self, column: str, value: Any) -> None:
        """Remember a column's value and what is in it."""
        self.row[column] = value
        kind = type(value)
        if kind is str:
            if len(value) >= _MIN_TEXT:
                self.texts.setdefault(value, column)
        elif kind is dict or kind is list:
            self._walk(column, value, 0)

    def _walk(self, path: str, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or self.nodes > _MAX_NODES:
            return
        self.nodes += len(value)
        if depth == 1 and self.ordered:
            self._add_container(path, value)
        items: Iterable[tuple[Any, Any]] = value.items() if type(value) is dict else enumerate(value)
        for key, item in items:
            kind = type(item)
            if kind is str:
                if len(item) >= _MIN_TEXT and (type(key) is int or "." not in key):
                    self.texts.setdefault(item, f"{path}.{key}")
            elif (kind is dict or kind is list) and (type(key) is int or "." not in key):
                self._walk(f"{path}.{key}", item, depth + 1)

    def _add_container(self, path: str, value: Any) -> None:
        try:
            data = orjson.dumps(value)
        except orjson.JSONEncodeError:
            return
        if len(data) >= _MIN_TEXT and b"null" not in data:
            self.containers.setdefault(data, path)


class _Unusable(Exception):  # noqa: N818 - a way out of the recursion
    pass


def pack(
    attributes: dict[str, Any], places: Places, *, own: bool = False, common: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes to store as they are, and the references for the others. With `own`, long texts that stay become
    places themselves (`@key`). References without anything of this row go to `common` where it is given."""
    refs: dict[str, Any] = {}
    texts = places.texts
    for key, value in attributes.items():
        kind = type(value)
        if common is not None and key in _SMALL:
            reference = _small(key, value, kind, places.row)
            if reference is not None:
                common[key] = reference
                continue
        if kind is str:
            if len(value) < _MIN_TEXT:
                continue
            path = texts.get(value)
            if path is not None:
                refs[key] = path
                continue
            if places.ordered and len(value) >= _MIN_JSON and value[0] in "[{":
                forms = _recent.get(key, ())
                for form in forms:
                    if form.writes(value, places.row):
                        break
                else:
                    form = None
                if form is not None:  # written like one before it, which is much quicker to see than to find out
                    if common is not None:
                        common[key] = form.reference
                    else:
                        refs[key] = form.reference
                    continue
                reference = _json_reference(value, places)
                if reference is not None:
                    if common is not None and _is_common(reference):
                        common[key] = reference
                        _remember(key, reference, forms)
                    else:
                        refs[key] = reference
                    continue
            if own:
                texts[value] = "@" + key
        elif (kind is list or kind is dict) and value:
            template = _template_of(value, places)
            if template is not None:
                refs[key] = {"value": template}
    if common is not None and refs:
        for key in [key for key, reference in refs.items() if _is_common(reference)]:
            common[key] = refs.pop(key)
    if not refs and not common:
        return attributes, refs
    gone = refs if not common else {**refs, **common}
    return {key: value for key, value in attributes.items() if key not in gone}, refs


class _Form:
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


_recent: dict[str, tuple[_Form, ...]] = {}
"""The forms last found for an attribute that is a JSON text, by its key."""
_FORMS = 4


def _remember(key: str, reference: dict[str, Any], forms: tuple[_Form, ...]) -> None:
    if len(_recent) >= 256:
        _recent.clear()
    others = [form for form in forms if form.reference != reference]
    _recent[key] = (_Form(reference), *others[: _FORMS - 1])


def _small(key: str, value: Any, kind: type, row: Mapping[str, Any]) -> Any | None:
    for path, column, *inner in _HELD.get(key, ()) if kind is not list and kind is not dict else ():
        held = row.get(column, _MISSING)
        if inner:
            held = held.get(inner[0], _MISSING) if type(held) is dict else _MISSING
        if type(held) is kind and held == value and (kind is not float or repr(held) == repr(value)):  # -0.0 is not 0.0
            return path
    if key in FEW and kind is str and len(value) <= _FEW_BYTES:
        return {"value": value}
    if key in FEW and kind is list and len(value) == 1 and type(value[0]) is str and len(value[0]) <= _MIN_TEXT:
        return {"value": value}
    return None


def _is_common(reference: Any) -> bool:
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
        template, found = _fill(value, places, 0)
    except (_Unusable, orjson.JSONEncodeError):
        return None
    return template if found else None


def _fill(value: Any, places: Places, depth: int) -> tuple[Any, bool]:
    kind = type(value)
    if kind is str:
        if len(value) < _MIN_TEXT:
            return value, False
        path = places.texts.get(value)
        if path is not None:
            return {"$": path}, True
        if places.ordered and len(value) >= _MIN_JSON and value[0] in "[{":
            inner = _json_reference(value, places)
            if inner is not None:
                return {"$json": [inner["json"], inner["value"]]}, True
        return value, False
    if kind is not dict and kind is not list:
        return value, False
    if depth > _MAX_DEPTH:
        raise _Unusable
    found = False
    if kind is list:
        items = []
        for item in value:
            filled, inside = _fill(item, places, depth + 1)
            items.append(filled)
            found = found or inside
        return items, found
    result = {}
    for key, item in value.items():
        if key[:1] == "$":
            raise _Unusable
        result[key], inside = _fill(item, places, depth + 1)
        found = found or inside
    return result, found


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
