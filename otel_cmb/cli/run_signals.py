"""Signals on their way to the program that `otel-cmb run` started: each reaches it once.

A terminal sends Ctrl-C to its whole foreground group, `timeout` and `kill -INT -PGID` signal a group too: the program is in
ours and has got it. `kill PID` reaches us alone and has to be passed on. The signal itself does not say which it was, and
`timeout` does both; so a witness tells, a process that does nothing but be in our group. The program stays in our group,
where job control, background reads of the terminal and SIGKILL to the group find it, as if we were not there.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from otel_cmb import clock

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Witness", "forwarding"]

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MOMENT = 0.2
"""Seconds after which who signals a group has reached all of it: the kernel does it in one go, `timeout` in two, between
which a busy machine may do something else."""

SAME = 0.5
"""Seconds within which a second signal is the first one's other half: `timeout` signals us, then our group."""

ANSWER = 5.0
"""Seconds to wait for a witness on a busy machine; without its word the signal is passed on."""

_WITNESS = f"""
import os, signal
while os.read(0, 1):
    pending = signal.sigpending() & {{{", ".join(str(int(number)) for number in FORWARDED)}}}
    for number in pending:
        signal.sigwait({{number}})
    os.write(1, bytes([*pending, 0]))
"""
"""Started with the signals blocked, so that they wait for it to be asked; it ends with its standard input."""


class Witness:
    """A process of our group; :meth:`saw` says whether a signal reached that too."""

    def __init__(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", "-c", _WITNESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, bufsize=0)
        except OSError:
            self._process = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._seen: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def saw(self, number: int, arrived: float) -> bool:
        """Whether the signal that came to us then (monotonic seconds) went to the group."""
        self._ask()
        return self._seen.get(number, -math.inf) > arrived - SAME

    def _ask(self) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        with contextlib.suppress(OSError):  # it was killed: nothing is known of signals from here on
            process.stdin.write(b"?")
            if select.select([process.stdout], [], [], ANSWER)[0]:
                for number in os.read(process.stdout.fileno(), 64):
                    self._seen[number] = clock.monotonic()


@contextlib.contextmanager
def forwarding(process: subprocess.Popen[bytes], witness: Witness) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP that came to us alone reach the program, and none of them ends us."""
    arrived: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()

    def take(number: int, _frame: FrameType | None) -> None:
        arrived.put((number, clock.monotonic()))

    def decide() -> None:
        while (found := arrived.get()) is not None:
            number, when = found
            with contextlib.suppress(OSError):
                time.sleep(max(0.0, when + MOMENT - clock.monotonic()))
                if not witness.saw(number, when):
                    process.send_signal(number)

    thread = threading.Thread(target=decide, name="otel-cmb-signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, take) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        arrived.put(None)
        thread.join(MOMENT + ANSWER)
