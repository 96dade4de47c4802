"""What has arrived in one process and what became of it, with the tickets of those who wait to know."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from otel_cmb.accounting import Stats, Ticket
from otel_cmb.items import COMMITTED, DEFERRED
from otel_cmb.items import Outcome as Fate
from otel_cmb.journal_records import Record

__all__ = ["Ledger"]

ARRIVALS_KEPT = 1000


class Ledger:
    """The counts of the accounting law, moved by arrivals (any thread) and by what is committed (the writer)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing has arrived yet; also what a forked child begins with."""
        self.lock = threading.RLock()
        self.stats = Stats()
        self.progress = threading.Condition()
        """Notified when something was settled."""
        self.done_seq = 0
        """Number of the last record of our journal that is done."""
        self.moved_seq = 0
        """Number of the last record that came into our journal from memory."""
        self.left: dict[str, dict[str, int]] = {}
        """What is parked, by reason, in journals that we left at an earlier shutdown, by path."""
        self._arrived: deque[tuple[str, int]] = deque()
        self._tickets: dict[int, Ticket] = {}
        self._accepting = 0
        self._recent: dict[int, Fate] = {}

    # -- arrivals ------------------------------------------------------------------------------------------------------

    def arrived(self, spans: int) -> None:
        """So many spans more are accepted; fewer when negative: they are not after all."""
        self._arrived.append(("", spans))

    def lost_on_arrival(self, reason: str, spans: int = 1) -> None:
        """Of those that arrived, so many are nowhere."""
        self._arrived.append((reason, spans))

    def fold_if_many(self) -> None:
        """Count what has arrived before it is much."""
        if len(self._arrived) > ARRIVALS_KEPT:
            self.fold()

    def fold(self) -> None:
        """Count what has arrived. Arrivals are noted in a deque, not in the counters, because an arrival may come in the
        middle of another one (signal handlers, the garbage collector)."""
        with self.lock:
            while self._arrived:
                try:
                    reason, n = self._arrived.popleft()
                except IndexError:  # a signal handler counted it
                    break
                if reason:
                    self.stats.lose(reason, n)
                    self.stats.pending -= n
                else:
                    self.stats.received += n
                    self.stats.pending += n

    # -- tickets -------------------------------------------------------------------------------------------------------

    def expect(self, spans: int) -> Ticket:
        """A ticket for spans about to be journaled. :meth:`claim` or :meth:`give_up_claim` must follow: until then the
        fate of records that nobody waits for is kept, they may be the ticket's."""
        with self.lock:
            self._accepting += 1
        return Ticket(spans)

    def claim(self, ticket: Ticket, last: int, count: int) -> None:
        """The ticket's records are the `count` ones up to number `last`; 0 when their numbers are not known."""
        with self.lock:
            if last:
                seqs = range(last - count + 1, last + 1)
                self._tickets.update(dict.fromkeys(seqs, ticket))
                for seq in [seq for seq in seqs if seq in self._recent] if self._recent else ():
                    fate = self._recent.pop(seq)
                    del self._tickets[seq]
                    ticket.settle(fate.result, fate.reason)
            else:  # called from within an append of this very thread: nobody can write while it waits
                ticket.outage()
            self._accepting -= 1
            if not self._accepting:
                self._recent.clear()

    def give_up_claim(self) -> None:
        """The spans that were expected did not get into the journal."""
        with self.lock:
            self._accepting -= 1

    def outage(self) -> None:
        """The database is away: whoever need not wait any longer does not."""
        with self.lock:
            for ticket in set(self._tickets.values()):
                ticket.outage()

    def end_tickets(self) -> None:
        """The journal is given back: nobody is told anything more."""
        with self.lock:
            for ticket in set(self._tickets.values()):
                ticket.outage()
            self._tickets.clear()
            self._recent.clear()

    def begin_anew(self) -> None:
        """The journal is lost to us, the next one's numbers begin anew."""
        self.end_tickets()
        self.done_seq = self.moved_seq = 0

    def renumber(self, records: Sequence[Record], last: int) -> None:
        """These records have other numbers now, the highest is `last`."""
        with self.lock:
            for n, record in enumerate(reversed(records)):
                ticket = self._tickets.pop(record.seq, None)
                if ticket is not None:
                    self._tickets[last - n] = ticket

    # -- fates ---------------------------------------------------------------------------------------------------------

    def count(self, fates: Sequence[tuple[int, Fate]], lost: int, *, own: bool) -> None:
        """Spans have left the log, by number; `lost` were damaged in it. `own`: it is our journal, not memory or a journal
        we left."""
        alike: dict[tuple[Ticket | None, str, str], int] = {}
        with self.lock:
            self.fold()
            tickets, done = self._tickets, self.done_seq if own else -1
            for seq, fate in fates:
                if seq <= done:  # done again: its journal's state was lost
                    if fate.result == COMMITTED:
                        self.stats.count(fate.result, fate.reason)
                    continue
                ticket = tickets.pop(seq, None)
                key = ticket, fate.result, fate.reason
                alike[key] = alike.get(key, 0) + 1
                if ticket is None and self._accepting:
                    self._recent[seq] = fate
            for (ticket, result, reason), n in alike.items():
                self.stats.count(result, reason, n)
                if result != DEFERRED:
                    self.stats.pending -= n
                if ticket is not None:
                    ticket.settle(result, reason, n)
            if lost:
                lost = min(lost, self.stats.pending)
                self.stats.lose("journal_damaged", lost)
                self.stats.pending -= lost

    def count_parked(self, fates: Sequence[Fate], pending: int) -> None:
        """Spans that were parked are settled; `pending` of them were counted as pending until now."""
        with self.lock:
            for fate in fates:
                self.stats.count(fate.result, fate.reason)
            self.stats.pending -= pending

    def lost_at_the_end(self, spans: int, waiting: int) -> None:
        """Spans in memory are lost; `waiting` of them were pending, the others parked."""
        with self.lock:
            self.fold()
            self.stats.lose("journal", spans)
            self.stats.pending -= waiting

    def pending_again(self, spans: int) -> None:
        """Spans that were parked are in a log again."""
        with self.lock:
            self.stats.pending += spans

    def copy(self) -> Stats:
        """The counts, with all that has arrived."""
        with self.lock:
            self.fold()
            return self.stats.copy()
