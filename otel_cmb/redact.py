"""Secrets replaced before anything is written. Pure; runs on the thread that ended the span.

:class:`Redactor` replaces what looks like a secret in every text of a span, and the whole value of an attribute whose
key names one. Ids that name rows (:data:`IDS`) stay as they are: they are keys, not content, and a row is found by nothing
else. Nothing can prove that a text holds no secret: the patterns (:mod:`otel_cmb.secret_patterns`) are those whose form is
known. For more there is a hook. What content is kept at all is another switch: :mod:`otel_cmb.capture`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few, weight
from otel_cmb.secret_patterns import DEFAULT, SECRET_KEY, Pattern, Sieve

__all__ = ["DEFAULT", "FAILED", "IDS", "Hook", "Pattern", "Redactor", "install_hook"]

Hook = Callable[[str, str], str]
"""`hook(key, text) -> text`: the attribute's key (or `name`, `status_message`, `trace_state`, `event`, `scope`, `version`,
`schema_url`) and one text of it."""

IDS = frozenset(("cmb.run.id", "cmb.session.id", "cmb.node.id", "cmb.step.id", "cmb.parent_event_id"))
"""Attributes whose texts name rows. What the context says of them (:class:`~otel_cmb.event.Stamp`), and the ids of `run()`,
`node()` and `step()`, are taken as they are too: else the same row would have two names."""

FAILED = "[redacted: the redaction hook failed]"
_MAX_KEYS = 4096
_MAX_DEPTH = 40

_installed: list[Hook] = []


def install_hook(hook: Hook | None) -> None:
    """The hook of every :class:`Redactor` of this process that was given none. `None` takes it away."""
    _installed[:] = [] if hook is None else [hook]


_SHORT = 64
_LONG = 4096
_AFTER = 4300
_T = TypeVar("_T")
_SHARED_TEXTS = {"name": "scope", "version": "version", "schema_url": "schema_url"}
"""Texts of a scope, and of a resource as far as it has them: field, and key for the hook."""


class _Here(threading.local):
    """What one thread's call has counted so far: spans end on many threads."""

    replaced = 0
    failed = 0


class Redactor:
    """Replaces secrets in spans. `hook`, if given, sees every text after the patterns; when it raises, or returns no
    text, the whole text is replaced and `hook_failures` counts it: it fails closed. Threads may share it.

    About 4 µs for a dozen attributes with a 600-byte prompt and a 400-byte answer in which nothing is found.
    """

    def __init__(self, patterns: tuple[Pattern, ...] = DEFAULT, hook: Hook | None = None) -> None:
        self.patterns = patterns
        self.hook = hook
        self._sieve = Sieve(patterns)
        self.may_hold = self._sieve.may_hold
        """See :meth:`Sieve.may_hold`."""
        self._totals: dict[int, tuple[int, int]] = {}
        self._here = _Here()
        self._plain_keys: set[str] = set()
        self._plain_texts: set[str] = set()
        self._shared: Few[int, tuple[Any, Any, Hook | None]] = Few()

    def span(self, span: Span) -> int:
        """Replace what is secret in all texts of `span` and return how many replacements were made. Attribute dicts and
        shared objects (resource, scope) are replaced, never changed."""
        here = self._here
        here.replaced = here.failed = 0
        hook = self.hook or (_installed[0] if _installed else None)
        if hook is not None or self._suspicious(span):
            self._all(span, hook)
        span.resource = self._once(span.resource, hook)
        span.scope = self._once(span.scope, hook)
        return self._counted()

    def text(self, text: str, key: str = "") -> str:
        """One text, for what is no span (a task description, a file's content)."""
        here = self._here
        here.replaced = here.failed = 0
        result = self._text(key, text, self.hook or (_installed[0] if _installed else None))
        self._counted()
        return result

    def values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What keys say, for what is no span (a run's task, its meta): as the attributes of a span."""
        here = self._here
        here.replaced = here.failed = 0
        result = self._mapping(values, self.hook or (_installed[0] if _installed else None), 0)
        self._counted()
        return result

    def _counted(self) -> int:
        """Add what this thread has just done to the totals."""
        here = self._here
        if here.replaced:
            mine = threading.get_ident()  # nobody else writes this entry, so no lock is needed, which a fork could hold
            replaced, failed = self._totals.get(mine, (0, 0))
            self._totals[mine] = (replaced + here.replaced, failed + here.failed)
        return here.replaced

    @property
    def replaced(self) -> int:
        """Replacements made so far, by all threads."""
        return sum(replaced for replaced, _ in list(self._totals.values()))

    @property
    def hook_failures(self) -> int:
        """Texts replaced because the hook failed."""
        return sum(failed for _, failed in list(self._totals.values()))

    @property
    def hooked(self) -> bool:
        """Whether there is a hook now, which sees every text."""
        return self.hook is not None or bool(_installed)

    def minds_key(self, key: str) -> bool:
        """Whether an attribute's key says that its value is a secret, or has the form of one."""
        return SECRET_KEY.search(key) is not None or (
            self.may_hold(key) and any(pattern.regex.search(key) for pattern in self.patterns))

    # The fast path: one look over everything that could hold a secret.

    def _suspicious(self, span: Span) -> bool:
        texts = [span.name]
        if span.status_message:
            texts.append(span.status_message)
        if span.trace_state:
            texts.append(span.trace_state)
        if self._sieve.blind or not self._gather(span.attributes, texts):
            return True
        for event in span.events:
            texts.append(event.name)
            if not self._gather(event.attributes, texts):
                return True
        for link in span.links:
            if link.trace_state:
                texts.append(link.trace_state)
            if not self._gather(link.attributes, texts):
                return True
        return self.may_hold("\n".join(texts))

    def _gather(self, attributes: dict[str, Any], texts: list[str]) -> bool:
        """Add the texts to look at; False when the slow path has to look."""
        if not self._plain_keys.issuperset(attributes) and not self._learn(attributes):
            return False
        known = self._plain_texts
        for value in attributes.values():
            kind = type(value)
            if kind is str:
                if len(value) > _SHORT:
                    texts.append(value)
                elif value not in known:
                    if self.may_hold(value):
                        return False
                    self._remember(value)
            elif kind is list:
                for item in value:
                    if type(item) is str:
                        if item not in known:
                            texts.append(item)
                    elif type(item) in (dict, list, bytes):
                        return False
            elif kind is dict or kind is bytes:
                return False
        return True

    def _remember(self, text: str) -> None:
        """Short texts repeat from span to span (models, agents, run ids)."""
        if len(self._plain_texts) >= _MAX_KEYS:
            self._plain_texts.clear()
        self._plain_texts.add(text)

    def _learn(self, attributes: dict[str, Any]) -> bool:
        if len(self._plain_keys) > _MAX_KEYS:
            self._plain_keys.clear()
        for key in attributes:
            if self.minds_key(key):
                return False
            self._plain_keys.add(key)
        return True

    # The slow path: walk and replace.

    def _all(self, span: Span, hook: Hook | None) -> None:
        span.name = self._text("name", span.name, hook)
        if span.status_message:
            span.status_message = self._text("status_message", span.status_message, hook)
        if span.trace_state:
            span.trace_state = self._text("trace_state", span.trace_state, hook)
        span.attributes = self._attributes(span.attributes, hook)
        for event in span.events:
            event.name = self._text("event", event.name, hook)
            event.attributes = self._attributes(event.attributes, hook)
        for link in span.links:
            if link.trace_state:
                link.trace_state = self._text("trace_state", link.trace_state, hook)
            link.attributes = self._attributes(link.attributes, hook)

    def _attributes(self, attributes: dict[str, Any], hook: Hook | None) -> dict[str, Any]:
        return self._mapping(attributes, hook, 0) if attributes else attributes

    def _mapping(self, mapping: Mapping[str, Any], hook: Hook | None, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in mapping.items():
            if depth == 0 and type(value) is str and key in IDS:
                result[key] = value
            elif key in self._plain_keys:
                result[key] = self._value(key, value, hook, depth)
            else:
                shown = self._key(key, mapping, result) if self.may_hold(key) else key
                result[shown] = (
                    self._secret_value(shown, value) if SECRET_KEY.search(key) else self._value(key, value, hook, depth))
        return result

    def _key(self, key: str, mapping: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        """A key with what has the form of a secret in it replaced; two keys that differ only in that stay two."""
        found = self._text("", key, None)
        if found == key:
            return key
        n, shown = len(result), found
        while found in mapping or found in result:
            n += 1
            found = f"{shown} {n}"
        return found

    def _secret_value(self, key: str, value: Any) -> Any:
        """The whole value of an attribute whose key names a secret."""
        marker = f"[redacted: {key[-40:]}]"
        if value is None or type(value) is bool or value in ("", marker):
            return value
        self._here.replaced += 1
        return marker

    def _value(self, key: str, value: Any, hook: Hook | None, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._text(key, value, hook)
        if kind is list and depth < _MAX_DEPTH:
            return [self._value(key, item, hook, depth + 1) for item in value]
        if kind is dict and depth < _MAX_DEPTH:
            return self._mapping(value, hook, depth + 1)
        if kind is bytes:
            text = value.decode("utf-8", "surrogateescape")
            found = self._text(key, text, hook)
            return value if found == text else found.encode("utf-8", "surrogateescape")
        return value

    def _text(self, key: str, text: str, hook: Hook | None) -> str:
        lowered = text.lower()
        for pattern in self.patterns:
            if not pattern.needles:
                text, found = pattern.regex.subn(pattern.replacement, text)
                self._here.replaced += found
            elif any(needle in lowered for needle in pattern.needles):
                before = text
                text = self._replace(pattern, text, lowered)
                if text is not before:
                    lowered = text.lower()
        if hook is None:
            return text
        try:
            result = hook(key, text)
        except Exception:  # noqa: BLE001 - foreign code; the text must not pass
            result = None
        if type(result) is not str:
            self._here.failed += 1
            self._here.replaced += 1
            return FAILED
        self._here.replaced += result != text
        return result

    def _replace(self, pattern: Pattern, text: str, lowered: str) -> str:
        if len(text) <= _LONG or not pattern.reach or len(lowered) != len(text):  # some letters are two in lower case
            result, found = pattern.regex.subn(pattern.replacement, text)
            self._here.replaced += found
            return result if found else text
        pieces, done = [], 0
        for start, end in _windows(pattern, lowered):
            piece, found = pattern.regex.subn(pattern.replacement, text[start:end])
            if found:
                self._here.replaced += found
                pieces += [text[done:start], piece]
                done = end
        return "".join([*pieces, text[done:]]) if pieces else text

    # Shared by many spans: looked at once.

    def _once(self, shared: _T, hook: Hook | None) -> _T:
        known = self._shared.get(id(shared))
        if known is None or known[2] is not hook:
            result: Any = shared
            if isinstance(shared, (Resource, Scope)):
                found: dict[str, Any] = {
                    name: self._text(key, text, hook)
                    for name, key in _SHARED_TEXTS.items() if (text := getattr(shared, name, ""))}
                found["attributes"] = self._attributes(shared.attributes, hook)
                if any(value != getattr(shared, name) for name, value in found.items()):
                    result = replace(shared, **found)
            heavy = weight(shared, result)
            self._shared.keep(id(result), (result, result, hook), heavy)
            known = self._shared.keep(id(shared), (shared, result, hook), heavy)
        return known[1]  # type: ignore[no-any-return]


def _windows(pattern: Pattern, lowered: str) -> list[tuple[int, int]]:
    """Where in a long text the pattern may match: around its needles, overlaps joined."""
    found: list[int] = []
    for needle in pattern.needles:
        at = lowered.find(needle)
        while at >= 0:
            end = at + len(needle)
            if not (needle.endswith("token") and lowered[end : end + 1] == "s"):  # max_tokens, in every LLM call
                found.append(at)
            at = lowered.find(needle, end)
    windows: list[tuple[int, int]] = []
    for at in sorted(found):
        start, end = max(at - pattern.reach, 0), min(at + _AFTER, len(lowered))
        if windows and start <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((start, end))
    return windows
