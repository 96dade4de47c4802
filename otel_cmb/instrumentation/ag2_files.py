"""Which files a code execution wrote: the working directory before and after, at a bounded cost."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Snapshot", "Written", "file_type"]

MAX_FILES = 5_000
"""Directory entries looked at per snapshot; about 20 ms on a local disk."""
MAX_DEPTH = 8
MAX_WRITTEN = 200

SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
OWN_SCRIPT = re.compile(r"tmp_code_[0-9a-f]{32}\.\w+")
"""AG2's name for code that has none (`coding/local_commandline_code_executor.py`, `code_utils.py`)."""
DATABASE_SIDE_FILES = ("-wal", "-shm", "-journal")

# The application's file types: plan, code, data, plot, report, chat, context, log, other.
TYPES = {
    "code": "py ipynb sh bash zsh ps1 js mjs ts jsx tsx css c h cc cpp hpp cu f f90 f95 go java jl kt lua m pl php r "
            "rb rs scala sql swift",
    "data": "csv tsv json jsonl ndjson yaml yml toml xml ini parquet feather arrow npy npz pkl pickle h5 hdf5 hdf nc "
            "fits mat dat db sqlite sqlite3 xlsx xls ods root rds zip gz tar txt",
    "plot": "png jpg jpeg gif svg bmp tif tiff webp eps",
    "report": "md pdf html htm tex docx doc odt rst rtf pptx ppt bib",
    "log": "log out err",
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in TYPES.items() for suffix in suffixes.split()}
_BY_STEM = (
    (re.compile(r"(^|[_-])plans?($|[_-])"), "plan"), (re.compile(r"^(chat|conversation)([_-]|$)"), "chat"),
    (re.compile(r"(^|[_-])context($|[_-])"), "context"),
)


def file_type(path: str) -> str:
    """The application's type of a file, by its name."""
    stem, dot, suffix = os.path.basename(path).lower().rpartition(".")
    kind = _BY_SUFFIX.get(suffix, "other") if dot else "other"
    if kind in ("data", "report", "other"):
        kind = next((named for pattern, named in _BY_STEM if pattern.search(stem or suffix)), kind)
    return kind


class Written(NamedTuple):
    path: str
    size: int


class _Stat(NamedTuple):
    mtime_ns: int
    size: int
    inode: int


class Snapshot:
    """The files below `directory` as they are now. `directory` may not exist yet."""

    def __init__(self, directory: str, not_ours: Iterable[str] = ()):
        """`not_ours`: files and directories to leave out, with all that is below them."""
        self.directory = directory
        self._left_out = tuple(os.path.abspath(path) for path in not_ours)
        self._since = time.time_ns()
        self._complete, self._files = _scan(directory)

    def written(self, own: Iterable[str] = ()) -> list[Written]:
        """Files that are new or changed since, oldest first; not the executor's own scripts (nor those named `own`).

        Paths start with `directory` as the program wrote it. A file is reported once, also when two executions in the
        same directory overlap.
        """
        complete, now = _scan(self.directory)
        own_names = frozenset(own)
        found = []
        for path, stat in now.items():
            name = os.path.basename(path)
            if self._files.get(path) == stat or OWN_SCRIPT.fullmatch(name) or name in own_names or self._is_out(path):
                continue
            if not (self._complete and complete) and stat.mtime_ns < self._since:
                continue  # too many files to know them all: only what is new by its time
            found.append((stat.mtime_ns, path, stat))
        return [Written(path, stat.size) for _, path, stat in sorted(found)[:MAX_WRITTEN] if _first(path, stat)]

    def _is_out(self, path: str) -> bool:
        absolute = os.path.abspath(path)
        return any(absolute == out or absolute.startswith(out + os.sep) for out in self._left_out)


def _scan(directory: str) -> tuple[bool, dict[str, _Stat]]:
    found: dict[str, _Stat] = {}
    for seen, entry in enumerate(_walk(directory, 0)):
        if seen == MAX_FILES:
            return False, found
        with contextlib.suppress(OSError):  # gone meanwhile
            stat = entry.stat(follow_symlinks=False)
            found[entry.path] = _Stat(stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return True, found


def _walk(directory: str, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in listed}
    directories = []
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry)
        elif entry.is_file(follow_symlinks=False) and not _is_live_database(entry.name, names):
            yield entry
    for entry in directories:
        if depth < MAX_DEPTH and not entry.name.startswith(".") and entry.name not in SKIPPED_DIRECTORIES:
            yield from _walk(entry.path, depth + 1)


def _is_live_database(name: str, names: set[str]) -> bool:
    """A SQLite database that somebody (most likely we) has open, and what belongs to it."""
    return name.endswith(DATABASE_SIDE_FILES) or any(name + side in names for side in DATABASE_SIDE_FILES)


_reported: OrderedDict[str, _Stat] = OrderedDict()
_lock = threading.Lock()


def _first(path: str, stat: _Stat) -> bool:
    key = os.path.abspath(path)
    with _lock:
        if _reported.get(key) == stat:
            return False
        _reported[key] = stat
        _reported.move_to_end(key)
        while len(_reported) > 4096:
            _reported.popitem(last=False)
        return True
