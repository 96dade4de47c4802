"""A bounded stand-in in memory for a journal that cannot be written: no place, no right, no room.

Spans in it are committed like those of a journal while the database is there. It survives nothing: what is in it when the
process ends is lost, and counted so. It has the part of :class:`~otel_cmb.journal.Journal` that the writer needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from otel_cmb.errors import JournalError
from otel_cmb.journal_records import LATEST_DUE, NO_SPAN, Parked, Progress, Record

__all__ = ["Standby"]

MAX_BYTES = 16 * 1024 * 1024

FIRST_SEQ = 1 << 60
"""Its numbers are never those of a journal."""


class Standby:
    """Records in memory. `append` may come from any thread, the rest is the writer's."""

    adopted = False
    opened = True
    path = ""
    run_id = ""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.last_seq = FIRST_SEQ
        self.done_seq = FIRST_SEQ
        self.size = 0
        self._max_bytes = max_bytes
        self._waiting: deque[Record] = deque()
        self._in_flight: deque[Record] = deque()
        self._parked: dict[int, Parked] = {}
        self._counts: dict[str, int] = {}

    def append(self, bodies: Sequence[bytes]) -> int:
        """Keep the records; the number of the last one. Raises :class:`JournalError` when there are too many."""
        size = sum(map(len, bodies))
        if self.size + size > self._max_bytes:
            raise JournalError(f"{self.size} bytes wait in memory already, the most is {self._max_bytes}")
        self.size += size
        for body in bodies:
            self.last_seq += 1
            self._waiting.append(Record(self.last_seq, body))
        return self.last_seq

    def read(self, limit: int) -> list[Record]:
        """The next records that were not read yet."""
        records: list[Record] = []
        while self._waiting and len(records) < limit:
            records.append(self._waiting.popleft())
        self._in_flight += records
        return records

    def rewind(self) -> None:
        """What was read and is not done is to be read again."""
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight.clear()

    def advance(self, progress: Progress) -> None:
        """Note what became of records."""
        for parked in progress.park:
            if parked.seq not in self._parked:
                self.size += len(parked.body)
            self._parked[parked.seq] = parked
        for seq in progress.unpark:
            gone = self._parked.pop(seq, None)
            self.size -= len(gone.body) if gone is not None else 0
        for name, n in progress.counts.items():
            self._counts[name] = self._counts.get(name, 0) + n
        if progress.done is not None:
            while self._in_flight and self._in_flight[0].seq <= progress.done.seq:
                self.size -= len(self._in_flight.popleft().body)
            self.done_seq = max(self.done_seq, progress.done.seq)

    def parked(self, *, due_before: float | None = None, limit: int = 1_000_000) -> list[Parked]:
        """What could not be stored yet."""
        return [
            parked for _, parked in sorted(self._parked.items())
            if due_before is None or (parked.due is not None and (
                parked.due <= due_before or parked.since > due_before
                or (parked.due > due_before + LATEST_DUE and parked.reason != NO_SPAN)))
        ][:limit]

    def parked_counts(self) -> dict[str, int]:
        """Parked spans by reason."""
        counts: dict[str, int] = {}
        for parked in list(self._parked.values()):
            if parked.span_id is not None:
                counts[parked.reason] = counts.get(parked.reason, 0) + 1
        return counts

    def any_parked(self, spans: Sequence[tuple[str, str]]) -> bool:
        """Whether one of these spans (trace id, span id) is parked."""
        return not {(parked.trace_id, parked.span_id) for parked in list(self._parked.values())}.isdisjoint(spans)

    def backlog(self) -> int:
        """How many records are not done."""
        return len(self._waiting) + len(self._in_flight)

    def counts(self) -> dict[str, int]:
        """Counters noted by :meth:`advance`."""
        return dict(self._counts)

    def restore(self, records: Sequence[Record], parked: Sequence[Parked]) -> None:
        """Take back what :meth:`take_all` gave."""
        self._waiting.extendleft(reversed(records))
        self._parked.update((one.seq, one) for one in parked)
        self.size += sum(len(record.body) for record in records) + sum(len(one.body) for one in parked)
        self.done_seq = records[0].seq - 1 if records else self.done_seq

    def take_all(self) -> tuple[list[Record], list[Parked]]:
        """Everything that is left; it is empty afterwards."""
        self.rewind()
        records, parked = list(self._waiting), list(self._parked.values())
        self._waiting.clear()
        self._parked.clear()
        self.size = 0
        self.done_seq = self.last_seq
        return records, parked
