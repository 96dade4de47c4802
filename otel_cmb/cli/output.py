"""What goes to a terminal, a pipe or a file: what its encoding lacks is replaced, instead of ending the command."""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["fit_output"]

ERRORS = "otel-cmb"
PLAIN = {"✓": "+", "✗": "x", "×": "x", "━": "=", "╸": "-", "╺": "-", "─": "-", "│": "|", "├": "|", "└": "`", "·": "-",
         "→": ">", "…": "."}
"""One character each: columns stay where they are."""


def fit_output(*, json: bool) -> None:
    """Standard output and error take every text from here on. JSON is UTF-8 wherever it goes (RFC 8259, section 8.1)."""
    codecs.register_error(ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf_8 = json and stream is sys.stdout
            stream.reconfigure(encoding="utf-8" if utf_8 else None, errors=ERRORS)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end
