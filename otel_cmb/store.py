"""The writing transactions: spans and commands in, rows out, all or nothing.

Order of things inside the one that every door's batches go through (DESIGN sections 4 and 5):

1. the runs that the items name are locked, in sorted order, so that one writer at a time decides orders and links;
2. commands (`run_start`, `node_start`, ...) make their rows;
3. every span's run is looked up, checked, or made;
4. the traces' known spans are read, the new ones admitted, pass 2 run over each trace (:mod:`otel_cmb.preparing`);
5. what differs from what is stored is written (:mod:`otel_cmb.applying`).

Where step 4 turns out to touch runs that were not locked, all begins anew with their locks too. Nothing here sleeps, retries
an outage or logs: the caller sorts what the database raises (:func:`otel_cmb.faults.classify`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from otel_cmb.applying import Applying
from otel_cmb.binding import Binding, bind
from otel_cmb.checkpoints import Checkpoints
from otel_cmb.config import Settings, safe_url
from otel_cmb.dialects import SQLITE
from otel_cmb.engines import make_engine
from otel_cmb.errors import RunNotFoundError
from otel_cmb.faults import Fault, classify
from otel_cmb.items import Item
from otel_cmb.known import Known
from otel_cmb.late_nodes import LateNodes
from otel_cmb.links import Links
from otel_cmb.placing import Placing
from otel_cmb.preparing import Prepared, Preparing, read_ahead
from otel_cmb.sanitize import clean_text
from otel_cmb.transactions import begin_write
from otel_cmb.workflow import RunRow, Workflow

__all__ = ["Store"]


class _Bound:
    """What works with one database, made when it is known what that is, and what is remembered of it."""

    def __init__(self, settings: Settings, directory: str, binding: Binding, *, writer: str, per_trace_runs: bool):
        self.binding = binding
        self.workflow = Workflow(binding)
        self.known = Known(binding, settings, directory)
        self.late_nodes = LateNodes(binding, self.workflow)
        self.placing = Placing(
            settings, self.workflow, self.known, self.late_nodes, owned=binding.owned, per_trace_runs=per_trace_runs)
        self.preparing = Preparing(settings, binding, self.workflow, self.known, self.placing, writer=writer)
        links = Links(binding, self.known.beside)
        self.applying = Applying(binding, self.workflow, self.known, links, self.placing, writer=writer)

    def forget(self) -> None:
        """Trust nothing remembered about the database."""
        for part in (self.known, self.placing, self.preparing, self.applying):
            part.forget()


class Store:
    """Writes to one database with an engine of its own. Not thread-safe: one writer calls it. :meth:`check_run` may be
    called by other threads meanwhile."""

    def __init__(self, settings: Settings, directory: str, *, per_trace_runs: bool = False):
        self._settings = settings
        self._directory = directory
        self._per_trace_runs = per_trace_runs
        self._engine: Engine | None = None
        self._checkpoints: Checkpoints | None = None
        self._bound: _Bound | None = None
        self._writer = secrets.token_hex(8)
        """What says in an owned database that a trace was written last by this store."""
        self._remembering = False
        """Something was learnt from the database that somebody may have deleted since."""

    # -- connection ----------------------------------------------------------------------------------------------------

    @property
    def binding(self) -> Binding | None:
        """What the database turned out to be; `None` before the first connection."""
        return None if self._bound is None else self._bound.binding

    def connect(self) -> Binding:
        """Connect, and find out (or make) what is there. Raises the database's error or :class:`SchemaError`."""
        return self._connected()[1].binding

    def _connected(self) -> tuple[Engine, _Bound]:
        # A question of another thread may come first, or be answered when all this is closed and begun anew.
        engine = self._engine
        if engine is None:
            engine = make_engine(self._settings)
            if (known := self._engine) is not None:
                engine = known
            else:
                path = engine.url.database
                self._checkpoints = Checkpoints(path) if engine.dialect.name == SQLITE and path else None
                self._engine = engine
        bound = self._bound
        if bound is None:
            with engine.connect() as connection:
                binding = bind(connection, self._settings, create=True)
            bound = _Bound(
                self._settings, self._directory, binding, writer=self._writer, per_trace_runs=self._per_trace_runs)
            if self._engine is engine:
                bound = self._bound = self._bound or bound
        return engine, bound

    def close(self) -> None:
        """Dispose of the engine; the next use connects again."""
        self.forget()
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if self._engine is not None:
            self._engine.dispose()
        self._engine, self._bound = None, None

    def abandon(self) -> object:
        """In a forked child: let go of the parent's connections without closing them. Returns what holds them; it must
        never be finalized in this process."""
        pool = self._engine.pool if self._engine is not None else None
        if self._engine is not None:
            self._engine.dispose(close=False)
        self._engine, self._bound = None, None
        self._writer = secrets.token_hex(8)
        return pool

    def forget(self) -> None:
        """Trust nothing remembered about the database: after an error, and when it may have been replaced."""
        self._remembering = False
        if self._bound is not None:
            self._bound.forget()

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, _Bound]]:
        """A transaction that writes; the block commits it."""
        engine, bound = self._connected()
        with engine.connect() as connection:
            begin_write(connection)
            try:
                yield connection, bound
            except BaseException:
                connection.rollback()
                raise

    # -- questions -----------------------------------------------------------------------------------------------------

    def made_run(self, run_id: str) -> bool:
        """Whether this automatic run has come into use."""
        return self._bound is not None and run_id in self._bound.placing.anonymous

    def check_run(self, name: str) -> RunRow:
        """The run of that name. Raises :class:`RunNotFoundError`; database errors pass through."""
        engine, bound = self._connected()
        asked = clean_text(str(name))
        with engine.connect() as connection:
            found = bound.workflow.find_runs(connection, [asked])
        if asked not in found:
            raise RunNotFoundError(
                f"run {name!r} is not in workflow_runs of {safe_url(self._settings.database_url)}; expected the id of a "
                "committed run (see `otel-cmb runs`); make one with otel_cmb.run(), or commit the application's first")
        return found[asked]

    # -- transactions --------------------------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        """Write the items in one transaction and set each one's outcome; all of it, or none (an exception)."""
        self._connected()
        read_ahead(items, self._settings)
        remembering = self._remembering
        try:
            self._transact(items)
        except Exception as error:
            if not remembering or classify(error).fault is not Fault.POISON:
                raise
            self._transact(items)  # a node, step or event that was remembered may have been deleted since: look again
        self._remembering = True

    def _transact(self, items: Sequence[Item]) -> None:
        locked: set[str] = set()
        try:
            while (prepared := self._attempt(items, locked)).unlocked:
                self.forget()
                locked |= prepared.unlocked
        except BaseException:
            self.forget()
            raise
        assert self._bound is not None
        if self._checkpoints is not None:
            self._checkpoints.after_commit(len(items))
        self._bound.applying.committed()
        self._bound.preparing.committed(prepared.changes)

    def _attempt(self, items: Sequence[Item], locked: set[str]) -> Prepared:
        """One transaction. Nothing is written where runs are touched that were not locked from the start, in order."""
        with self._writing() as (connection, bound):
            prepared = bound.preparing.prepare(connection, items, locked)
            if prepared.unlocked:
                connection.rollback()
            else:
                bound.applying.apply(connection, prepared)
                connection.commit()
        return prepared

    def remap(self, run_id: str) -> dict[str, int]:
        """Apply today's tables to the traces of a run, each in a transaction of its own: rows may be retyped, merged, made
        or deleted; ids and order numbers of those that stay do not change. Returns counts of traces, rows, rows made and
        rows deleted. Raises :class:`RunNotFoundError`."""
        run = self.check_run(run_id)
        self.forget()
        engine, bound = self._connected()
        with engine.connect() as connection:
            trace_ids = bound.known.traces_of_run(connection, run.id)
        result = {"traces": len(trace_ids), "rows": 0, "made": 0, "deleted": 0}
        for trace_id in trace_ids:
            with self._writing() as (connection, bound):
                prepared = bound.preparing.again(connection, trace_id, run.id)
                for change in prepared.changes:
                    stored, wanted = change.trace.orders.keys(), change.after.keys()
                    result["rows"] += len(wanted)
                    result["made"] += len(wanted - stored)
                    result["deleted"] += len(stored - wanted - change.trace.unread)
                bound.applying.apply(connection, prepared)
                connection.commit()
            self.forget()
        return result

    def link_late(self) -> int:
        """In an attached database: link events whose node was not there when they were written; how many were linked."""
        if self._bound is None or not self._bound.late_nodes:
            return 0
        with self._writing() as (connection, bound):
            linked = bound.late_nodes.link(connection)
            connection.commit()
        return linked
