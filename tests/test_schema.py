"""The migrations give exactly the tables of `otel_cmb.schema`, on both dialects, and can be undone."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from otel_cmb import config, dialects, engines, faults, migrations, schema, transactions


@pytest.fixture
def migrated(database_url):
    """Through every migration."""
    engine = engines.make_engine(config.load(database_url=database_url))
    with engine.connect() as connection:
        transactions.begin_write(connection)
        migrations._run_alembic(connection)
        connection.commit()
    yield engine
    engine.dispose()


def test_head_is_the_newest_revision():
    options = Config()
    options.set_main_option("script_location", "otel_cmb:migrations")
    script = ScriptDirectory.from_config(options)
    assert script.get_heads() == [migrations.HEAD]
    assert tuple(revision.revision for revision in reversed(list(script.walk_revisions()))) == migrations.KNOWN


def test_migrations_give_the_tables_of_the_module(migrated):
    with migrated.connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []


def describe(engine):
    """Everything the database knows of the tables, keys and indexes."""
    inspector = sa.inspect(engine)

    def items(found):
        return sorted(re.sub(r"<[^>]*>", "", repr(sorted(item.items(), key=str))) for item in found)

    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"], column["default"], column.get("comment"))
             for column in inspector.get_columns(name)],
            inspector.get_pk_constraint(name)["constrained_columns"],
            items(inspector.get_foreign_keys(name)), items(inspector.get_indexes(name)),
        )
        for name in inspector.get_table_names()
    }


def test_migrated_and_made_at_once_are_the_same(migrated, tmp_path, postgresql_server):
    """A new database is made without Alembic; one made by Alembic, now or a release ago, must be no other."""
    with contextlib.ExitStack() as stack:
        if migrated.dialect.name == "sqlite":
            url = f"sqlite:///{tmp_path}/made.db"
        else:
            url = stack.enter_context(postgresql_server.database())
        settings = config.load(database_url=url)
        made = engines.make_engine(settings)
        stack.callback(made.dispose)
        assert migrations.upgrade(made, settings) == migrations.HEAD
        assert describe(made) == describe(migrated)
        versions = f"SELECT version_num FROM {schema.VERSION_TABLE}"
        with made.connect() as new, migrated.connect() as old:
            assert new.exec_driver_sql(versions).all() == old.exec_driver_sql(versions).all() == [(migrations.HEAD,)]
            if migrated.dialect.name == "sqlite":
                indexes = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
                assert new.exec_driver_sql(indexes).all() == old.exec_driver_sql(indexes).all()


def test_a_new_database_needs_no_alembic(tmp_path):
    """It is ten megabytes in every program that writes to a new file."""
    program = f"""
import sys
from otel_cmb import config, engines, migrations
settings = config.load(database_url="sqlite:///{tmp_path}/new.db")
assert migrations.upgrade(engines.make_engine(settings), settings) == migrations.HEAD
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_undo_leaves_nothing(migrated):
    options = Config()
    options.set_main_option("script_location", "otel_cmb:migrations")
    with migrated.connect() as connection:
        transactions.begin_write(connection)
        options.attributes["connection"] = connection
        command.downgrade(options, "base")
        connection.commit()
        assert set(sa.inspect(connection).get_table_names()) == {schema.VERSION_TABLE}


def test_foreign_keys_are_enforced(migrated):
    with migrated.connect() as connection:
        transactions.begin_write(connection)
        row = ("e", "no-such-run", "no-such-session", "agent_call", "2026-01-01 00:00:00", 1)
        columns = ["id", "run_id", "session_id", "event_type", "timestamp", "execution_order"]
        sql = dialects.insert_sql(connection.dialect.name, '"execution_events"', columns)
        with pytest.raises(sa.exc.IntegrityError) as caught:
            connection.exec_driver_sql(sql, row)
        assert faults.classify(caught.value).fault is faults.Fault.POISON


@pytest.mark.parametrize(("statement", "index"), [
    ("UPDATE execution_events SET step_id = NULL WHERE step_id = ?", "ix_events_step"),
    ("UPDATE files SET step_id = NULL WHERE step_id = ?", "ix_files_step"),
    ("SELECT * FROM execution_events WHERE node_id = ? ORDER BY execution_order LIMIT 200", "idx_events_node_order"),
    ("SELECT * FROM execution_events WHERE node_id IN (?)", "idx_events_node_order"),
])
def test_the_rows_of_a_step_or_node_are_found_by_index(tmp_path, statement, index):
    """Deleting a run deletes its steps, and each looks for its rows: without an index that is a scan of all events. The
    indexes hold only rows that have a step or node, which the database must see from the condition."""
    settings = config.load(database_url=f"sqlite:///{tmp_path}/events.db")
    engine = engines.make_engine(settings)
    migrations.upgrade(engine, settings)
    engine.dispose()
    connection = sqlite3.connect(tmp_path / "events.db")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", ("x",))]
    assert any(index in step for step in plan) and not any("TEMP B-TREE" in step for step in plan)
    connection.close()
