"""The two clocks, in one place so that a test can replace them."""

from __future__ import annotations

import time

__all__ = ["monotonic", "now_ns"]


def now_ns() -> int:
    """Wall clock, nanoseconds since the Unix epoch."""
    return time.time_ns()


def monotonic() -> float:
    """Seconds that never go backwards, for waits and deadlines."""
    return time.monotonic()
