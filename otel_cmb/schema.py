"""The owned schema (DESIGN section 3), as SQLAlchemy Core tables.

An owned database is made by the migrations in `otel_cmb/migrations`, which must give exactly these tables
(`tests/test_schema.py` compares the two). An attached database keeps its own tables: see `binding`.
Timestamps are naive UTC. `JSON` is `json` on PostgreSQL (text is kept as written) and TEXT on SQLite.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    TIMESTAMP,
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

__all__ = ["APPLICATION_TABLES", "OWN_PREFIX", "VERSION_TABLE", "metadata"]

OWN_PREFIX = "otel_cmb_"
VERSION_TABLE = "otel_cmb_alembic_version"
"""Alembic's version table of an owned database; its presence is what makes a database owned."""

metadata = MetaData()


def _run_columns() -> list[Column[str]]:
    return [
        Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
        Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    ]


def _sparse_index(name: str, column: str, *further: str) -> Index:
    """Of the rows that have a `column` only: most have none, and a row that has none then costs nothing. Where order numbers
    begin anew in each run, rows without a node would land all over the index, the more runs the worse."""
    present = text(f"{column} IS NOT NULL")
    return Index(name, column, *further, sqlite_where=present, postgresql_where=present)


def _node_key(column: str = "node_id") -> ForeignKeyConstraint:
    """Node names repeat from run to run, so every reference to a node is the pair."""
    return ForeignKeyConstraint(["run_id", column], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE")


sessions = Table(
    "sessions", metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(36)),
    Column("name", String(255), nullable=False),
    Column("status", String(50), nullable=False, server_default="active"),
    Column("meta", JSON),
    Column("created_at", TIMESTAMP, nullable=False),
    Column("last_active_at", TIMESTAMP, nullable=False),
    Index("ix_sessions_name", "name"),
)

projects = Table(
    "projects", metadata,
    Column("id", String(36), primary_key=True),
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("description", Text),
    Column("created_at", TIMESTAMP, nullable=False),
    Column("meta", JSON),
    Index("ix_projects_session", "session_id"),
)

workflow_runs = Table(
    "workflow_runs", metadata,
    Column("id", String(36), primary_key=True),
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("project_id", String(36), ForeignKey("projects.id", ondelete="SET NULL")),
    Column("mode", String(50), nullable=False),
    Column("agent", String(100), nullable=False),
    Column("model", String(100), nullable=False),
    Column("status", String(50), nullable=False, server_default="draft"),
    Column("started_at", TIMESTAMP),
    Column("completed_at", TIMESTAMP),
    Column("task_description", Text),
    Column("meta", JSON),
    Index("idx_workflow_runs_session_status", "session_id", "status"),
    Index("idx_workflow_runs_agent_status", "agent", "status"),
    Index("ix_workflow_runs_started", "started_at", "id"),
)

workflow_steps = Table(
    "workflow_steps", metadata,
    Column("id", String(36), primary_key=True),
    *_run_columns(),
    Column("step_number", Integer, nullable=False),
    Column("goal", Text, nullable=False),
    Column("summary", Text),
    Column("status", String(50), nullable=False, server_default="pending"),
    Column("started_at", TIMESTAMP),
    Column("completed_at", TIMESTAMP),
    Column("progress_percentage", Integer, nullable=False, server_default="0"),
    Column("inputs", JSON),
    Column("outputs", JSON),
    Column("error_message", Text),
    Column("meta", JSON),
    Index("idx_workflow_steps_run_number", "run_id", "step_number"),
)

dag_nodes = Table(
    "dag_nodes", metadata,
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("id", String(255), nullable=False),
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("parent_node_id", String(255)),
    Column("node_type", String(50), nullable=False),
    Column("agent", String(100)),
    Column("status", String(50), nullable=False, server_default="pending"),
    Column("order_index", Integer, nullable=False),
    Column("depth", Integer, nullable=False, server_default="0"),
    Column("meta", JSON),
    PrimaryKeyConstraint("run_id", "id"),
    _node_key("parent_node_id"),
    Index("idx_dag_nodes_run_order", "run_id", "order_index"),
    Index("idx_dag_nodes_type_status", "node_type", "status"),
    Index("ix_dag_nodes_id", "id"),
)

dag_edges = Table(
    "dag_edges", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("from_node_id", String(255), nullable=False),
    Column("to_node_id", String(255), nullable=False),
    Column("dependency_type", String(50), nullable=False, server_default="sequential"),
    Column("condition", Text),
    _node_key("from_node_id"),
    _node_key("to_node_id"),
    Index("idx_dag_edges_run_from", "run_id", "from_node_id"),
    Index("idx_dag_edges_run_to", "run_id", "to_node_id"),
)

execution_events = Table(
    "execution_events", metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("node_id", String(255)),
    Column("step_id", String(36), ForeignKey("workflow_steps.id", ondelete="SET NULL")),
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("parent_event_id", String(36), ForeignKey("execution_events.id", ondelete="SET NULL")),
    Column("event_type", String(50), nullable=False),
    Column("event_subtype", String(50)),
    Column("agent_name", String(100)),
    Column("agent_role", String(50)),
    Column("timestamp", TIMESTAMP, nullable=False),
    Column("started_at", TIMESTAMP),
    Column("completed_at", TIMESTAMP),
    Column("duration_ms", Integer),
    Column("inputs", JSON),
    Column("outputs", JSON),
    Column("error_message", Text),
    Column("meta", JSON),
    Column("execution_order", Integer, nullable=False),
    Column("depth", Integer, nullable=False, server_default="0"),
    Column("status", String(50), nullable=False, server_default="completed"),
    _node_key(),
    Index("idx_events_run_order", "run_id", "execution_order"),
    _sparse_index("idx_events_node_order", "node_id", "execution_order"),
    Index("idx_events_type_subtype", "event_type", "event_subtype"),
    Index("idx_events_session_timestamp", "session_id", "timestamp"),
    Index("idx_events_parent", "parent_event_id"),
    _sparse_index("ix_events_step", "step_id"),
)

files = Table(
    "files", metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("step_id", String(36), ForeignKey("workflow_steps.id", ondelete="SET NULL")),
    Column("event_id", String(36), ForeignKey("execution_events.id", ondelete="CASCADE")),
    Column("node_id", String(255)),
    Column("file_path", String(1000), nullable=False),
    Column("file_type", String(50), nullable=False),
    Column("size_bytes", BigInteger),
    Column("created_at", TIMESTAMP, nullable=False),
    Column("meta", JSON),
    _node_key(),
    Index("idx_files_run_type", "run_id", "file_type"),
    Index("idx_files_event", "event_id"),
    _sparse_index("ix_files_step", "step_id"),
)

messages = Table(
    "messages", metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("step_id", String(36), ForeignKey("workflow_steps.id", ondelete="SET NULL")),
    Column("event_id", String(36), ForeignKey("execution_events.id", ondelete="CASCADE")),
    Column("node_id", String(255)),
    Column("sender", String(100), nullable=False),
    Column("recipient", String(100)),
    Column("content", Text, nullable=False),
    Column("timestamp", TIMESTAMP, nullable=False),
    Column("tokens", Integer),
    Column("meta", JSON),
    _node_key(),
    Index("idx_messages_run_timestamp", "run_id", "timestamp"),
    Index("idx_messages_event", "event_id"),
    _sparse_index("ix_messages_step", "step_id"),
)

# What otel-cmb keeps for itself, in an owned database only.

resources = Table(
    "otel_cmb_resources", metadata,
    Column("id", String(32), primary_key=True, comment="hex blake2b-128 of body"),
    Column("body", Text, nullable=False, comment="JSON of a resource or a scope"),
)

span_skeletons = Table(
    "otel_cmb_spans", metadata,
    Column("id", String(36), primary_key=True, comment="the event id this unmapped span would have"),
    Column("seen_at", TIMESTAMP, nullable=False),
    Column("body", Text, nullable=False, comment="JSON: ids, times, what neighbours need to know"),
    Index("ix_otel_cmb_spans_seen", "seen_at"),
)

traces = Table(
    "otel_cmb_traces", metadata,
    Column("trace_id", String(32), primary_key=True),
    Column("writer", String(40), nullable=False, comment="who wrote it last: caches elsewhere are stale"),
    Column("start_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger, nullable=False),
    Index("ix_otel_cmb_traces_start", "start_ns"),
)

contents = Table(
    "otel_cmb_contents", metadata,
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("id", String(32), nullable=False, comment="hex blake2b-128 of body"),
    Column("body", Text, nullable=False, comment="JSON of a message"),
    PrimaryKeyConstraint("run_id", "id"),
    sqlite_with_rowid=False,
)

history = Table(
    "otel_cmb_history", metadata,
    Column("run_id", String(36), ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False),
    Column("id", String(32), nullable=False, comment="hash of the link before and of the message"),
    Column("previous", String(32), comment="the link before; NULL at a conversation's beginning"),
    Column("content", String(32), nullable=False, comment="the message, in otel_cmb_contents"),
    PrimaryKeyConstraint("run_id", "id"),
    sqlite_with_rowid=False,
)

waiting = Table(
    "otel_cmb_waiting", metadata,
    Column("parent_id", String(36), nullable=False, comment="an event of another trace, which may not have come yet"),
    Column("child_id", String(36), nullable=False),
    PrimaryKeyConstraint("parent_id", "child_id"),
    sqlite_with_rowid=False,
)

search = Table(
    "otel_cmb_search", metadata,
    Column("key_ns", BigInteger, nullable=False, comment="start of its first span; the others are close"),
    Column("part", BigInteger, nullable=False, comment="random"),
    Column("trace_id", String(32), nullable=False),
    Column("first_ns", BigInteger, nullable=False, comment="first start of its spans"),
    Column("last_ns", BigInteger, nullable=False, comment="last start of its spans"),
    Column("shortest_ns", BigInteger, nullable=False),
    Column("longest_ns", BigInteger, nullable=False),
    Column("tags", LargeBinary, nullable=False, comment="hashes of what its spans can be found by, 3 bytes each"),
    PrimaryKeyConstraint("key_ns", "part"),
    sqlite_with_rowid=False,
)

operations = Table(
    "otel_cmb_operations", metadata,
    Column("service", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("kind", Integer, nullable=False, comment="OTLP's number"),
    Column("last_ns", BigInteger, nullable=False, comment="when it was last seen, to the hour"),
    PrimaryKeyConstraint("service", "name", "kind"),
)

APPLICATION_TABLES = (
    sessions, projects, workflow_runs, workflow_steps, dag_nodes, dag_edges, execution_events, files, messages,
)
