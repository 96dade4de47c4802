"""Questions to the database, each on a thread of its own: one that gets no answer in time is given up by whoever asked."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from otel_cmb import clock

__all__ = ["NoAnswerError", "Questions"]

MOST = 4
"""Questions under way at once, fewer than a pool has connections: however many get no answer, the writer finds one."""

T = TypeVar("T")


class NoAnswerError(Exception):
    """The time was up. The question goes on until it is answered or fails, and nobody hears of it."""


class Questions:
    """A server that stands still keeps a statement waiting for ever, and no driver gives it up. Threads may share this."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing was asked; also what a forked child begins with."""
        self._places = threading.BoundedSemaphore(MOST)

    def ask(self, question: Callable[[], T], timeout: float) -> T:
        """What the question returns or raises. Raises :class:`NoAnswerError` after `timeout` seconds. It must hold no lock that
        anybody else needs while it waits for the database."""
        deadline, places = clock.monotonic() + timeout, self._places
        if not places.acquire(timeout=timeout):
            raise NoAnswerError
        asked = _Asked(question, places)
        # before Python 3.12 a thread that is started when the interpreter ends waits for ever for its turn
        if sys.is_finalizing() or not asked.begin():
            asked.run()
        if not asked.done.wait(max(0.0, deadline - clock.monotonic())):
            raise NoAnswerError
        return asked.answer()


class _Asked(Generic[T]):
    def __init__(self, question: Callable[[], T], places: threading.BoundedSemaphore):
        self._question, self._places = question, places
        self._answers: list[T] = []
        self._errors: list[BaseException] = []
        self.done = threading.Event()

    def begin(self) -> bool:
        """False: no new threads at interpreter shutdown."""
        try:
            threading.Thread(target=self.run, name="otel-cmb-question", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def run(self) -> None:
        try:
            self._answers.append(self._question())
        except BaseException as error:  # noqa: BLE001 - raised where it was asked
            self._errors.append(error)
        finally:
            self._places.release()
            self.done.set()

    def answer(self) -> T:
        if self._errors:
            raise self._errors.pop()
        return self._answers[0]
