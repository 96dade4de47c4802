"""Messages of frameworks as Python's `repr` or Pydantic's `str` writes them: AutoGen's `source='user' ... content='hi'`,
Haystack's and LlamaIndex's `ChatMessage(...)`. Instrumentations put such texts into JSON where an object has no other form.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["MAX_REPR", "message_of_repr"]

MAX_REPR = 1 << 20
"""Longest text that is looked through."""

_ROLE = re.compile(r"\b_?role=(?:<\w+\.\w+: )?'(\w{1,20})'")
_SOURCE = re.compile(r"\bsource='([^'\\]{1,200})'")
_TEXT = re.compile(r"\b(?:text|content)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|[nrt'\"\\])")
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_STARTS = ("ChatMessage(", "TextMessage(", "id='", "source='")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _CONTROLS.get(code, code)


def message_of_repr(text: Any) -> dict[str, Any] | None:
    """The role, the name and the texts of such a message, or `None` where `text` is no such thing."""
    if not isinstance(text, str) or not text.startswith(_STARTS) or len(text) > MAX_REPR:
        return None
    said = [_ESCAPE.sub(_unescaped, literal[1:-1]) for literal in _TEXT.findall(text)]
    source = _SOURCE.search(text)
    role = _ROLE.search(text)
    if not said or (source is None and role is None):
        return None
    message = {"role": role[1] if role is not None else "user" if source is not None and source[1] == "user" else "assistant"}
    if source is not None:
        message["name"] = source[1]
    return {**message, "content": "\n".join(said)}
