"""How one call of Jaeger's gRPC API is taken, on `grpc.aio`.

Like the receiver's own calls, the methods are registered as streams of raw bytes (the same on the wire): whether the
caller may ask is known *before* its question is received, which has a deadline and a limit. Only the work itself is
done in a thread, piece by piece: a client that does not take its answer holds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from threading import Lock
from typing import Any

import grpc
from sqlalchemy.exc import SQLAlchemyError

from otel_cmb.errors import CMBError

__all__ = ["Allow", "BadQueryError", "Calls", "Receive", "Refusal", "received"]

_LOG = logging.getLogger("otel_cmb.jaeger")

MAX_QUESTION = 4 * 1_048_576
"""Bytes of a question, before and after decompression; Jaeger's are a few hundred."""
AT_ONCE = 64
"""Calls that are received, worked on or answered at once; others are told to come back."""
SECONDS = 30.0
"""How long a client may take to send its question, and to take each piece of the answer."""

Refusal = tuple[grpc.StatusCode, str]
Allow = Callable[[Any], Refusal | None]
"""Given the call's context: `None`, or how the call ends at once."""
Receive = Callable[[Any], Awaitable[Any]]
"""Given the call's context: its question."""
Answer = Callable[[bytes], Iterator[bytes]]
"""The messages that answer a question. Runs in a thread, not always the same one."""


async def received(context: Any) -> Any:
    """The question as it comes, however long it takes."""
    return await context.read()


class BadQueryError(ValueError):
    """The client asked for something this storage does not understand."""


class _Pieces:
    """An answer's messages, one at a time, from whichever thread is free."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._lock = Lock()

    def next(self) -> bytes | None:
        with self._lock:
            return next(self._pieces, None)

    def close(self) -> None:
        """Let go of the database; waits for the message that is being made."""
        with self._lock:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()


class Calls:
    """The handlers of a server. `unpack` is given each question first; one that it refuses with `ValueError` is bad."""

    def __init__(
        self, threads: Executor, allow: Allow | None, unpack: Callable[[bytes], bytes], receive: Receive,
    ) -> None:
        self._receive = receive
        self._threads = threads
        self._allow = allow
        self._unpack = unpack
        self.inside = 0

    def handler(self, answer: Answer, *, streams: bool) -> Any:
        async def one(_: Any, context: Any) -> bytes:
            async with self._pieces(answer, context) as pieces:
                return b"" if pieces is None else await self._next(pieces, context) or b""

        async def many(_: Any, context: Any) -> None:
            async with self._pieces(answer, context) as pieces:
                while pieces is not None and (piece := await self._next(pieces, context)) is not None:
                    try:
                        await asyncio.wait_for(context.write(piece), SECONDS)
                    except asyncio.TimeoutError:
                        _LOG.warning("a client of Jaeger's API took no piece of its answer for %g s", SECONDS)
                        return

        if streams:
            return grpc.stream_stream_rpc_method_handler(many)
        return grpc.stream_unary_rpc_method_handler(one)

    @contextlib.asynccontextmanager
    async def _pieces(self, answer: Answer, context: Any) -> AsyncIterator[_Pieces | None]:
        """The answer to the call's question; `None` when it ended meanwhile."""
        refusal = None if self._allow is None else self._allow(context)
        if refusal is not None:
            await context.abort(*refusal)
        if self.inside >= AT_ONCE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many questions at once; try again")
        self.inside += 1
        pieces = None
        try:
            question = await self._question(context)
            pieces = None if question is None else _Pieces(_checked(question, self._unpack, answer))
            yield pieces
        finally:
            self.inside -= 1
            if pieces is not None:
                with contextlib.suppress(RuntimeError):  # the server has ended
                    self._threads.submit(pieces.close)

    async def _question(self, context: Any) -> bytes | None:
        """`None`: the client is gone, or gRPC has already answered (message too large)."""
        try:
            body = await asyncio.wait_for(self._receive(context), SECONDS)
        except asyncio.TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no question came within {SECONDS:g} s")
        if not isinstance(body, bytes):
            return None
        if len(body) > MAX_QUESTION:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a question may have {MAX_QUESTION} bytes")
        return body

    async def _next(self, pieces: _Pieces, context: Any) -> bytes | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, pieces.next)
        except (BadQueryError, CMBError, SQLAlchemyError) as error:
            await context.abort(*_status(error))
            raise AssertionError("unreachable") from error


def _checked(question: bytes, unpack: Callable[[bytes], bytes], answer: Answer) -> Iterator[bytes]:
    try:
        body = unpack(question)
    except ValueError as error:
        raise BadQueryError(str(error)) from error
    yield from answer(body)


def _status(error: Exception) -> Refusal:
    """How a call ends. The client learns what it can act on, the log the rest."""
    if isinstance(error, SQLAlchemyError):
        _LOG.warning("a question of Jaeger failed in the database: %s", type(error).__name__)
        return grpc.StatusCode.UNAVAILABLE, "the database cannot be read now; try again"
    if isinstance(error, CMBError):
        return grpc.StatusCode.UNAVAILABLE, str(error)
    return grpc.StatusCode.INVALID_ARGUMENT, str(error)
