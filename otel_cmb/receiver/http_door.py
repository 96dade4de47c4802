"""OTLP over HTTP, health and metrics; other pages (the web page, Jaeger's query API) are mounted beside them.

Starlette on uvicorn. Bodies are read under a deadline and a size limit by the event loop; no thread waits for a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from otel_cmb.errors import ConfigurationError
from otel_cmb.receiver.answers import Answer, body_of
from otel_cmb.receiver.connections import Crowd, Listener
from otel_cmb.receiver.gate import Place, TurnedOutError
from otel_cmb.receiver.grpc_door import RUN_ID
from otel_cmb.receiver.house import MAKE_ROOM, House
from otel_cmb.receiver.metrics import CONTENT_TYPE, render
from otel_cmb.receiver.settings import Address
from otel_cmb.receiver.tokens import Caller

if TYPE_CHECKING:
    from otel_cmb.receiver.web import Web

__all__ = ["HttpDoor"]

PROTOBUF, JSON = "application/x-protobuf", "application/json"
METHODS = {"/v1/traces": "POST", "/v1/logs": "POST", "/healthz": "GET, HEAD", "/readyz": "GET, HEAD", "/metrics": "GET, HEAD"}
"""What the receiver's own paths allow. Said here for the pages beside it, which begin at `/` and would answer "not found"."""
FORMS = {PROTOBUF: False, "application/protobuf": False, JSON: True}
ENCODINGS = {"": "identity", "identity": "identity", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
DISCARD_BYTES, DISCARD_SECONDS = 256 * 1_048_576, 10.0
"""How much of a body is read and thrown away after its answer is known: a client that is still sending when the
connection closes sees a reset instead of the answer."""
IDLE_SECONDS = 60
BACKLOG = 256
"""Connections that wait to be accepted, and most that are accepted in one go."""


class _Respond(Exception):  # noqa: N818  (control flow inside this module)
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class HttpDoor:
    """The HTTP server of a receiver."""

    def __init__(self, house: House, web: Callable[[], Web] | None = None) -> None:
        """`web` makes what is served beside the receiver, when it is asked for the first time."""
        self._house = house
        self._make_web = web
        self._web: Web | None = None
        self._opened = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        settings = house.settings
        self._crowd = Crowd(house.connections, partial(house.reading.turn_out_one, "http"), tls=house.tls is not None)
        routes: list[BaseRoute] = [
            Route("/v1/traces", self._traces, methods=["POST"]),
            Route("/v1/logs", self._logs, methods=["POST"]),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            *([] if web is None else [Mount("/", self._page)]),
        ]
        config = uvicorn.Config(
            _framed(Starlette(routes=routes)), http=_protocol(self._crowd), ws="none", backlog=BACKLOG, lifespan="off",
            log_config=None, access_log=False, server_header=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        )
        config.load()
        config.ssl = None if house.tls is None else house.tls.context()
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: Address) -> Address:
        """Listen; returns the address with the port that was picked."""
        listener = _listen(address, self._crowd)
        bound = Address(address.host, listener.getsockname()[1])
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()
        return bound

    async def stop(self) -> None:
        """Take no new connections and let the running requests end, bounded by the drain timeout."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        await self._opened.aclose()

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = METHODS.get(scope["path"])
        if allowed is not None:
            await PlainTextResponse("Method Not Allowed", 405, {"allow": allowed})(scope, receive, send)
        else:
            await (self._web or await self._open_web())(scope, receive, send)

    async def _open_web(self) -> Web:
        async with self._opening:
            if self._web is None:
                assert self._make_web is not None
                web = await asyncio.get_running_loop().run_in_executor(None, self._make_web)
                await self._opened.enter_async_context(web.page.router.lifespan_context(web.page))
                self._web = web
            return self._web

    async def _traces(self, request: Request) -> Response:
        return await self._export(request, "traces")

    async def _logs(self, request: Request) -> Response:
        return await self._export(request, "logs")

    async def _export(self, request: Request, signal: str) -> Response:
        house = self._house
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        as_json = FORMS.get(media_type, True)
        refusal: Answer | None = None
        try:
            encoding = self._head(request, signal, media_type)
            caller = house.caller(request.headers.get("authorization"), request.headers.get(RUN_ID))
            if caller is None:
                raise _Respond(house.say("http", signal, "unauthenticated", "a valid bearer token is needed"))
            answer = await self._take(request, signal, caller, as_json=as_json, encoding=encoding)
        except _Respond as early:
            refusal = early.answer
        except ClientDisconnect:
            return Response(status_code=400)
        except asyncio.CancelledError:
            if not house.draining:
                raise
            # the drain timeout is over; what the thread has taken is safe, but nobody waits for its answer any more
            return _response(house.say("http", signal, "unavailable", "the server is shutting down"), signal, as_json)
        if refusal is not None:  # here, where nothing of the body is kept alive
            return await self._turn_away(request, refusal, as_json)
        return _response(answer, signal, as_json)

    async def _take(self, request: Request, signal: str, caller: Caller, *, as_json: bool, encoding: str) -> Answer:
        """Only who may send has a place; whoever is turned away holds none while the rest of its body is thrown away."""
        house = self._house
        place = house.enter("http")
        if place is None:
            raise _Respond(house.say("http", signal, "overloaded", "too many requests"))
        try:
            body = await self._read(request, signal, place)
            return await house.work(place, signal, body, caller, as_json=as_json, encoding=encoding)
        finally:
            place.leave()

    def _head(self, request: Request, signal: str, media_type: str) -> str:
        """The content encoding; whatever the head alone forbids ends here, before the body is read."""
        house = self._house
        if house.draining:
            raise _Respond(house.say("http", signal, "unavailable", "the server is shutting down"))
        if media_type not in FORMS:
            found = f"content type {media_type!r}, expected {PROTOBUF} or {JSON}"
            raise _Respond(house.say("http", signal, "media_type", f"found {found}"))
        encoding = ENCODINGS.get(request.headers.get("content-encoding", "").strip().lower())
        if encoding is None:
            found = request.headers.get("content-encoding", "")[:40]
            raise _Respond(
                house.say("http", signal, "media_type", f"found content encoding {found!r}, expected gzip or identity")
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > house.settings.max_bytes:
            raise _Respond(house.say("http", signal, "too_large", self._too_large(int(length))))
        return encoding

    def _too_large(self, size: int) -> str:
        return f"{size} bytes or more, the limit is {self._house.settings.max_bytes}; send smaller requests"

    async def _read(self, request: Request, signal: str, place: Place) -> bytes:
        house, timeout = self._house, self._house.settings.read_timeout

        async def receive() -> bytes:
            chunks: list[bytes] = []
            size, more = 0, True
            while more:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                chunks.append(chunk)
                size += len(chunk)
                request.state.ended = not more
                if not place.add(len(chunk)):
                    raise _Respond(house.say("http", signal, "overloaded", "too many bytes at once"))
                if size > house.settings.max_bytes:
                    raise _Respond(house.say("http", signal, "too_large", self._too_large(size)))
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)

        try:
            return await house.receive(place, receive())
        except asyncio.TimeoutError:
            request.state.slow = True
            raise _Respond(house.say("http", signal, "slow", f"the body did not arrive within {timeout:g} s")) from None
        except TurnedOutError:
            request.state.slow = True
            raise _Respond(house.say("http", signal, "overloaded", MAKE_ROOM)) from None

    async def _turn_away(self, request: Request, answer: Answer, as_json: bool) -> Response:
        """The answer to a request whose body was not read to its end; the connection closes after it."""
        waits = request.headers.get("expect", "").lower() == "100-continue"
        ended, slow = getattr(request.state, "ended", False), getattr(request.state, "slow", False)
        if not ended and not waits and not slow:
            with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
                await asyncio.wait_for(_discard(request), DISCARD_SECONDS)
        response = _response(answer, "traces", as_json)
        response.headers["connection"] = "close"
        return response

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        if self._house.draining:
            return PlainTextResponse("shutting down\n", status_code=503, headers={"retry-after": "1"})
        return PlainTextResponse("ready\n")

    async def _metrics(self, request: Request) -> Response:
        house = self._house
        if house.caller(request.headers.get("authorization"), None) is None:
            return _response(Answer("unauthenticated", "a valid bearer token is needed"), "traces", as_json=True)
        text = await asyncio.get_running_loop().run_in_executor(None, render, house)
        return Response(text, media_type=CONTENT_TYPE)


def _response(answer: Answer, signal: str, as_json: bool) -> Response:
    headers = {}
    if answer.row.retry:
        headers["retry-after"] = str(answer.retry_after)
    if answer.situation == "unauthenticated":
        headers["www-authenticate"] = "Bearer"
    return Response(
        body_of(answer, signal, as_json), answer.row.http, headers, media_type=JSON if as_json else PROTOBUF
    )


def _framed(app: ASGIApp) -> ASGIApp:
    """The application, for requests with one end only (RFC 9112, 6.1). Where a request has both lengths, or chunks in HTTP/1.0,
    a proxy in front may see another end than we do and take the next request for a body: the connection closes."""

    async def framed(scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
            said = "found Transfer-Encoding with Content-Length or in HTTP/1.0, expected one length of the body"
            await PlainTextResponse(said + "\n", 400, {"connection": "close"})(scope, receive, send)
        else:
            await app(scope, receive, send)

    return framed


async def _discard(request: Request) -> None:
    size = 0
    while size < DISCARD_BYTES:
        message = await request.receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        size += len(message.get("body", b""))


def _listen(address: Address, crowd: Crowd) -> socket.socket:
    """A listening socket. Raises :class:`ConfigurationError` when the address is taken or not ours."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = Listener(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"--http {address}: no such address here: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        listener.crowd = crowd
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"--http {address}: cannot listen there ({error.strerror}); is it in use?"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the receiver has one way to stop, for both doors."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _protocol(crowd: Crowd) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, which tells the crowd what a connection is at: that has what uvicorn lacks against half-open
    connections, slow heads, answers that nobody takes, and too many of them."""

    class Guarded(H11Protocol):
        _number = -1

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._number = transport.get_extra_info("socket").fileno()

        def data_received(self, data: bytes) -> None:
            if self.cycle is None or self.cycle.response_complete:
                crowd.head_begins(self._number)
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._under_way()

        def on_response_complete(self) -> None:
            before = self.cycle
            super().on_response_complete()
            if self.cycle is not before:  # one that was sent ahead begins
                self._under_way()
            elif self.transport.is_closing():
                crowd.unread(self._number)
            else:
                crowd.answered(self._number)

        def pause_writing(self) -> None:
            super().pause_writing()
            crowd.unread(self._number)

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                crowd.read(self._number)

        def _under_way(self) -> None:
            if not self.cycle.response_complete:
                crowd.head_came(self._number)

    return Guarded
