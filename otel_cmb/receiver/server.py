"""One receiver: its doors, readiness, and a drain that ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import CMBError
from otel_cmb.receiver import memory
from otel_cmb.receiver.house import House
from otel_cmb.receiver.intake import MIB, Intake, Limits
from otel_cmb.receiver.settings import Address, ServeSettings
from otel_cmb.receiver.tls import tls_files
from otel_cmb.receiver.tokens import TokenFile

__all__ = ["Receiver", "serve"]

_LOG = logging.getLogger("otel_cmb.receiver")
QUIET_LOOK = 300.0
"""Most seconds between two looks for runs that nobody will end."""
LOOK_AT_DATABASE = 5.0


class Receiver:
    """The doors in front of one pipeline. Raises :class:`ConfigurationError` for unusable files and addresses."""

    def __init__(self, settings: ServeSettings, general: Settings, pipeline: Any, *, web: bool = False) -> None:
        self._settings = settings
        self._general = general
        self.intake = Intake(
            pipeline,
            Limits(settings.max_bytes, settings.max_spans),
            answer_timeout=settings.answer_timeout,
            budget_bytes=settings.max_waiting_mib * MIB,
            fail_on_missing_run=general.on_missing_run == "fail",
        )
        tokens = TokenFile(settings.token_file) if settings.token_file else None
        self.house = House(settings, self.intake, tokens, tls_files(settings))
        self._web = web
        self._grpc: Any = None
        self._http: Any = None
        self._jaeger: Any = None
        self._query: Any = None
        self.addresses: dict[str, Address] = {}

    @property
    def ready_line(self) -> str:
        """`grpc=HOST:PORT http=HOST:PORT`, and `jaeger=HOST:PORT` where it is served, as printed when all are ready."""
        return " ".join(f"{door}={address}" for door, address in self.addresses.items())

    async def start(self) -> None:
        """Open the doors; afterwards `addresses` has the ports that were picked."""
        settings = self._settings
        if settings.grpc is not None:
            from otel_cmb.receiver.grpc_door import GrpcDoor

            self._grpc = GrpcDoor(self.house)
            self.addresses["grpc"] = await self._grpc.start(settings.grpc)
        if settings.http is not None:
            from otel_cmb.receiver.http_door import HttpDoor

            self._http = HttpDoor(self.house, self._web_page if self._web else None)
            self.addresses["http"] = await self._http.start(settings.http)
        if settings.jaeger_storage is not None:
            from otel_cmb.receiver.grpc_door import GrpcDoor

            self._jaeger = GrpcDoor(self.house, self._jaeger_query())
            self.addresses["jaeger"] = await self._jaeger.start(settings.jaeger_storage, "--jaeger-storage")

    def _web_page(self) -> Any:
        from otel_cmb.receiver.web import Web

        return Web(self.house, self._general, self.addresses["http"], self._jaeger_query(), self.house.settings.jaeger_url)

    def _jaeger_query(self) -> Any:
        if self._query is None:
            from otel_cmb.jaeger.query import JaegerQuery

            self._query = JaegerQuery(self._general)
        return self._query

    async def stop(self) -> None:
        """Answer new requests with "unavailable", let the running ones end within the drain timeout, close."""
        self.intake.closing = True
        grace = self._settings.drain_timeout
        doors = []
        if self._grpc is not None:
            doors.append(self._grpc.stop(grace))
        if self._http is not None:
            doors.append(self._http.stop())
        if self._jaeger is not None:
            doors.append(self._jaeger.stop(grace))
        await asyncio.gather(*doors)
        if self._query is not None:
            self._query.close()
        await self.house.close()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[Receiver], None]) -> None:
        """Serve until `stop` is set."""
        try:
            await self.start()
            on_ready(self)
            await stop.wait()
        finally:
            await self.stop()


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        _LOG.warning("systemd could not be told %s: %s", state, error)


def _raise_file_limit() -> None:
    """As many open files as allowed: every connection is one, and the usual soft limit is 1,024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end_quiet_runs(general: Settings) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from otel_cmb.quiet_runs import end_quiet_runs

    try:
        if ended := end_quiet_runs(general):
            _LOG.info("nothing came for %.0f s, and no root of the trace: ended %d run(s), e.g. %s",
                      general.quiet_time, len(ended), ended[0])
    except (CMBError, SQLAlchemyError) as error:  # away, or not made yet: the next look will see
        _LOG.debug("quiet runs were not looked for: %s", error)


async def _aside(function: Callable[..., object], *arguments: Any) -> None:
    """Run it in a thread that keeps no process alive: it may wait for a database that hangs."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        try:
            function(*arguments)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name="otel-cmb-aside", daemon=True).start()
    await done.wait()


def serve(settings: ServeSettings, general: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain within the bound; a second signal ends the process at once.

    The addresses are printed on stderr, on one line, when every door is open. What could not be committed by the end
    stays in the journal.
    """
    # gRPC's library writes past our log, a line for each call that is not gRPC: any peer could fill a disk with it
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from otel_cmb.pipeline import NO_ANSWER, get_pipeline, state_directory

    memory.keep_little()
    _raise_file_limit()
    state_directory(general)  # a malformed database URL is an error now, an unreachable database is not
    pipeline = get_pipeline(general, per_trace_runs=True)
    receiver = Receiver(settings, general, pipeline, web=True)
    _LOG.info("spans go to %s", safe_url(general.database_url))

    def ready(receiver: Receiver) -> None:
        sys.stderr.write(receiver.ready_line + "\n")
        sys.stderr.flush()
        _notify("READY=1")

    def look_back() -> None:
        """What dead processes left in their journals is adopted by the writer; say that there is some."""
        left = pipeline.left_behind()
        if left:
            what = ", ".join(f"{number} {reason}" for reason, number in sorted(left.items()))
            _LOG.info("spans of earlier processes are in journals: %s", what)
        pipeline.accept([])  # starts the writer

    async def end_quiet_runs() -> None:
        """Runs of traces whose root never comes; one look costs a query."""
        while general.quiet_time:
            await asyncio.sleep(min(max(general.quiet_time / 4, 1.0), QUIET_LOOK))
            await _aside(_end_quiet_runs, general)

    async def watch_database() -> None:
        """A database that hangs fails nothing, so nobody else says so."""
        hung = False
        while True:
            await asyncio.sleep(LOOK_AT_DATABASE)
            waited = pipeline.unanswered()
            if (waited > NO_ANSWER) is not hung:
                hung = not hung
                if hung:
                    _LOG.warning("%s has not answered for %.0f s: requests are answered from the journal meanwhile",
                                 safe_url(general.database_url), waited)
                else:
                    _LOG.info("the database answers again")

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def ask(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            _LOG.info("%s: draining", signal.Signals(number).name)
            _notify("STOPPING=1")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask, number)
        loop.run_in_executor(None, look_back)
        beside = [asyncio.create_task(end_quiet_runs()), asyncio.create_task(watch_database())]
        try:
            await receiver.run(stop, ready)
        finally:
            for task in beside:
                task.cancel()

    try:
        asyncio.run(main())
    finally:
        pipeline.shutdown(general.shutdown_timeout)
    _LOG.info("stopped")
