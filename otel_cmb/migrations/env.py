"""Run by Alembic inside :func:`otel_cmb.migrations.upgrade`, on its connection and in its transaction."""

from __future__ import annotations

from alembic import context

from otel_cmb.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
