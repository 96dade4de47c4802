"""Databases as an agent application makes them: its tables, keys and habits, and variants of them.

The shape follows the data model of cmbagent (its `database/models.py`): naive TIMESTAMPs, JSON payloads, single-column
keys on nodes, defaults given by code instead of DDL. Nothing here is made by otel-cmb.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, Engine


@dataclass(frozen=True)
class Shape:
    """One variant of the application's schema. The defaults are the application as it is today."""

    node_key: str = "single"
    """`single`: `dag_nodes.id` is the key; `pair`: (run_id, id)."""
    timezone: bool = False
    json: str = "json"
    """`json`, `jsonb` (PostgreSQL) or `text`."""
    server_defaults: bool = False
    """Defaults in the DDL, as the application's migrations give them, instead of in its code."""
    schema: str | None = None
    without_tables: Collection[str] = ()
    without_columns: Mapping[str, Collection[str]] = field(default_factory=dict)
    extra_columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per table: column name to a SQLAlchemy type; NOT NULL, no default."""
    id_length: int = 36


def tables(shape: Shape) -> sa.MetaData:
    """The application's tables in that shape."""
    metadata = sa.MetaData(schema=shape.schema)
    key = sa.String(shape.id_length)
    time = sa.TIMESTAMP(timezone=shape.timezone)
    json: Any = {"json": sa.JSON(), "jsonb": JSONB(), "text": sa.Text()}[shape.json]
    prefix = f"{shape.schema}." if shape.schema else ""

    def to(table: str, ondelete: str) -> sa.ForeignKey:
        return sa.ForeignKey(f"{prefix}{table}.id", ondelete=ondelete)

    def col(name: str, type_: Any, *items: Any, need: bool = False, code_default: Any = None) -> sa.Column[Any]:
        default = str(code_default) if code_default is not None and shape.server_defaults else None
        return sa.Column(name, type_, *items, nullable=not need, server_default=default)

    def node(name: str = "node_id") -> list[Any]:
        if shape.node_key == "single":
            return [col(name, key, to("dag_nodes", "CASCADE"))]
        ends = [f"{prefix}dag_nodes.run_id", f"{prefix}dag_nodes.id"]
        return [col(name, key), sa.ForeignKeyConstraint(["run_id", name], ends, ondelete="CASCADE")]

    def add(name: str, *items: Any) -> None:
        if name in shape.without_tables:
            return
        left_out = shape.without_columns.get(name, ())
        kept = [item for item in items if not (isinstance(item, sa.Column) and item.name in left_out)]
        extra = shape.extra_columns.get(name, {})
        sa.Table(name, metadata, *kept, *(sa.Column(column, extra[column], nullable=False) for column in extra))

    def id_() -> sa.Column[Any]:
        return sa.Column("id", key, primary_key=True)

    def run() -> sa.Column[Any]:
        return col("run_id", key, to("workflow_runs", "CASCADE"), need=True)

    def session(*, need: bool = True) -> sa.Column[Any]:
        return col("session_id", key, to("sessions", "CASCADE"), need=need)

    def step(ondelete: str) -> list[Any]:
        target = [] if "workflow_steps" in shape.without_tables else [to("workflow_steps", ondelete)]
        return [col("step_id", key, *target)]

    false = sa.false() if shape.server_defaults else None
    add(
        "sessions", id_(), col("user_id", key), col("name", sa.String(255), need=True),
        col("created_at", time, need=True), col("last_active_at", time, need=True),
        col("status", sa.String(50), need=True, code_default="active"), col("meta", json), col("resource_limits", json),
    )
    add(
        "projects", id_(), session(), col("name", sa.String(255), need=True), col("description", sa.Text()),
        col("created_at", time, need=True), col("meta", json),
    )
    add(
        "workflow_runs", id_(), session(), col("project_id", key, to("projects", "SET NULL")),
        col("mode", sa.String(50), need=True), col("agent", sa.String(100), need=True),
        col("model", sa.String(100), need=True), col("status", sa.String(50), need=True, code_default="draft"),
        col("started_at", time), col("completed_at", time), col("last_heartbeat_at", time),
        col("checkpoint_frequency_minutes", sa.Integer(), need=True, code_default=10),
        col("task_description", sa.Text()), col("meta", json),
        col("branch_parent_id", key, to("workflow_runs", "SET NULL")),
        sa.Column("is_branch", sa.Boolean(), nullable=False, server_default=false),
        col("branch_depth", sa.Integer(), need=True, code_default=0),
        col("parent_run_id", key, to("workflow_runs", "SET NULL")),
        col("stage_number", sa.Integer()), col("stage_name", sa.String(100)),
    )
    add(
        "workflow_steps", id_(), run(), session(), col("step_number", sa.Integer(), need=True),
        col("goal", sa.Text(), need=True), col("summary", sa.Text()),
        col("status", sa.String(50), need=True, code_default="pending"), col("started_at", time),
        col("completed_at", time), col("progress_percentage", sa.Integer(), need=True, code_default=0),
        col("inputs", json), col("outputs", json), col("error_message", sa.Text()), col("meta", json),
        sa.CheckConstraint("progress_percentage >= 0 AND progress_percentage <= 100", name="check_progress_range"),
    )
    pair = shape.node_key == "pair"
    add(
        "dag_nodes", sa.Column("id", key, primary_key=True),
        sa.Column("run_id", key, to("workflow_runs", "CASCADE"), nullable=False, primary_key=pair), session(),
        *node("parent_node_id"), col("node_type", sa.String(50), need=True), col("agent", sa.String(100)),
        col("status", sa.String(50), need=True, code_default="pending"), col("order_index", sa.Integer(), need=True),
        col("depth", sa.Integer(), need=True, code_default=0), col("meta", json),
    )
    ends = [
        sa.Column(name, key, *([to("dag_nodes", "CASCADE")] if not pair else []), nullable=False)
        for name in ("from_node_id", "to_node_id")
    ]
    add(
        "dag_edges", sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True), *ends,
        col("dependency_type", sa.String(50), need=True, code_default="sequential"), col("condition", sa.Text()),
    )
    add(
        "execution_events", id_(), run(), *node(), *step("SET NULL"), session(),
        col("parent_event_id", key, to("execution_events", "SET NULL")), col("event_type", sa.String(50), need=True),
        col("event_subtype", sa.String(50)), col("agent_name", sa.String(100)), col("agent_role", sa.String(50)),
        col("timestamp", time, need=True), col("started_at", time), col("completed_at", time),
        col("duration_ms", sa.Integer()), col("inputs", json), col("outputs", json), col("error_message", sa.Text()),
        col("meta", json), col("execution_order", sa.Integer(), need=True),
        col("depth", sa.Integer(), need=True, code_default=0),
        col("status", sa.String(50), need=True, code_default="completed"),
        sa.Index("idx_events_run_order", "run_id", "execution_order"),
        sa.Index("idx_events_node_order", "node_id", "execution_order"),
    )
    add(
        "files", id_(), run(), session(need=False), *step("CASCADE"),
        col("event_id", key, to("execution_events", "SET NULL")), *node(),
        col("file_path", sa.String(1000), need=True), col("file_type", sa.String(50), need=True),
        col("size_bytes", sa.BigInteger()), col("created_at", time, need=True), col("workflow_phase", sa.String(50)),
        sa.Column("is_final_output", sa.Boolean(), nullable=False, server_default=false),
        col("content_hash", sa.String(64)), col("generating_agent", sa.String(100)), col("priority", sa.String(20)),
        col("meta", json),
    )
    add(
        "messages", sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True), run(), *step("CASCADE"),
        col("event_id", key, to("execution_events", "SET NULL")), *node(), col("sender", sa.String(100), need=True),
        col("recipient", sa.String(100), need=True), col("content", sa.Text(), need=True),
        col("timestamp", time, need=True), col("tokens", sa.Integer()), col("meta", json),
    )
    add(
        "cost_records", sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True), run(), session(),
        col("model", sa.String(100), need=True), col("cost_usd", sa.Numeric(10, 6), need=True),
        col("timestamp", time, need=True),
    )
    sa.Table("alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True))
    return metadata


@dataclass(frozen=True)
class Application:
    """The application's database: its own engine, its tables, and what it does with them."""

    engine: Engine
    metadata: sa.MetaData
    shape: Shape

    def table(self, name: str) -> sa.Table:
        return self.metadata.tables[f"{self.shape.schema}.{name}" if self.shape.schema else name]

    def _now(self) -> datetime:
        moment = datetime.now(timezone.utc)
        return moment if self.shape.timezone else moment.replace(tzinfo=None)

    def _insert(self, connection: Connection, name: str, /, **values: Any) -> None:
        """Every column the application's code would fill, and nothing the table does not have."""
        table = self.table(name)
        moment = self._now()
        defaults = {
            "created_at": moment, "last_active_at": moment, "timestamp": moment, "status": "active", "depth": 0,
            "checkpoint_frequency_minutes": 10, "is_branch": False, "branch_depth": 0, "progress_percentage": 0,
        }
        row = {column: value for column, value in {**defaults, **values}.items() if column in table.c}
        if self.shape.json == "text" and isinstance(row.get("meta"), dict):
            import json

            row["meta"] = json.dumps(row["meta"])
        connection.execute(sa.insert(table), row)

    def add_session(self, name: str = "work") -> str:
        identifier = str(uuid.uuid4())
        with self.engine.begin() as connection:
            self._insert(connection, "sessions", id=identifier, name=name)
        return identifier

    def add_run(self, session_id: str, *, started: bool = False, task_id: str | None = None, **values: Any) -> str:
        """A run as the application makes it: `started_at` stays NULL unless `started`."""
        identifier = values.pop("id", None) or str(uuid.uuid4())
        row = {
            "id": identifier, "session_id": session_id, "mode": "planning_control", "agent": "planner",
            "model": "gpt-4.1", "status": "executing", "meta": {"task_id": task_id} if task_id else None,
            "started_at": self._now() if started else None, **values,
        }
        with self.engine.begin() as connection:
            self._insert(connection, "workflow_runs", **row)
        return identifier

    def add_node(self, run_id: str, session_id: str, name: str, *, hashed: bool = True) -> str:
        """A node; `hashed`: its id is the md5 of run and name, the name is in `meta.id`."""
        identifier = hashlib.md5(f"{run_id}:{name}".encode()).hexdigest() if hashed else name
        with self.engine.begin() as connection:
            self._insert(
                connection, "dag_nodes", id=identifier, run_id=run_id, session_id=session_id, node_type="agent",
                order_index=1, status="pending", meta={"id": name} if hashed else None,
            )
        return identifier

    def add_step(self, run_id: str, session_id: str, number: int = 1) -> str:
        identifier = str(uuid.uuid4())
        with self.engine.begin() as connection:
            self._insert(
                connection, "workflow_steps", id=identifier, run_id=run_id, session_id=session_id, step_number=number,
                goal="do it", status="running",
            )
        return identifier

    def rows(self, name: str, *order: str) -> list[dict[str, Any]]:
        """The table's rows through SQLAlchemy's own types, as the application reads them."""
        table = self.table(name)
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(table).order_by(*(table.c[column] for column in order)))
            return [dict(row._mapping) for row in found]

    def event_tree(self, root: str, session_id: str) -> list[str]:
        """The application's recursive query: ids of an event and all below it, by depth and order."""
        events = self.table("execution_events")
        tree = sa.select(events).where(events.c.id == root, events.c.session_id == session_id).cte(recursive=True)
        below = sa.select(events).join(tree, events.c.parent_event_id == tree.c.id)
        tree = tree.union_all(below.where(events.c.session_id == session_id))
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(tree.c.id).order_by(tree.c.depth, tree.c.execution_order))
            return [row.id for row in found]

    def node_summary(self, node_id: str, run_id: str) -> dict[str, Any]:
        """What the application's node screen shows: counts without `start` rows, tokens and cost summed over `meta`."""
        events = [
            row for row in self.rows("execution_events")
            if row["node_id"] == node_id and row["run_id"] == run_id and row["event_subtype"] != "start"
        ]
        metas = [row["meta"] or {} for row in events]
        return {
            "total_events": len(events),
            "tokens": sum(meta.get("tokens", 0) for meta in metas),
            "cost_usd": sum(meta.get("cost_usd", 0.0) for meta in metas),
            "agents": {row["agent_name"] for row in events if row["agent_name"]},
            "failed": sum(row["status"] == "failed" for row in events),
            "files": sum(row["node_id"] == node_id for row in self.rows("files")),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Every table, column and index of the database: equal before and after means nothing was made or altered."""
        inspector = sa.inspect(self.engine)
        schemas = [name for name in inspector.get_schema_names() if not name.startswith(("pg_", "information_"))]
        return {
            f"{schema}.{name}": (
                [(column["name"], str(column["type"]), column["nullable"]) for column in
                 inspector.get_columns(name, schema)],
                sorted(str(index["name"]) for index in inspector.get_indexes(name, schema)),
            )
            for schema in schemas for name in inspector.get_table_names(schema)
        }


def make(url: str, shape: Shape | None = None, *, wal: bool = False) -> Application:
    """Make the application's database; foreign keys are enforced on its connections. Dispose of `engine` afterwards."""
    shape = shape or Shape()
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        @sa.event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA foreign_keys=ON")
            if wal:
                connection.execute("PRAGMA journal_mode=WAL")
    metadata = tables(shape)
    with engine.begin() as connection:
        if shape.schema:
            connection.execute(sa.text(f'CREATE SCHEMA IF NOT EXISTS "{shape.schema}"'))
        metadata.create_all(connection)
        version = sa.insert(metadata.tables[f"{shape.schema}.alembic_version" if shape.schema else "alembic_version"])
        connection.execute(version, {"version_num": "b8c9d0e1f2a3"})
    return Application(engine, metadata, shape)
