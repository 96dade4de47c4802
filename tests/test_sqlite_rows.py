"""Many rows with one statement: what is in the table is what `executemany` puts there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import config
from otel_cmb.dialects import insert_sql
from otel_cmb.engines import make_engine
from otel_cmb.sqlite_rows import MOST_VALUES, SIZES, insert_rows

VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(alphabet="a?'\0é😀)("), st.binary(max_size=5))
COUNTS = st.sampled_from([0, 1, 7, 8, 9, 39, 40, 41, 127, 128, 129, 168, 169, 300])
PLAIN = insert_sql("sqlite", '"t"', ("id", "a", "b"))
KEPT = insert_sql("sqlite", '"t"', ("id", "a", "b"), conflict=("id",))
CHANGED = insert_sql("sqlite", '"t"', ("id", "a", "b"), conflict=("id",), update=("a",))


class Watched(sqlite3.Connection):
    """Counts the statements it is sent."""

    steps = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.steps += 1
        return super().execute(*arguments)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        self.steps += len(rows)
        return super().executemany(sql, rows)


@pytest.fixture
def driver() -> Iterator[Watched]:
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=Watched)
    yield connection
    connection.close()


def stored(rows: list[tuple[Any, ...]], statement: str, *, at_once: bool) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute('CREATE TABLE "t" (id INTEGER PRIMARY KEY, a TEXT, b)')
        if at_once:
            insert_rows(connection, statement, rows)
        else:
            connection.executemany(statement, rows)
        return connection.execute("SELECT rowid, id, a, typeof(a), b, typeof(b) FROM t ORDER BY 1").fetchall()
    finally:
        connection.close()


@settings(max_examples=60, deadline=None)
@given(st.data(), COUNTS, st.sampled_from([KEPT, CHANGED]))
def test_the_same_rows_also_when_keys_come_twice(data: st.DataObject, count: int, statement: str) -> None:
    some = data.draw(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12))
    most = data.draw(st.sampled_from([count // 2 + 1, count + 1]))
    rows = [(n * 7 % most, *some[n % len(some)]) for n in range(count)]
    assert stored(rows, statement, at_once=True) == stored(rows, statement, at_once=False)


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (7, 4), (8, 1), (128, 1), (256, 2), (256 + 32 + 8 + 3, 6), (0, 0)])
def test_few_steps(driver: Watched, count: int, steps: int) -> None:
    driver.execute("CREATE TABLE t (id, a, b)")
    driver.steps = 0
    insert_rows(driver, PLAIN, [(n, n, n) for n in range(count)])
    assert driver.steps == steps
    assert driver.execute("SELECT count(*), sum(a) FROM t").fetchone() == (count, sum(range(count)) or (None if not count else 0))


def test_a_row_that_is_there_is_refused(driver: Watched) -> None:
    driver.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
    rows = [(n, n, n) for n in range(40)]
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        insert_rows(driver, PLAIN, [*rows, rows[35]])
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        insert_rows(driver, PLAIN, [*rows[:8], *rows[:8]])


def test_other_statements_go_row_by_row(driver: Watched) -> None:
    driver.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
    insert_rows(driver, PLAIN, [(n, n, n) for n in range(200)])
    insert_rows(driver, "UPDATE t SET a = ? WHERE id = ?", [(-n, n) for n in range(200)])
    insert_rows(driver, "INSERT INTO t (id, a, b) VALUES (?, ?, 1 + ?)", [(n, n, n) for n in range(200, 300)])
    insert_rows(driver, "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET a = 'VALUES (?, ?)'", [("x", 1)] * 50)
    assert driver.execute("SELECT sum(a) FROM t WHERE id < 200").fetchone() == (-sum(range(200)),)
    assert driver.execute("SELECT count(*), sum(b - a = 1) FROM t WHERE id BETWEEN 200 AND 299").fetchone() == (100, 100)
    assert driver.execute("SELECT count(*) FROM t WHERE a = 'x'").fetchone() == (50,)


def test_a_table_with_very_many_columns(driver: Watched) -> None:
    width = MOST_VALUES // SIZES[0] + 1
    names = [f"c{n}" for n in range(min(width, 1900))]
    driver.execute(f"CREATE TABLE t ({', '.join(names)})")
    insert_rows(driver, insert_sql("sqlite", "t", names), [tuple(range(len(names)))] * 130)
    assert driver.execute("SELECT count(*), min(c1), max(c1) FROM t").fetchone() == (130, 1, 1)


def test_engines_for_sqlite_use_it(tmp_path: Any) -> None:
    engine = make_engine(config.load(database_url=f"sqlite:///{tmp_path}/x.db"))
    seen: list[int] = []
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id PRIMARY KEY, a, b)")
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(lambda sql: seen.append(sql.count("(")))
        connection.exec_driver_sql(KEPT, [(n, n, n) for n in range(130)])
        driver.set_trace_callback(None)
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 130
    engine.dispose()
    assert len(seen) == 2  # 128 rows, then two
