"""What the process holds of memory, as the system sees it, and glibc's allocator told to keep less of it."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["few_arenas", "resident", "trim"]


def resident() -> int:
    """Bytes of memory of the process that no file backs; 0 where the system does not say (it is Linux that does)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = file.read().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def few_arenas() -> None:
    """Let glibc's allocator share two arenas: one per thread keeps what a large request took (measured: 10 MiB of 128
    after 60,000 spans from four senders, and no slower). Other allocators have no such call."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX, mallopt(3)


def trim() -> None:
    """Give back to the system what glibc's allocator has free (malloc_trim(3)): by itself it keeps gigabytes that many
    small pieces of requests took."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
