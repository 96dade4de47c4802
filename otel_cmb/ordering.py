"""Which number and which depth each row gets. Pure; the store supplies what the database knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count

from otel_cmb.traces import Change

__all__ = ["lifted", "number"]


def number(changes: Sequence[Change], next_order: Callable[[str], int]) -> dict[str, int]:
    """The order number of every event of the changed traces (DESIGN section 4).

    New rows of a run take its next numbers, by start over all traces of the batch. Then each trace gives its numbers
    out again in the order of pass 2. Numbers of rows that were merged away are free again. `next_order` gives the first free
    number of a run.
    """
    numbers: dict[str, int] = {}
    fresh: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
    for c, change in enumerate(changes):
        latest, orders = 0, change.trace.orders
        for position, (id_, event) in enumerate(change.after.items()):
            started = event.started_ns
            latest = started if started > latest else latest
            if id_ not in orders and event.run_id is not None:
                fresh[event.run_id].append((latest, c, position, id_))
    held: dict[tuple[int, str], list[int]] = defaultdict(list)
    for c, change in enumerate(changes):
        for id_, order in change.trace.orders.items():
            holder = change.after.get(id_) or change.before.get(id_)
            if holder is not None and holder.run_id is not None:
                held[c, holder.run_id].append(order)
    for run_id, waiting in fresh.items():
        free: dict[int, int] = {
            c: len(held[c, run_id]) - sum(
                1 for id_, event in change.after.items() if event.run_id == run_id and id_ in change.trace.orders)
            for c, change in enumerate(changes) if held.get((c, run_id))}
        waiting.sort()
        following: int | None = None
        if not free:  # none of its traces has a row yet: nothing to permute
            numbers.update(zip([id_ for _, _, _, id_ in waiting], count(next_order(run_id))))
            continue
        for _, c, _, _ in waiting:
            if free.get(c, 0) > 0:
                free[c] -= 1
                continue
            if following is None:
                following = next_order(run_id)
            held[c, run_id].append(following)
            following += 1
    for (c, run_id), values in held.items():
        values.sort()
        mine = [id_ for id_, event in changes[c].after.items() if event.run_id == run_id]
        numbers.update(zip(mine, values, strict=False))
    return numbers


def lifted(change: Change, outside: dict[str, int]) -> dict[str, int]:
    """How much deeper than in their own trace events lie, because they hang below an event of another: those that do so
    themselves are in `outside`."""
    if not outside:
        return {}
    lift: dict[str, int] = {}
    for id_, event in change.after.items():  # parents first
        above = lift.get(event.parent_event_id or "", 0) if event.parent_known else outside.get(id_, 0)
        if above:
            lift[id_] = above
    return lift
