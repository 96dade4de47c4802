"""The owned schema as first released. Undo: `downgrade` drops every table of it, with all that was recorded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STEP, NODE = sa.text("step_id IS NOT NULL"), sa.text("node_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "otel_cmb_resources",
        sa.Column("id", sa.String(32), nullable=False, comment="hex blake2b-128 of body"),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON of a resource or a scope"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "otel_cmb_spans",
        sa.Column("id", sa.String(36), nullable=False, comment="the event id this unmapped span would have"),
        sa.Column("seen_at", sa.TIMESTAMP(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON: ids, times, what neighbours need to know"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_otel_cmb_spans_seen", "otel_cmb_spans", ["seen_at"])
    op.create_table(
        "otel_cmb_traces",
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column("writer", sa.String(40), nullable=False, comment="who wrote it last: caches elsewhere are stale"),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id"),
    )
    op.create_index("ix_otel_cmb_traces_start", "otel_cmb_traces", ["start_ns"])
    op.create_table(
        "otel_cmb_waiting",
        sa.Column("parent_id", sa.String(36), nullable=False, comment="an event of another trace, which may not have come yet"),
        sa.Column("child_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("parent_id", "child_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "otel_cmb_search",
        sa.Column("key_ns", sa.BigInteger(), nullable=False, comment="start of its first span; the others are close"),
        sa.Column("part", sa.BigInteger(), nullable=False, comment="random"),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column("first_ns", sa.BigInteger(), nullable=False, comment="first start of its spans"),
        sa.Column("last_ns", sa.BigInteger(), nullable=False, comment="last start of its spans"),
        sa.Column("shortest_ns", sa.BigInteger(), nullable=False),
        sa.Column("longest_ns", sa.BigInteger(), nullable=False),
        sa.Column("tags", sa.LargeBinary(), nullable=False,
                  comment="hashes of what its spans can be found by, 3 bytes each"),
        sa.PrimaryKeyConstraint("key_ns", "part"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "otel_cmb_operations",
        sa.Column("service", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False, comment="OTLP's number"),
        sa.Column("last_ns", sa.BigInteger(), nullable=False, comment="when it was last seen, to the hour"),
        sa.PrimaryKeyConstraint("service", "name", "kind"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(36)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("status", sa.String(50), nullable=False, server_default="active"),
        sa.Column("meta", sa.JSON()),
        sa.Column("created_at", sa.TIMESTAMP(), nullable=False),
        sa.Column("last_active_at", sa.TIMESTAMP(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_sessions_name", "sessions", ["name"])
    op.create_table(
        "projects",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("created_at", sa.TIMESTAMP(), nullable=False),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
    )
    op.create_index("ix_projects_session", "projects", ["session_id"])
    op.create_table(
        "workflow_runs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(36)),
        sa.Column("mode", sa.String(50), nullable=False),
        sa.Column("agent", sa.String(100), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("status", sa.String(50), nullable=False, server_default="draft"),
        sa.Column("started_at", sa.TIMESTAMP()),
        sa.Column("completed_at", sa.TIMESTAMP()),
        sa.Column("task_description", sa.Text()),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
    )
    op.create_index("idx_workflow_runs_agent_status", "workflow_runs", ["agent", "status"])
    op.create_index("idx_workflow_runs_session_status", "workflow_runs", ["session_id", "status"])
    op.create_index("ix_workflow_runs_started", "workflow_runs", ["started_at", "id"])
    op.create_table(
        "otel_cmb_contents",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("id", sa.String(32), nullable=False, comment="hex blake2b-128 of body"),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON of a message"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "otel_cmb_history",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("id", sa.String(32), nullable=False, comment="hash of the link before and of the message"),
        sa.Column("previous", sa.String(32), comment="the link before; NULL at a conversation's beginning"),
        sa.Column("content", sa.String(32), nullable=False, comment="the message, in otel_cmb_contents"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dag_nodes",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("parent_node_id", sa.String(255)),
        sa.Column("node_type", sa.String(50), nullable=False),
        sa.Column("agent", sa.String(100)),
        sa.Column("status", sa.String(50), nullable=False, server_default="pending"),
        sa.Column("order_index", sa.Integer(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("run_id", "id"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "parent_node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
    )
    op.create_index("idx_dag_nodes_run_order", "dag_nodes", ["run_id", "order_index"])
    op.create_index("idx_dag_nodes_type_status", "dag_nodes", ["node_type", "status"])
    op.create_index("ix_dag_nodes_id", "dag_nodes", ["id"])
    op.create_table(
        "workflow_steps",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("step_number", sa.Integer(), nullable=False),
        sa.Column("goal", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text()),
        sa.Column("status", sa.String(50), nullable=False, server_default="pending"),
        sa.Column("started_at", sa.TIMESTAMP()),
        sa.Column("completed_at", sa.TIMESTAMP()),
        sa.Column("progress_percentage", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("inputs", sa.JSON()),
        sa.Column("outputs", sa.JSON()),
        sa.Column("error_message", sa.Text()),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
    )
    op.create_index("idx_workflow_steps_run_number", "workflow_steps", ["run_id", "step_number"])
    op.create_table(
        "dag_edges",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("from_node_id", sa.String(255), nullable=False),
        sa.Column("to_node_id", sa.String(255), nullable=False),
        sa.Column("dependency_type", sa.String(50), nullable=False, server_default="sequential"),
        sa.Column("condition", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "from_node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "to_node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
    )
    op.create_index("idx_dag_edges_run_from", "dag_edges", ["run_id", "from_node_id"])
    op.create_index("idx_dag_edges_run_to", "dag_edges", ["run_id", "to_node_id"])
    op.create_table(
        "execution_events",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("node_id", sa.String(255)),
        sa.Column("step_id", sa.String(36)),
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("parent_event_id", sa.String(36)),
        sa.Column("event_type", sa.String(50), nullable=False),
        sa.Column("event_subtype", sa.String(50)),
        sa.Column("agent_name", sa.String(100)),
        sa.Column("agent_role", sa.String(50)),
        sa.Column("timestamp", sa.TIMESTAMP(), nullable=False),
        sa.Column("started_at", sa.TIMESTAMP()),
        sa.Column("completed_at", sa.TIMESTAMP()),
        sa.Column("duration_ms", sa.Integer()),
        sa.Column("inputs", sa.JSON()),
        sa.Column("outputs", sa.JSON()),
        sa.Column("error_message", sa.Text()),
        sa.Column("meta", sa.JSON()),
        sa.Column("execution_order", sa.Integer(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("status", sa.String(50), nullable=False, server_default="completed"),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["parent_event_id"], ["execution_events.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["step_id"], ["workflow_steps.id"], ondelete="SET NULL"),
    )
    op.create_index("idx_events_node_order", "execution_events", ["node_id", "execution_order"],
                    sqlite_where=NODE, postgresql_where=NODE)
    op.create_index("idx_events_parent", "execution_events", ["parent_event_id"])
    op.create_index("idx_events_run_order", "execution_events", ["run_id", "execution_order"])
    op.create_index("idx_events_session_timestamp", "execution_events", ["session_id", "timestamp"])
    op.create_index("idx_events_type_subtype", "execution_events", ["event_type", "event_subtype"])
    op.create_index("ix_events_step", "execution_events", ["step_id"], sqlite_where=STEP, postgresql_where=STEP)
    op.create_table(
        "files",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("step_id", sa.String(36)),
        sa.Column("event_id", sa.String(36)),
        sa.Column("node_id", sa.String(255)),
        sa.Column("file_path", sa.String(1000), nullable=False),
        sa.Column("file_type", sa.String(50), nullable=False),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("created_at", sa.TIMESTAMP(), nullable=False),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["event_id"], ["execution_events.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["step_id"], ["workflow_steps.id"], ondelete="SET NULL"),
    )
    op.create_index("idx_files_event", "files", ["event_id"])
    op.create_index("idx_files_run_type", "files", ["run_id", "file_type"])
    op.create_index("ix_files_step", "files", ["step_id"], sqlite_where=STEP, postgresql_where=STEP)
    op.create_table(
        "messages",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("step_id", sa.String(36)),
        sa.Column("event_id", sa.String(36)),
        sa.Column("node_id", sa.String(255)),
        sa.Column("sender", sa.String(100), nullable=False),
        sa.Column("recipient", sa.String(100)),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.TIMESTAMP(), nullable=False),
        sa.Column("tokens", sa.Integer()),
        sa.Column("meta", sa.JSON()),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["event_id"], ["execution_events.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["workflow_runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id", "node_id"], ["dag_nodes.run_id", "dag_nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["step_id"], ["workflow_steps.id"], ondelete="SET NULL"),
    )
    op.create_index("idx_messages_event", "messages", ["event_id"])
    op.create_index("idx_messages_run_timestamp", "messages", ["run_id", "timestamp"])
    op.create_index("ix_messages_step", "messages", ["step_id"], sqlite_where=STEP, postgresql_where=STEP)


def downgrade() -> None:
    op.drop_table("messages")
    op.drop_table("files")
    op.drop_table("execution_events")
    op.drop_table("dag_edges")
    op.drop_table("workflow_steps")
    op.drop_table("dag_nodes")
    op.drop_table("otel_cmb_history")
    op.drop_table("otel_cmb_contents")
    op.drop_table("workflow_runs")
    op.drop_table("projects")
    op.drop_table("sessions")
    op.drop_table("otel_cmb_operations")
    op.drop_table("otel_cmb_search")
    op.drop_table("otel_cmb_waiting")
    op.drop_table("otel_cmb_traces")
    op.drop_table("otel_cmb_spans")
    op.drop_table("otel_cmb_resources")
