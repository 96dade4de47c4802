"""COPY with psycopg 3 whose end nobody waits for at once: PostgreSQL checks the foreign keys of all rows after the last one,
for about as long as it took the rows in, and Python has other things to do. Imports psycopg: imported where it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.copy import LibpqWriter
from psycopg.waiting import Wait

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

__all__ = ["copying"]


@contextmanager
def copying(connection: Connection[Any], statement: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[None]:
    """Send the rows; they are in when the block is over. Neither the block nor `rows` may use the connection."""
    with connection.cursor() as cursor, cursor.copy(statement.encode(), writer=_PatientWriter(cursor)) as copy:
        for row in rows:
            copy.write_row(row)
        copy.finish(None)
        yield


class _PatientWriter(LibpqWriter):
    """Ends the COPY when it is told to finish, and waits for what became of it when it is told again."""

    def __init__(self, cursor: Cursor[Any]):
        super().__init__(cursor)
        self._ended = False

    def finish(self, exc: BaseException | None = None) -> None:
        if self._ended:
            self._settle(exc)
        elif exc is not None:
            super().finish(exc)
        else:
            self.connection.wait(_end(self.connection.pgconn))
            self._ended = True

    def _settle(self, exc: BaseException | None) -> None:
        results = self.connection.wait(_results(self.connection.pgconn))
        if exc is None:  # else that is what is to be told
            for result in results:
                if result.status != pq.ExecStatus.COMMAND_OK:
                    raise psycopg.errors.error_from_result(result)


def _end(pgconn: Any) -> Generator[Wait, int, None]:
    while pgconn.put_copy_end() == 0:
        while not (yield Wait.W):
            pass
    pgconn.flush()  # what the server does not take now is in `_results`


def _results(pgconn: Any) -> Generator[Wait, int, list[Any]]:
    while pgconn.flush():
        while not (yield Wait.RW):
            pass
        pgconn.consume_input()  # a server that has something to say first would take in nothing more
    results: list[Any] = []
    while True:
        while pgconn.is_busy():
            while not (yield Wait.R):
                pass
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)
