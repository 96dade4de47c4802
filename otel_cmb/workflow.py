"""Sessions, runs, nodes and steps: found, checked, and made where that is ours to do. Inside the caller's transaction.

A node or step is always looked up within its run. In an attached database nothing of the application's is changed but
what a program asked for by name (`run()`).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from otel_cmb import clock
from otel_cmb.binding import Binding
from otel_cmb.dialects import in_list, insert_sql, list_param, mark, timestamp, timestamp_ns
from otel_cmb.errors import RunNotFoundError, SchemaError
from otel_cmb.meta_names import named_in_meta
from otel_cmb.rows import json_text
from otel_cmb.sanitize import fit
from otel_cmb.transactions import lock_mode, lock_runs
from otel_cmb.values import as_dict

__all__ = ["DEFAULT_SESSION", "DIED", "RunRow", "Workflow"]

DEFAULT_SESSION = "default"
APPLICATION_SESSION = "default_session"
"""Id of the session the application works in unless told otherwise (cmbagent, `database/session_manager.py`)."""
DIED = "process ended before the run did"
QUIET = "nothing had come for long"
"""Why a run was ended without anybody saying so."""
MISSING = {"on_missing_run": "create"}
"""The meta of a run that was made because spans named it and it was not there: nobody knows when it ends."""
MADE_BY_US = "otel_cmb"


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run that is in the database."""

    id: str
    session_id: str
    completed_ns: int | None = None
    """When it ended; not known of a run beside an application."""


class Workflow:
    """Every statement about the tables around `execution_events`, for one database."""

    def __init__(self, binding: Binding):
        self._binding = binding
        self._dialect = binding.dialect
        self._mark = mark(binding.dialect)

    # -- plumbing ------------------------------------------------------------------------------------------------------

    def table(self, name: str) -> str:
        """Qualified, quoted name."""
        return self._binding.tables[name].qualified

    def _has(self, table: str, column: str | None = None) -> bool:
        info = self._binding.tables.get(table)
        return info is not None and (column is None or column in info.columns)

    def value(self, table: str, column: str, value: Any) -> Any:
        """The bound value for a column: JSON as text, nanoseconds as a naive UTC time, text cut to the column's width."""
        info = self._binding.tables[table].columns[column]
        if value is None:
            return None
        if info.kind in ("timestamp", "timestamptz"):
            return timestamp(self._dialect, info.kind, value)
        if isinstance(value, (dict, list)):
            return json_text(value)
        if isinstance(value, str):
            return value if info.length is None else fit(value, info.length)
        return value

    def insert(self, connection: Connection, table: str, values: Mapping[str, Any], conflict: tuple[str, ...] = ()) -> None:
        """Insert what the table has columns for, with neutral values for what the application would have filled."""
        info = self._binding.tables[table]
        if not info.writable:
            raise SchemaError(f"table {table} cannot be written: {info.reason}; see `otel-cmb db check`")
        said = {name: value for name, value in values.items() if value is not None}
        row = {**values, **self._binding.fill.get(table, {}), **said}
        columns = [name for name in row if name in info.columns]
        if "id" in columns and info.columns["id"].kind != "text":  # the application numbers these rows itself
            columns.remove("id")
            conflict = ()
        connection.exec_driver_sql(
            insert_sql(self._dialect, info.qualified, columns, conflict=conflict),
            tuple(self.value(table, name, row[name]) for name in columns))

    def update(
        self, connection: Connection, table: str, key: Mapping[str, Any], values: Mapping[str, Any], extra: str = "",
    ) -> int:
        columns = [name for name in values if self._has(table, name)]
        changes = ", ".join(f'"{name}" = {self._mark}' for name in columns)
        where = " AND ".join(f'"{name}" = {self._mark}' for name in key)
        result = connection.exec_driver_sql(
            f"UPDATE {self.table(table)} SET {changes} WHERE {where}{extra}",
            (*(self.value(table, name, values[name]) for name in columns), *key.values()))
        return int(result.rowcount)

    # -- sessions and runs ---------------------------------------------------------------------------------------------

    def find_runs(self, connection: Connection, names: Iterable[str]) -> dict[str, RunRow]:
        """The runs that exist, by the name they were asked for: an id, or in an attached database the application's
        alias (`meta.task_id`)."""
        wanted = set(names)
        if not wanted:
            return {}
        table = self.table("workflow_runs")
        rows = connection.exec_driver_sql(
            f"SELECT id, session_id, {'completed_at' if self._binding.owned else 'NULL'} FROM {table} "
            f"WHERE {in_list(self._dialect, 'id')}",
            (list_param(self._dialect, wanted),))
        found = {row[0]: RunRow(row[0], row[1], None if row[2] is None else timestamp_ns(row[2])) for row in rows}
        missing = wanted - set(found)
        if missing and not self._binding.owned and self._has("workflow_runs", "meta"):
            found.update(self._aliases(connection, missing))
        return found

    def _aliases(self, connection: Connection, names: set[str]) -> dict[str, RunRow]:
        """Where several runs have an alias (a task that was tried again), the one that was started last is meant."""
        rows = named_in_meta(
            connection, self._binding, "workflow_runs", "task_id", names, "id, session_id",
            order="started_at IS NOT NULL, started_at, id")
        return {row[0]: RunRow(row[1], row[2]) for row in rows}

    def session_id(self, connection: Connection, wanted: str | None, *, exact: bool = False) -> str:
        """An existing session by id or by name; one of that name is made otherwise. With `exact`, `wanted` is an id (a
        token's, or a span's, which are checked against the run's): one with that id is found or made. With nothing
        wanted, an application's database has a session of its own for that: its screens look nowhere else."""
        name = wanted or DEFAULT_SESSION
        table = self.table("sessions")
        by_id = f"SELECT id FROM {table} WHERE id = {self._mark}"
        row = connection.exec_driver_sql(by_id, (name,)).fetchone()
        if not wanted and not self._binding.owned:
            row = connection.exec_driver_sql(by_id, (APPLICATION_SESSION,)).fetchone() or row
        if row is None and not (exact and wanted):
            order = " ORDER BY created_at" if self._has("sessions", "created_at") else ""
            row = connection.exec_driver_sql(
                f"SELECT id FROM {table} WHERE name = {self._mark}{order} LIMIT 1", (name,)).fetchone()
        if row is not None:
            return str(row[0])
        # One id per name: two processes that make it at the same time make the same row.
        identifier = name if exact and wanted else str(uuid.uuid5(uuid.NAMESPACE_URL, f"otel-cmb:session:{name}"))
        now = clock.now_ns()
        self.insert(connection, "sessions", {
            "id": identifier, "name": name, "status": "active", "created_at": now, "last_active_at": now,
            "meta": {"made_by": MADE_BY_US},
        }, conflict=("id",))
        return identifier

    def create_run(
        self, connection: Connection, run_id: str, *, session: str | None, started_ns: int, mode: str = "one_shot",
        agent: str = "unknown", model: str = "unknown", task: str | None = None, meta: Mapping[str, Any] | None = None,
        exact_session: bool = False,
    ) -> RunRow:
        """Make the run unless it is there. `started_at` is always set. `session`: see :meth:`session_id`. Raises
        :class:`RunNotFoundError` where the id does not fit."""
        most = self._binding.tables["workflow_runs"].columns["id"].length
        if most is not None and len(run_id) > most:
            raise RunNotFoundError(
                f"run {run_id[:80]!r} cannot be made: its id has {len(run_id)} characters, workflow_runs.id takes {most}")
        session_id = self.session_id(connection, session, exact=exact_session)
        self.insert(connection, "workflow_runs", {
            "id": run_id, "session_id": session_id, "mode": mode or "one_shot", "agent": agent or "unknown",
            "model": model or "unknown", "status": "executing", "started_at": started_ns, "task_description": task,
            "meta": {**(meta or {}), "made_by": MADE_BY_US},
        }, conflict=("id",))
        if lock_mode(connection) == "rows":
            lock_runs(connection, [run_id], self.table("workflow_runs"))  # there was no row yet when the others were locked
        return self.find_runs(connection, [run_id])[run_id]

    def end_run(
        self, connection: Connection, run_id: str, *, status: str, at_ns: int, error: str | None = None, quiet: bool = False,
        began_ns: int = 0,
    ) -> None:
        """End a run that has not ended. A later, surer word (the program's own end) replaces "the process died", and that
        nothing came any more (`quiet`). `began_ns`: it began then, if that is earlier than was known."""
        values: dict[str, Any] = {"status": status, "completed_at": at_ns}
        table, has_meta = self.table("workflow_runs"), self._has("workflow_runs", "meta")
        row = connection.exec_driver_sql(
            f"SELECT completed_at, started_at{', meta' if has_meta else ''} FROM {table} WHERE id = {self._mark}",
            (run_id,)).fetchone()
        if row is None:
            return
        meta = as_dict(row[2]) if has_meta else {}
        if row[0] is not None and meta.get("error") != DIED and meta.get("ended") != QUIET:
            return
        meta.pop("error", None)
        meta.pop("ended", None)
        if error:
            meta["error"] = error
        if quiet:
            meta["ended"] = QUIET
        if has_meta:
            values["meta"] = meta
        if began_ns > 0 and row[1] is not None and began_ns // 1_000 < timestamp_ns(row[1]) // 1_000:
            values["started_at"] = began_ns
        self.update(connection, "workflow_runs", {"id": run_id}, values)
        if self._binding.owned and status == "failed":
            # What was at work when the run failed has failed with it; an end of its own that comes later outranks that.
            self.update(connection, "dag_nodes", {"run_id": run_id, "status": "running"}, {"status": "failed"})
            self.update(connection, "workflow_steps", {"run_id": run_id, "status": "running"}, {
                "status": "failed", "completed_at": at_ns, "error_message": error})

    def go_on(self, connection: Connection, run_id: str) -> None:
        """Something came for a run that has ended: where that was only assumed, because nothing came, it goes on."""
        row = connection.exec_driver_sql(
            f"SELECT meta FROM {self.table('workflow_runs')} WHERE id = {self._mark}", (run_id,)).fetchone()
        meta = as_dict(row[0]) if row is not None else {}
        if meta.pop("ended", None) == QUIET:
            self.update(
                connection, "workflow_runs", {"id": run_id}, {"status": "executing", "completed_at": None, "meta": meta})

    def enrich_run(self, connection: Connection, run_id: str, column: str, value: str) -> None:
        """`agent` or `model` of a run that did not know it; beside an application only of a run made by us."""
        key = {"id": run_id, column: "unknown"}
        if not self._binding.owned:
            if not self._has("workflow_runs", column) or not self._has("workflow_runs", "meta"):
                return
            row = connection.exec_driver_sql(  # asked first: the right to change the application's runs may be missing
                f"SELECT meta FROM {self.table('workflow_runs')} WHERE id = {self._mark} AND {column} = {self._mark}",
                tuple(key.values())).fetchone()
            if row is None or as_dict(row[0]).get("made_by") != MADE_BY_US:
                return
        self.update(connection, "workflow_runs", key, {column: value})

    # -- nodes and steps -----------------------------------------------------------------------------------------------

    def find_node(self, connection: Connection, run_id: str, name: str) -> str | None:
        """The node's key within its run: exact id, then the application's hashed id, then `meta.id`."""
        table = self.table("dag_nodes")
        name = self.node_key(name)
        hashed = hashlib.md5(f"{run_id}:{name}".encode(), usedforsecurity=False).hexdigest()
        rows = connection.exec_driver_sql(
            f"SELECT id FROM {table} WHERE run_id = {self._mark} AND id IN ({self._mark}, {self._mark})",
            (run_id, name, hashed)).fetchall()
        ids = {row[0] for row in rows}
        if ids:
            return name if name in ids else hashed
        if not self._binding.owned and self._has("dag_nodes", "meta"):
            named = named_in_meta(connection, self._binding, "dag_nodes", "id", {name}, "id", run_id=run_id)
            if named:
                return str(named[0][1])
        return None

    def node_key(self, name: str) -> str:
        """The id that a node of this name has where we make it: the name, as far as the column takes it."""
        return str(self.value("dag_nodes", "id", name)) if self._binding.owned else name

    def create_node(
        self, connection: Connection, run: RunRow, name: str, *, node_type: str = "agent", agent: str | None = None,
        parent: str | None = None, status: str = "running",
    ) -> str:
        """Make the node of an owned database, after the run's last one, with an edge from the one it follows."""
        table = self.table("dag_nodes")
        name, parent = self.node_key(name), None if parent is None else self.node_key(parent)
        last = connection.exec_driver_sql(
            f"SELECT id, order_index, status FROM {table} WHERE run_id = {self._mark} AND parent_node_id IS NULL "
            "ORDER BY order_index DESC LIMIT 1", (run.id,)).fetchone()
        index = connection.exec_driver_sql(
            f"SELECT coalesce(max(order_index), -1) + 1 FROM {table} WHERE run_id = {self._mark}", (run.id,)).scalar()
        depth = 0
        if parent is not None:
            row = connection.exec_driver_sql(
                f"SELECT depth FROM {table} WHERE run_id = {self._mark} AND id = {self._mark}", (run.id, parent)).fetchone()
            parent, depth = (parent, row[0] + 1) if row is not None else (None, 0)
        self.insert(connection, "dag_nodes", {
            "id": name, "run_id": run.id, "session_id": run.session_id, "parent_node_id": parent, "node_type": node_type,
            "agent": agent, "status": status, "order_index": index, "depth": depth, "meta": {"made_by": MADE_BY_US},
        }, conflict=("run_id", "id"))
        if last is not None and parent is None and last[2] in ("completed", "failed") and self._has("dag_edges"):
            self.insert(connection, "dag_edges", {
                "run_id": run.id, "from_node_id": last[0], "to_node_id": name, "dependency_type": "sequential"})
        return name

    def find_step(self, connection: Connection, run_id: str, name: str) -> str | None:
        """The step's id within its run: exact id, then the step's number, then `meta.id`."""
        if not self._has("workflow_steps"):
            return None
        table = self.table("workflow_steps")
        row = connection.exec_driver_sql(
            f"SELECT id FROM {table} WHERE run_id = {self._mark} AND id = {self._mark}", (run_id, name)).fetchone()
        if row is None and name.isdecimal() and len(name) < 10:
            row = connection.exec_driver_sql(
                f"SELECT id FROM {table} WHERE run_id = {self._mark} AND step_number = {self._mark} ORDER BY id LIMIT 1",
                (run_id, int(name))).fetchone()
        if row is None and not self._binding.owned and self._has("workflow_steps", "meta"):
            named = named_in_meta(connection, self._binding, "workflow_steps", "id", {name}, "id", run_id=run_id)
            return str(named[0][1]) if named else None
        return None if row is None else str(row[0])

    def create_step(self, connection: Connection, run: RunRow, name: str, *, goal: str | None, at_ns: int) -> str:
        """Make the step of an owned database, running since `at_ns`. A number is its number, any other name its id."""
        number: Any
        if name.isdecimal() and len(name) < 10:
            number = int(name)
            identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, f"otel-cmb:step:{run.id}:{name}"))
        else:
            number = connection.exec_driver_sql(
                f"SELECT coalesce(max(step_number), 0) + 1 FROM {self.table('workflow_steps')} WHERE run_id = {self._mark}",
                (run.id,)).scalar()
            # A step's id is unique in the whole table: a name that another run's step has gets an id of its own.
            taken = len(name) > 36 or connection.exec_driver_sql(
                f"SELECT 1 FROM {self.table('workflow_steps')} WHERE id = {self._mark}", (name,)).fetchone() is not None
            identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, f"otel-cmb:step:{run.id}:{name}")) if taken else name
        self.insert(connection, "workflow_steps", {
            "id": identifier, "run_id": run.id, "session_id": run.session_id, "step_number": number, "goal": goal or "",
            "status": "running", "started_at": at_ns, "progress_percentage": 0,
            "meta": {"made_by": MADE_BY_US, "id": name},
        }, conflict=("id",))
        return identifier

    def find_created_step(self, connection: Connection, run_id: str, name: str) -> str | None:
        """Like :meth:`find_step`, also under the id that :meth:`create_step` gives a name."""
        found = self.find_step(connection, run_id, name)
        if found is None and self._binding.owned:
            made = str(uuid.uuid5(uuid.NAMESPACE_URL, f"otel-cmb:step:{run_id}:{name}"))
            found = self.find_step(connection, run_id, made)
        return found
