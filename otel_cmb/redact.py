"""Secrets replaced before anything is written. Pure; runs on the thread that ended the span.

:class:`Redactor` replaces what looks like a secret in every text of a span, and the whole value of an attribute whose
key names one. Nothing can prove that a text holds no secret: the patterns are those whose form is known. For more there
is a hook. What content is kept at all is another switch: :mod:`otel_cmb.capture`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from otel_cmb.capture import Capture, strip_content
from otel_cmb.event import Resource, Scope, Span
from otel_cmb.few import Few, weight

__all__ = ["DEFAULT", "FAILED", "Capture", "Hook", "Pattern", "Redactor", "install_hook", "strip_content"]

Hook = Callable[[str, str], str]
"""`hook(key, text) -> text`: the attribute's key (or `name`, `status_message`, `trace_state`, `event`, `scope`, `version`,
`schema_url`) and one text of it."""

FAILED = "[redacted: the redaction hook failed]"
_RUN = 20


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of secret. `needles` are lower-case texts one of which is in every match: the regular expression runs
    only around those found (none: everywhere, which costs). `replacement` is a template of :func:`re.sub`. `reach`: a
    match begins at most this many characters before a needle and ends at most 4,300 after it; 0: no such bounds.

    What else is in every match spares most texts the needles. `run`: 20 letters, digits, `_` or `-` in a row, which
    prose rarely has. `holds`: this character. `assigned`: one of these (lower case), and after it, with nothing but white
    space, quotes and backslashes between, `:` or `=`; a match that has `alone` in it (lower case) need not."""

    name: str
    needles: tuple[str, ...]
    regex: re.Pattern[str]
    replacement: str
    run: bool = False
    reach: int = 0
    holds: str = ""
    assigned: tuple[str, ...] = ()
    alone: str = ""


def _words(
    name: str, needles: Iterable[str], regex: str, replacement: str, *, reach: int = 64, holds: str = "",
    assigned: tuple[str, ...] = (), alone: str = "",
) -> Pattern:
    return Pattern(
        name, tuple(needles), re.compile(regex), replacement, reach=reach, holds=holds, assigned=assigned, alone=alone)


def _token(name: str, needles: Iterable[str], regex: str) -> Pattern:
    return Pattern(name, tuple(needles), re.compile(regex), f"[redacted: {name}]", run=True, reach=64)


_NAMES = (
    r"(?:pass(?:word|wd|phrase)|api[_-]?key|(?:client|app|shared)[_-]?secret|secret[_-]?(?:access[_-]?)?key"
    r"|(?:access|refresh|auth|bearer|session|id)[_-]?token|private[_-]?key|account[_-]?key)"
)
_NAME_NEEDLES = (
    "passw", "passphrase", "secret", "api_key", "api-key", "apikey", "private_key", "private-key", "privatekey",
    "account_key", "account-key", "accountkey", "_token", "-token", "accesstoken", "refreshtoken", "authtoken",
    "bearertoken", "sessiontoken", "idtoken",
)
_NAME_ENDS = (
    "password", "passwd", "passphrase", "secret", "api_key", "api-key", "apikey", "secret_key", "secret-key", "secretkey",
    "access_key", "access-key", "accesskey", "private_key", "private-key", "privatekey", "account_key", "account-key",
    "accountkey", "_token", "-token", "accesstoken", "refreshtoken", "authtoken", "bearertoken", "sessiontoken", "idtoken",
)
"""All that a text which `_NAMES` matches can end with."""
_COARSE = ("key", "token")
"""Looked for first: a text without them needs not be searched for the needles that contain them."""
# In an assignment without quotes the right side may be code that names the secret without holding it.
_CODE = (
    r"(?!\[redacted|os\.|env\b|environ|getenv|process\.|self\.|config|settings|none\b|null\b|true\b|false\b|str\b|input\("
    r"|optional|[a-z_.]+\(|[a-z_.]+\[|[<{$*])"
)

DEFAULT: tuple[Pattern, ...] = (
    _words("private key", ("-----begin",),
           r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
           "[redacted: private key]", reach=0, holds="Y"),
    _token("JWT", ("eyj",), r"\beyJ[A-Za-z0-9_-]{17,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
    _words("authorization", ("bearer ", "authorization"),
           r"((?i:\bbearer\s+|authorization[\"'\\]*\s*[:=]\s*[\"'\\]*(?:[a-z-]+\s+)?))"
           r"(?!\[redacted)(?=[a-z.~+/=_-]*[0-9A-Z=+/])[A-Za-z0-9._~+/=-]{8,}", r"\1[redacted: authorization]",
           assigned=("authorization",), alone="bearer"),
    _token("API key", ("sk-", "sk_", "rk_", "pk-lf-"),
           r"(?<![A-Za-z0-9])(?:(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
           r"|(?:sk|pk-lf)-(?=[A-Za-z_-]*[0-9A-Z])[A-Za-z0-9_-]{17,})"),
    _token("GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
           r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    _token("GitLab token", ("glpat-",), r"\bglpat-[A-Za-z0-9_-]{20,}"),
    _token("AWS key", ("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    _token("Slack token", ("xox",), r"\bxox[abeprs]-[A-Za-z0-9-]{15,}"),
    _token("Google key", ("aiza", "ya29."), r"\b(?:AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,})"),
    _token("Hugging Face token", ("hf_",), r"\bhf_[A-Za-z0-9]{30,}"),
    _words("password", ("://",), r"(://[^\s:/@\"'<>\\]{0,256}:)(?!\[redacted)[^\s/@\"'<>\\]{1,1024}(?=@)",
           r"\1[redacted: password]", holds="@"),
    _words("secret", _NAME_NEEDLES,
           rf"(?i)({_NAMES}(?:\\*[\"'])?\s*(?:[:=]|=>)\s*(?P<quote>\\*[\"']))(?!\[redacted)"
           r"(?:(?!(?P=quote))(?:\\.|[\s\S])){1,4096}", r"\1[redacted: secret]", assigned=_NAME_ENDS),
    _words("secret", _NAME_NEEDLES,
           rf"(?i)({_NAMES}(?P<quote>\\*[\"'])\s*:\s*)-?[0-9][0-9.]{{3,}}",
           r"\1\g<quote>[redacted: secret]\g<quote>", assigned=_NAME_ENDS),
    _words("secret", _NAME_NEEDLES,
           rf"(?i)({_NAMES}\s*[:=]\s*){_CODE}[^\s\"'\\,;&)}}\]]{{4,}}", r"\1[redacted: secret]", assigned=_NAME_ENDS),
)

_SECRET_KEY = re.compile(
    rf"(?i)(?:^|[._-])(?:(?:proxy[_-])?authorization|(?:x[_-])?{_NAMES}|(?:set[_-])?cookie|credentials?|secret|passwd|pwd)$"
)
_MAX_KEYS = 4096
_MAX_DEPTH = 40

_installed: list[Hook] = []


def install_hook(hook: Hook | None) -> None:
    """The hook of every :class:`Redactor` of this process that was given none. `None` takes it away."""
    _installed[:] = [] if hook is None else [hook]


_IN_A_RUN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_RUNS = bytes(97 if byte in _IN_A_RUN else 32 for byte in range(256))
_RUN_NEEDLE = b"a" * _RUN
_BETWEEN = " \t\n\r\f\v\x1c\x1d\x1e\x1f\"'\\"
"""What may stand between a name and its `:` or `=`: all ASCII that `\\s` matches, quotes, backslashes."""
_APART = 24
"""Characters for each `:` from which on looking before it is cheaper than looking for every needle in the text."""
_SPLIT = 65_536
"""Longest text that is split at its colons: the pieces of a longer one take memory."""
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
        self._totals: dict[int, tuple[int, int]] = {}
        self._here = _Here()
        self._blind = any(not pattern.needles for pattern in patterns)
        self._alone = tuple(dict.fromkeys(
            (needle, pattern.holds) for pattern in patterns if not pattern.run
            for needle in ((pattern.alone,) if pattern.alone else () if pattern.assigned else pattern.needles)))
        self._ends = tuple(dict.fromkeys(end for pattern in patterns for end in pattern.assigned))
        self._last = frozenset(end[-3:] for end in self._ends)
        words = dict.fromkeys(needle for pattern in patterns if pattern.assigned for needle in pattern.needles)
        self._words = tuple(needle for needle in words if not any(coarse in needle for coarse in _COARSE))
        self._coarse = tuple(
            (coarse, tuple(needle for needle in words if coarse in needle)) for coarse in _COARSE
            if any(coarse in needle for needle in words)
        )
        self._tokens = tuple({needle for pattern in patterns if pattern.run for needle in pattern.needles})
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

    def names_secret(self, key: str) -> bool:
        """Whether an attribute's key says that its value is a secret."""
        return _SECRET_KEY.search(key) is not None

    # The fast path: one look over everything that could hold a secret.

    def _suspicious(self, span: Span) -> bool:
        texts = [span.name]
        if span.status_message:
            texts.append(span.status_message)
        if span.trace_state:
            texts.append(span.trace_state)
        if self._blind or not self._gather(span.attributes, texts):
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

    def may_hold(self, text: str) -> bool:
        """Whether a pattern may match somewhere in the text, or in one of several joined by line breaks. `False` is
        certain."""
        if self._blind:
            return True
        lowered = text.lower()
        for needle, character in self._alone:
            if character in text and needle in lowered:
                return True
        if (":" in text or "=" in text) and self._may_assign(text, lowered):
            return True
        if _RUN_NEEDLE in text.encode("utf-8", "replace").translate(_RUNS):
            for needle in self._tokens:
                if needle in lowered:
                    return True
        return False

    def _may_assign(self, text: str, lowered: str) -> bool:
        """Whether the name of a secret may stand before a `:` or `=`."""
        if "=" in lowered:
            lowered = lowered.replace("=", ":")
        # beyond ASCII a regular expression that ignores case takes more letters for an `s` or `k` than lower() makes one
        size = len(lowered)
        if size <= _SPLIT and text.isascii() and len(pieces := lowered.split(":", size // _APART)) * _APART < size:
            if self._last.isdisjoint([piece.rstrip(_BETWEEN)[-3:] for piece in pieces]):
                return False
            return any(piece.rstrip(_BETWEEN).endswith(self._ends) for piece in pieces[:-1])
        for needle in self._words:
            if needle in lowered:
                return True
        return any(coarse in lowered and any(needle in lowered for needle in needles) for coarse, needles in self._coarse)

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
            if _SECRET_KEY.search(key):
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
        return {
            key: self._secret_value(key, value) if key not in self._plain_keys and _SECRET_KEY.search(key)
            else self._value(key, value, hook, depth)
            for key, value in mapping.items()
        }

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
