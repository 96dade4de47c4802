"""Writers of one SQLite file take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from otel_cmb import config, engines, sqlite_turns, transactions


@pytest.fixture
def connections(sqlite_url: str) -> Iterator[tuple[sa.Connection, sa.Connection]]:
    engine = engines.make_engine(config.load(database_url=sqlite_url, busy_timeout=30))
    with engine.connect() as first, engine.connect() as second:
        first.exec_driver_sql("CREATE TABLE t (x)")
        yield first, second
    engine.dispose()


def _busy_timeout(connection: sa.Connection) -> object:
    return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()


def test_a_writer_waits_for_its_turn(connections: tuple[sa.Connection, sa.Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = connections
    waits: list[float] = []
    waiting = threading.Event()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        waiting.set()
        time.sleep(0.0001)

    monkeypatch.setattr(sqlite_turns, "time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    transactions.begin_write(first)
    first.exec_driver_sql("INSERT INTO t VALUES (1)")

    def write() -> None:
        transactions.begin_write(second)
        second.exec_driver_sql("INSERT INTO t VALUES (2)")
        second.commit()

    thread = threading.Thread(target=write)
    thread.start()
    assert waiting.wait(10)
    first.commit()
    thread.join(10)
    assert not thread.is_alive()
    assert first.exec_driver_sql("SELECT x FROM t ORDER BY rowid").scalars().all() == [1, 2]
    assert set(waits) == {0.001}, "asked again soon, so that the file does not lie idle between two turns"
    assert _busy_timeout(second) == 30_000


def test_who_holds_the_file_for_long_is_asked_rarely(
    connections: tuple[sa.Connection, sa.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = connections
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(sqlite_turns, "time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    monkeypatch.setattr(sqlite_turns, "clock", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    transactions.begin_write(first)
    with pytest.raises(sa.exc.OperationalError, match="database is locked"):
        transactions.begin_write(second)
    assert 29.9 < sum(waits) < 30.1
    assert waits[0] == 0.001 and waits[-1] == 0.01 and len(waits) < 5_000
    first.rollback()
    assert _busy_timeout(second) == 30_000
    second.rollback()
    transactions.begin_write(second)
    second.exec_driver_sql("INSERT INTO t VALUES (3)")
    second.commit()
    assert first.exec_driver_sql("SELECT x FROM t").scalars().all() == [3]


def test_another_error_is_told_at_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_turns, "time", type("Clock", (), {"sleep": staticmethod(lambda _: pytest.fail("waited"))}))
    path = tmp_path / "events.db"
    settings = config.load(database_url=f"sqlite:///{path}")
    engine = engines.make_engine(settings)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        path.write_bytes(b"no database, though as long as one is. " * 500)
        with pytest.raises(sa.exc.DatabaseError):
            transactions.begin_write(connection)
        assert _busy_timeout(connection) == 2_000
    engine.dispose()
