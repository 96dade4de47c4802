"""The reader: one object with every question.

It never writes, and never creates a file. It may be used from several threads. What the database lacks (a table, a
column) reads as empty or `None`. Lists are paged by key, never by offset, so the first page of a run of a million
events costs what the first page of a short one does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import func, select

from otel_cmb import config
from otel_cmb.config import safe_url
from otel_cmb.engines import make_engine
from otel_cmb.owners import Owners
from otel_cmb.reader.records import (
    Edge,
    Event,
    File,
    Line,
    Message,
    Node,
    Record,
    Run,
    RunTotals,
    Session,
    Step,
    Totals,
    TreeNode,
)
from otel_cmb.reader.reflection import reflect
from otel_cmb.reader.runs import Runs, with_totals
from otel_cmb.reader.source import EVENTS, NODES, RUNS, Source, reading
from otel_cmb.reader.summary import Summary
from otel_cmb.reader.values import as_json
from otel_cmb.reader.wholes import Wholes

__all__ = ["Reader", "open_reader"]

R = TypeVar("R", bound=Record)


def open_reader(database_url: str | None = None, **settings: Any) -> Reader:
    """A reader of the database (default: the one of the settings). Use it as a context manager, or `close()` it.

    Raises :class:`DatabaseURLError` for a URL that cannot work or a SQLite file that is not there,
    :class:`DatabaseUnavailableError` for a server that does not answer, :class:`SchemaError` for a database without
    runs.
    """
    loaded = config.load(database_url=database_url, **settings)
    engine = make_engine(loaded, read_only=True)
    try:
        with reading(engine, safe_url(loaded.database_url)) as connection:
            schema = reflect(connection, loaded.schema, safe_url(loaded.database_url))
    except BaseException:
        engine.dispose()
        raise
    return Reader(Source(engine, schema, loaded.database_url), Owners(lambda: loaded))


class Reader:
    """Read-only questions. Made by :func:`open_reader`."""

    def __init__(self, source: Source, owners: Owners) -> None:
        self._source = source
        self._owners = owners
        self._schema = source.schema
        self._summary = Summary(source)
        self._runs = Runs(source, self._summary)
        self._wholes = Wholes(source)

    def __enter__(self) -> Reader:  # noqa: PYI034 (Self comes with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Closing twice is harmless."""
        self._source.close()

    @property
    def where(self) -> str:
        """The database, as a URL without its password."""
        return self._source.where

    def replaced(self) -> bool:
        """The SQLite file was deleted or replaced since it was opened: what is read is of the old one. Open anew."""
        return self._source.replaced()

    # -- runs and sessions --------------------------------------------------------------------------------------------

    def sessions(self, *, limit: int | None = None) -> list[Session]:
        """Sessions, the last active first."""
        if "sessions" not in self._schema:
            return []
        order = [self._schema.column("sessions", "last_active_at").desc().nulls_last(), self._schema["sessions"].c.id]
        return self._source.records(Session, self._source.select("sessions").order_by(*order).limit(limit))

    def runs(
        self, *, status: str | Sequence[str] | None = None, agent: str | None = None, text: str | None = None,
        session: str | None = None, since: datetime | None = None, until: datetime | None = None, limit: int = 50,
        cursor: str | None = None, totals: bool = True, budget: float | None = None,
    ) -> list[Run]:
        """Runs, newest first; those without `started_at` last.

        `text` is looked for in id, task, mode, agent and model, without regard to case. `since` and `until` bound
        `started_at`. `cursor` is that of the last run of the page before. `totals=False` leaves the sums out: they
        need a look at every event of the runs on the page (see :meth:`run_totals`, which explains `budget`).
        """
        found = self._with_fate(self._runs.page(
            status=status, agent=agent, text=text, session=session, since=since, until=until, limit=limit, cursor=cursor
        ))
        if not totals:
            return found
        sums = self._runs.totals((run.id for run in found), budget)
        return [with_totals(run, sums.get(run.id)) for run in found]

    def run(self, run_id: str, *, totals: bool = True) -> Run:
        """The run with exactly this id. Raises :class:`RunNotFoundError`, which names the run that has it as an alias
        (`workflow_runs.meta.task_id`) and ids that are near."""
        [run] = self._with_fate([self._runs.one(run_id)])
        return with_totals(run, self._runs.totals([run_id], None)[run_id]) if totals else run

    def died(self, run: Run) -> bool:
        """Whether the run goes on in the database although its process has died, as the journals of this host tell. Looks
        at them at most once a second. `False` where they know nothing of the run: it may be another host's."""
        return bool(self._died([run]))

    def resolve(self, name: str | None = None) -> str:
        """The id of the run a person means: an id, an alias, a unique beginning of an id, or `latest` (also `None`).

        Raises :class:`RunNotFoundError`, also for a beginning that several runs share.
        """
        return self._runs.resolve(name)

    def alias(self, name: str) -> str | None:
        """The run whose `meta.task_id` is `name`: the id by which the application's browser knows it."""
        return self._runs.alias(name)

    def run_totals(self, run_ids: Iterable[str], *, budget: float | None = None) -> dict[str, RunTotals]:
        """Sums per run, for these runs only. With `budget` (seconds) it stops in between when the time is over: a run
        that is missing from the answer was not reached. Sums of a run that ended are remembered for a minute."""
        return self._runs.totals(run_ids, budget)

    # -- events -------------------------------------------------------------------------------------------------------

    def events(
        self, run_id: str, *, event_type: str | None = None, status: str | None = None, agent: str | None = None,
        limit: int | None = None, after: str | None = None, whole: bool = True,
    ) -> list[Event]:
        """Whole rows of the run in execution order; all without `limit`. `after` is the `cursor` of an event.

        An owned database stores the messages of a long conversation once; they are put back into the `inputs` and
        `outputs` of each call, unless `whole` is false (then see :meth:`histories`).
        """
        wanted = self._source.equal(EVENTS, event_type=event_type, status=status, agent_name=agent)
        found = self._source.records(Event, self._source.events(run_id, after, limit).where(*wanted))
        return self._wholes.fill(found) if whole else found

    def history(
        self, run_id: str, *, event_type: str | None = None, limit: int | None = None, after: str | None = None,
    ) -> list[Event]:
        """The application's query: the run's events in execution order without `start` rows (still running) and
        without `node_started` and `node_completed`."""
        wanted = [*self._source.equal(EVENTS, event_type=event_type), self._source.not_internal()]
        return self._wholes.fill(self._source.records(Event, self._source.events(run_id, after, limit).where(*wanted)))

    def events_of_node(
        self, node_id: str, run_id: str | None = None, *, event_type: str | None = None,
        include_internal: bool = True, limit: int | None = None, after: str | None = None,
    ) -> list[Event]:
        """The application's query: the events of a node in execution order.

        Node names repeat from run to run; without `run_id` the newest run that has the node is meant, runs without
        `started_at` last. The node may be given by its id, or by the name the application hashed into it.
        """
        if run_id is None:
            run_id = self.run_of_node(node_id)
        if run_id is None or not self._schema.has(EVENTS, "node_id"):
            return []
        wanted = [self._schema[EVENTS].c.node_id.in_(self._node_ids(node_id, run_id))]
        wanted += self._source.equal(EVENTS, event_type=event_type)
        if not include_internal:
            wanted.append(self._source.not_internal())
        return self._wholes.fill(self._source.records(Event, self._source.events(run_id, after, limit).where(*wanted)))

    def run_of_node(self, node_id: str) -> str | None:
        """The newest run that has this node, or `None`."""
        runs, nodes = self._schema[RUNS], self._schema.tables.get(NODES)
        order = [self._schema.column(RUNS, "started_at").desc().nulls_last(), runs.c.id.desc()]
        if nodes is not None:
            joined = select(runs.c.id).join(nodes, nodes.c.run_id == runs.c.id).order_by(*order)
            found = self._source.rows(joined.where(nodes.c.id == node_id).limit(1))
            if found:
                return str(found[0]["id"])
            if "meta" in nodes.c:
                sieve = self._schema.says(NODES, "meta", json.dumps(node_id)[1:-1])
                for row in self._source.rows(joined.add_columns(nodes.c.meta).where(sieve).limit(100)):
                    values = as_json(row["meta"])
                    if isinstance(values, dict) and values.get("id") == node_id:
                        return str(row["id"])
        events = self._schema[EVENTS]
        if "node_id" not in events.c:
            return None
        # Events may name a node that has no row where the database does not enforce its foreign keys.
        having = runs.c.id.in_(select(events.c.run_id).where(events.c.node_id == node_id))
        found = self._source.rows(select(runs.c.id).where(having).order_by(*order).limit(1))
        return str(found[0]["id"]) if found else None

    def event(self, event_id: str) -> Event | None:
        """The whole row, or `None`."""
        wanted = self._schema[EVENTS].c.id == event_id
        found = self._wholes.fill(self._source.records(Event, self._source.select(EVENTS).where(wanted)))
        return found[0] if found else None

    def spans(self, event: Event) -> list[dict[str, Any]]:
        """The spans an event was made from, exactly: names, times in nanoseconds, all attributes, resource, scope.

        `[]` for a row no span made (the application's own). Give it a whole event, as :meth:`event` does.
        """
        return self._wholes.spans(event)

    def whole(self, events: list[Event]) -> list[Event]:
        """The events with what `events(whole=False)` left out; those that lack nothing are the same objects."""
        return self._wholes.fill(events)

    def histories(self, run_id: str) -> dict[str, Any]:
        """The run's conversations as stored: `links` (id: [previous, content]) and `contents` (id: message)."""
        return self._wholes.histories(run_id)

    # -- lines: events without their payloads -------------------------------------------------------------------------

    def lines(self, run_id: str, *, limit: int | None = None, after: str | None = None) -> list[Line]:
        """The run's events without their payloads, in execution order: what a list or a tree shows."""
        return self._summary.lines(self._schema[EVENTS].c.run_id == run_id, *self._source.after(after), limit=limit)

    def line(self, event_id: str) -> Line | None:
        """One event as a line, or `None`."""
        found = self._summary.lines(self._schema[EVENTS].c.id == event_id, limit=1)
        return found[0] if found else None

    def children(self, event_id: str, *, limit: int | None = None) -> list[Line]:
        """The events whose parent this is, in execution order."""
        if not self._schema.has(EVENTS, "parent_event_id"):
            return []
        return self._summary.lines(self._schema[EVENTS].c.parent_event_id == event_id, limit=limit)

    def tree(self, run_id: str, *, limit: int | None = None, after: str | None = None) -> list[TreeNode]:
        """The run's events as trees: roots in execution order. An event whose parent is not among those read is a
        root. With `limit` the first events in execution order, which puts parents before children."""
        return grow(self.lines(run_id, limit=limit, after=after))

    def totals(self, run_id: str) -> Totals:
        """What the run cost, in all and by agent, tool and model. Times include what was called in between."""
        return self._summary.totals(run_id)

    # -- what belongs to a run ----------------------------------------------------------------------------------------

    def nodes(self, run_id: str) -> list[Node]:
        """Nodes of the run's graph, in their order."""
        return self._of_run(Node, NODES, run_id, "order_index", "id")

    def edges(self, run_id: str) -> list[Edge]:
        """Edges of the run's graph. A table without `run_id` is asked by the run's nodes."""
        if "dag_edges" not in self._schema or self._schema.has("dag_edges", "run_id"):
            return self._of_run(Edge, "dag_edges", run_id, "id")
        if not self._schema.has("dag_edges", "from_node_id", "to_node_id"):
            return []
        ids = [node.id for node in self.nodes(run_id)]
        edges = self._schema["dag_edges"]
        wanted = [edges.c.from_node_id.in_(ids), edges.c.to_node_id.in_(ids)]
        order = self._schema.column("dag_edges", "id")
        return self._source.records(Edge, self._source.select("dag_edges").where(*wanted).order_by(order))

    def steps(self, run_id: str) -> list[Step]:
        """The run's workflow steps, by number."""
        return self._of_run(Step, "workflow_steps", run_id, "step_number", "id")

    def files(self, run_id: str, *, limit: int | None = None) -> list[File]:
        """Files that were written in the run, the first one first."""
        return self._of_run(File, "files", run_id, "created_at", "id", limit=limit)

    def messages(self, run_id: str, *, limit: int | None = None) -> list[Message]:
        """Messages between the run's agents, the first one first."""
        return self._of_run(Message, "messages", run_id, "timestamp", "id", limit=limit)

    # -- live views ---------------------------------------------------------------------------------------------------

    def version(self) -> str | None:
        """Changes whenever anything may have been committed to the database; equal answers mean that nothing was.

        Costs one statement, whatever the size. `None` where the engine has no such thing: then look again.
        """
        return self._source.version()

    def token(self, run_id: str) -> str:
        """Changes when rows of the run come, start or end. Costs an index scan of the run's events."""
        events = self._schema[EVENTS]
        status, ended = self._schema.column(EVENTS, "status"), self._schema.column(EVENTS, "completed_at")
        asked: list[Any] = [
            func.count().label("n"), func.max(events.c.execution_order).label("last"),
            func.max(ended).label("ended"), func.count(status).filter(status == "running").label("running"),
        ]
        seen = self._source.rows(select(*asked).where(events.c.run_id == run_id))
        return hashlib.blake2b(repr((self._runs.marks([run_id]), seen[0])).encode(), digest_size=12).hexdigest()

    def follow(self, run_id: str, *, interval: float = 0.5) -> Iterator[tuple[Run, list[Line]]]:
        """The run and its lines, at once and whenever something changed, until the run has ended or its process has died
        (then `died` of the last run is true)."""
        version: str | None = None
        shown: tuple[Run, list[Line]] | None = None
        while True:
            now = self.version()
            if shown is None or now is None or now != version or self.died(shown[0]):
                version = now
                seen = (self.run(run_id, totals=False), self.lines(run_id))
                if seen != shown:
                    shown = seen
                    yield seen
                if seen[0].ended or seen[0].died:
                    return
            time.sleep(interval)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _died(self, runs: Iterable[Run]) -> set[str]:
        """Those whose process has died: asked about those that go on, and the database again about those of which the
        journals say so; a process that ended just now has ended its run first."""
        going = [run.id for run in runs if not run.ended]
        dead = self._owners.died(going) if going else []
        return {run_id for run_id, mark in self._runs.marks(dead).items() if not mark[0]}

    def _with_fate(self, found: list[Run]) -> list[Run]:
        died = self._died(found)
        return [replace(run, died=True) if run.id in died else run for run in found] if died else found

    def _of_run(self, kind: type[R], table: str, run_id: str, *order: str, limit: int | None = None) -> list[R]:
        if not self._schema.has(table, "run_id"):
            return []
        columns = [self._schema[table].c[name] for name in order if name in self._schema[table].c]
        statement = self._source.select(table).where(self._schema[table].c.run_id == run_id)
        return self._source.records(kind, statement.order_by(*columns).limit(limit))

    def _node_ids(self, name: str, run_id: str) -> list[str]:
        """The ids a node of the run can have in its events: itself, the application's hash of it, or by `meta.id`."""
        if NODES not in self._schema:
            return [name]
        nodes = self._schema[NODES]
        hashed = hashlib.md5(f"{run_id}:{name}".encode(), usedforsecurity=False).hexdigest()
        known = select(nodes.c.id).where(nodes.c.run_id == run_id, nodes.c.id.in_([name, hashed]))
        found = [str(row["id"]) for row in self._source.rows(known)]
        if not found and "meta" in nodes.c:
            found = [node.id for node in self.nodes(run_id) if node.name == name]
        return found or [name]


def grow(lines: Iterable[Line]) -> list[TreeNode]:
    """Trees of lines. A line whose parent is not there is a root; a circle of parents is cut where it closes."""
    nodes = {line.id: TreeNode(line) for line in lines}
    above = {key: node.event.parent_event_id for key, node in nodes.items()}
    checked: set[str] = set()
    for key in nodes:
        path: dict[str, None] = {}
        at: str | None = key
        while at in nodes and at not in checked and at not in path:
            path[at] = None
            at = above[at]
        if at in path:
            above[str(at)] = None
        checked.update(path)
    roots: list[TreeNode] = []
    for key, node in nodes.items():
        parent = nodes.get(above[key] or "")
        (roots if parent is None else parent.children).append(node)
    return roots
