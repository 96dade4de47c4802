"""One run as one HTML file: the same page with its data inside, to mail or to attach to a paper.

The file loads nothing and runs nothing but its own script, which its Content-Security-Policy names by hash. Payloads
lie in pieces that the page takes apart when one of their events is opened, so that a large file opens fast.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from otel_cmb._version import __version__
from otel_cmb.reader import Event, Reader
from otel_cmb.reader.values import to_json
from otel_cmb.ui.app import static
from otel_cmb.ui.live import COLUMNS, row_of

__all__ = ["write_html"]

MODULES = (
    "dom.js", "format.js", "source.js", "highlight.js", "values.js", "model.js", "waterfall.js", "dag.js", "lanes.js",
    "panel.js", "list.js", "run.js", "main.js",
)
"""In the order of their imports. Top-level names are unique over all of them, so that they can be put in a row."""

PIECE_BYTES = 1_000_000
PAGE = 200
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|class|const|async)", re.MULTILINE)


def write_html(reader: Reader, run_id: str, path: str | os.PathLike[str]) -> int:
    """Write the run as one self-contained file, replacing `path` when it is complete. Answers the number of events.

    Raises :class:`RunNotFoundError`; an `OSError` of the file system is passed on.
    """
    run = reader.run(run_id)
    directory = os.path.dirname(os.path.abspath(path))
    handle, waiting = tempfile.mkstemp(prefix=".otel-cmb-", suffix=".html", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in _parts(reader, run_id, run.task_description or f"Run {run_id}"):
                file.write(part)
        os.chmod(waiting, 0o666 & ~_umask())
        os.replace(waiting, path)
    except BaseException:
        os.unlink(waiting)
        raise
    return reader.run_totals([run_id])[run_id].events


def _parts(reader: Reader, run_id: str, title: str) -> Iterator[bytes]:
    script, style = _script(), static("style.css").decode()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="generator" content="otel-cmb {__version__}">\n'
        f"<title>{html.escape(title[:80])}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<header id="top" role="banner"></header>\n<div id="notice" role="status" aria-live="polite"></div>\n'
        '<main id="content" tabindex="-1"></main>\n'
    ).encode()
    places: dict[str, int] = {}
    for number, piece in enumerate(_pieces(reader, run_id)):
        places.update(dict.fromkeys(piece, number))
        rows = b",".join(to_json(key) + b":" + row for key, row in piece.items())
        yield _data(f"events-{number}", b"{" + rows + b"}")
    yield _data("data", to_json(_whole(reader, run_id, places)))
    yield f'<script type="module">{script}</script>\n</body>\n</html>\n'.encode()


def _whole(reader: Reader, run_id: str, places: dict[str, int]) -> dict[str, Any]:
    return {
        "info": {"version": __version__, "database": f"exported by otel-cmb {__version__}", "jaeger_url": None},
        "live": {
            "run": reader.run(run_id).to_dict(), "next": None, "columns": COLUMNS,
            "rows": [row_of(line) for line in reader.lines(run_id)],
            "graph": {
                "nodes": [node.to_dict() for node in reader.nodes(run_id)],
                "edges": [edge.to_dict() for edge in reader.edges(run_id)],
            },
        },
        "totals": reader.totals(run_id).to_dict(),
        "files": [file.to_dict() for file in reader.files(run_id)],
        "messages": [message.to_dict() for message in reader.messages(run_id)],
        "histories": reader.histories(run_id), "places": places,
    }


def _pieces(reader: Reader, run_id: str) -> Iterator[dict[str, bytes]]:
    """Events by id, as JSON, in pieces of about a megabyte."""
    piece: dict[str, bytes] = {}
    size = 0
    after: str | None = None
    while True:
        stored: list[Event] = reader.events(run_id, limit=PAGE, after=after, whole=False)
        for event, whole in zip(stored, reader.whole(stored), strict=True):
            spans = [_shortened(span) if whole is not event else span for span in reader.spans(whole)]
            piece[event.id] = to_json({"event": event.to_dict(), "spans": spans})
            size += len(piece[event.id])
            if size >= PIECE_BYTES:
                yield piece
                piece, size = {}, 0
        if len(stored) < PAGE:
            break
        after = stored[-1].cursor
    if piece:
        yield piece


def _shortened(span: dict[str, Any]) -> dict[str, Any]:
    """Conversations are in the file once; here they would be once per call."""
    attributes = {
        key: f"{value[:500]}… ({len(value)} characters, see the messages above)"
        if isinstance(value, str) and len(value) > 2000 else value
        for key, value in span.get("attributes", {}).items()
    }
    return {**span, "attributes": attributes}


def _script() -> str:
    """The page's modules in a row, as one module."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", static(name).decode())) for name in MODULES)


def _data(key: str, json: bytes) -> bytes:
    # In JSON `<` occurs in texts only; escaped it can end no element and open no comment.
    return f'<script type="application/json" id="{key}">'.encode() + json.replace(b"<", b"\\u003c") + b"</script>\n"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
