"""What changed in a run since a viewer looked: one picture per run, shared by all who watch it.

A picture is the run's lines as compact rows, each with the number of the look that last saw it change. A viewer that
names the last look it knows gets only newer rows. Looking again is cheap when nothing was committed (`Reader.version`),
and is never done more often than half of the time it takes.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime
from typing import Any

from otel_cmb.reader import Line, Reader, Run
from otel_cmb.reader.summary import sums_of

__all__ = ["COLUMNS", "MAX_LINES", "Live", "row_of"]

MAX_LINES = 20_000
"""Events on one page; the next page starts behind the last of them."""

MAX_PICTURES = 4
SHORTEST_PAUSE = 0.25
LONGEST_TRUST = 5.0
"""Seconds for which an unchanged `Reader.token` is believed while commits go on elsewhere in the database."""

COLUMNS = (
    "id", "parent", "node", "step", "type", "subtype", "agent", "start", "end", "duration", "order", "depth", "status",
    "error", "title", "model", "tokens", "cost",
)


def row_of(line: Line) -> tuple[Any, ...]:
    """The line in the order of :data:`COLUMNS`; times are milliseconds since the epoch."""
    return (
        line.id, line.parent_event_id, line.node_id, line.step_id, line.event_type, line.event_subtype, line.agent_name,
        _milliseconds(line.started_at), _milliseconds(line.completed_at), line.duration_ms, line.execution_order,
        line.depth, line.status, line.error_message, line.title, line.model, line.tokens, line.cost_usd,
    )


def _milliseconds(moment: datetime | None) -> float | None:
    return None if moment is None else round(moment.timestamp() * 1000, 3)


class Picture:
    """One run as it was last seen."""

    def __init__(self, run_id: str, after: str | None) -> None:
        self._run_id, self._after = run_id, after
        self._epoch = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._look = 0
        self._rows: dict[str, tuple[int, tuple[Any, ...]]] = {}
        self._removed: dict[str, int] = {}
        self._run: Run | None = None
        self._graph: dict[str, Any] = {}
        self._graph_look = 0
        self._version: str | None = None
        self._token = ""
        self._read_at = self._took = 0.0
        self._next: str | None = None

    def since(self, reader: Reader, known: str | None) -> dict[str, Any] | None:
        """What changed since `known` (the `token` of an earlier answer); `None`: nothing."""
        with self._lock:
            self._refresh(reader)
            # Nothing is committed when a process dies, and nothing else of the picture changes.
            if self._run is not None and reader.died(self._run) != self._run.died:
                self._run = replace(self._run, died=not self._run.died)
                self._look += 1
            token = f"{self._epoch}.{self._look}"
            if known == token:
                return None
            epoch, _, number = (known or "").partition(".")
            look = int(number) if epoch == self._epoch and number.isascii() and number.isdigit() else 0
            full = look == 0 or look > self._look
            look = 0 if full else look
            answer: dict[str, Any] = {
                "token": token, "full": full, "run": None if self._run is None else self._run.to_dict(),
                "died": self._run is not None and self._run.died, "next": self._next, "columns": COLUMNS,
                "rows": [row for seen, row in self._rows.values() if seen > look],
                "removed": [key for key, seen in self._removed.items() if seen > look],
            }
            if full or self._graph_look > look:
                answer["graph"] = self._graph
            return answer

    def _refresh(self, reader: Reader) -> None:
        now = time.monotonic()
        if self._look and now - self._read_at < max(SHORTEST_PAUSE, 2 * self._took):
            return
        version = reader.version()
        if self._look and version is not None and version == self._version:
            return
        token = reader.token(self._run_id)
        if self._look and token == self._token and now - self._read_at < LONGEST_TRUST:
            return
        self._read(reader)
        self._version, self._token = version, token
        self._read_at, self._took = time.monotonic(), time.monotonic() - now

    def _read(self, reader: Reader) -> None:
        lines = reader.lines(self._run_id, limit=MAX_LINES + 1, after=self._after)
        more, lines = len(lines) > MAX_LINES, lines[:MAX_LINES]
        whole = self._after is None and not more
        run = reader.run(self._run_id, totals=not whole)
        if whole:
            run = replace(run, totals=sums_of(lines))
        graph = {
            "nodes": [node.to_dict() for node in reader.nodes(self._run_id)],
            "edges": [edge.to_dict() for edge in reader.edges(self._run_id)],
        }
        look = self._look + 1
        rows: dict[str, tuple[int, tuple[Any, ...]]] = {}
        for line in lines:
            row, before = row_of(line), self._rows.get(line.id)
            rows[line.id] = (before[0], row) if before is not None and before[1] == row else (look, row)
        gone = {key: look for key in self._rows if key not in rows}
        same = not gone and run == self._run and graph == self._graph and all(seen < look for seen, _ in rows.values())
        if same and self._look:
            return
        if graph != self._graph or not self._look:
            self._graph, self._graph_look = graph, look
        self._removed = {key: seen for key, seen in {**self._removed, **gone}.items() if key not in rows}
        self._rows, self._run, self._look = rows, run, look
        self._next = lines[-1].cursor if more else None


class Live:
    """The pictures of the runs that are being watched; the least recently asked for is forgotten."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[tuple[str, str | None], Picture] = OrderedDict()
        self._lock = threading.Lock()

    def since(self, reader: Reader, run_id: str, known: str | None, after: str | None = None) -> dict[str, Any] | None:
        with self._lock:
            picture = self._pictures.setdefault((run_id, after), Picture(run_id, after))
            self._pictures.move_to_end((run_id, after))
            while len(self._pictures) > MAX_PICTURES:
                self._pictures.popitem(last=False)
        return picture.since(reader, known)

    def clear(self) -> None:
        with self._lock:
            self._pictures.clear()
