"""What both doors share: who may come in, how many, and the threads that do the work."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from otel_cmb.receiver.answers import Answer
from otel_cmb.receiver.gate import Gate
from otel_cmb.receiver.intake import Intake
from otel_cmb.receiver.settings import ServeSettings
from otel_cmb.receiver.tls import TlsFiles
from otel_cmb.receiver.tokens import Caller, TokenFile

__all__ = ["House"]

READING = 1_000
"""Requests that may be sending their body at once, over both doors. They hold no thread."""
READING_BYTES = 512 * 1_048_576


@dataclass(slots=True)
class House:
    """One receiver's shared state. Everything but the work itself runs in one event loop."""

    settings: ServeSettings
    intake: Intake
    tokens: TokenFile | None = None
    tls: TlsFiles | None = None
    reading: Gate = field(default_factory=lambda: Gate(READING, READING_BYTES))
    working: Gate = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.working = Gate(2 * self.settings.max_concurrent, 2**62)
        self.pool = ThreadPoolExecutor(self.settings.max_concurrent, thread_name_prefix="otel-cmb-request")

    @property
    def draining(self) -> bool:
        return self.intake.closing

    def say(self, door: str, signal: str, situation: str, message: str) -> Answer:
        """An answer that needs no work, counted."""
        return self.intake.count(door, signal, Answer(situation, message))

    def caller(self, authorization: str | None, run_id: str | None) -> Caller | None:
        """Who sends; `None` when a valid token is needed and was not given."""
        if self.tokens is None:
            return Caller(run_id=run_id)
        found = self.tokens.find(authorization)
        return None if found is None else Caller(session_id=found.session_id, run_id=run_id)

    def reading_refused(self, authorization: str | None) -> Answer | None:
        """Why a caller may not read all traces; `None` when it may."""
        found = self.caller(authorization, None)
        if found is None:
            return Answer("unauthenticated", "a valid bearer token is needed")
        if found.session_id is None:
            return None
        return Answer("refused", "this token is bound to one session and cannot read all traces")

    async def work(
        self, door: str, signal: str, body: bytes, caller: Caller, *, as_json: bool = False, encoding: str = "identity"
    ) -> Answer:
        """Take a request in a thread. Its place is kept until it is done, also when its client goes away meanwhile."""
        if not self.working.enter():
            return self.say(door, signal, "overloaded", "too many requests at once")
        job = partial(self.intake.take, door, signal, body, as_json=as_json, encoding=encoding, caller=caller)
        future = asyncio.get_running_loop().run_in_executor(self.pool, job)
        future.add_done_callback(lambda _: self.working.leave())
        return await asyncio.shield(future)
