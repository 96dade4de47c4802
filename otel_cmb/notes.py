"""What a program under `otel-cmb run` lets the command know, so that a run without events can say why.

One file per command, a word a line: `traced` when tracing began in a process of the program, `run` when the program made a
run of its own, `module NAME` when it imported a framework that is instrumented.
"""

from __future__ import annotations

import contextlib
import os
import secrets

from otel_cmb.environment import Variable

__all__ = ["MODULE", "NOTES", "RUN_MADE", "TRACED", "begin_notes", "note", "taken_notes"]

NOTES = "OTEL_CMB_NOTES"
"""Set by `otel-cmb run`: the file."""

TRACED, RUN_MADE, MODULE = "traced", "run", "module "

LONGEST = 65_536
"""Bytes that are read of it: processes come by the thousand, what there is to say does not."""

_file = Variable(NOTES)
_said: set[str] = set()


def begin_notes(directory: str) -> str | None:
    """Make the file, and say its path; `None` where it cannot be made."""
    path = os.path.join(directory, f"notes-{secrets.token_hex(8)}")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        return None
    return path


def note(word: str) -> None:
    """Let the command know, once per process. Does nothing where there is no command, and never raises."""
    path = _file.get()
    if not path or word in _said:
        return
    _said.add(word)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{word}\n".encode())
        finally:
            os.close(descriptor)


def taken_notes(path: str | None) -> set[str] | None:
    """What was said; the file is gone then. `None` where there was none."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return set(file.read(LONGEST).splitlines())
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
