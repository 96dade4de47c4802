"""OTLP over gRPC.

On `grpc.aio`, because a thread pool's worker would wait for a slow client's message. The methods are registered as
stream-unary with raw bytes (the same on the wire): so the token is checked and a place found *before* the message is
received, the receiving has a deadline, and parsing happens in our threads. gRPC's own decompression is off because it
has no limit on the size it produces; a compressed message reaches us as it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from otel_cmb.errors import ConfigurationError
from otel_cmb.receiver.answers import Answer, response_of, trailers_of
from otel_cmb.receiver.gate import TurnedOutError
from otel_cmb.receiver.house import MAKE_ROOM, House
from otel_cmb.receiver.intake import inflate
from otel_cmb.receiver.settings import Address, ServeSettings
from otel_cmb.receiver.tls import TlsFiles

__all__ = ["GrpcDoor", "server_options"]

SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}
RUN_ID = "x-cmb-run-id"
JAEGER_THREADS = 8
MOST_WATCHING = 1_000
"""Calls that watch the health at once: they need no token and never end."""
FAREWELL_SECONDS = 0.2
"""How long those who watch the health have to hear of the end before their calls are ended."""


def server_options(settings: ServeSettings, connections: int) -> list[tuple[str, Any]]:
    """Channel arguments: how many connections there may be, limits of each, and pings that find half-open ones."""
    return [
        ("grpc.max_allowed_incoming_connections", connections),  # counted from the accept on, before any handshake
        ("grpc.max_receive_message_length", settings.max_bytes),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", 128),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_connection_idle_ms", 600_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.http2.settings_timeout", 10_000),
    ]


def add_port(server: Any, address: Address, tls: TlsFiles | None, flag: str) -> Address:
    """Bind; the address with the port that was picked. Raises :class:`ConfigurationError` when it is taken."""
    try:
        port = (
            server.add_insecure_port(str(address)) if tls is None
            else server.add_secure_port(str(address), tls.grpc_credentials())
        )
    except RuntimeError as error:
        raise ConfigurationError(f"{flag} {address}: cannot listen there ({error}); is it in use?") from error
    if not port:
        raise ConfigurationError(f"{flag} {address}: cannot listen there; is it in use?")
    return Address(address.host, port)


def _encoding(body: bytes) -> str:
    """How a message is compressed. gRPC keeps its `grpc-encoding` header to itself, but neither magic number can begin
    an OTLP request: 0x1f is a tag of wire type 7, and 0x78 one of field 15, which no request has."""
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    if body[:1] == b"\x78":
        return "deflate"
    return "identity"


def _unpacked(question: bytes) -> bytes:
    """A question of Jaeger's; none has a field 3 of type 7 or a field 15 either."""
    from otel_cmb.jaeger.calls import MAX_QUESTION

    encoding = _encoding(question)
    return question if encoding == "identity" else inflate(question, encoding, MAX_QUESTION)


def _code(answer: Answer) -> grpc.StatusCode:
    code: grpc.StatusCode = getattr(grpc.StatusCode, answer.row.grpc)
    return code


class _Health(health.aio.HealthServicer):  # type: ignore[name-defined, misc, unused-ignore]
    """The standard service. Its `Watch` never ends by itself, and would keep every drain waiting to its bound."""

    def __init__(self) -> None:
        super().__init__()
        self._watching: set[asyncio.Task[Any]] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802  (the name in the protocol)
        if len(self._watching) >= MOST_WATCHING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls watch the health; ask with Check")
        watching = asyncio.ensure_future(super().Watch(request, context))
        self._watching.add(watching)
        try:
            await asyncio.wait({watching})
            if not watching.cancelled():
                watching.result()
        finally:
            self._watching.discard(watching)
            watching.cancel()

    async def end(self) -> None:
        """Say that nothing is served any more, then end the calls of those who watch."""
        await self.enter_graceful_shutdown()
        if self._watching:
            await asyncio.sleep(FAREWELL_SECONDS)
        for watching in self._watching:
            watching.cancel()


class GrpcDoor:
    """A gRPC server of a receiver: OTLP and health, and with `jaeger` also Jaeger's remote storage API, whose writer
    OTLP is."""

    def __init__(self, house: House, jaeger: Any = None) -> None:
        self._house = house
        self._names = ["", *SERVICES.values()]
        self._server = grpc.aio.server(options=server_options(house.settings, house.connections))
        self._threads: ThreadPoolExecutor | None = None
        if jaeger is not None:
            from otel_cmb.jaeger.grpc_server import SERVICE_NAMES, add_servicers

            self._threads = ThreadPoolExecutor(JAEGER_THREADS, thread_name_prefix="otel-cmb-jaeger")
            add_servicers(self._server, jaeger, self._threads, self._may_not_read, _unpacked, self._question)
            self._names += SERVICE_NAMES
        self._health = _Health()
        self._server.add_generic_rpc_handlers((self._health_handlers(),))
        for signal, service in SERVICES.items():
            handler = grpc.stream_unary_rpc_method_handler(self._exporter(signal))
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
            )

    def _may_not_read(self, context: Any) -> tuple[grpc.StatusCode, str] | None:
        """How a call of Jaeger's API ends whose caller may not read; `None` when it may."""
        refusal = self._house.reading_refused(dict(context.invocation_metadata() or ()).get("authorization"))
        return None if refusal is None else (_code(refusal), refusal.text)

    def _health_handlers(self) -> Any:
        async def asked(context: Any) -> Any:
            try:
                return health_pb2.HealthCheckRequest.FromString(await self._question(context))
            except asyncio.TimeoutError:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no question came")
            except (DecodeError, TypeError):  # TypeError: the client is gone
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the question is no HealthCheckRequest")

        async def check(_: Any, context: Any) -> Any:
            return await self._health.Check(await asked(context), context)

        async def watch(_: Any, context: Any) -> None:
            await self._health.Watch(await asked(context), context)

        written = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {
            "Check": grpc.stream_unary_rpc_method_handler(check, None, written),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, None, written),
        })

    async def _question(self, context: Any) -> Any:
        """What a call of Jaeger's API or about the health asks. It has a place like every request: a handler that gRPC
        gives its message would let anybody send a large one."""
        place = self._house.enter("question")
        if place is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests at once")
            raise AssertionError("unreachable")
        try:
            return await self._house.receive(place, context.read())
        except TurnedOutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, MAKE_ROOM)
        finally:
            place.leave()

    def _exporter(self, signal: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def export(_: Any, context: Any) -> bytes:
            answer = await self._answer(signal, context)
            if answer.situation == "ok":
                data: bytes = response_of(answer, signal).SerializeToString()
                return data
            await context.abort(_code(answer), answer.text, trailing_metadata=trailers_of(answer))
            raise AssertionError("unreachable")

        return export

    async def _answer(self, signal: str, context: Any) -> Answer:
        """Where the client is gone, or gRPC has answered itself (message too large), nobody hears it."""
        house = self._house
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        caller = house.caller(metadata.get("authorization"), metadata.get(RUN_ID))
        if caller is None:
            return house.say("grpc", signal, "unauthenticated", "a valid bearer token is needed")
        if house.draining:
            return house.say("grpc", signal, "unavailable", "the server is shutting down")
        place = house.enter("grpc")
        if place is None:
            return house.say("grpc", signal, "overloaded", "too many requests at once")
        try:
            body = await house.receive(place, context.read())
            if not isinstance(body, bytes):
                return house.say("grpc", signal, "malformed", "the call ended before its message did")
            if not place.add(len(body)):
                return house.say("grpc", signal, "overloaded", "too many bytes at once")
            return await house.work(place, signal, body, caller, encoding=_encoding(body))
        except asyncio.TimeoutError:
            timeout = house.settings.read_timeout
            return house.say("grpc", signal, "slow", f"the message did not arrive within {timeout:g} s")
        except TurnedOutError:
            return house.say("grpc", signal, "overloaded", MAKE_ROOM)
        finally:
            place.leave()

    async def start(self, address: Address, flag: str = "--grpc") -> Address:
        """Listen; returns the address with the port that was picked."""
        bound = add_port(self._server, address, self._house.tls, flag)
        await self._server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, grace: float) -> None:
        """Take no new calls, let the running ones end within `grace` seconds, then cancel them."""
        await asyncio.gather(self._server.stop(grace), self._health.end())
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
