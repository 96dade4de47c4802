"""Where journals are, and whose: one directory each, with a lock file that its owner holds while it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time

__all__ = [
    "database_directory", "identity", "is_mine", "is_owned", "journals", "let_go", "make", "make_private", "never_again",
    "owner_of", "release", "take", "take_again",
]

_mine: set[str] = set()
"""Paths this process owns or has adopted. A second descriptor on the same lock file would not conflict with itself after
a fork, so these are skipped by name."""


_never_again: set[tuple[int, int]] = set()
"""Files (device, inode) of connections that are kept for ever. SQLite knows a file by these numbers for as long as a connection
of the process is open; the next file that gets them, when the file is gone, would be locked for this process for ever."""


def make_private(path: str) -> None:
    """Make an empty file that only its owner can read, if there is none. SQLite gives its side files the same mode.

    One that exists is not opened: closing it would drop the locks that connections of this process hold on it. The new one
    is none of those of :func:`never_again`.
    """
    if os.path.exists(path):
        return
    if not _never_again:
        with contextlib.suppress(FileExistsError):
            _make_empty(path)
        return
    made = []
    try:
        for n in range(len(_never_again) + 1):  # each is there while the next is made: their numbers differ
            made.append(name := f"{path}.{os.getpid()}-{n}-{secrets.token_hex(3)}")
            if _make_empty(name) not in _never_again:
                with contextlib.suppress(OSError):  # another process was faster; without hard links SQLite makes it
                    os.link(name, path)
                break
    finally:
        for name in made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _make_empty(path: str) -> tuple[int, int] | None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        return identity(fd)
    finally:
        os.close(fd)


def never_again(file: tuple[int, int] | None) -> None:
    """A connection to this file (device, inode) is kept for ever."""
    if file is not None:
        _never_again.add(file)


def database_directory(state_dir: str, key: str) -> str:
    """Where the journals of one database are; `key` names the database without its password."""
    return os.path.join(state_dir, key)


def journals(directory: str) -> list[str]:
    """Paths of all journals under a database's directory, oldest first."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [path for name in names if os.path.isfile(os.path.join(path := os.path.join(directory, name), "lock"))]


def make(directory: str, run_id: str) -> tuple[str, int]:
    """A new journal's directory under `directory`: its path, and the descriptor that holds its lock. Raises `OSError`."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    while True:
        path = os.path.join(directory, f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}")
        os.mkdir(path, 0o700)
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(os.path.join(path, "lock")):
                break
        except OSError:
            pass
        os.close(fd)  # an adopter was faster than the owner, and may have removed the empty journal already
    os.write(fd, f"{os.getpid()}\n{run_id}\n".encode())
    _mine.add(path)
    return path, fd


def take(path: str) -> int | None:
    """The descriptor that holds the lock of a journal whose owner is gone; `None` if the owner lives (or another adopter
    was faster)."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.exists(os.path.join(path, "lock")):  # removed between open and lock
            raise OSError
    except OSError:
        os.close(fd)
        return None
    _mine.add(path)
    return fd


def take_again(path: str, fd: int | None) -> int:
    """The descriptor that holds the lock of our own journal: `fd`, or a new one where that is no longer ours. Raises `OSError`
    where another process was faster, and may have removed the journal already."""
    lock = os.path.join(path, "lock")
    found = os.stat(lock)
    if fd is not None and identity(fd) == (found.st_dev, found.st_ino):
        return fd
    again = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(lock)  # removed between open and lock
    except OSError:
        os.close(again)
        raise
    return again


def let_go(path: str, fd: int | None) -> None:
    """Close the descriptor of a journal's lock if it still is that."""
    with contextlib.suppress(OSError):
        found = os.stat(os.path.join(path, "lock"))
        if fd is not None and identity(fd) == (found.st_dev, found.st_ino):
            os.close(fd)


def identity(fd: int) -> tuple[int, int] | None:
    """Which file the descriptor is of (device, inode); `None` when it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def release(path: str) -> None:
    """This process has nothing to do with the journal any more."""
    _mine.discard(path)


def is_mine(path: str) -> bool:
    """Whether this process owns the journal or has adopted it."""
    return path in _mine


def is_owned(path: str) -> bool:
    """Whether a living process owns the journal or has adopted it. One whose lock may not be read counts as owned: nothing
    wrong is to be said of it."""
    if path in _mine:
        return True
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def owner_of(path: str) -> tuple[int | None, str]:
    """The process that made the journal, and its automatic run."""
    try:
        with open(os.path.join(path, "lock"), encoding="ascii") as file:
            pid, _, run_id = file.read(200).partition("\n")
        return int(pid.strip() or 0) or None, run_id.strip()
    except (OSError, ValueError):
        return None, ""
