"""Names of the nodes that top-level chats are, different ones for every chat of a run, whichever process it is in.

`chat_1`, `chat_2`, ... where somebody counts: all processes of one `otel-cmb run` count in one file, and a process counts
the chats of the runs it made itself. Where nobody can (a run of another process, perhaps on another host), the names
carry a token of the process: `chat_3f2a9c_1`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading

from otel_cmb import context
from otel_cmb.environment import Variable
from otel_cmb.surroundings import RUN

__all__ = ["NUMBERS", "begin_numbers", "end_numbers", "forget_names", "next_name"]

NUMBERS = "OTEL_CMB_CHAT_NUMBERS"
"""Set by `otel-cmb run`: the file in which its processes count the chats of `OTEL_CMB_RUN_ID`, a byte for each."""

_numbers = Variable(NUMBERS)
_lock = threading.Lock()
_counts: dict[tuple[str | None, int], int] = {}
_tokens: dict[int, str] = {}
_home = os.getpid()


def begin_numbers(directory: str, run_id: str) -> str | None:
    """Make the file to count in, and say its path; `None` where it cannot be made."""
    path = os.path.join(directory, f"chats-{run_id}")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        return None
    return path


def end_numbers(path: str | None) -> None:
    """Nobody counts any more; a process that is still there gets names with its token."""
    if path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)


def forget_names() -> None:
    """Count from 1 again."""
    with _lock:
        _counts.clear()


def next_name() -> str:
    """The name of the next top-level chat of the current run."""
    run_id, process = context.current().run_id, os.getpid()
    path, counted = _numbers.get(), RUN.get()
    if path and run_id is not None and run_id == counted and (number := _number_in(path)):
        return f"chat_{number}"
    with _lock:
        _counts[run_id, process] = number = _counts.get((run_id, process), 0) + 1
        if context.made_here(run_id) if run_id is not None else not _is_child(process):
            return f"chat_{number}"
        token = _tokens.get(process)
        if token is None:
            token = _tokens[process] = secrets.token_hex(3)
    return f"chat_{token}_{number}"


def _number_in(path: str) -> int:
    """The next number of all processes that count in the file; 0 where it cannot be had. An append is atomic, and the
    descriptor stands behind what it appended."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        os.write(descriptor, b".")
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _is_child(process: int) -> bool:
    """A process that a program forked or spawned: it may have its parent's automatic run."""
    # Half imported by another thread: this process began without it, so it is no child.
    parent_process = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    return process != _home or (parent_process is not None and parent_process() is not None)
